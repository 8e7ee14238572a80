# SPDX-License-Identifier: Apache-2.0
"""Training of the cohort: rates and decay of its parts, the two streams, accumulation, exact resume, averages."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from padding.data.catalog import register_all
from padding.data.streams import PairedStream, TrainStream
from padding.engine import TRAINER_REGISTRY
from tcc.trainer import SemiSupervisedTrainer
from tests.tiny_segmentor import write_dozen_shapes
from tests.tiny_tcc import tiny_tcc_cfg

# One student that learns from itself.
ALONE = ("MODEL.TCC.STUDENTS", "cnn", "MODEL.TCC.TARGETS.SOURCE", "self", "MODEL.TCC.CFCD.ENABLED", False)
ALONE += ("MODEL.TCC.CCD.ON_LABELED", False, "TEST.SEM_SEG.PARTS", ())
UNIMATCH = ("MODEL.TCC.STRONG_AUG", True, "INPUT.STRONG_VIEW", True, "INPUT.STRONG_VIEWS", 2)
UNIMATCH += ("MODEL.TCC.FEATURE_VIEW", True, "MODEL.TCC.FEATURE_DROPOUT", 0.5, "MODEL.TCC.CUTMIX.ENABLED", True)
SPLIT = ("DATASETS.SPLIT", "shapes/4_of_12", "DATASETS.TEST", ())


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_dozen_shapes(tmp_path_factory.mktemp("data"))
    register_all(root)
    return root


def trainer(output: Path, *opts: Any) -> SemiSupervisedTrainer:
    built = TRAINER_REGISTRY.get("SemiSupervisedTrainer")(tiny_tcc_cfg("OUTPUT_DIR", str(output), *SPLIT, *opts))
    assert isinstance(built, SemiSupervisedTrainer)
    return built


def losses(output: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return {line["iteration"]: {k: v for k, v in line.items() if "loss" in k} for line in lines}


@pytest.mark.parametrize(("backbone", "scale"), [("small_resnet", "norm1.weight"), ("convnext_atto", "gamma")])
def test_every_parameter_has_the_rate_and_the_decay_of_its_part(backbone: str, scale: str, tmp_path: Path) -> None:
    """Kernels and matrices decay; norms, biases, position tables and layer scales do not."""
    rates = ("SOLVER.BASE_LR", 0.01, "SOLVER.BACKBONE_MULTIPLIER", 0.2, "MODEL.TCC.VIT.LR_MULTIPLIER", 0.5)
    decays = ("SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.WEIGHT_DECAY_BIAS", 0.0, "SOLVER.WEIGHT_DECAY_NORM", 0.0)
    reference = ("SOLVER.REFERENCE_BATCH", 8)  # the batch is 4, so half the rate
    built = trainer(tmp_path, *rates, *decays, *reference, "MODEL.TCC.CNN.BACKBONE", backbone)
    groups = built.optimizers["main"].param_groups
    found = {id(p): (group["initial_lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    kernels = {id(m.weight) for m in built.module.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    free = []
    for name, parameter in built.module.named_parameters():
        student, part = name.split(".")[:2]
        rate = 0.005 * (0.5 if student == "vit" else 1.0) * (1.0 if part == "head" else 0.2)
        lr, decay = found.pop(id(parameter))
        assert lr == pytest.approx(rate), name
        assert decay == (0.1 if id(parameter) in kernels else 0.0), name
        free += [] if id(parameter) in kernels else [name]
    assert not found
    for ending in ("bias", "absolute_pos_embed", scale):
        assert any(name.endswith(ending) for name in free), ending


def test_every_forward_sees_both_kinds_in_the_same_ratio(tmp_path: Path) -> None:
    batch = ("SOLVER.IMS_PER_BATCH", 8, "SOLVER.IMS_PER_BATCH_UNLABELED", 4)
    whole, parts = trainer(tmp_path / "a", *batch), trainer(tmp_path / "b", *batch, "SOLVER.ACCUMULATE_STEPS", 2)
    first = next(iter(whole.micro_batches()))
    seen: list[dict[str, Any]] = []
    for micro in parts.micro_batches():
        assert [sample.get("is_labeled", True) for sample in micro] == [True, True, False, False]
        seen += micro

    def files(samples: list[dict[str, Any]]) -> list[str]:
        return sorted(sample["file_name"] for sample in samples)

    assert files(seen) == files(first)
    labeled = {Path(s["file_name"]).stem for s in first if s.get("is_labeled", True)}
    assert labeled <= {f"{i:012d}" for i in range(1, 5)}


def test_two_parts_of_a_batch_train_as_the_whole(tmp_path: Path) -> None:
    """Without batch norm and with a Dice per image, all losses are means over images."""
    opts: tuple[Any, ...] = ("SOLVER.IMS_PER_BATCH", 8, "SOLVER.IMS_PER_BATCH_UNLABELED", 4, "SOLVER.MAX_ITER", 3)
    # Not AdamW, whose first steps are as long for a gradient of rounding errors as for any other.
    opts += ("MODEL.TCC.SUP.DICE.BATCH", False, "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 1.0)
    for name in ("CNN", "VIT"):
        student = f"MODEL.TCC.{name}."
        opts += (student + "NORM", "FrozenBN", student + "HEAD.NORM", "GN", student + "HEAD.ASPP_DROPOUT", 0.0)
    whole, parts = trainer(tmp_path / "a", *opts), trainer(tmp_path / "b", *opts, "SOLVER.ACCUMULATE_STEPS", 2)
    for built in (whole, parts):
        built.train()
    expected, found = losses(tmp_path / "a"), losses(tmp_path / "b")
    assert sorted(expected) == sorted(found) == [0, 1, 2]
    for iteration, terms in expected.items():
        assert terms["loss_cfcd"] > 0
        assert found[iteration] == pytest.approx(terms, rel=1e-4), iteration
    assert expected[2]["loss_sup_cnn"] < 0.99 * expected[1]["loss_sup_cnn"]


def test_without_unlabeled_images_there_is_one_stream(tmp_path: Path) -> None:
    assert isinstance(trainer(tmp_path / "a").stream, PairedStream)
    only = trainer(tmp_path / "b", "SOLVER.IMS_PER_BATCH_UNLABELED", 0)
    assert isinstance(only.stream, TrainStream)
    with pytest.raises(ValueError, match="no labeled image is left"):
        trainer(tmp_path / "c", "SOLVER.IMS_PER_BATCH_UNLABELED", 4)


@pytest.mark.parametrize(
    "opts",
    [
        (),
        ("MODEL.TCC.CUTMIX.ENABLED", True, "MODEL.TCC.CUTMIX.PARTNER", "second_stream", "MODEL.TCC.EMA.DECAY", 0.5),
        ("SOLVER.AMP.ENABLED", True, "SOLVER.ACCUMULATE_STEPS", 2, "MODEL.TCC.FEATURE_DROPOUT", 0.5),
        (*ALONE, "MODEL.TCC.EMA.DECAY", 0.6, "MODEL.TCC.EMA.WARM_UP", True),
        (*ALONE, *UNIMATCH),
    ],
    ids=["plain", "cutmix-average", "amp-accumulation", "mean-teacher", "unimatch"],
)
def test_resume_continues_exactly(opts: tuple[Any, ...], tmp_path: Path) -> None:
    straight = trainer(tmp_path / "straight", *opts)
    torch.manual_seed(5)  # dropout and CutMix draw from the global state
    straight.train()
    broken = trainer(tmp_path / "broken", *opts)
    broken.max_iter = 2  # as if the process had died after the checkpoint
    torch.manual_seed(5)
    broken.train()
    resumed = trainer(tmp_path / "broken", *opts)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    assert losses(tmp_path / "broken") == losses(tmp_path / "straight")
    for key, value in straight.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[key], value), key


def test_averages_move_once_a_step_whatever_the_accumulation(tmp_path: Path) -> None:
    opts = ("MODEL.TCC.EMA.DECAY", 0.9, "SOLVER.ACCUMULATE_STEPS", 2, "SOLVER.MAX_ITER", 1)
    built = trainer(tmp_path, *opts)
    built.resume_or_load(resume=False)
    before = [p.detach().clone() for p in built.module.cnn.parameters()]
    built.train()
    for start, now, average in zip(
        before, built.module.cnn.parameters(), built.module.averages["cnn"].parameters(), strict=True
    ):
        torch.testing.assert_close(average, 0.9 * start + 0.1 * now.detach(), rtol=1e-4, atol=1e-6)


def test_a_warmed_up_average_is_the_mean_of_the_weights_so_far(tmp_path: Path) -> None:
    switch = ("MODEL.TCC.EMA.DECAY", 0.99, "MODEL.TCC.EMA.WARM_UP", True, "SOLVER.MAX_ITER", 3)
    built = trainer(tmp_path, *ALONE, *switch)
    built.resume_or_load(resume=False)
    seen: list[list[torch.Tensor]] = []
    update = built.module.update_averages

    def noting() -> None:
        seen.append([p.detach().clone() for p in built.module.cnn.parameters()])
        update()

    built.module.update_averages = noting  # type: ignore[method-assign]
    built.train()
    assert list(built.module.averages) == ["cnn"]
    assert len(seen) == 3
    for average, *values in zip(built.module.averages["cnn"].parameters(), *seen, strict=True):
        torch.testing.assert_close(average, sum(values) / 3, rtol=1e-4, atol=1e-6)


def test_each_student_starts_from_its_own_weights(tmp_path: Path) -> None:
    source = trainer(tmp_path / "source", "SEED", 11).module
    torch.save(
        {"model": {f"backbone.{k}": v for k, v in source.cnn.backbone.state_dict().items()}}, tmp_path / "cnn.pth"
    )
    built = trainer(tmp_path / "out", "MODEL.TCC.CNN.WEIGHTS", str(tmp_path / "cnn.pth"), "MODEL.TCC.EMA.DECAY", 0.5)
    other = built.module.vit.backbone.state_dict()
    untouched = {key: value.clone() for key, value in other.items()}
    built.resume_or_load(resume=False)
    for key, value in source.cnn.backbone.state_dict().items():
        assert torch.equal(built.module.cnn.backbone.state_dict()[key], value), key
        assert torch.equal(built.module.averages["cnn"].backbone.state_dict()[key], value), key
    assert all(torch.equal(built.module.vit.backbone.state_dict()[key], value) for key, value in untouched.items())


def test_averages_start_from_weights_that_hold_none(tmp_path: Path) -> None:
    source = trainer(tmp_path / "source", "SEED", 11).module
    torch.save({"model": source.state_dict()}, tmp_path / "cohort.pth")
    weights = ("MODEL.WEIGHTS", str(tmp_path / "cohort.pth"))
    built = trainer(tmp_path / "out", *weights, "MODEL.TCC.EMA.DECAY", 0.5)
    built.resume_or_load(resume=False)
    for key, value in source.cnn.state_dict().items():
        assert torch.equal(built.module.averages["cnn"].state_dict()[key], value), key


def test_strong_views_are_made_for_unlabeled_images_alone(tmp_path: Path) -> None:
    switch = ("MODEL.TCC.STRONG_AUG", True)
    with pytest.raises(ValueError, match=r"STRONG_AUG .*INPUT\.STRONG_VIEW"):
        trainer(tmp_path / "a", *switch)
    batch = trainer(tmp_path / "b", *switch, "INPUT.STRONG_VIEW", True).next_batch()
    assert [("image_strong" in sample) for sample in batch] == [False, False, True, True]
    with pytest.raises(ValueError, match="STRONG_VIEWS, at least 1"):
        trainer(tmp_path / "c", *switch, "INPUT.STRONG_VIEW", True, "INPUT.STRONG_VIEWS", 0)


def test_other_models_and_single_students_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a single student can be evaluated"):
        trainer(tmp_path, "MODEL.TCC.STUDENTS", "cnn", "TEST.SEM_SEG.PARTS", ())


@pytest.mark.parametrize("student", ["cnn", "vit"])
def test_one_student_trains_and_is_evaluated_alone(student: str, tmp_path: Path) -> None:
    opts = (
        "MODEL.TCC.STUDENTS",
        student,
        "MODEL.TCC.CCD.MODE",
        "hard",
        "DATASETS.TEST",
        ("shapes_val_sem_seg_coarse",),
    )
    built = trainer(tmp_path, *ALONE, *opts, "SOLVER.MAX_ITER", 1)
    results = built.train()
    assert [name for name in results if name.startswith("sem_seg")] == ["sem_seg"]
    assert {name for name in losses(tmp_path)[0] if "/" not in name} == {
        "loss_ccd_unlabeled",
        f"loss_sup_{student}",
        "total_loss",
    }


def test_targets_that_are_the_scores_themselves_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing tells the targets from the scores"):
        trainer(tmp_path / "a", *ALONE)
    with pytest.raises(ValueError, match=r"CFCD\.ENABLED False TEST\.SEM_SEG\.PARTS"):
        trainer(tmp_path / "b", *ALONE, "MODEL.TCC.CFCD.ENABLED", True, "MODEL.TCC.EMA.DECAY", 0.5)
    with pytest.raises(ValueError, match=r"TEST\.SEM_SEG\.PARTS \(\)"):
        trainer(tmp_path / "c", *ALONE, "MODEL.TCC.EMA.DECAY", 0.5, "TEST.SEM_SEG.PARTS", ("vit",))
    trainer(tmp_path / "d", *ALONE, "SOLVER.IMS_PER_BATCH_UNLABELED", 0)  # labels alone
