# SPDX-License-Identifier: Apache-2.0
"""OUTPUT_DIR belongs to one training at a time: it is locked, and nothing is begun over an older one by mistake.

The lock is the system's, of a file that also says who holds it: it ends with its process, however that ends, and is
seen from other machines where the file system is shared. What a dead process left in the file is only told.
"""

import errno
import fcntl
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from padding.data.files import naming_unwritable
from padding.engine.checkpointer import LAST_CHECKPOINT
from padding.engine.distributed import restarted_by_torchrun
from padding.errors import ExistingFileError, UserError

LOCK = ".lock"
_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)
_held: set[Path] = set()


def check_writable(folder: str | Path) -> None:
    """Make a folder if it is missing, and a file in it that goes at once.

    Raises:
        WriteError: it may not be written to, or the disk is full.
    """
    with naming_unwritable(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")


@contextmanager
def claimed_folder(cfg: CfgNode, *, resume: bool, trains: bool = True) -> Iterator[str]:
    """Hold OUTPUT_DIR for a training, or see that it can be written to. Nothing in it is changed. Collective.

    Args:
        cfg: OUTPUT_DIR, OUTPUT_OVERWRITE.
        resume: whether the training goes on from what the folder holds.
        trains: False for an evaluation, which may run beside a training.

    Yields:
        What is to be logged, "" if nothing.

    Raises:
        WriteError: the folder cannot be written to.
        ExistingFileError: another process trains in it, or it holds a training that is not resumed.
    """
    folder = Path(cfg.OUTPUT_DIR)
    resume = resume or restarted_by_torchrun(folder, leave_mark=False)
    lock, note, problem = _Lock(folder), "", None
    if comm.is_main_process():
        try:
            check_writable(folder)
            if trains:
                note = lock.take()
                if not resume and not cfg.OUTPUT_OVERWRITE:
                    _check_unused(folder)
        except UserError as error:
            problem = error
    try:
        # The error of rank 0 reaches every rank, so that none waits for ever.
        problem = comm.all_gather(problem)[0]
        if problem is not None:
            raise problem
        yield note
    finally:
        lock.release()


def _check_unused(folder: Path) -> None:
    found = [folder / LAST_CHECKPOINT, *sorted(folder.glob("model_*.pth"))]
    found = [path for path in found if path.is_file()]
    if found:
        raise ExistingFileError(
            f"{folder} holds a training already ({found[0].name}), and a new one would replace it. Go on with it by "
            "--resume, choose another OUTPUT_DIR, or begin anew over it with OUTPUT_OVERWRITE True"
        )


class _Lock:
    def __init__(self, folder: Path) -> None:
        self._path = folder.absolute() / LOCK
        self._file = -1

    def take(self) -> str:
        """Lock the folder; returns a line about a dead process that held it, or "".

        Raises:
            ExistingFileError: a living process holds it.
        """
        if self._path in _held:  # the system's lock would let the same process in
            raise ExistingFileError(f"{self._path.parent}: this process trains in it already")
        with naming_unwritable(self._path):
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        locked = self._lock()
        holder = self._holder()
        mine = socket.gethostname()
        if locked is False or (locked is None and holder and (holder["host"] != mine or _lives(holder["process"]))):
            os.close(self._file)
            self._file = -1
            who = f"process {holder['process']} on {holder['host']}, since {holder['since']}" if holder else "another"
            raise ExistingFileError(
                f"{self._path.parent} is in use by {who}: two trainings would mix their files. Wait for it, end it, or "
                f"choose another OUTPUT_DIR; if it runs no more, delete {self._path}"
            )
        content = {"host": mine, "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with naming_unwritable(self._path):
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(content).encode(), 0)
        _held.add(self._path)
        if not holder:
            return ""
        return (
            f"{self._path.parent} was in use by process {holder['process']} on {holder['host']} since "
            f"{holder['since']}, which is gone: its lock is taken over"
        )

    def release(self) -> None:
        """Give the folder back; the file stays, empty."""
        if self._file < 0:
            return
        os.ftruncate(self._file, 0)
        os.close(self._file)  # and with it the lock
        self._file = -1
        _held.discard(self._path)

    def _lock(self) -> bool | None:
        """Whether the lock is ours; None where the file system has no locks."""
        # Of this kind alone the lock is not inherited by workers, which may outlive a killed training for seconds.
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return False if error.errno in _HELD_BY_ANOTHER else None
        return True

    def _holder(self) -> dict[str, str]:
        """Who wrote the file last, {} after a clean end or if that cannot be read."""
        try:
            content = json.loads(os.pread(self._file, 1000, 0))
            return {key: str(content[key]) for key in ("host", "process", "since")}
        except (ValueError, TypeError, KeyError, OSError):
            return {}


def _lives(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
