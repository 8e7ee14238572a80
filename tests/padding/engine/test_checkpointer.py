# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: atomic, safe to read, refused when they do not fit."""

import io
import multiprocessing
import resource
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from padding.engine.checkpointer import TrainingCheckpointer, read_training_checkpoint, write_checkpoint
from padding.engine.hooks import CheckpointHook
from padding.engine.termination import Terminated
from padding.errors import CheckpointError, UserError
from padding.modeling.weights.loading import load_weights


class Counter:
    def __init__(self, count: int = 0) -> None:
        self.count = count

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def test_save_and_restore(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    TrainingCheckpointer(model, str(tmp_path), trainer=Counter(5)).save("model_0000004", iteration=4)
    other, counter = nn.Linear(2, 3), Counter()
    checkpointer = TrainingCheckpointer(other, str(tmp_path), trainer=counter)
    assert Path(checkpointer.find_last()).name == "model_0000004.pth"
    assert checkpointer.restore(checkpointer.find_last()) == {"iteration": 4}
    assert counter.count == 5
    assert torch.equal(other.weight, model.weight)
    assert not list(tmp_path.glob(".*.tmp"))


def test_older_checkpoints_keep_their_weights_alone(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    checkpointer = TrainingCheckpointer(model, str(tmp_path), trainer=Counter(5))
    hook = CheckpointHook(checkpointer, period=2, complete=2)
    hook.trainer = SimpleNamespace(max_iter=8, iter=0)
    for hook.trainer.iter in range(8):
        hook.after_step()
    states = {path.stem: sorted(read_training_checkpoint(path)) for path in tmp_path.glob("model_*.pth")}
    complete, weights = ["iteration", "model", "trainer"], ["iteration", "model"]
    assert states == {
        "model_0000001": weights,
        "model_0000003": weights,
        "model_0000005": complete,
        "model_0000007": complete,
        "model_final": complete,
    }
    state = read_training_checkpoint(tmp_path / "model_0000001.pth")
    assert torch.equal(state["model"]["weight"], model.weight)
    assert state["iteration"] == 1


def test_an_old_damaged_checkpoint_is_left_and_the_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpointer = TrainingCheckpointer(nn.Linear(2, 3), str(tmp_path), trainer=Counter(5))
    for iteration in (1, 3, 5):
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    damaged = tmp_path / "model_0000001.pth"
    damaged.write_bytes(damaged.read_bytes()[:100])
    checkpointer.keep_weights_alone(3)
    assert damaged.stat().st_size == 100
    assert f"{damaged} (100 bytes) cannot be read" in caplog.text
    assert sorted(read_training_checkpoint(tmp_path / "model_0000003.pth")) == ["iteration", "model"]
    assert sorted(read_training_checkpoint(tmp_path / "model_0000005.pth")) == ["iteration", "model", "trainer"]


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointer = TrainingCheckpointer(nn.Linear(2, 3), str(tmp_path), trainer=Counter(1))
    checkpointer.save("model_final")
    whole = (tmp_path / "model_final.pth").read_bytes()

    def disk_full(content: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        checkpointer.save("model_final")
    assert (tmp_path / "model_final.pth").read_bytes() == whole
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.parametrize("kept", [0, 100, 700])
def test_a_cut_file_is_named_with_its_neighbour(tmp_path: Path, kept: int) -> None:
    checkpointer = TrainingCheckpointer(nn.Linear(2, 3), str(tmp_path))
    checkpointer.save("older")
    checkpointer.save("newer")
    path = tmp_path / "newer.pth"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=rf"newer\.pth \({kept} bytes\) cannot be read.*go on from older\.pth"):
        read_training_checkpoint(path)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_zeros_in_the_middle_are_noticed(tmp_path: Path, place: float) -> None:
    """torch reads such a file without a word."""
    checkpointer = TrainingCheckpointer(nn.Linear(100, 100), str(tmp_path))
    checkpointer.save("older")
    checkpointer.save("newer")
    path = tmp_path / "newer.pth"
    content = path.read_bytes()
    start = int(place * len(content))
    path.write_bytes(content[:start] + bytes(4096) + content[start + 4096 :])
    with pytest.raises(CheckpointError, match=r"newer\.pth .*cannot be read as a checkpoint.*go on from older\.pth"):
        checkpointer.restore(str(path))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Terminated])
def test_an_interrupt_while_writing_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    """torch's writer puts an error of its own in its place."""
    checkpointer = TrainingCheckpointer(nn.Linear(100, 100), str(tmp_path))
    checkpointer.save("model_final")
    whole = (tmp_path / "model_final.pth").read_bytes()
    path_open = Path.open

    class Interrupting(io.RawIOBase):
        def write(self, content: Any) -> int:
            raise kind

    def opened(path: Path, mode: str = "r", **options: Any) -> Any:
        return Interrupting() if mode == "wb" else path_open(path, mode, **options)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(kind):
        checkpointer.save("model_final")
    monkeypatch.undo()
    assert (tmp_path / "model_final.pth").read_bytes() == whole
    assert not list(tmp_path.glob(".*.tmp"))


def save_with_little_space(folder: Path, messages: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    checkpointer = TrainingCheckpointer(nn.Linear(100, 100), str(folder))
    for save in (lambda: checkpointer.save("model_final"), lambda: write_checkpoint(folder / "model_final.pth", {})):
        try:
            save()
        except UserError as error:
            messages.send(str(error))
        else:
            messages.send("written")


def test_a_full_disk_is_named_and_the_last_checkpoint_kept(tmp_path: Path) -> None:
    TrainingCheckpointer(nn.Linear(100, 100), str(tmp_path)).save("model_final")
    whole = (tmp_path / "model_final.pth").read_bytes()
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe()
    child = fork.Process(target=save_with_little_space, args=(tmp_path, send))
    child.start()
    message = receive.recv()
    assert (tmp_path / "model_final.pth").read_bytes() == whole
    assert receive.recv() == "written"  # a small file has its place
    child.join()
    assert message.startswith(f"{tmp_path / 'model_final.pth'} cannot be written: File too large; raise the limit")
    assert message.endswith("What was there before is unchanged")
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_file_cannot_run_code(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.mkdir, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save({"model": {}, "trainer": Attack()}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"bad\.pth.*cannot be read.*no other checkpoint lies beside it"):
        read_training_checkpoint(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "last_checkpoint").write_text("gone.pth")
    checkpointer = TrainingCheckpointer(nn.Linear(2, 3), str(tmp_path))
    with pytest.raises(CheckpointError, match=r"gone\.pth does not exist"):
        checkpointer.restore(checkpointer.find_last())


def test_another_model_or_weights_only_are_refused(tmp_path: Path) -> None:
    TrainingCheckpointer(nn.Linear(2, 3), str(tmp_path)).save("weights")
    wrong = TrainingCheckpointer(nn.Linear(2, 4), str(tmp_path), trainer=Counter())
    with pytest.raises(
        CheckpointError, match=r"does not fit this model: parameters 2 of another shape \(first: weight"
    ):
        wrong.restore(wrong.find_last())
    right = TrainingCheckpointer(nn.Linear(2, 3), str(tmp_path), trainer=Counter())
    with pytest.raises(CheckpointError, match=r"no training state 'trainer'.*MODEL\.WEIGHTS"):
        right.restore(right.find_last())


def test_forget_last_keeps_the_name(tmp_path: Path) -> None:
    checkpointer = TrainingCheckpointer(nn.Linear(2, 3), str(tmp_path))
    checkpointer.save("old_run")
    checkpointer.forget_last()
    assert checkpointer.find_last() == ""
    assert (tmp_path / "last_checkpoint.previous").read_text() == "old_run.pth"


def test_evaluation_refuses_a_model_that_stays_partly_untrained(tmp_path: Path) -> None:
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "extra": nn.Linear(2, 2)})
    torch.save({"model": model["backbone"].state_dict()}, tmp_path / "backbone.pth")
    with pytest.raises(CheckpointError, match=r"leaves 2 parameters of ModuleDict untrained, first 'extra\.weight'"):
        load_weights(model, str(tmp_path / "backbone.pth"), complete=True)
    load_weights(model, str(tmp_path / "backbone.pth"), complete=False)
