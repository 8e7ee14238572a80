# SPDX-License-Identifier: Apache-2.0
"""What became of the tensors of a weight file and of a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tabulate import tabulate
from torch import Tensor

# Parts of a network that are useless unless complete; other parts (a generator, a new classifier) may start afresh.
BODY = ("backbone.", "sem_seg_head.")


@dataclass
class CheckpointReport:
    """What became of every name of the file and of the network; ``str()`` is a table.

    Attributes:
        matched: names loaded.
        renamed: name in the file -> name in the network.
        skipped: name -> why its tensor was left out.
        missing: names of the network that the file does not have.
        unexpected: names of the file that the network does not have.
    """

    matched: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    @property
    def untrained(self) -> list[str]:
        """Names of the network that keep their initial values: missing, or of another shape in the file."""
        return [*self.missing, *(name for name, why in self.skipped.items() if why.startswith("shape"))]

    def __str__(self) -> str:
        rows: list[tuple[str, int, str, str]] = []
        changed = {new: old for old, new in self.renamed.items()}
        rows += _rows("loaded", [name for name in self.matched if name not in changed], "")
        rows += _rows(
            "loaded, renamed", [name for name in self.matched if name in changed], "published under another name"
        )
        for why in dict.fromkeys(self.skipped.values()):
            rows += _rows("skipped", [name for name, reason in self.skipped.items() if reason == why], why)
        rows += _rows("missing", self.missing, "not in the file: keeps its initial values")
        rows += _rows("unexpected", self.unexpected, "the network has no such part: ignored")
        table = tabulate(rows, headers=["", "tensors", "names", "why"], tablefmt="simple")
        return f"{table}\n{self.explanation()}"

    def explanation(self) -> str:
        """One sentence on what this means."""
        total = len(self.matched) + len(self.untrained)
        sentence = f"{len(self.matched)} of {total} tensors of the network come from the file"
        fresh = sorted({name.split(".")[0] for name in self.missing})
        if not fresh:
            return sentence + "."
        if not any(name.startswith(BODY) for name in self.missing):
            return f"{sentence}; the rest starts afresh, as expected when a later stage adds it: {', '.join(fresh)}."
        return f"{sentence}; the rest must be trained before results mean anything: {', '.join(fresh)}."


def describe_differences(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """How named tensors differ from the expected ones in names and shapes; "" if they do not."""
    problems = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": [n for n in expected if n in state and expected[n].shape != state[n].shape],
    }
    return ", ".join(f"{len(names)} {problem} (first: {names[0]})" for problem, names in problems.items() if names)


def _rows(kind: str, names: Sequence[str], why: str) -> list[tuple[str, int, str, str]]:
    """Table rows, one per part of the network (the first two words of its names)."""
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(".".join(name.split(".")[:2]), []).append(name)
    return [
        (kind, len(members), members[0] if len(members) == 1 else f"{part}.*", why) for part, members in parts.items()
    ]
