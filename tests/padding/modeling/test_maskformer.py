# SPDX-License-Identifier: Apache-2.0
"""Tests of the whole network: losses, predictions at original sizes, label spaces, determinism, errors."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch import nn

from padding.data.config import add_input_config
from padding.data.mappers import build_mapper
from padding.modeling.inference import instance_inference, panoptic_inference, semantic_inference
from padding.modeling.postprocessing import InferenceOptions, predict_image
from tests.meta_arch_contract import MaskClassificationContract

MakeSample = Callable[..., dict[str, Any]]


def eval_samples(make_sample: MakeSample) -> list[dict[str, Any]]:
    samples = [make_sample([0], (64, 96), 1), make_sample([0], (50, 40), 2)]
    for sample, (height, width) in zip(samples, [(33, 47), (100, 80)], strict=True):
        del sample["instances"]
        sample |= {"height": height, "width": width}
    return samples


class TestContract(MaskClassificationContract):
    @pytest.fixture
    def cfg(self, tiny_cfg: CfgNode) -> CfgNode:
        return tiny_cfg

    @pytest.fixture
    def train_batch(self, make_sample: MakeSample) -> list[dict[str, Any]]:
        return [make_sample([0, 3, 2], image_id=1), make_sample([1], (40, 50), image_id=2)]


def test_every_layer_has_its_losses(tiny_model: nn.Module, make_sample: MakeSample) -> None:
    losses = tiny_model([make_sample([0, 3, 2], image_id=1), make_sample([1], (40, 50), image_id=2)])
    assert set(losses) == {f"loss_{term}{s}" for term in ("ce", "mask", "dice") for s in ("", "_0", "_1")}


@pytest.mark.parametrize("emptied", [False, True])
def test_batch_without_segments_trains(tiny_model: nn.Module, make_sample: MakeSample, emptied: bool) -> None:
    sample = make_sample([1] if emptied else [])
    sample["instances"].gt_masks = torch.zeros_like(sample["instances"].gt_masks)
    losses = tiny_model([sample])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    for name, parameter in tiny_model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_without_deep_supervision_only_the_last_prediction_counts(tiny_cfg: CfgNode, make_sample: MakeSample) -> None:
    tiny_cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION = False
    assert set(build_model(tiny_cfg)([make_sample([0])])) == {"loss_ce", "loss_mask", "loss_dice"}


def test_points_seeded_by_image_make_losses_repeatable(tiny_cfg: CfgNode, make_sample: MakeSample) -> None:
    samples = [make_sample([0, 1], image_id=5)]
    values = {}
    for seeded in (False, True):
        tiny_cfg.MODEL.MASK_FORMER.SEED_POINTS_BY_IMAGE = seeded
        model = build_model(tiny_cfg)
        values[seeded] = [model(samples)["loss_mask"].item() for _ in range(2)]
    assert values[False][0] != values[False][1]
    assert values[True][0] == values[True][1]


def test_predictions_have_the_contracted_form(tiny_model: nn.Module, make_sample: MakeSample) -> None:
    tiny_model.eval()
    predictions = tiny_model(eval_samples(make_sample))
    for prediction, size in zip(predictions, [(33, 47), (100, 80)], strict=True):
        assert prediction["sem_seg"].shape == (6, *size)
        ids, segments = prediction["panoptic_seg"]
        assert ids.shape == size
        assert ids.dtype == torch.int32
        assert {s["id"] for s in segments} >= set(ids.unique().tolist()) - {0}
        assert prediction["instances"].image_size == size
        assert prediction["instances"].pred_masks.shape[1:] == size
        assert not prediction["sem_seg"].requires_grad


def test_unseen_classes_are_never_predicted_by_the_supervised_network(
    tiny_model: nn.Module, make_sample: MakeSample
) -> None:
    tiny_model.eval()
    for prediction in tiny_model(eval_samples(make_sample)):
        assert not prediction["sem_seg"][[1, 4]].any()  # "gem" and "lake"
        assert prediction["sem_seg"][[0, 2, 3, 5]].flatten(1).any(dim=1).all()
        assert set(prediction["instances"].pred_classes.tolist()) <= {0, 2}
        assert all(s["category_id"] in (0, 2, 3, 5) for s in prediction["panoptic_seg"][1])


def test_restricted_network_predicts_the_listed_classes_only(tiny_model: nn.Module, make_sample: MakeSample) -> None:
    tiny_model.eval()
    samples = eval_samples(make_sample)
    before = tiny_model(samples)[0]["sem_seg"]
    tiny_model.restrict_to([1])
    only = tiny_model(samples)[0]["sem_seg"]
    torch.testing.assert_close(only[1], before[1])
    assert not only[0].any()
    assert not only[2:].any()
    tiny_model.restrict_to(None)
    torch.testing.assert_close(tiny_model(samples)[0]["sem_seg"], before)
    for wrong in ([], [tiny_model.num_test_classes], [-1]):
        with pytest.raises(ValueError, match="expected at least one, all in"):
            tiny_model.restrict_to(wrong)


def test_evaluation_is_deterministic_and_size_defaults_to_the_image(
    tiny_model: nn.Module, make_sample: MakeSample
) -> None:
    tiny_model.eval()
    sample = {"image": make_sample([0], (40, 50))["image"]}
    first, second = (tiny_model([sample])[0]["sem_seg"] for _ in range(2))
    assert first.shape == (6, 40, 50)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_only_what_is_switched_on_is_returned(tiny_model: nn.Module, make_sample: MakeSample) -> None:
    tiny_model.eval()
    samples = eval_samples(make_sample)[:1]
    whole = tiny_model(samples)[0]
    options = tiny_model.inference
    tiny_model.inference = dataclasses.replace(options, semantic_on=False)
    part = tiny_model(samples)[0]
    assert set(part) == {"panoptic_seg", "instances"}
    torch.testing.assert_close(part["panoptic_seg"][0], whole["panoptic_seg"][0])  # from few masks, not from all
    torch.testing.assert_close(part["instances"].pred_masks, whole["instances"].pred_masks)
    tiny_model.inference = dataclasses.replace(options, panoptic_on=False, instance_on=False)
    assert set(tiny_model(samples)[0]) == {"sem_seg"}


@pytest.mark.parametrize("resize_first", [False, True])
def test_image_prediction_equals_the_published_order_of_steps(resize_first: bool) -> None:
    logits, masks = 3 * torch.randn(12, 5), 3 * torch.randn(12, 8, 6)
    sizes: dict[str, Any] = {"padded_size": (32, 24), "image_size": (29, 20), "output_size": (43, 31)}
    options = InferenceOptions(True, resize_first, resize_first, 0.3, 0.1, 20, resize_first)
    found = predict_image(logits, masks, options=options, thing_ids=frozenset({0, 1}), **sizes)

    padded = torch.nn.functional.interpolate(masks[None], size=(32, 24), mode="bilinear", align_corners=False)[0]
    original = sem_seg_postprocess(padded, (29, 20), 43, 31)
    late = sem_seg_postprocess(semantic_inference(logits, padded), (29, 20), 43, 31)
    torch.testing.assert_close(found["sem_seg"], semantic_inference(logits, original) if resize_first else late)
    if resize_first:
        thresholds = {"object_mask_threshold": 0.3, "overlap_threshold": 0.1}
        ids, segments = panoptic_inference(logits, original, thing_ids=frozenset({0, 1}), **thresholds)
        torch.testing.assert_close(found["panoptic_seg"][0], ids)
        assert found["panoptic_seg"][1] == segments
        instances = instance_inference(logits, original, top_k=20, keep_ids=frozenset({0, 1}))
        torch.testing.assert_close(found["instances"].pred_masks, instances.pred_masks)
        torch.testing.assert_close(found["instances"].scores, instances.scores)


def test_semantic_only_config_resizes_after_the_sum(tiny_cfg: CfgNode) -> None:
    test = tiny_cfg.MODEL.MASK_FORMER.TEST
    assert build_model(tiny_cfg).inference.resize_first
    test.PANOPTIC_ON = test.INSTANCE_ON = False
    assert not build_model(tiny_cfg).inference.resize_first
    test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = True
    assert build_model(tiny_cfg).inference.resize_first


def test_state_has_no_input_constants(tiny_model: nn.Module) -> None:
    state = tiny_model.state_dict()
    assert not any("pixel_mean" in name or "pixel_std" in name for name in state)
    assert {name.split(".")[0] for name in state} == {"backbone", "sem_seg_head", "criterion"}
    assert "criterion.empty_weight" in state


def test_test_set_decides_the_label_space(tiny_cfg: CfgNode) -> None:
    model = build_model(tiny_cfg)
    assert (model.class_ids, model.num_test_classes, model.thing_ids) == ((0, 2, 3, 5), 6, frozenset({0, 1, 2}))
    tiny_cfg.DATASETS.TEST = ()
    model = build_model(tiny_cfg)
    assert (model.class_ids, model.num_test_classes, model.thing_ids) == ((0, 1, 2, 3), 4, frozenset({0, 1}))


def test_negative_divisibility_asks_the_backbone(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY = -1
    model = build_model(tiny_cfg)
    assert model.size_divisibility == model.backbone.size_divisibility


def test_label_space_errors_say_what_to_set(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 6
    with pytest.raises(ValueError, match=r"NUM_CLASSES is 6, but .* has 4 classes; set .* to 4"):
        build_model(tiny_cfg)
    tiny_cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match=r"DATASETS.TRAIN is empty"):
        build_model(tiny_cfg)
    tiny_cfg.DATASETS.TRAIN = (*tiny_cfg.DATASETS.TEST, "tiny_network_train")
    with pytest.raises(ValueError, match="mixes label spaces"):
        build_model(tiny_cfg)
    tiny_cfg.DATASETS.TRAIN = ("nobody_registered_this",)
    with pytest.raises(ValueError, match=r"'nobody_registered_this' is not registered"):
        build_model(tiny_cfg)


def test_set_registered_by_detectron2_describes_itself(tiny_cfg: CfgNode) -> None:
    """A set with ``stuff_classes`` alone: model and mapper agree on its classes."""
    name = "tiny_detectron2_stuff"
    DatasetCatalog.register(name, list)
    try:
        MetadataCatalog.get(name).set(stuff_classes=["wall", "sky", "sea"], ignore_label=255)
        tiny_cfg.DATASETS.TRAIN = tiny_cfg.DATASETS.TEST = (name,)
        tiny_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
        model = build_model(tiny_cfg)
        assert (model.class_ids, model.num_test_classes, model.thing_ids) == ((0, 1, 2), 3, frozenset())
        add_input_config(tiny_cfg)
        tiny_cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
        assert build_mapper(tiny_cfg, is_train=True).num_classes == 3
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_training_sample_errors_name_the_sample(tiny_model: nn.Module, make_sample: MakeSample) -> None:
    sample = make_sample([0])
    del sample["instances"]
    with pytest.raises(KeyError, match=r"000000000001.png \(id 1\) has no 'instances', which MaskFormer trains on"):
        tiny_model([sample])
    with pytest.raises(ValueError, match=r"000000000001.png \(id 1\) has classes from 0 to 4"):
        tiny_model([make_sample([0, 4])])


def test_divergence_names_the_image(tiny_model: nn.Module, make_sample: MakeSample) -> None:
    with torch.no_grad():
        tiny_model.sem_seg_head.predictor.class_embed.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"000000000009.png \(id 9\)"):
        tiny_model([make_sample([0], image_id=9)])


def test_half_precision_step(tiny_model: nn.Module, make_sample: MakeSample) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = tiny_model([make_sample([0, 2])])
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()


@pytest.mark.gpu
def test_gpu_step_and_prediction(tiny_cfg: CfgNode, make_sample: MakeSample) -> None:
    tiny_cfg.MODEL.DEVICE = "cuda"
    model = build_model(tiny_cfg)
    sum(model([make_sample([0, 3]), make_sample([])]).values()).backward()
    model.eval()
    assert model(eval_samples(make_sample))[0]["sem_seg"].is_cuda
