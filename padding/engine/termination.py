# SPDX-License-Identifier: Apache-2.0
"""SIGTERM, with which schedulers end a job: the training finishes its iteration, writes a checkpoint and ends.

Whoever sends it waits some 30 seconds before SIGKILL. What takes longer than an iteration, an evaluation or the filling
of a feature bank, is broken off.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

GRACE_SECONDS = 20
STATUS = 128 + signal.SIGTERM


class Terminated(SystemExit):
    """The end of a process that was asked to end; its exit status is that of SIGTERM."""

    def __init__(self) -> None:
        super().__init__(STATUS)


@contextmanager
def passed_on_to_children() -> Iterator[None]:
    """Send SIGTERM on to the processes that this one started with ``multiprocessing``, and go on waiting for them.

    A launcher that dies of it leaves its trainings behind, or has them killed before they wrote a checkpoint. Of use in
    the main thread, elsewhere it does nothing.

    Raises:
        Terminated: inside, when the signal comes and there is no such process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, frame: FrameType | None) -> None:
        del number, frame
        children = multiprocessing.active_children()
        if not children:
            raise Terminated
        for child in children:
            child.terminate()

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Termination:
    """Notes SIGTERM while it is entered; of use in the main thread, elsewhere it does nothing.

    Attributes:
        requested: whether the signal came.
    """

    def __init__(self) -> None:
        self.requested = False
        self._process = -1
        self._interruptible = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            handlers = {signal.SIGTERM: self._note, signal.SIGALRM: self._break_off}
            self._before = {kind: signal.signal(kind, handler) for kind, handler in handlers.items()}
        return self

    def __exit__(self, *_: object) -> None:
        self.disarm()
        for kind, handler in self._before.items():
            signal.signal(kind, handler)
        self._before = {}

    def disarm(self) -> None:
        """Break nothing off any more: what is left to do is what was waited for."""
        if self._before:
            signal.alarm(0)

    @contextmanager
    def interruptible(self, allowed: bool) -> Iterator[None]:
        """Mark something after which a checkpoint can be written even if it is broken off.

        Args:
            allowed: False where other processes would wait for this one.

        Raises:
            Terminated: inside, when the signal comes.
        """
        self._interruptible = allowed
        try:
            yield
        finally:
            self._interruptible = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._process:  # a forked worker, which ends as it would without this
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.requested = True
        if self._interruptible:
            raise Terminated
        signal.alarm(GRACE_SECONDS)

    def _break_off(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        raise Terminated
