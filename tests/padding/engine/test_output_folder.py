# SPDX-License-Identifier: Apache-2.0
"""One training in one folder: the lock, what a dead process left, a training that would be replaced, no permission."""

import json
import multiprocessing
import os
import signal
import socket
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from padding.engine import output_folder
from padding.engine.output_folder import LOCK, check_writable, claimed_folder
from padding.errors import ExistingFileError, WriteError

_FORK = multiprocessing.get_context("fork")


def cfg(folder: Path, *, overwrite: bool = False) -> CfgNode:
    return CfgNode({"OUTPUT_DIR": str(folder), "OUTPUT_OVERWRITE": overwrite})


def hold(folder: Path, ready: Connection) -> None:
    """What another process does: claim the folder and stay, with a worker of its own."""
    with claimed_folder(cfg(folder), resume=False):
        worker = _FORK.Process(target=time.sleep, args=(60,))
        worker.start()
        ready.send(worker.pid)
        time.sleep(60)


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    receive, send = _FORK.Pipe()
    first = _FORK.Process(target=hold, args=(tmp_path, send))
    first.start()
    worker = receive.recv()
    for resume in (False, True):
        with (
            pytest.raises(
                ExistingFileError, match=rf"is in use by process {first.pid} on {socket.gethostname()}, since"
            ),
            claimed_folder(cfg(tmp_path, overwrite=True), resume=resume),
        ):
            pass
    with claimed_folder(cfg(tmp_path), resume=True, trains=False) as note:  # an evaluation beside it
        assert note == ""
    os.kill(first.pid or 0, signal.SIGKILL)
    first.join()
    # Its worker still lives, and must not keep the lock.
    with claimed_folder(cfg(tmp_path), resume=False) as note:
        assert f"in use by process {first.pid} on {socket.gethostname()}" in note
        assert "is gone: its lock is taken over" in note
    os.kill(worker, signal.SIGKILL)
    with claimed_folder(cfg(tmp_path), resume=False) as note:
        assert note == ""  # a clean end is not told


def test_the_lock_says_who_holds_it_and_one_process_claims_once(tmp_path: Path) -> None:
    with claimed_folder(cfg(tmp_path / "new"), resume=False):
        content = json.loads((tmp_path / "new" / LOCK).read_text())
        assert content["process"] == os.getpid()
        assert content["host"] == socket.gethostname()
        with pytest.raises(ExistingFileError, match="this process trains in it already"), ExitStack() as stack:
            stack.enter_context(claimed_folder(cfg(tmp_path / "new"), resume=False))
        with claimed_folder(cfg(tmp_path / "other"), resume=False):
            pass
    assert (tmp_path / "new" / LOCK).read_text() == ""


@pytest.mark.parametrize("alive", [True, False])
def test_file_systems_without_locks_go_by_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(output_folder.fcntl, "lockf", unsupported)
    process = _FORK.Process(target=time.sleep, args=(60 if alive else 0,))
    process.start()
    if not alive:
        process.join()
    holder = {"host": socket.gethostname(), "process": process.pid, "since": "today"}
    (tmp_path / LOCK).write_text(json.dumps(holder))
    if alive:
        with pytest.raises(ExistingFileError, match=rf"process {process.pid} .* delete .*\.lock"), ExitStack() as stack:
            stack.enter_context(claimed_folder(cfg(tmp_path), resume=False))
        process.kill()
    else:
        with claimed_folder(cfg(tmp_path), resume=False) as note:
            assert "taken over" in note
    (tmp_path / LOCK).write_text(json.dumps({**holder, "host": "another"}))
    with pytest.raises(ExistingFileError, match="on another, since today"), ExitStack() as stack:
        stack.enter_context(claimed_folder(cfg(tmp_path), resume=False))
    (tmp_path / LOCK).write_text("damaged")
    with claimed_folder(cfg(tmp_path), resume=False) as note:
        assert note == ""


@pytest.mark.parametrize("name", ["last_checkpoint", "model_0000004.pth", "model_final.pth", "model_best.pth"])
def test_a_training_is_not_replaced_by_mistake(tmp_path: Path, name: str) -> None:
    (tmp_path / "log.txt").write_text("of a training that never came to a checkpoint")
    with claimed_folder(cfg(tmp_path), resume=False):
        pass
    (tmp_path / name).write_text("x")
    with (
        pytest.raises(
            ExistingFileError, match=rf"{name}.*--resume, choose another OUTPUT_DIR, .*OUTPUT_OVERWRITE True"
        ),
        claimed_folder(cfg(tmp_path), resume=False),
    ):
        pass
    assert (tmp_path / LOCK).read_text() == ""
    for resume, overwrite in ((True, False), (False, True)):
        with claimed_folder(cfg(tmp_path, overwrite=overwrite), resume=resume):
            pass
    with claimed_folder(cfg(tmp_path), resume=False, trains=False):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        check_writable(tmp_path / "file" / "below")
    check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    for trains in (True, False):
        with (
            pytest.raises(WriteError, match=rf"{tmp_path} cannot be written: Permission denied; choose a folder"),
            claimed_folder(cfg(tmp_path), resume=True, trains=trains),
        ):
            pass


def test_a_read_only_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(output_folder.tempfile, "TemporaryFile", read_only)
    with pytest.raises(WriteError, match=rf"{tmp_path} cannot be written: Read-only file system; choose a folder"):
        check_writable(tmp_path)
