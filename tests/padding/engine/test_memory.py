# SPDX-License-Identifier: Apache-2.0
"""Freed memory stays with the process where the key says so and the C library can; nothing happens elsewhere."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from padding.engine.commands import load_config
from padding.engine.memory import keep_freed_memory

ROOT = Path(__file__).parents[3]
# Page faults of a tensor of 60 MB, where one of 64 MB was freed before: a block of exactly the same size may not fit,
# as glibc looks for some bytes more for the sake of the alignment.
FAULTS = """
import resource, sys
import torch
from padding.engine.commands import load_config
from padding.engine.memory import keep_freed_memory
told = keep_freed_memory(load_config("", ["ENGINE.KEEP_MEMORY", sys.argv[1]]))
torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(15 << 20)
print(told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(value: str) -> tuple[str, int]:
    words = [sys.executable, "-W", "ignore", "-c", FAULTS, value]
    told, faults = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return told, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_freed_block_is_used_again_without_page_faults() -> None:
    (_, plain), (told, kept) = run("False"), run("True")
    assert told == "True"
    # Without it each page of the second tensor faults, 4 kB or 2 MB each; with it none but those of other objects.
    assert plain > 20
    assert kept < plain / 4


def test_other_libraries_and_the_key_leave_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory(load_config(""))
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    assert not keep_freed_memory(load_config("", ["ENGINE.KEEP_MEMORY", "False"]))
