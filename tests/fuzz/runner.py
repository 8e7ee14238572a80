# SPDX-License-Identifier: Apache-2.0
"""Attacks in a process of its own, with a limit on memory: a crash or a hang becomes an outcome like others."""

from __future__ import annotations

import faulthandler
import itertools
import logging
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz.harness import Outcome, Target, attempt, make_input

MEMORY_BYTES = 4 << 30  # beyond what the process has at its start


def outcomes_of(target: Target, first_seed: int, seconds: float, *, patience: float = 30.0) -> Iterator[Outcome]:
    """Outcomes of one reader, seed after seed; a process that dies or hangs is replaced, behind the seed at fault.

    Args:
        target: the reader.
        first_seed: of the first input.
        seconds: when to end.
        patience: seconds after which one input hangs.
    """
    end = time.monotonic() + seconds
    seed = first_seed
    # Forked: what was imported need not be imported again.
    context = multiprocessing.get_context("fork")
    while time.monotonic() < end:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(target, seed, end, theirs))
        process.start()
        theirs.close()
        try:
            while ours.poll(patience):
                message = ours.recv()
                if message is None:
                    return
                if isinstance(message, Outcome):
                    yield message
                seed = message.seed + 1 if isinstance(message, Outcome) else message
            fault = "hang"
        except EOFError:
            fault = "crash"
        finally:
            process.kill()
            process.join()
        with tempfile.TemporaryDirectory() as folder:
            mutation = make_input(target, seed, Path(folder) / "input")
        yield Outcome(target.name, seed, mutation, fault, f"exit status {process.exitcode}")
        seed += 1


def _work(target: Target, first_seed: int, end: float, results: Connection) -> None:
    """Send a seed before and the outcome after each attempt, None at the end."""
    faulthandler.disable()  # the outcome says it
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  (progress bars, until the process ends)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY_BYTES,) * 2)
    with tempfile.TemporaryDirectory() as folder:
        for seed in itertools.count(first_seed):
            if time.monotonic() > end:
                break
            results.send(seed)
            results.send(attempt(target, seed, Path(folder) / "input"))
    results.send(None)
