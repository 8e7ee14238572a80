# SPDX-License-Identifier: Apache-2.0
"""train_net.py from end to end: every smoke configuration trains, resumes and evaluates; processes; restarts."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.engine import default_argument_parser
from PIL import Image

import train_net
from padding.errors import ConfigError
from tests.toy_training import free_port

ROOT = Path(__file__).parents[2]
SMOKE_CONFIGS = sorted((ROOT / "configs" / "smoke").glob("*.yaml"))


def run(config: str | Path, output: Path, *opts: Any, flags: tuple[str, ...] = ()) -> dict[str, Any]:
    words = ["--config-file", str(config), *flags, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(output), *map(str, opts)]
    return train_net.main(default_argument_parser().parse_args(words))


def losses(output: Path) -> dict[int, dict[str, float]]:
    """Losses of every iteration; a repeated iteration keeps its last line."""
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return {
        line["iteration"]: {key: value for key, value in line.items() if "loss" in key}
        for line in lines
        if any("loss" in key for key in line)
    }


def train_resume_evaluate(config: str | Path, output: Path, *opts: Any) -> dict[str, Any]:
    """Train two steps; go back to the checkpoint of the first and repeat the second; evaluate the end."""
    opts = ("SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.LOG_PERIOD", 1, *opts)
    trained = run(config, output, *opts)
    before = losses(output)
    assert sorted(before) == [0, 1]
    end = torch.load(output / "model_final.pth", weights_only=True)["model"]

    (output / "last_checkpoint").write_text("model_0000000.pth")
    (output / "model_final.pth").unlink()
    resumed = run(config, output, *opts, flags=("--resume",))
    assert losses(output) == before
    assert resumed == trained
    again = torch.load(output / "model_final.pth", weights_only=True)["model"]
    for name, value in end.items():
        assert torch.equal(again[name], value), name

    evaluated = run(config, output, *opts, flags=("--eval-only", "--resume"))
    trained.pop("best", None)  # TEST.BEST_METRIC is of a training
    assert evaluated == trained
    return evaluated


@pytest.mark.smoke
@pytest.mark.skipif(not SMOKE_CONFIGS, reason="configs/smoke holds no configuration")
@pytest.mark.parametrize("config", SMOKE_CONFIGS, ids=lambda path: path.stem)
def test_smoke_config_trains_resumes_and_evaluates(config: Path, shapes: Path, tmp_path: Path) -> None:
    train_resume_evaluate(config, tmp_path / "out", "SEED", 1)


def launch_two(main_func: Any, args: tuple[Any, ...], **_: Any) -> None:
    """Start processes as Detectron2's ``launch`` does where there are GPUs."""
    torch.multiprocessing.start_processes(_call, args=(main_func, args), nprocs=2, start_method="fork")


def _call(_: int, main_func: Any, args: tuple[Any, ...]) -> None:
    main_func(*args)


def test_an_error_of_the_user_is_one_line_in_each_of_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("detectron2.engine.launch", launch_two)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    words = ["--config-file", str(SMOKE_CONFIGS[0]), "--num-gpus", "2", "--eval-only", "TRAINER", "NoSuchTrainer"]
    words += ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as caught:
        train_net.start(train_net.parse_arguments(words))
    assert caught.value.code == 1
    shown = capfd.readouterr().err
    assert "error: TRAINER is 'NoSuchTrainer'; expected one of" in shown
    assert "Traceback" not in shown


def test_segmentor_trains_resumes_and_evaluates(tiny_config: str, shapes: Path, tmp_path: Path) -> None:
    results = train_resume_evaluate(tiny_config, tmp_path / "out")
    assert {"PQ", "PQ_seen", "PQ_unseen", "PQ_hm"} <= results["panoptic_seg"].keys()
    written = json.loads((tmp_path / "out" / "inference" / "metrics.json").read_text())
    assert written["shapes_val_panoptic_zsp"]["panoptic_seg"]["PQ"] == results["panoptic_seg"]["PQ"]
    assert (tmp_path / "out" / "config.yaml").is_file()
    assert "eta: 0:00:00" in (tmp_path / "out" / "log.txt").read_text()


def test_mixed_precision_and_periodic_evaluation(tiny_config: str, shapes: Path, tmp_path: Path) -> None:
    run(tiny_config, tmp_path / "a", "SOLVER.AMP.ENABLED", True, "TEST.EVAL_PERIOD", 1)
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.json").read_text().splitlines()]
    # After step 0 by the period, and once at the end, not twice.
    assert [line["iteration"] for line in lines if "panoptic_seg/PQ" in line] == [0, 2]


def test_expected_results_are_checked(tiny_config: str, shapes: Path, tmp_path: Path) -> None:
    wrong = [["panoptic_seg", "PQ", 99.0, 0.5]]
    with pytest.raises(SystemExit):
        run(tiny_config, tmp_path / "out", "SOLVER.MAX_ITER", 1, "TEST.EXPECTED_RESULTS", wrong)


def test_evaluation_needs_weights(tiny_config: str, shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing to evaluate: set MODEL\.WEIGHTS"):
        run(tiny_config, tmp_path / "out", flags=("--eval-only",))


def test_several_gpus_on_a_cpu_machine_point_to_torchrun(tiny_config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = default_argument_parser().parse_args(["--config-file", tiny_config, "--num-gpus", "2"])
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node 2"):
        train_net.start(args)


# Two processes ------------------------------------------------------------------------------------------------------


def start_rank(rank: int, port: int, words: list[str]) -> None:
    """What torchrun does for one of two processes."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    train_net.start(default_argument_parser().parse_args(words))


def train_on_one_and_two_processes(config: str | Path, folder: Path, *opts: str) -> tuple[Path, Path]:
    """Train three steps with one process and with two that share the same batches; return both output folders."""
    opts = ("SOLVER.MAX_ITER", "3", "SOLVER.LOG_PERIOD", "1", "MODEL.MASK_FORMER.SEED_POINTS_BY_IMAGE", "True", *opts)
    one, two = folder / "one", folder / "two"
    run(config, one, *opts)
    words = ["--config-file", str(config), "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(two), *opts]
    fork, port = multiprocessing.get_context("fork"), free_port()
    children = [fork.Process(target=start_rank, args=(rank, port, words)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    return one, two


def assert_equal_losses(one: Path, two: Path) -> None:
    first, second = losses(one), losses(two)
    assert sorted(first) == sorted(second) == [0, 1, 2]
    for iteration, terms in first.items():
        assert second[iteration] == pytest.approx(terms, rel=1e-4, abs=1e-7), iteration


def test_segmentor_on_two_processes_equals_one(tiny_config: str, shapes: Path, tmp_path: Path) -> None:
    """Without what turns the last bit of a sum into a step: the choice of uncertain points, and AdamW."""
    opts = ["MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO", "0.0", "SOLVER.OPTIMIZER", "SGD"]
    one, two = train_on_one_and_two_processes(tiny_config, tmp_path, *opts)
    assert_equal_losses(one, two)
    # The evaluation is shared between the processes, and its numbers are the same.
    first, second = (json.loads((output / "inference" / "metrics.json").read_text()) for output in (one, two))
    assert second["shapes_val_panoptic_zsp"]["sem_seg"] == pytest.approx(
        first["shapes_val_panoptic_zsp"]["sem_seg"], rel=1e-3
    )


def test_second_stage_on_two_processes_equals_one(shapes: Path, tmp_path: Path) -> None:
    """Without noise and dropout, whose draws belong to a process."""
    silent = ["GENERATOR.NOISE_STD", "GENERATOR.DROPOUT", "DISENTANGLE.DROPOUT"]
    opts = [word for key in silent for word in (f"MODEL.PADING.{key}", "0.0")]
    config = ROOT / "configs" / "smoke" / "shapes_zsp.yaml"
    assert_equal_losses(*train_on_one_and_two_processes(config, tmp_path, "SEED", "1", *opts))


def test_cohort_on_two_processes_equals_one(shapes: Path, tmp_path: Path) -> None:
    """Dice sums over all processes; without batch norm and dropout, which belong to a process."""
    opts = ["SEED", "1", "MODEL.TCC.SUP.DICE.SYNC", "True"]
    for name in ("CNN", "VIT"):
        student = f"MODEL.TCC.{name}."
        opts += [student + "NORM", "FrozenBN", student + "HEAD.NORM", "GN", student + "HEAD.ASPP_DROPOUT", "0.0"]
    config = ROOT / "configs" / "smoke" / "shapes_tcc.yaml"
    one, two = train_on_one_and_two_processes(config, tmp_path, *opts)
    assert_equal_losses(one, two)
    weights = [torch.load(out / "model_final.pth", weights_only=True)["model"] for out in (one, two)]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-2, atol=1e-3, msg=key)


@pytest.mark.parametrize(
    "mode", [*(pytest.param(m, marks=pytest.mark.slow) for m in ("online", "inner_loop")), "rounds"]
)
def test_scribbles_on_two_processes_equal_one(mode: str, shapes: Path, tmp_path: Path) -> None:
    """Losses are means over the pixels of all processes, and each process labels its share of the images.

    An untrained network scores all cells nearly alike, so that some lie within the last bit of their threshold and flip
    with the order of a sum. Here such a flip moves no loss by a step: windows cover the whole image, and the
    threshold's loss reads soft scores of every cell, not a selection. At a high rate nine steps of the inner loop alone
    turn a last bit into 1e-4.
    """
    opts = ["SEED", "1", "MODEL.PSI.SLD.MODE", mode, "MODEL.PSI.SLD.STEPS", "2", "MODEL.SMALL_RESNET.NORM", "FrozenBN"]
    for key in ("CPP.NORM", "CPP.LATERAL_NORM", "DECODER.NORM"):
        opts += [f"MODEL.PSI.{key}", "GN"]
    opts += ["MODEL.PSI.DECODER.ASPP_DROPOUT", "0.0", "MODEL.PSI.SLD.GATE_ARGMAX", "False", "TEST.EVAL_PERIOD", "0"]
    opts += ["MODEL.PSI.SLD.RADIUS", "200", "MODEL.PSI.SLD.SCOPE", "global", "MODEL.PSI.SLD.BINARIZER", "sigmoid"]
    opts += ["MODEL.PSI.LOSS.DIFFUSION_REGION", "all", "SOLVER.BASE_LR", "0.001"]
    config = ROOT / "configs" / "smoke" / "shapes_psi.yaml"
    one, two = train_on_one_and_two_processes(config, tmp_path, *opts)
    assert_equal_losses(one, two)
    weights = [torch.load(out / "model_final.pth", weights_only=True)["model"] for out in (one, two)]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-2, atol=1e-3, msg=key)
    files = [sorted((out / "labels").rglob("*.png")) for out in (one, two)]
    assert [len(found) for found in files] == [2 * 2 * 12 if mode == "rounds" else 0] * 2
    for first, second in zip(*files, strict=True):
        assert first.relative_to(one) == second.relative_to(two)
        assert np.mean(np.asarray(Image.open(first)) != np.asarray(Image.open(second))) < 0.01


def test_two_tasks_on_two_processes_equal_one(shapes: Path, tmp_path: Path) -> None:
    """Both losses are means over the pixels of all processes, however many of them are void on each."""
    opts = ["SEED", "1", "MODEL.SALSEG.NORM", "GN", "MODEL.SALSEG.ASPP.DROPOUT", "0.0"]
    opts += [
        "MODEL.SMALL_RESNET.NORM",
        "FrozenBN",
        "INPUT.SALIENCY.MODE",
        "scale_crop",
        "INPUT.SALIENCY.CROP",
        "(64,64)",
    ]
    config = ROOT / "configs" / "smoke" / "shapes_salseg.yaml"
    one, two = train_on_one_and_two_processes(config, tmp_path, *opts)
    assert_equal_losses(one, two)
    weights = [torch.load(out / "model_final.pth", weights_only=True)["model"] for out in (one, two)]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-2, atol=1e-3, msg=key)
    # Scores at a threshold of what is hardly trained would jump with the last digit; the mean error does not.
    errors = [json.loads((out / "inference" / "metrics.json").read_text()) for out in (one, two)]
    mine, theirs = (results["shapes_val_saliency"]["saliency"]["MAE"] for results in errors)
    assert mine == pytest.approx(theirs, rel=1e-3)


@pytest.fixture
def quiet_environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_torchrun_restarts_and_resumes_by_itself(tmp_path: Path, quiet_environment: dict[str, str]) -> None:
    """Rank 1 dies in iteration 4 of the first attempt; torchrun starts both again, and they go on from iteration 3."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "1", str(ROOT / "tests" / "toy_training.py"), str(tmp_path / "restarted"), "4"]
    done = subprocess.run(command, env=quiet_environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    straight = [*command[:-1], "-1"]
    straight[-2] = str(tmp_path / "straight")
    subprocess.run(straight, env=quiet_environment, capture_output=True, timeout=300, check=True)
    assert losses(tmp_path / "restarted") == losses(tmp_path / "straight")
    log = (tmp_path / "restarted" / "metrics.json").read_text().splitlines()
    iterations = [json.loads(line)["iteration"] for line in log]
    assert sorted(iterations) == list(range(8))  # 3 was trained, lost and trained again


@pytest.mark.slow
def test_command_line_under_torchrun(
    tiny_config: str, shapes: Path, tmp_path: Path, quiet_environment: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "train_net.py"), "--config-file", tiny_config, "OUTPUT_DIR", str(tmp_path / "out")]
    subprocess.run(command, env=quiet_environment, capture_output=True, timeout=300, check=True, cwd=ROOT)
    assert sorted(losses(tmp_path / "out")) == [0, 1]
    assert (tmp_path / "out" / "inference" / "metrics.json").is_file()


@pytest.mark.slow
def test_configuration_error_is_one_line(tmp_path: Path, quiet_environment: dict[str, str]) -> None:
    (tmp_path / "c.yaml").write_text("SOLVER:\n  BASE_LRR: 1\n")
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(tmp_path / "c.yaml")]
    done = subprocess.run(command, env=quiet_environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().endswith("did you mean SOLVER.BASE_LR?")
