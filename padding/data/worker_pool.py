# SPDX-License-Identifier: Apache-2.0
"""A bounded pool of worker processes for the preparation of data."""

import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor

import cv2

START_METHODS = ("forkserver", "fork", "spawn")


def _initialise() -> None:
    # The parent handles an interrupt, and workers must not share cores with their own helper threads.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


def worker_pool(num_workers: int, start_method: str = "forkserver") -> ProcessPoolExecutor:
    """Start a pool; use it in a ``with`` statement.

    Args:
        num_workers: processes, at least 1.
        start_method: "forkserver" works from any program. "fork" saves the seconds that importing torch takes, but a
            worker inherits locked locks and hangs if the parent has run a multi-threaded library (torch, OpenCV)
            before: only for command lines that have done nothing else yet.

    Raises:
        ValueError: for an unknown start method.
    """
    if start_method not in START_METHODS:
        raise ValueError(f"start method is '{start_method}'; expected one of {', '.join(START_METHODS)}")
    available = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context(start_method if start_method in available else "spawn")
    if start_method == "forkserver" and start_method in available:
        # The server imports once what every worker needs.
        context.set_forkserver_preload([__name__, "padding.data.shapes.write", "padding.data.prepare.panoptic_png"])
    return ProcessPoolExecutor(num_workers, mp_context=context, initializer=_initialise)
