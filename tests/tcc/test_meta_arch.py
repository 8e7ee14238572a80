# SPDX-License-Identifier: Apache-2.0
"""TCC as a model: the contract of all methods, every switch of the paper's tables, and what goes where."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from padding.data.catalog import register_all
from tcc.meta_arch import TCC
from tests.meta_arch_contract import MetaArchContract
from tests.tiny_tcc import random_samples, tiny_tcc_cfg

TCC_KEY = "MODEL.TCC."


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    register_all()


def build(*opts: Any) -> TCC:
    model = build_model(tiny_tcc_cfg(*opts))
    assert isinstance(model, TCC)
    return model


def losses(model: nn.Module, samples: list[dict[str, Any]], iteration: int = 4) -> dict[str, torch.Tensor]:
    with EventStorage(iteration):
        return model.train()(samples)


class TestContract(MetaArchContract):
    @pytest.fixture
    def cfg(self) -> CfgNode:
        return tiny_tcc_cfg()

    @pytest.fixture
    def train_batch(self) -> list[dict[str, Any]]:
        return random_samples()


def test_losses_of_the_method_and_what_the_log_shows() -> None:
    model = build()
    with EventStorage(4) as storage:
        found = model.train()(random_samples())
        logged = {name: value[0] for name, value in storage.latest().items()}
    assert sorted(found) == ["loss_ccd_labeled", "loss_ccd_unlabeled", "loss_cfcd", "loss_sup_cnn", "loss_sup_vit"]
    assert logged["tcc/ramp_up"] == 1.0
    assert logged["tcc/cfcd"] == pytest.approx(found["loss_cfcd"].item())
    assert 0 <= logged["tcc/label_agreement"] <= 1


def test_unsupervised_losses_are_ramped_up_and_supervised_ones_are_not() -> None:
    no_dropout = [word for name in ("CNN", "VIT") for word in (f"{TCC_KEY}{name}.HEAD.ASPP_DROPOUT", 0.0)]
    model = build("SOLVER.MAX_ITER", 1000, *no_dropout)
    start, end = (losses(copy.deepcopy(model), random_samples(), i) for i in (0, 270))
    for name in start:
        expected = 1.0 if name.startswith("loss_sup") else 0.006737947
        assert start[name].item() == pytest.approx(expected * end[name].item(), rel=1e-3)


@pytest.mark.parametrize(
    ("opts", "names"),
    [
        (("CCD.ENABLED", False, "CFCD.ENABLED", False), {"loss_sup_cnn", "loss_sup_vit"}),
        (("CFCD.ENABLED", False), {"loss_sup_cnn", "loss_sup_vit", "loss_ccd_labeled", "loss_ccd_unlabeled"}),
        (("CCD.MODE", "hard", "CCD.ON_LABELED", False), {"loss_ccd_unlabeled", "loss_cfcd"}),
        (("CCD.LOSS_STRIDE", 4, "CCD.TEMPERATURE", 2.0, "CCD.DETACH", False, "CCD.REDUCTION", "element"), set()),
        (("CCD.CONF_THRESHOLD", 0.05, "CFCD.CONF_THRESHOLD", 0.05), set()),
        (("CFCD.FEATURE", "aspp", "CFCD.LABEL_SOURCE", "agree"), set()),
        (("CFCD.FEATURE", "decoder", "CFCD.STRIDE", 4, "CFCD.PROTOTYPE_SCOPE", "batch"), set()),
        (("CFCD.DIRECTION", "cnn_to_vit", "CFCD.DETACH_PROTOTYPE", True, "CFCD.ON_LABELED", True), set()),
        (("CFCD.NORMALIZE", "standardize", "CFCD.RESIZE", "similarity", "CFCD.LABEL_SOURCE", "own"), set()),
        (("SUP.DICE_WEIGHT", 0.5, "SUP.CE_WEIGHT", 0.5), set()),
        (("SUP.DICE_WEIGHT", 0.0, "SUP.CE_WEIGHT", 1.0, "SUP.CE_TYPE", "ohem"), set()),
        (("SUP.DICE.CLASSES", "all", "SUP.DICE.POWER", 1, "SUP.DICE.BATCH", False), set()),
        (("CUTMIX.ENABLED", True), set()),
        (("CUTMIX.ENABLED", True, "CUTMIX.PARTNER", "self", "CUTMIX.TEACHER_BN", "running"), set()),
        (("FEATURE_DROPOUT", 0.5), set()),
        (("EMA.DECAY", 0.9, "CUTMIX.ENABLED", True, "CUTMIX.TEACHER_BN", "batch"), set()),
        (("RAMP_UP.TYPE", "linear"), set()),
        (("VIT.BACKBONE", "small_resnet"), set()),
        (("CNN.BACKBONE", "pvt_nano"), set()),
        (("CNN.CHECKPOINT_ACTIVATIONS", True, "VIT.CHECKPOINT_ACTIVATIONS", True), set()),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_every_switch_trains_all_parameters(opts: tuple[Any, ...], names: set[str]) -> None:
    model = build(*(TCC_KEY + word if i % 2 == 0 else word for i, word in enumerate(opts)))
    found = losses(model, random_samples())
    assert names <= set(found)
    assert all(torch.isfinite(loss) for loss in found.values()), found
    sum(found.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_without_unlabeled_images_only_labeled_losses_are_left() -> None:
    found = losses(build(), random_samples(2, 0))
    assert sorted(found) == ["loss_ccd_labeled", "loss_sup_cnn", "loss_sup_vit"]


def test_a_step_without_labels_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"none of the 2 images .*IMS_PER_BATCH_UNLABELED below"):
        losses(build(), random_samples(0, 2))


def test_labels_of_unlabeled_images_are_never_looked_at() -> None:
    samples = random_samples()
    model = build(*(word for name in ("CNN", "VIT") for word in (f"{TCC_KEY}{name}.HEAD.ASPP_DROPOUT", 0.0)))
    expected = losses(copy.deepcopy(model), samples)
    for sample in samples[2:]:
        sample["sem_seg"] = torch.full((64, 64), 16)
    assert {k: v.item() for k, v in losses(model, samples).items()} == {k: v.item() for k, v in expected.items()}


def test_strong_view_and_second_stream_are_asked_for_by_name() -> None:
    with pytest.raises(KeyError, match="image_strong"):
        losses(build(TCC_KEY + "STRONG_AUG", True), random_samples())
    second = (TCC_KEY + "CUTMIX.ENABLED", True, TCC_KEY + "CUTMIX.PARTNER", "second_stream")
    with pytest.raises(KeyError, match="partner"):
        losses(build(*second), random_samples())
    samples = random_samples()
    for sample, other in zip(samples[2:], random_samples(0, 2, seed=5), strict=True):
        sample["partner"] = {**other, "image_strong": other["image"]}
        sample["image_strong"] = sample["image"]
    found = losses(build(*second, TCC_KEY + "STRONG_AUG", True), samples)
    assert all(torch.isfinite(loss) for loss in found.values())


def self_taught(student: str, *, decay: float, unimatch: bool) -> TCC:
    """One student in training that learns hard labels of its own or of its average, sure of some pixels."""
    options = {
        "STUDENTS": student,
        "TARGETS.SOURCE": "self",
        "STRONG_AUG": True,
        "CUTMIX.ENABLED": True,
        "EMA.DECAY": decay,
        "CCD.MODE": "hard",
        "CCD.CONF_THRESHOLD": 0.5,
        "CCD.NORMALIZE_BY": "valid",
        "CCD.ON_LABELED": False,
        "CFCD.ENABLED": False,
        f"{student.upper()}.HEAD.ASPP_DROPOUT": 0.0,
        "RAMP_UP.TYPE": "none",
        **({"FEATURE_DROPOUT": 0.5, "FEATURE_VIEW": True} if unimatch else {}),
    }
    words = [word for key, value in options.items() for word in (TCC_KEY + key, value)]
    model = build(*words, *(("INPUT.STRONG_VIEWS", 2) if unimatch else ())).train()
    teacher = model.averages[student] if decay else model.students[student]
    with torch.no_grad():
        for network, scale in {model.students[student]: 3e3, teacher: 4e3}.items():
            network.head.decoder.predictor.weight.mul_(scale)  # a fresh head is sure of nothing
    return model


@pytest.mark.parametrize("student", ["cnn", "vit"])
@pytest.mark.parametrize(("decay", "unimatch"), [(0.0, False), (0.5, False), (0.0, True)])
def test_one_student_learns_its_mixed_strong_views_from_its_weak_ones(
    student: str, decay: float, unimatch: bool
) -> None:
    """FixMatch with CutMix, with a moving average Mean Teacher, and UniMatch, against the steps written out."""
    model = self_taught(student, decay=decay, unimatch=unimatch)
    samples = random_samples()
    labeled, unlabeled = samples[:2], samples[2:]
    for sample in unlabeled:
        sample |= {"image_strong": 255 - sample["image"], "image_strong_2": sample["image"] // 2}
    expected = copy.deepcopy(model)
    torch.manual_seed(7)
    found = losses(model, samples)
    assert set(found) == {"loss_ccd_unlabeled", f"loss_sup_{student}"} | ({"loss_ccd_features"} if unimatch else set())

    def pixels(view: str, some: list[dict[str, Any]]) -> torch.Tensor:
        return torch.stack([(s[view] - expected.pixel_mean) / expected.pixel_std for s in some])

    def scores(network: nn.Module, images: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
        logits = network(images, feature_dropout=dropout)["logits"]
        return F.interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False)

    def mixed(mask: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.where(mask[i], images[1 - i], images[i]) for i in range(2)])

    valid = torch.stack([s["valid"] for s in unlabeled])

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        sure, labels = targets.max(dim=1)
        kept = (sure >= 0.5) & valid
        assert 0 < kept.sum() < valid.sum()
        return (F.cross_entropy(logits, labels, reduction="none") * kept).sum() / valid.sum()

    torch.manual_seed(7)
    cutmix, own = expected.perturbation.cutmix, expected.students[student]
    assert cutmix is not None
    masks = [cutmix.draw(2, (64, 64), device="cpu").mask for _ in range(2 if unimatch else 1)]
    with torch.no_grad():
        weak = scores(copy.deepcopy(expected.averages[student] if decay else own).train(), pixels("image", unlabeled))
        weak = weak.softmax(dim=1)
    views = [
        mixed(mask, pixels(n, unlabeled)) for mask, n in zip(masks, ("image_strong", "image_strong_2"), strict=False)
    ]
    # Batch norm: labeled and strong images together, or apart where the features of the weak ones are dropped.
    outputs = scores(own, torch.cat(views if unimatch else [pixels("image", labeled), *views]))
    parts = outputs.split(2) if unimatch else outputs[2:].split(2)
    both = [loss(part, mixed(mask, weak)) for part, mask in zip(parts, masks, strict=True)]
    torch.testing.assert_close(found["loss_ccd_unlabeled"], sum(both) / len(both), rtol=1e-4, atol=1e-6)
    if unimatch:
        dropped = loss(scores(own, pixels("image", unlabeled), 0.5), weak)
        torch.testing.assert_close(found["loss_ccd_features"], dropped, rtol=1e-4, atol=1e-6)
        assert not torch.equal(masks[0], masks[1])
    sum(found.values()).backward()
    assert all(p.grad is not None for p in model.students[student].parameters())
    assert all(p.grad is None for p in model.averages.parameters())


def test_same_backbone_twice_is_not_the_same_student() -> None:
    model = build(TCC_KEY + "VIT.BACKBONE", "small_resnet")
    assert not torch.equal(model.cnn.backbone.stem.conv1.weight, model.vit.backbone.stem.conv1.weight)
    equal = build(TCC_KEY + "VIT.BACKBONE", "small_resnet", TCC_KEY + "VIT.SEED_OFFSET", 0)
    assert torch.equal(equal.cnn.backbone.stem.conv1.weight, equal.vit.backbone.stem.conv1.weight)


def test_prediction_is_the_chosen_student_and_parts_stand_beside_it() -> None:
    sample = {"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)}
    outputs = {}
    for student in ("cnn", "vit", "ensemble"):
        with torch.no_grad():
            outputs[student] = build(TCC_KEY + "TEST.STUDENT", student).eval()([sample])[0]
    for student, output in outputs.items():
        assert sorted(output) == ["sem_seg", "sem_seg_cnn", "sem_seg_ensemble", "sem_seg_vit"]
        assert torch.equal(output["sem_seg"], output[f"sem_seg_{student}"])
        torch.testing.assert_close(output["sem_seg"].sum(dim=0), torch.ones(64, 64))
        torch.testing.assert_close(output["sem_seg_ensemble"], (output["sem_seg_cnn"] + output["sem_seg_vit"]) / 2)


def test_averages_follow_the_students_and_are_what_is_tested() -> None:
    model = build(TCC_KEY + "EMA.DECAY", 0.5)
    before = model.averages["cnn"].backbone.stem.conv1.weight.clone()
    with torch.no_grad():
        model.cnn.backbone.stem.conv1.weight.add_(1.0)
    model.update_averages()
    torch.testing.assert_close(model.averages["cnn"].backbone.stem.conv1.weight, before + 0.5)
    assert not any(p.requires_grad for p in model.averages.parameters())
    model.reset_averages()
    torch.testing.assert_close(model.averages["cnn"].backbone.stem.conv1.weight, before + 1.0)


def test_a_second_strong_view_and_dropped_features_are_asked_for_by_name() -> None:
    samples = random_samples()
    for sample in samples[2:]:
        sample["image_strong"] = sample["image"]
    with pytest.raises(KeyError, match="image_strong_2"):
        losses(build(TCC_KEY + "STRONG_AUG", True, "INPUT.STRONG_VIEWS", 2), samples)
    with pytest.raises(ValueError, match=r"FEATURE_VIEW needs MODEL\.TCC\.FEATURE_DROPOUT"):
        build(TCC_KEY + "FEATURE_VIEW", True)


def test_unknown_choices_are_named() -> None:
    with pytest.raises(ValueError, match="STUDENTS is 'all'"):
        build(TCC_KEY + "STUDENTS", "all")
    with pytest.raises(ValueError, match="asks for 'vti'"):
        build(TCC_KEY + "TEST.STUDENT", "vti")
    with pytest.raises(ValueError, match="FEATURE is 'res5'"):
        build(TCC_KEY + "CFCD.FEATURE", "res5")
    with pytest.raises(ValueError, match="'roll' takes the next"):
        losses(build(TCC_KEY + "CUTMIX.ENABLED", True), random_samples(1, 1))


@pytest.mark.slow
def test_both_students_learn_four_images_by_heart() -> None:
    model = build("SOLVER.MAX_ITER", 100, TCC_KEY + "RAMP_UP.TYPE", "none", TCC_KEY + "SUP.CE_WEIGHT", 1.0)
    samples = random_samples(4, 2, num_classes=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(300):
        optimizer.zero_grad()
        sum(losses(model, samples).values()).backward()
        optimizer.step()
    with torch.no_grad():
        predictions = model.eval()(samples[:4])
    for name in ("sem_seg_cnn", "sem_seg_vit"):
        right = torch.stack(
            [p[name].max(dim=0).indices == s["sem_seg"] for p, s in zip(predictions, samples, strict=False)]
        )
        known = torch.stack([s["sem_seg"] != 255 for s in samples[:4]])
        assert right[known].float().mean() > 0.85
