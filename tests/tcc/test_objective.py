# SPDX-License-Identifier: Apache-2.0
"""The total (Eq. 9): which losses are computed on which outputs, with which weights."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from torch import Tensor

from padding.engine import add_core_config
from tcc.class_features import ConsistencyOptions, PixelLabels, feature_consistency, labels_of
from tcc.config import add_tcc_config
from tcc.losses import cross_entropy, dice_loss, divergence, hard_divergence, ohem_cross_entropy
from tcc.objective import CohortBatch, CohortObjective, build_objective, full_size_logits, surest_logits

K = 5
SIZE = (32, 32)
SWITCH = "MODEL.TCC."


def build(*opts: Any) -> CohortObjective:
    cfg = get_cfg()
    add_core_config(cfg)
    add_tcc_config(cfg)
    cfg.merge_from_list([SWITCH + word if i % 2 == 0 else word for i, word in enumerate(opts)])
    return build_objective(cfg, K)


def outputs() -> dict[str, dict[str, Tensor]]:
    """Logits at stride 4; last maps of different width and size."""
    return {
        "cnn": {"logits": torch.randn(2, K, 8, 8), "backbone": torch.randn(2, 16, 2, 2)},
        "vit": {"logits": torch.randn(2, K, 8, 8), "backbone": torch.randn(2, 12, 1, 1)},
    }


@pytest.fixture
def labeled() -> CohortBatch:
    labels = torch.randint(0, K, (2, *SIZE))
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[..., 28:] = False
    labels[:, 4:8] = 255
    return CohortBatch(outputs(), valid, torch.where(valid, labels, 255))


@pytest.fixture
def unlabeled() -> CohortBatch:
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[:, :12] = False
    return CohortBatch(outputs(), valid)


def full(batch: CohortBatch) -> dict[str, Tensor]:
    return {
        name: F.interpolate(part["logits"], size=SIZE, mode="bilinear", align_corners=False)
        for name, part in batch.outputs.items()
    }


def test_total_of_the_paper(labeled: CohortBatch, unlabeled: CohortBatch) -> None:
    """L_s + g (L_d + lambda L_f) with lambda = 2."""
    losses, observed = build("CFCD.WEIGHT", 2.0, "CCD.WEIGHT", 3.0)(labeled, unlabeled, 0.5)
    scores = full(labeled)
    assert labeled.labels is not None
    expected = {f"loss_sup_{name}": dice_loss(scores[name], labeled.labels) for name in ("cnn", "vit")}
    for kind, batch in (("labeled", labeled), ("unlabeled", unlabeled)):
        pair = full(batch)
        both = divergence(pair["cnn"], pair["vit"], valid=batch.valid) + divergence(
            pair["vit"], pair["cnn"], valid=batch.valid
        )
        expected[f"loss_ccd_{kind}"] = 0.5 * 3.0 * both
        assert observed[f"ccd_{kind}"].item() == pytest.approx(both.item())  # unweighted
    pair = full(unlabeled)
    labels = tuple(labels_of(pair[name], unlabeled.valid) for name in ("cnn", "vit"))
    features = tuple(unlabeled.outputs[name]["backbone"] for name in ("cnn", "vit"))
    cfcd = feature_consistency(features, labels, K, ConsistencyOptions())[0]  # type: ignore[arg-type]
    expected["loss_cfcd"] = 0.5 * 2.0 * cfcd
    assert cfcd > 0
    assert observed["cfcd"].item() == pytest.approx(cfcd.item())
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize(
    ("opts", "missing"),
    [
        (("CCD.ENABLED", False), {"loss_ccd_labeled", "loss_ccd_unlabeled"}),
        (("CCD.ON_LABELED", False), {"loss_ccd_labeled"}),
        (("CCD.ON_UNLABELED", False), {"loss_ccd_unlabeled"}),
        (("CFCD.ENABLED", False), {"loss_cfcd"}),
    ],
)
def test_losses_are_switched_off_one_by_one(
    labeled: CohortBatch, unlabeled: CohortBatch, opts: tuple[Any, ...], missing: set[str]
) -> None:
    everything = set(build()(labeled, unlabeled, 1.0)[0])
    assert everything - set(build(*opts)(labeled, unlabeled, 1.0)[0]) == missing


@pytest.mark.parametrize(
    ("opts", "loss"),
    [
        (("SUP.CE_WEIGHT", 0.5, "SUP.DICE_WEIGHT", 0.0), lambda z, y: 0.5 * cross_entropy(z, y)),
        (("SUP.CE_WEIGHT", 0.5), lambda z, y: 0.5 * cross_entropy(z, y) + dice_loss(z, y)),
        (
            (
                *("SUP.DICE_WEIGHT", 0.0, "SUP.CE_WEIGHT", 1.0, "SUP.CE_TYPE", "ohem"),
                *("SUP.OHEM.MIN_KEPT_PER_IMAGE", 100, "SUP.OHEM.THRESHOLD", 1e-3),
            ),
            lambda z, y: ohem_cross_entropy(z, y, threshold=1e-3, min_kept=200),
        ),
        (
            ("SUP.DICE.CLASSES", "all", "SUP.DICE.SMOOTH", 1e-5, "SUP.DICE.POWER", 1, "SUP.DICE.BATCH", False),
            lambda z, y: dice_loss(z, y, classes="all", smooth=1e-5, power=1, over_batch=False),
        ),
    ],
)
def test_supervised_losses_follow_their_keys(labeled: CohortBatch, opts: tuple[Any, ...], loss: Any) -> None:
    found = build(*opts)(labeled, None, 1.0)[0]
    for name, scores in full(labeled).items():
        torch.testing.assert_close(found[f"loss_sup_{name}"], loss(scores, labeled.labels))


def test_targets_replace_the_students_own_scores(labeled: CohortBatch, unlabeled: CohortBatch) -> None:
    """As with CutMix: each student follows the mixed scores of the other, and prototypes their labels."""
    targets = {name: torch.randn(2, K, *SIZE) for name in ("cnn", "vit")}
    batch = unlabeled._replace(targets=targets)
    losses = build("CCD.MODE", "hard", "CFCD.STRIDE", 4)(labeled, batch, 1.0)[0]
    scores = full(unlabeled)
    expected = hard_divergence(scores["cnn"], targets["vit"], valid=batch.valid) + hard_divergence(
        scores["vit"], targets["cnn"], valid=batch.valid
    )
    torch.testing.assert_close(losses["loss_ccd_unlabeled"], expected)
    labels = tuple(labels_of(targets[name], batch.valid) for name in ("cnn", "vit"))
    features = tuple(batch.outputs[name]["backbone"] for name in ("cnn", "vit"))
    expected = feature_consistency(features, labels, K, ConsistencyOptions(stride=4))[0]  # type: ignore[arg-type]
    assert expected > 0
    torch.testing.assert_close(losses["loss_cfcd"], expected)


def test_students_learn_from_themselves(labeled: CohortBatch, unlabeled: CohortBatch) -> None:
    """Each alone as well, without the other's outputs."""
    targets = {name: torch.randn(2, K, *SIZE) for name in ("cnn", "vit")}
    opts = ("TARGETS.SOURCE", "self", "CCD.MODE", "hard", "CCD.CONF_THRESHOLD", 0.5, "CCD.NORMALIZE_BY", "valid")
    objective = build(*opts, "CCD.ON_LABELED", False, "CFCD.ENABLED", False)
    terms = {}
    for name in ("cnn", "vit"):
        alone = [batch._replace(outputs={name: batch.outputs[name]}) for batch in (labeled, unlabeled)]
        losses = objective(alone[0], alone[1]._replace(targets={name: targets[name]}), 1.0)[0]
        assert sorted(losses) == ["loss_ccd_unlabeled", f"loss_sup_{name}"]
        terms[name] = losses["loss_ccd_unlabeled"]
        sure = targets[name].softmax(dim=1).max(dim=1).values >= 0.5
        pixels = F.cross_entropy(full(unlabeled)[name], targets[name].argmax(dim=1), reduction="none")
        # As many valid pixels in both images: the mean over images is that over pixels.
        torch.testing.assert_close(terms[name], (pixels * (sure & unlabeled.valid)).sum() / unlabeled.valid.sum())
    both = objective(labeled, unlabeled._replace(targets=targets), 1.0)[0]["loss_ccd_unlabeled"]
    torch.testing.assert_close(both, terms["cnn"] + terms["vit"])


def test_perturbed_features_are_a_further_kind_of_images(labeled: CohortBatch, unlabeled: CohortBatch) -> None:
    """Distilled with the weight of the others; CFCD compares whole features alone."""
    objective = build("CCD.WEIGHT", 0.5, "CFCD.ON_LABELED", True)
    features = CohortBatch(
        outputs(), unlabeled.valid, targets={name: torch.randn(2, K, *SIZE) for name in ("cnn", "vit")}
    )
    without, found = objective(labeled, unlabeled, 1.0)[0], objective(labeled, unlabeled, 1.0, features)[0]
    expected = objective(labeled, features, 1.0)[0]["loss_ccd_unlabeled"]
    torch.testing.assert_close(found, without | {"loss_ccd_features": expected})


def test_labeled_images_are_grouped_by_their_true_labels(labeled: CohortBatch, unlabeled: CohortBatch) -> None:
    switch = ("CFCD.ON_LABELED", True, "CFCD.STRIDE", 8)
    found = build(*switch)(labeled, None, 1.0)[0]["loss_cfcd"]
    assert labeled.labels is not None
    known = PixelLabels(labeled.labels, labeled.labels != 255)
    features = tuple(labeled.outputs[name]["backbone"] for name in ("cnn", "vit"))
    options = ConsistencyOptions(stride=8)
    expected = feature_consistency(features, (known, known), K, options)[0]  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected)
    both = build(*switch)(labeled, unlabeled, 1.0)[0]["loss_cfcd"]
    alone = build("CFCD.STRIDE", 8)(labeled, unlabeled, 1.0)[0]["loss_cfcd"]
    torch.testing.assert_close(both, expected + alone)


def test_a_label_that_is_no_class_is_an_error_and_no_other_class(labeled: CohortBatch) -> None:
    assert labeled.labels is not None
    wrong = labeled._replace(labels=torch.where(labeled.labels == 255, 255, K))
    with pytest.raises(RuntimeError, match="index"):
        build("CFCD.ON_LABELED", True)(wrong, None, 1.0)


def test_stride_of_the_distillation_keeps_means_of_constant_scores(labeled: CohortBatch) -> None:
    flat = {
        name: {"logits": torch.randn(2, K, 1, 1).expand(-1, -1, 8, 8), "backbone": part["backbone"]}
        for name, part in labeled.outputs.items()
    }
    batch = labeled._replace(outputs=flat)
    found = [
        build("CCD.LOSS_STRIDE", stride)(batch, None, 1.0)[0]["loss_ccd_labeled"].item() for stride in (1, 3, 4, 32)
    ]
    assert found == pytest.approx(found[:1] * 4, rel=1e-5)
    assert found[0] > 0


def test_padding_leaves_the_distillation_at_any_stride(labeled: CohortBatch) -> None:
    """Scores differ in the padded columns only."""
    base = torch.randn(2, K, 1, 1).expand(-1, -1, 8, 8)
    other = base.clone()
    other[..., 7] += torch.randn(K, 1)  # columns 28 to 31, and by interpolation the two before
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[..., 24:] = False
    parts = {name: {"logits": z, "backbone": torch.randn(2, 4, 2, 2)} for name, z in (("cnn", base), ("vit", other))}
    batch = CohortBatch(parts, valid, torch.zeros(2, *SIZE, dtype=torch.int64))
    for stride in (1, 4):
        loss = build("CCD.LOSS_STRIDE", stride)(batch, None, 1.0)[0]["loss_ccd_labeled"]
        assert loss.item() == pytest.approx(0, abs=1e-6)


def test_scores_are_compared_in_float32(labeled: CohortBatch, unlabeled: CohortBatch) -> None:
    assert full_size_logits(torch.randn(1, K, 4, 4).half(), SIZE).dtype == torch.float32
    batches = [
        batch._replace(outputs={n: {k: v.bfloat16() for k, v in p.items()} for n, p in batch.outputs.items()})
        for batch in (labeled, unlabeled)
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = build()(*batches, 1.0)[0]
    rounded = [
        batch._replace(outputs={n: {k: v.float() for k, v in p.items()} for n, p in batch.outputs.items()})
        for batch in batches
    ]
    torch.testing.assert_close(losses, build()(*rounded, 1.0)[0])


@pytest.mark.parametrize(
    ("opts", "named"),
    [
        (("SUP.CE_TYPE", "focal"), "CE_TYPE is 'focal'"),
        (("SUP.DICE_WEIGHT", 0.0), "DICE_WEIGHT and CE_WEIGHT are both 0"),
        (("CCD.MODE", "mixed"), "MODE is 'mixed'"),
        (("CCD.NORMALIZE_BY", "all"), "NORMALIZE_BY is 'all'"),
        (("TARGETS.SOURCE", "teacher"), "SOURCE is 'teacher'"),
        (("TARGETS.SOURCE", "self"), "set MODEL.TCC.CCD.ON_LABELED False"),
        (("CCD.LOSS_STRIDE", 0), "LOSS_STRIDE is 0"),
        (("CFCD.FEATURE", "stem"), "FEATURE is 'stem'"),
    ],
)
def test_unknown_choices_are_named(opts: tuple[Any, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build(*opts)


def test_the_surest_student_teaches_both(labeled: CohortBatch, unlabeled: CohortBatch) -> None:
    targets = {name: torch.randn(2, K, *SIZE) for name in ("cnn", "vit")}
    surest = torch.empty(2, K, *SIZE)
    for b in range(2):
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                pair = [targets[name][b, :, y, x] for name in ("cnn", "vit")]
                surest[b, :, y, x] = max(pair, key=lambda logits: logits.softmax(dim=0).max().item())
    torch.testing.assert_close(surest_logits(list(targets.values())), surest, rtol=0, atol=0)
    opts = ("TARGETS.SOURCE", "surest", "CFCD.ENABLED", False, "CCD.ON_LABELED", False, "CCD.MODE", "hard")
    losses, _ = build(*opts)(labeled, unlabeled._replace(targets=targets), 1.0)
    scores = full(unlabeled)
    expected = sum(hard_divergence(scores[name], surest, valid=unlabeled.valid) for name in ("cnn", "vit"))
    torch.testing.assert_close(losses["loss_ccd_unlabeled"], torch.as_tensor(expected))


def test_class_weights_and_focal_factor_change_the_cross_entropy_alone() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, K, 6, 6), torch.randint(0, K, (2, 6, 6))
    cfg = get_cfg()
    add_core_config(cfg)
    add_tcc_config(cfg)
    cfg.MODEL.TCC.SUP.CE_WEIGHT = 0.5
    plain = build_objective(cfg, K).supervised
    cfg.MODEL.CLASS_BALANCE.WEIGHTS = "inverse_log"
    weighted = build_objective(cfg, K).supervised
    torch.testing.assert_close(weighted.loss(logits, labels), plain.loss(logits, labels))  # weights of 1 until counted
    weights = torch.arange(1.0, K + 1)
    weighted.balance.set_weights(weights)
    change = weighted.loss(logits, labels) - plain.loss(logits, labels)
    both = [F.cross_entropy(logits, labels, weight=one) for one in (weights, None)]
    torch.testing.assert_close(change, 0.5 * (both[0] - both[1]), rtol=1e-3, atol=1e-5)
