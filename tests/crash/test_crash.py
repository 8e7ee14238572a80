# SPDX-License-Identifier: Apache-2.0
"""What ends a training from outside, for all five trainings: afterwards it goes on as if nothing had happened.

``make crash-test``; some ten minutes. Each training is a process of its own, started as a user starts it.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from padding.data.files import TEMPORARY
from tests.tiny_psi import write_dozen_scribbled_shapes

pytestmark = [pytest.mark.crash, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
ITERATIONS, PERIOD = 9, 3
COMMON = (
    *("SOLVER.MAX_ITER", str(ITERATIONS), "SOLVER.CHECKPOINT_PERIOD", str(PERIOD), "SOLVER.LOG_PERIOD", "1"),
    *("TEST.EVAL_PERIOD", "0", "TEST.BEST_METRIC", "", "DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", "1"),
    *("SEED", "1", "MODEL.DEVICE", "cpu"),
)
TRAININGS = {
    "padding_segmentor": ("shapes_zsp_pretrain", ""),
    "padding": (
        "shapes_zsp",
        "MODEL.PADING.FEATURE_BANK.ENABLED True MODEL.PADING.FEATURE_BANK.SHARD_SIZE 5 "
        "DATASETS.TEST ('shapes_val_panoptic_zsp',)",  # knows the unseen classes
    ),
    "tcc": ("shapes_tcc", ""),
    "psi": ("shapes_psi", "MODEL.PSI.SLD.MODE rounds MODEL.PSI.SLD.STEPS 2"),
    "salseg": ("shapes_salseg", ""),
}
FULL = 300_000  # bytes that a file may have: less than any checkpoint, more than logs and metrics
PATIENCE = 240


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dozen_scribbled_shapes(tmp_path_factory.mktemp("data"))


class Run:
    """A training in a process group of its own."""

    def __init__(
        self, name: str, output: Path, data: Path, *flags: str, pause: float = 0.3, full: bool = False
    ) -> None:
        config, options = TRAININGS[name]
        command = [sys.executable, "-W", "ignore", str(ROOT / "tests" / "crash" / "slow_train_net.py")]
        command += ["--config-file", f"configs/smoke/{config}.yaml", *flags, "OUTPUT_DIR", str(output), *COMMON]
        command += options.split()
        self.output = output
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "DETECTRON2_DATASETS": str(data), "PAUSE": str(pause)}
        environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        limit: Callable[[], None] | None = limit_files if full else None
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=limit,
        )

    def until(self, reached: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not reached():
            assert self.process.poll() is None, f"ended too early: {self.end()[1][-2000:]}"
            assert time.monotonic() < end, "nothing happened"
            time.sleep(0.02)

    def until_iteration(self, number: int) -> None:
        self.until(lambda: any(line["iteration"] >= number for line in lines(self.output)))

    def end(self) -> tuple[int, str]:
        """Exit status and what stands on stderr."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors

    def signal_all(self, number: int) -> None:
        """To the process and its workers, as a terminal or a scheduler does."""
        os.killpg(self.process.pid, number)


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, FULL))


def lines(output: Path) -> list[dict[str, Any]]:
    path = output / "metrics.json"
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # it is being written
    return found


def losses(output: Path) -> list[tuple[int, dict[str, float]]]:
    """Of every line that has some: a repeated iteration shows."""
    found = [(line["iteration"], {k: v for k, v in line.items() if "loss" in k}) for line in lines(output)]
    return [(iteration, values) for iteration, values in found if values]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


@cache
def straight(name: str, folder: Path, data: Path) -> Path:
    """The same training, undisturbed."""
    output = folder / name
    status, errors = Run(name, output, data, pause=0.0).end()
    assert status == 0, errors[-3000:]
    return output


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("straight")
    return lambda name: straight(name, folder, data)


def assert_goes_on_to(expected: Path, name: str, output: Path, data: Path) -> None:
    """Resume and compare every loss and every weight, to the last bit."""
    status, errors = Run(name, output, data, "--resume", pause=0.0).end()
    assert status == 0, errors[-3000:]
    assert [iteration for iteration, _ in losses(output)] == list(range(ITERATIONS))
    assert losses(output) == losses(expected)
    found, wanted = weights(output), weights(expected)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key
    assert_tidy(output)


def assert_tidy(output: Path) -> None:
    assert not list(output.rglob(TEMPORARY))


def kill(name: str, output: Path, data: Path) -> None:
    """Kill a training behind its first checkpoint."""
    run = Run(name, output, data)
    run.until_iteration(PERIOD + 1)
    run.process.kill()
    run.end()
    assert (output / "last_checkpoint").read_text() == f"model_{PERIOD - 1:07d}.pth"


@pytest.mark.parametrize("name", TRAININGS)
def test_kill(name: str, tmp_path: Path, data: Path, expected: Callable[[str], Path]) -> None:
    output = tmp_path / "out"
    kill(name, output, data)
    holder = json.loads((output / ".lock").read_text())
    assert_goes_on_to(expected(name), name, output, data)
    assert f"in use by process {holder['process']} on {holder['host']}" in (output / "log.txt").read_text()


@pytest.mark.parametrize("name", TRAININGS)
def test_full_disk(name: str, tmp_path: Path, data: Path, expected: Callable[[str], Path]) -> None:
    output = tmp_path / "out"
    kill(name, output, data)
    status, errors = Run(name, output, data, "--resume", pause=0.0, full=True).end()
    assert status == 1
    last = errors.strip().splitlines()[-1]
    assert re.match(rf"error: {output}/model_{2 * PERIOD - 1:07d}\.pth cannot be written: File too large; raise", last)
    assert "Traceback" not in errors
    assert (output / "last_checkpoint").read_text() == f"model_{PERIOD - 1:07d}.pth"
    assert_tidy(output)
    assert_goes_on_to(expected(name), name, output, data)


@pytest.mark.parametrize("name", TRAININGS)
def test_sigterm(name: str, tmp_path: Path, data: Path, expected: Callable[[str], Path]) -> None:
    output = tmp_path / "out"
    run = Run(name, output, data)
    run.until_iteration(PERIOD)
    started = time.monotonic()
    run.signal_all(signal.SIGTERM)
    status, errors = run.end()
    assert status == 143, errors[-3000:]
    assert time.monotonic() - started < 30  # what schedulers wait before they kill
    last = losses(output)[-1][0]
    assert (output / "last_checkpoint").read_text() == f"model_{last:07d}.pth"
    assert f"SIGTERM: ended after iteration {last} with a checkpoint" in (output / "log.txt").read_text()
    assert_tidy(output)
    assert_goes_on_to(expected(name), name, output, data)


@pytest.mark.parametrize("name", TRAININGS)
def test_two_writers(name: str, tmp_path: Path, data: Path, expected: Callable[[str], Path]) -> None:
    output = tmp_path / "out"
    first = Run(name, output, data, pause=4.0)
    first.until_iteration(0)
    configuration = (output / "config.yaml").read_bytes()
    for flags in (("--resume",), ()):
        status, errors = Run(name, output, data, *flags).end()
        assert status == 1
        assert (
            errors.strip().splitlines()[-1].startswith(f"error: {output} is in use by process {first.process.pid} on")
        )
    assert first.end()[0] == 0
    assert (output / "config.yaml").read_bytes() == configuration
    assert losses(output) == losses(expected(name))
    # A third, which replaces nothing by mistake.
    before = {path: path.read_bytes() for path in output.iterdir() if path.is_file()}
    status, errors = Run(name, output, data).end()
    assert status == 1
    assert "holds a training already" in errors
    assert {path: path.read_bytes() for path in output.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("name", TRAININGS)
def test_refused_resume(name: str, tmp_path: Path, data: Path, expected: Callable[[str], Path]) -> None:
    """Another network in the configuration: nothing is overwritten."""
    output = tmp_path / "out"
    shutil.copytree(expected(name), output)
    other = ("MODEL.SMALL_RESNET.STEM_OUT_CHANNELS", "16")
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file() and path.name != "log.txt"}
    status, errors = Run(name, output, data, "--resume", *other).end()
    assert status == 1
    assert "does not fit this model" in errors
    after = {path: path.read_bytes() for path in output.rglob("*") if path.is_file() and path.name != "log.txt"}
    assert after == before


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.5, 10.0])
def test_interrupt_at_any_moment(seconds: float, tmp_path: Path, data: Path, expected: Callable[[str], Path]) -> None:
    output = tmp_path / "out"
    run = Run("tcc", output, data, pause=0.3)
    time.sleep(seconds)
    if run.process.poll() is None:
        run.signal_all(signal.SIGINT)
    status, errors = run.end()
    if status == 0:
        return  # it was done
    assert status in (130, -signal.SIGINT), errors[-3000:]
    assert "Traceback" not in errors, errors[-3000:]
    assert_tidy(output)
    assert_goes_on_to(expected("tcc"), "tcc", output, data)
