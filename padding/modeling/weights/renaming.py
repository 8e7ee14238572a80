# SPDX-License-Identifier: Apache-2.0
"""A weight file on its way to the names of this project: what was renamed, joined and left out, and why.

Only names and layout change, never a value. Everything is decided by the names in the file, never by version numbers:
they are lost when a checkpoint is saved again as a plain dict, and trusting them renames keys twice.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from padding.errors import CheckpointError
from padding.modeling.weights.checkpoint import State
from padding.modeling.weights.report import CheckpointReport

# Pattern of a whole name in the file -> name here; {} are the groups of the pattern.
Rule = tuple[str, str | Callable[[re.Match[str]], str]]

# Entries of published files that no network of ours keeps: constants, counters, the ImageNet classifier.
NOT_NEEDED = re.compile(
    r"(^|\.)(pixel_mean|pixel_std|num_batches_tracked|relative_position_index|attn_mask)$|^(backbone\.)?stem\.fc\."
)
_HEAD, _PREDICTOR, _PIXEL_DECODER = "sem_seg_head.", "sem_seg_head.predictor.", "sem_seg_head.pixel_decoder."


class Fusion(NamedTuple):
    """Tensors that the file keeps apart and that are the rows of one here."""

    pattern: str  # of a part's name here: what stands before, the part, what stands behind its dot
    parts: tuple[str, ...]  # in the order of the rows
    target: str  # {} are what stands before and behind


@dataclass(frozen=True)
class Layout:
    """Names of one kind of file.

    Attributes:
        name: for messages.
        rules: how names change; a name that none knows stays, so that loading reports it.
        mark: a name that only this kind has.
        classifier: pattern of the first part of names that serve classification alone.
        why: what is said of those.
        fusion: of names after renaming.
        class_row: end of the names here of position tables whose first row may be the class token's.
    """

    name: str
    rules: tuple[Rule, ...] = ()
    mark: str = ""
    classifier: str = "(?!)"
    why: str = "serves classification alone"
    fusion: Fusion | None = None
    class_row: str | None = None


def renamed(name: str, rules: Iterable[Rule]) -> str:
    """A name after the first rule that fits it; without one, itself."""
    for pattern, target in rules:
        match = re.fullmatch(pattern, name)
        if match is not None:
            return target(match) if callable(target) else target.format(*match.groups())
    return name


@dataclass
class Imported:
    """A file in the names of this project.

    Attributes:
        state: name -> tensor.
        renamed: name in the file -> name here; several old names may have become one.
        skipped: name in the file -> why it was left out.
        notes: what else was done, one sentence each.
        layout: kind of the file, for messages.
    """

    state: State
    renamed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    layout: str = ""

    def report(self) -> CheckpointReport:
        """What became of every name of the file."""
        return CheckpointReport(matched=list(self.state), renamed=self.renamed, skipped=self.skipped)

    def skip(self, names: Iterable[str], why: str) -> None:
        """Leave tensors out."""
        before = {new: old for old, new in self.renamed.items()}
        for name in names:
            del self.state[name]
            old = before.get(name, name)
            self.renamed.pop(old, None)
            self.skipped[old] = why

    def rename_all(self, new_name: Callable[[str], str]) -> None:
        """Give every tensor the name that a function makes of its own."""
        names = {name: new_name(name) for name in self.state}
        self.state = {names[name]: tensor for name, tensor in self.state.items()}
        self._follow(names)

    def apply(self, layout: Layout) -> None:
        """Bring a file of a layout to the names here.

        Raises:
            CheckpointError: if some of the tensors to be joined are not there.
        """
        self.layout = layout.name
        unneeded = [name for name in self.state if re.match(layout.classifier, name)]
        self.skip(unneeded, layout.why)
        self.rename_all(lambda name: renamed(name, layout.rules))
        if layout.class_row is not None:
            self._drop_class_row(layout.class_row)
        if layout.fusion is not None:
            self._fuse(layout.fusion)

    def _follow(self, names: Mapping[str, str]) -> None:
        """Record that names here became others."""
        own = names.keys() - self.renamed.values()
        changed = {old: names.get(new, new) for old, new in self.renamed.items()}
        changed |= {old: new for old, new in names.items() if old in own}
        self.renamed = {old: new for old, new in changed.items() if old != new}

    def _drop_class_row(self, ending: str) -> None:
        """Published tables of the last stage have a row for the class token before those of the grid."""
        for name, table in self.state.items():
            rows = table.shape[1] if name.endswith(ending) else 0
            if rows > 1 and math.isqrt(rows) ** 2 != rows and math.isqrt(rows - 1) ** 2 == rows - 1:
                self.state[name] = table[:, 1:]
                self.skipped[f"{name}[0]"] = "position of the class token"

    def _fuse(self, fusion: Fusion) -> None:
        fused: State = {}
        names = {}
        for name, tensor in self.state.items():
            match = re.fullmatch(fusion.pattern, name)
            if match is None:
                fused[name] = tensor
                continue
            parts = [f"{match[1]}{part}.{match[3]}" for part in fusion.parts]
            absent = [part for part in parts if part not in self.state]
            if absent:
                raise CheckpointError(f"{name} is there but {absent[0]} is not; the file is damaged")
            names[name] = fusion.target.format(match[1], match[3])
            if names[name] not in fused:
                fused[names[name]] = torch.cat([self.state[part] for part in parts])
        self.state = fused
        self._follow(names)


def normalise_keys(state: Mapping[str, Tensor]) -> tuple[State, dict[str, str]]:
    """Bring published names to today's, deciding by the names alone.

    1. ``module.`` in front of every name (saved from a data-parallel wrapper) goes.
    2. ``predictor.static_query`` becomes ``predictor.query_feat`` (early Mask2Former).
    3. If a head has a predictor but no name under ``pixel_decoder.``, its other names get it (early MaskFormer).

    Args:
        state: name to tensor.

    Returns:
        The renamed state, and old name -> new name of those that changed.
    """
    names = list(state)
    prefix = "module." if names and all(name.startswith("module.") for name in names) else ""
    stripped = [name.removeprefix(prefix) for name in names]
    is_old_head = any(name.startswith(_PREDICTOR) for name in stripped) and not any(
        name.startswith(_PIXEL_DECODER) for name in stripped
    )

    def rename(name: str) -> str:
        if name.startswith(_PREDICTOR):
            return name.replace(".static_query.", ".query_feat.")
        if is_old_head and name.startswith(_HEAD):
            return _PIXEL_DECODER + name.removeprefix(_HEAD)
        return name

    new_names = [rename(name) for name in stripped]
    renames = {old: new for old, new in zip(names, new_names, strict=True) if old != new}
    return {new: state[old] for old, new in zip(names, new_names, strict=True)}, renames
