# SPDX-License-Identifier: Apache-2.0
"""Training of SalSeg: rates and decay, the streams of every mode, class weights, accumulation, exact resume."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from padding.data.catalog import register_all
from padding.data.class_frequency import class_weights
from padding.data.streams import PairedStream, TrainStream
from padding.engine import TRAINER_REGISTRY
from salseg.class_weights import main as class_weights_main
from salseg.meta_arch import SalSeg
from salseg.trainer import SalSegTrainer
from tests.tiny_salseg import tiny_salseg_cfg
from tests.tiny_segmentor import write_dozen_shapes

SPLIT = ("DATASETS.SPLIT", "shapes/4_of_12", "DATASETS.TEST", ())
NODE = "MODEL.SALSEG."


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_dozen_shapes(tmp_path_factory.mktemp("data"))
    register_all(root)
    return root


def trainer(output: Path, *opts: Any) -> SalSegTrainer:
    torch.manual_seed(0)  # what train_net.py does with SEED
    built = TRAINER_REGISTRY.get("SalSegTrainer")(tiny_salseg_cfg("OUTPUT_DIR", str(output), *SPLIT, *opts))
    assert isinstance(built, SalSegTrainer)
    return built


def model_of(built: SalSegTrainer) -> SalSeg:
    assert isinstance(built.module, SalSeg)
    return built.module


def losses(output: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return {line["iteration"]: {k: v for k, v in line.items() if "loss" in k} for line in lines}


def tasks_of(batch: list[dict[str, Any]]) -> list[str]:
    return ["+".join(key for key in ("sem_seg", "saliency") if key in sample) for sample in batch]


def test_every_parameter_has_the_rate_and_the_decay_of_its_part(tmp_path: Path) -> None:
    rates = ("SOLVER.BASE_LR", 0.01, "SOLVER.BACKBONE_MULTIPLIER", 0.2, "SOLVER.REFERENCE_BATCH", 4)  # the batch is 2
    own = (NODE + "SALIENCY.LR_MULTIPLIER", 0.5, NODE + "LOG_VARIANCE.LR_MULTIPLIER", 3.0)
    decays = ("SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.WEIGHT_DECAY_BIAS", 0.0, "SOLVER.WEIGHT_DECAY_NORM", 0.0)
    built = trainer(tmp_path, *rates, *own, *decays)
    groups = built.optimizers["main"].param_groups
    found = {id(p): (group["initial_lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    kernels = {id(m.weight) for m in built.module.modules() if isinstance(m, nn.Conv2d)}
    factor = {"backbone": 0.2, "pyramid": 1, "decoder": 1, "branch": 0.5, "weighting": 3}
    for name, parameter in built.module.named_parameters():
        lr, decay = found.pop(id(parameter))
        assert lr == pytest.approx(0.005 * factor[name.split(".")[0]]), name
        assert decay == (0.1 if id(parameter) in kernels else 0.0), name
    assert not found


def test_streams_of_every_mode(tmp_path: Path) -> None:
    paired = trainer(tmp_path / "paired", "SOLVER.IMS_PER_BATCH_SALIENCY", 4)
    assert isinstance(paired.stream, PairedStream)
    batch = paired.next_batch()
    assert tasks_of(batch) == ["sem_seg"] * 2 + ["saliency"] * 4
    kinds = [{Path(s["file_name"]).stem for s in batch if key in s} for key in ("sem_seg", "saliency")]
    assert not kinds[0] & kinds[1]
    assert kinds[0] <= {f"{i:012d}" for i in range(1, 5)}

    seg = trainer(tmp_path / "seg", NODE + "WEIGHTING", "seg_only")
    assert isinstance(seg.stream, TrainStream)
    first = seg.next_batch()
    assert tasks_of(first) == ["sem_seg"] * 2
    assert [s["file_name"] for s in first] == [s["file_name"] for s in batch[:2]]  # the same as beside saliency
    off = trainer(tmp_path / "off", NODE + "SALIENCY.ENABLED", False)
    assert tasks_of(off.next_batch()) == ["sem_seg"] * 2

    alone = trainer(tmp_path / "alone", NODE + "WEIGHTING", "saliency_only")
    assert tasks_of(alone.next_batch()) == ["saliency"] * 2

    sets = ("DATASETS.TRAIN_SALIENCY", ("shapes_train_saliency_plain",), "DATASETS.SALIENCY_BATCHES", "joint")
    joint = trainer(tmp_path / "joint", *sets)
    assert tasks_of(joint.next_batch()) == ["sem_seg+saliency"] * 2
    for built in (seg, off, alone, joint):
        built.train()

    with pytest.raises(ValueError, match=r"IMS_PER_BATCH_SALIENCY is 0, but .*'uncertainty' trains saliency"):
        trainer(tmp_path / "none", "SOLVER.IMS_PER_BATCH_SALIENCY", 0)
    with pytest.raises(ValueError, match="cannot be split evenly"):
        trainer(tmp_path / "odd", "SOLVER.IMS_PER_BATCH_SALIENCY", 3, "SOLVER.ACCUMULATE_STEPS", 2)


def test_class_weights_are_those_of_the_labeled_images(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = trainer(tmp_path / "run", NODE + "CLASS_WEIGHTS.ENABLED", True)
    found = model_of(built).class_weights
    assert (tmp_path / "run" / "class_frequency.json").is_file()
    assert torch.equal(found, class_weights(built.cfg, cache=None))
    assert not torch.equal(found, class_weights("shapes_train_sem_seg_coarse", cache=None))
    assert torch.equal(model_of(trainer(tmp_path / "plain")).class_weights, torch.ones(17))
    keys = (NODE + "CLASS_WEIGHTS.OVER", "all", NODE + "CLASS_WEIGHTS.CACHE", str(tmp_path / "kept.json"))
    trainer(tmp_path / "all", NODE + "CLASS_WEIGHTS.ENABLED", True, *keys)
    assert (tmp_path / "kept.json").is_file()

    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    words = ["DATASETS.SPLIT", "shapes/4_of_12", "OUTPUT_DIR", str(tmp_path / "run")]
    class_weights_main(["--config-file", "configs/shapes_salseg.yaml", *words])
    printed = [line.split("|")[4].strip() for line in capsys.readouterr().out.strip().splitlines()[2:]]
    assert printed == [f"{weight:.2f}" for weight in found.tolist()]


def test_two_parts_of_a_batch_train_as_the_whole(tmp_path: Path) -> None:
    """Without batch norm, on whole images, where every part has the same number of known pixels."""
    opts: tuple[Any, ...] = ("SOLVER.IMS_PER_BATCH", 4, "SOLVER.IMS_PER_BATCH_SALIENCY", 4, "SOLVER.MAX_ITER", 3)
    opts += ("SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 0.1, "INPUT.DATASET_MAPPER_NAME", "semantic_resize")
    opts += (NODE + "NORM", "GN", "MODEL.SMALL_RESNET.NORM", "FrozenBN")
    whole, parts = trainer(tmp_path / "a", *opts), trainer(tmp_path / "b", *opts, "SOLVER.ACCUMULATE_STEPS", 2)
    assert tasks_of(next(iter(parts.micro_batches()))) == ["sem_seg"] * 2 + ["saliency"] * 2
    parts = trainer(tmp_path / "b", *opts, "SOLVER.ACCUMULATE_STEPS", 2)
    for built in (whole, parts):
        built.train()
    expected, found = losses(tmp_path / "a"), losses(tmp_path / "b")
    for iteration, terms in expected.items():
        assert found[iteration] == pytest.approx(terms, rel=1e-4, abs=1e-6), iteration
    assert expected[2]["loss_uncertainty"] != 0


@pytest.mark.parametrize(
    "opts",
    [
        (NODE + "ASPP.DROPOUT", 0.3),
        (NODE + "SALIENCY.BN_STATS", "per_task", NODE + "CLASS_WEIGHTS.ENABLED", True, "SOLVER.OPTIMIZER", "ADAM"),
        ("SOLVER.AMP.ENABLED", True, "SOLVER.ACCUMULATE_STEPS", 2, NODE + "WEIGHTING", "liebel"),
        (NODE + "BALANCE.RUNNING_MEAN", 0.9, NODE + "BALANCE.FLOOR", (0.6, 0.1), NODE + "BALANCE.PIXEL_SUMS", True),
        (NODE + "WEIGHTING", "likelihood"),
    ],
    ids=["plain", "own-statistics", "amp-accumulation", "balance", "likelihood"],
)
def test_resume_continues_exactly(opts: tuple[Any, ...], tmp_path: Path) -> None:
    straight = trainer(tmp_path / "straight", *opts)
    torch.manual_seed(5)
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


def test_policy_of_the_statistics_changes_no_learned_weight(tmp_path: Path) -> None:
    found = []
    for policy in ("seg_only", "per_task", "shared"):
        built = trainer(tmp_path / policy, NODE + "SALIENCY.BN_STATS", policy, "SOLVER.MAX_ITER", 2)
        torch.manual_seed(5)
        built.train()
        found.append(dict(built.module.named_parameters()))
    for other in found[1:]:
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


def test_learned_variances_move_and_stay_within_bounds(tmp_path: Path) -> None:
    rate = (NODE + "LOG_VARIANCE.LR_MULTIPLIER", 1000.0, NODE + "LOG_VARIANCE.CLAMP", 0.25)
    built = trainer(tmp_path, *rate, "SOLVER.MAX_ITER", 2)
    built.train()
    assert all(s.item() != 0 for s in model_of(built).weighting.log_variances.values())
    assert all(abs(math.log(weight)) <= 0.2501 for weight in model_of(built).weighting.weights.values())


def test_segmentation_starts_from_a_network_trained_on_saliency(tmp_path: Path) -> None:
    source = trainer(tmp_path / "source", NODE + "WEIGHTING", "saliency_only", "SOLVER.MAX_ITER", 2)
    source.train()
    weights = ("MODEL.WEIGHTS", str(tmp_path / "source" / "model_final.pth"))
    built = trainer(tmp_path / "out", *weights, NODE + "SALIENCY.BN_STATS", "per_task")
    built.resume_or_load(resume=False)
    state = built.module.state_dict()
    for key, value in source.module.state_dict().items():
        if key.startswith(("backbone", "pyramid", "branch")):
            assert torch.equal(state[key], value), key
    own, shared = (state[key] for key in ("statistics.running_mean_0", "backbone.stem.conv1.norm.running_mean"))
    assert torch.equal(own, shared)


def test_other_models_are_refused(tmp_path: Path) -> None:
    built = trainer(tmp_path)
    with pytest.raises(TypeError, match="trains SalSeg, not Linear"):
        built.build_optimizers(built.cfg, nn.Linear(1, 1))


def test_training_starts_from_weights_of_the_backbone_alone(tmp_path: Path) -> None:
    source = model_of(trainer(tmp_path / "source"))
    state = {name: torch.full_like(value, 2) for name, value in source.backbone.state_dict().items()}
    torch.save(state, tmp_path / "imagenet.pth")
    built = trainer(tmp_path / "started", "MODEL.WEIGHTS", str(tmp_path / "imagenet.pth"))
    built.resume_or_load(resume=False)
    started = model_of(built)
    assert all((value == 2).all() for value in started.backbone.state_dict().values())
    for name, value in source.decoder.state_dict().items():
        assert torch.equal(started.decoder.state_dict()[name], value), name


def test_a_training_with_fixed_weights_is_evaluated_by_a_configuration_with_learned_ones(tmp_path: Path) -> None:
    fixed = trainer(tmp_path / "fixed", NODE + "WEIGHTING", "uniform")
    torch.save({"model": model_of(fixed).state_dict()}, tmp_path / "model.pth")
    learned = trainer(tmp_path / "learned", NODE + "WEIGHTING", "uncertainty")
    learned.load_weights(model_of(learned), str(tmp_path / "model.pth"), complete=True)
    for name, value in model_of(fixed).state_dict().items():
        assert torch.equal(model_of(learned).state_dict()[name], value), name
