# SPDX-License-Identifier: Apache-2.0
"""Tests of the warm-up classifier."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn


@pytest.fixture
def classifier(tiny_cfg: CfgNode) -> nn.Module:
    cfg = tiny_cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "CropClassifier"
    return build_model(cfg)


def crops(labels: list[int]) -> list[dict[str, object]]:
    """Uniform crops whose brightness is their label."""
    return [
        {"image": torch.full((3, 32, 32), 60 * label + 10, dtype=torch.uint8), "label": label, "file_name": "a.png"}
        for label in labels
    ]


def test_it_has_the_training_classes_and_loads_as_a_backbone(classifier: nn.Module, tiny_model: nn.Module) -> None:
    own, full = set(classifier.state_dict()), set(tiny_model.state_dict())
    assert {name for name in own if name not in full} == {"classifier.weight", "classifier.bias"}
    assert {name for name in full if name.startswith("backbone.")} <= own
    assert classifier.classifier.weight.shape == (4, 16)


def test_a_few_steps_learn_to_tell_crops_apart(classifier: nn.Module) -> None:
    batch = crops([0, 1, 2, 3] * 2)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        (loss,) = classifier(batch).values()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad is not None for parameter in classifier.parameters())


def test_evaluation_returns_logits_per_crop(classifier: nn.Module) -> None:
    classifier.eval()
    batch = [{"image": sample["image"]} for sample in crops([0, 3])]
    outputs = classifier(batch)
    assert [tuple(output["label_logits"].shape) for output in outputs] == [(4,), (4,)]
    torch.testing.assert_close(outputs[1]["label_logits"], classifier(batch[1:])[0]["label_logits"])


def test_bad_samples_are_named(classifier: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"crop of a.png has label 4; expected 0 to 3"):
        classifier(crops([0, 4]))
    with pytest.raises(KeyError, match=r"a.png has no 'label', which CropClassifier trains on"):
        classifier([{"image": torch.zeros(3, 8, 8), "file_name": "a.png"}])
