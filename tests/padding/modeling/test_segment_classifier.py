# SPDX-License-Identifier: Apache-2.0
"""Tests of the warm-up by naming segments."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor, nn

from padding.modeling.segment_classifier import pool_segments


@pytest.fixture
def classifier(tiny_cfg: CfgNode) -> nn.Module:
    cfg = tiny_cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "SegmentClassifier"
    return build_model(cfg)


def halves(left: int, right: int) -> dict[str, Any]:
    """Image of two uniform halves whose brightness is their class."""
    image = torch.full((3, 64, 64), 60 * left + 10, dtype=torch.uint8)
    image[:, :, 32:] = 60 * right + 10
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :, :32], masks[1, :, 32:] = True, True
    instances = Instances((64, 64), gt_classes=torch.tensor([left, right]), gt_masks=masks)
    return {"image": image, "instances": instances, "file_name": "a.png", "image_id": 1}


def slow_pool(features: Tensor, masks: Tensor) -> Tensor:
    """Mean over pixels of the feature of the cell each pixel lies in."""
    cell_h, cell_w = (masks.shape[1 + i] // features.shape[1 + i] for i in range(2))
    big = features.repeat_interleave(cell_h, 1).repeat_interleave(cell_w, 2)
    return torch.stack([big[:, mask].mean(1) for mask in masks])


def test_pooling_equals_the_mean_over_pixels() -> None:
    features = torch.randn(5, 4, 6)
    masks = torch.rand(7, 16, 24) < 0.3
    masks[0] = False
    masks[0, 3, 5] = True  # smaller than a cell
    torch.testing.assert_close(pool_segments(features, masks), slow_pool(features, masks))


def test_no_segments_pool_to_no_rows() -> None:
    assert pool_segments(torch.randn(5, 4, 4), torch.zeros(0, 16, 16, dtype=torch.bool)).shape == (0, 5)


def test_it_shares_the_backbone_with_the_segmentor(classifier: nn.Module, tiny_model: nn.Module) -> None:
    own, full = set(classifier.state_dict()), set(tiny_model.state_dict())
    assert all(name.startswith("classifiers.") for name in own - full)
    assert {name for name in full if name.startswith("backbone.")} <= own


def test_a_few_steps_learn_to_tell_segments_apart(classifier: nn.Module) -> None:
    batch = [halves(0, 1), halves(2, 3), halves(3, 0), halves(1, 2)]
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-2)
    totals = []
    for _ in range(15):
        losses = classifier(batch)
        assert set(losses) == {f"loss_cls_res{i}" for i in (2, 3, 4, 5)}
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.5 * totals[0]
    assert all(parameter.grad is not None for parameter in classifier.parameters())


def test_evaluation_returns_logits_per_segment(classifier: nn.Module) -> None:
    classifier.eval()
    batch = [halves(0, 1), halves(2, 3)]
    outputs = classifier(batch)
    assert [tuple(output["label_logits"].shape) for output in outputs] == [(2, 4), (2, 4)]
    torch.testing.assert_close(outputs[1]["label_logits"], classifier(batch[1:])[0]["label_logits"])


def test_batch_without_segments_has_zero_loss_and_a_gradient(classifier: nn.Module) -> None:
    sample = halves(0, 1)
    sample["instances"] = sample["instances"][:0]
    losses = classifier([sample])
    sum(losses.values()).backward()
    assert all(loss.item() == 0 for loss in losses.values())
    assert all(parameter.grad is not None for parameter in classifier.parameters())


def test_bad_samples_are_named(classifier: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"a\.png.*4"):
        classifier([halves(0, 4)])
    with pytest.raises(KeyError, match=r"a.png has no 'instances', which SegmentClassifier trains on"):
        classifier([{"image": torch.zeros(3, 8, 8), "file_name": "a.png"}])
