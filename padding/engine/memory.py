# SPDX-License-Identifier: Apache-2.0
"""Memory of a process that computes on a CPU: freed blocks are kept; giving them back costs a fault for each page.

glibc returns large blocks to the system as soon as they are freed, and gets zeroed pages for the next tensor: a quarter
of a forward pass at 800 x 1333. Other C libraries are left as they are.
"""

import ctypes
import platform

from detectron2.config import CfgNode

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory(cfg: CfgNode) -> bool:
    """Tell malloc to keep freed memory for this process, if ENGINE.KEEP_MEMORY and the C library is glibc.

    Returns:
        Whether it was told.
    """
    if not cfg.ENGINE.KEEP_MEMORY or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    # The first also for blocks below the second, which glibc would take from the system one by one.
    return all(library.mallopt(parameter, _LARGEST) == 1 for parameter in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
