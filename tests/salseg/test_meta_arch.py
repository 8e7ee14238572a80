# SPDX-License-Identifier: Apache-2.0
"""SalSeg as a model: the contract of all methods, every switch, what reaches which part, what evaluation returns."""

import copy
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from padding.data.catalog import register_all
from salseg.meta_arch import SalSeg
from tests.meta_arch_contract import MetaArchContract
from tests.tiny_salseg import random_samples, tiny_salseg_cfg

NODE = "MODEL.SALSEG."
SALIENCY = NODE + "SALIENCY."
DENSENET = (
    *("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "densenet121"),
    *("MODEL.TIMM.OUTPUT_STRIDE", 16, "MODEL.TIMM.OUT_FEATURES", ["res2", "res5"]),
)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    register_all()


def build(*opts: Any) -> SalSeg:
    torch.manual_seed(0)
    model = build_model(tiny_salseg_cfg(*opts))
    assert isinstance(model, SalSeg)
    return model


def losses(model: nn.Module, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    with EventStorage(0):
        return model.train()(samples)


def with_gradient(model: nn.Module) -> set[str]:
    """First two words of the names of parameters that have a gradient."""
    return {".".join(name.split(".")[:2]) for name, p in model.named_parameters() if p.grad is not None}


def statistics(model: nn.Module, *parts: str) -> dict[str, torch.Tensor]:
    state = model.state_dict().items()
    return {k: v.clone() for k, v in state if "running" in k and k.startswith(parts)}


class TestContract(MetaArchContract):
    @pytest.fixture
    def cfg(self) -> CfgNode:
        return tiny_salseg_cfg()

    @pytest.fixture
    def train_batch(self) -> list[dict[str, Any]]:
        return random_samples()


def test_losses_and_what_the_log_shows() -> None:
    model = build()
    with EventStorage(4) as storage:
        found = model.train()(random_samples())
        logged = {name: value[0] for name, value in storage.latest().items()}
    assert sorted(found) == ["loss_saliency", "loss_seg", "loss_uncertainty"]
    assert logged["salseg/seg"] == pytest.approx(found["loss_seg"].item())  # weights are 1 at the start
    assert logged["salseg/saliency"] == pytest.approx(found["loss_saliency"].item())
    assert logged["salseg/weight_seg"] == logged["salseg/weight_saliency"] == 1
    assert logged["salseg/log_variance_seg"] == 0


@pytest.mark.parametrize(
    "opts",
    [
        (SALIENCY + "READING", "logit"),
        (SALIENCY + "READING", "sigmoid"),
        (SALIENCY + "READING", "softmax_no_background"),
        (SALIENCY + "CHANNELS", 3),
        (SALIENCY + "SHARE_DECODER", True),
        (SALIENCY + "SHARE_DECODER", True, SALIENCY + "BN_STATS", "per_task"),
        (SALIENCY + "BN_STATS", "shared"),
        (NODE + "WEIGHTING", "liebel"),
        (NODE + "WEIGHTING", "fixed"),
        (NODE + "WEIGHTING", "uniform"),
        (NODE + "ASPP.DSC", False),
        (NODE + "ASPP.ENABLED", False),
        (NODE + "NORM", "GN", NODE + "ASPP.POOL_NORM", "GN"),
        (NODE + "IN_FEATURES", ("res3", "res5")),
        DENSENET,
    ],
    ids=lambda opts: "-".join(str(word).removeprefix(NODE) for word in opts[:2]),
)
def test_every_switch_trains_all_parameters(opts: tuple[Any, ...]) -> None:
    model = build(*opts)
    found = losses(model, random_samples(2, 2, 1))
    assert all(torch.isfinite(loss) for loss in found.values()), found
    sum(found.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    prediction = model.eval()([{"image": torch.zeros(3, 40, 70, dtype=torch.uint8)}])[0]
    assert prediction["saliency"].shape == (40, 70)
    assert ((prediction["saliency"] >= 0) & (prediction["saliency"] <= 1)).all()


def test_absent_task_reaches_neither_its_decoder_nor_its_variance() -> None:
    model = build()
    shared = {"backbone.stem", "backbone.res2", "backbone.res3", "backbone.res4", "backbone.res5", "pyramid.convs"}
    shared |= {"pyramid.project"}
    for samples, own in (
        (random_samples(2, 0), {"decoder.project", "decoder.fuse", "decoder.predictor"}),
        (random_samples(0, 2), {"branch.weigh", "branch.decoder"}),
    ):
        model.zero_grad()
        sum(losses(model, samples).values()).backward()
        parts = {name for name in with_gradient(model) if not name.startswith("weighting")}
        assert parts == shared | own
        seg, saliency = (model.weighting.log_variances[task].grad for task in ("seg", "saliency"))
        assert (seg is None) is (own == {"branch.weigh", "branch.decoder"})
        assert (saliency is None) is not (seg is None)


def test_losses_of_several_passes_are_means_over_all_pixels() -> None:
    """Two images with classes, two with both labels: two passes, one mean (batch norm would see other batches)."""
    model = build(NODE + "NORM", "GN", "MODEL.SMALL_RESNET.NORM", "FrozenBN")
    samples = random_samples(2, 0, 2)
    both = losses(model, samples)
    classes = [{k: v for k, v in s.items() if not k.startswith("saliency")} for s in samples]
    salient = [{k: v for k, v in s.items() if k != "sem_seg"} for s in samples[2:]]
    assert both["loss_seg"].item() == pytest.approx(losses(model, classes)["loss_seg"].item(), rel=1e-5)
    assert both["loss_saliency"].item() == pytest.approx(losses(model, salient)["loss_saliency"].item(), rel=1e-5)


def test_images_of_different_size_are_padded_with_void() -> None:
    model = build(NODE + "NORM", "GN", "MODEL.SMALL_RESNET.NORM", "FrozenBN")
    small = random_samples(0, 1, size=64)
    found = losses(model, [*small, *random_samples(0, 1, size=96, seed=1)])
    assert torch.isfinite(found["loss_saliency"])
    known = sum(int(s["saliency_valid"].sum()) for s in (*small, *random_samples(0, 1, size=96, seed=1)))
    part = model._group_losses(model._groups([*small, *random_samples(0, 1, size=96, seed=1)])[0])["saliency"]
    assert part.weight.item() == known


@pytest.mark.parametrize("policy", ["seg_only", "per_task"])
def test_saliency_passes_leave_the_statistics_of_segmentation_alone(policy: str) -> None:
    model = build(SALIENCY + "BN_STATS", policy)
    before = statistics(model, "backbone", "pyramid")
    losses(model, random_samples(0, 2))
    assert all(torch.equal(value, before[name]) for name, value in statistics(model, "backbone", "pyramid").items())
    assert not torch.equal(
        *(s["branch.decoder.project.norm.running_mean"] for s in (build().state_dict(), model.state_dict()))
    )
    losses(model, random_samples(2, 0))
    after = statistics(model, "backbone", "pyramid")
    assert all(not torch.equal(value, before[name]) for name, value in after.items())


def test_saliency_is_predicted_with_statistics_of_its_own() -> None:
    model = build(SALIENCY + "BN_STATS", "per_task", SALIENCY + "READING", "logit")
    nn.init.normal_(model.branch.decoder.predictor.weight)  # type: ignore[union-attr]
    image = [{"image": random_samples(0, 1)[0]["image"]}]
    with torch.no_grad():
        before = model.eval()(image)[0]
        losses(model, random_samples(0, 2, seed=5))
        after = model.eval()(image)[0]
    assert torch.equal(before["sem_seg"], after["sem_seg"])
    assert not torch.allclose(before["saliency"], after["saliency"])


@pytest.mark.parametrize("opts", [(SALIENCY + "ENABLED", False), (NODE + "WEIGHTING", "seg_only")], ids=["off", "seg"])
def test_without_saliency_the_segmentation_is_bit_identical(opts: tuple[Any, ...]) -> None:
    full, alone = build(), build(*opts)
    assert alone.branch is None
    assert not list(alone.weighting.parameters())
    state = full.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in alone.state_dict().items())  # equal from one seed
    image = [{"image": random_samples(1, 0)[0]["image"], "height": 50, "width": 70}]
    with torch.no_grad():
        one, other = full.eval()(image)[0], alone.eval()(image)[0]
    assert torch.equal(one["sem_seg"], other["sem_seg"])
    assert set(one) == {"sem_seg", "saliency"}
    assert set(other) == {"sem_seg"}
    found = losses(alone, random_samples(2, 0, 1))  # a joint image still teaches its classes
    assert set(found) == {"loss_seg"}


def test_saliency_can_be_left_out_of_the_prediction() -> None:
    model = build(NODE + "TEST.SALIENCY", False)
    assert set(model.eval()([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}])[0]) == {"sem_seg"}


def test_saliency_alone_moves_everything_but_the_segmentation_decoder() -> None:
    model = build(NODE + "WEIGHTING", "saliency_only")
    assert not any(p.requires_grad for p in model.decoder.parameters())
    before = statistics(model, "backbone")
    found = losses(model, random_samples(0, 2))
    assert set(found) == {"loss_saliency"}
    sum(found.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not all(torch.equal(value, before[name]) for name, value in statistics(model, "backbone").items())


def test_class_weights_weigh_the_segmentation_alone() -> None:
    model = build()
    samples = random_samples()
    before = losses(copy.deepcopy(model), samples)
    model.set_class_weights(torch.linspace(1.42, 50.5, 17))
    after = losses(model, samples)
    assert after["loss_seg"].item() != before["loss_seg"].item()
    assert after["loss_seg"].item() == pytest.approx(before["loss_seg"].item(), rel=0.5)  # normalized by their sum
    assert after["loss_saliency"].item() == before["loss_saliency"].item()
    assert "class_weights" not in model.state_dict()
    for wrong in (torch.ones(3), torch.zeros(17)):
        with pytest.raises(ValueError, match="expected 17 numbers > 0"):
            model.set_class_weights(wrong)


def test_mixed_precision_computes_losses_in_float32() -> None:
    model = build()
    nn.init.normal_(model.branch.weigh.weight, std=30.0)  # type: ignore[union-attr]  (weights near 0 and 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = losses(model, random_samples(2, 2, 1))
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in found.values()), found
    sum(found.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_test_time_augmentation_averages_both_outputs() -> None:
    plain, mirrored = build(), build("TEST.SEM_SEG.FLIP", True)
    image = random_samples(0, 1)[0]["image"]
    flipped = image.flip(-1)
    one, other = plain.eval()([{"image": image}, {"image": flipped}])
    both = mirrored.eval()([{"image": image}])[0]
    for name in ("sem_seg", "saliency"):
        torch.testing.assert_close(both[name], (one[name] + other[name].flip(-1)) / 2)


def test_what_cannot_be_trained_says_why() -> None:
    with pytest.raises(ValueError, match=r"no 'sem_seg' or 'saliency'.*IMS_PER_BATCH_SALIENCY"):
        losses(build(), [{"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "file_name": "a.png"}])
    with pytest.raises(ValueError, match="SHARE_DECODER makes the class logits"):
        build(SALIENCY + "SHARE_DECODER", True, SALIENCY + "CHANNELS", 3)
    with pytest.raises(ValueError, match=r"'saliency_only' needs .*SALIENCY\.ENABLED True"):
        build(NODE + "WEIGHTING", "saliency_only", SALIENCY + "ENABLED", False)
    with pytest.raises(ValueError, match=r"IN_FEATURES is \('res1',\)"):
        build(NODE + "IN_FEATURES", ("res1",))
    without = [{k: v for k, v in sample.items() if k != "saliency_valid"} for sample in random_samples(0, 2)]
    with pytest.raises(KeyError, match="saliency_valid"):
        losses(build(), without)
