# SPDX-License-Identifier: Apache-2.0
"""Names of classes in scribble files: ScribbleSup writes "plane" for aeroplane and "monitor" for tvmonitor."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from padding.data.class_split import ClassSplit
from padding.data.readers import read_text
from padding.errors import DataError, MissingFileError

_SHOWN = 80  # characters of an unknown tag


@dataclass(frozen=True)
class ScribbleTags:
    """Which class a tag of an annotation file means."""

    names: tuple[str, ...]  # per class id, the tag that is written
    # Tag without case, blanks, hyphens and underscores -> class id; several tags may mean one class.
    ids: Mapping[str, int]

    @classmethod
    def of(cls, split: ClassSplit, tags: Mapping[str, str] | None = None) -> ScribbleTags:
        """Tags of a label space: the class names and, where there are any, their other spellings.

        ``tags``: class name -> tag that annotation files use instead; the class name stays valid.

        Raises:
            DataError: a class is unknown, or one tag means two classes.
        """
        tags = dict(tags or {})
        split.ids_of(tags)
        ids: dict[str, int] = {}
        for label, name in enumerate(split.names):
            for spelling in (name, tags.get(name, name)):
                if ids.setdefault(_normal(spelling), label) != label:
                    other = split.names[ids[_normal(spelling)]]
                    raise DataError(f"the tag '{spelling}' means both '{other}' and '{name}'; give each class its own")
        return cls(tuple(tags.get(name, name) for name in split.names), ids)

    def id_of(self, tag: str, *, where: str) -> int:
        """Class id of a tag.

        Raises:
            DataError: the tag is unknown; the message lists the known ones.
        """
        label = self.ids.get(_normal(tag))
        if label is None:
            near = difflib.get_close_matches(_normal(tag[:_SHOWN]), self.ids, n=1, cutoff=0.0)
            raise DataError(
                f"{where}: unknown tag '{tag[:_SHOWN]}' (nearest: '{near[0] if near else ''}'). Known are "
                f"{', '.join(self.names)}; correct the file, or add the spelling to the table of tags"
            )
        return label


def _normal(tag: str) -> str:
    return re.sub(r"[\s_-]+", "", tag).casefold()


def read_tag_table(path: str | Path) -> dict[str, str]:
    """Class name -> tag, from a text file with a name and a tag in every line, separated by a tab.

    Raises:
        MissingFileError: there is no such table.
        DataError: a line has another number of columns, or a name stands twice.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such table of tags; expected 'class name<TAB>tag' in every line")
    tags: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        columns = [column.strip() for column in line.split("\t")]
        if len(columns) != 2 or not all(columns) or columns[0] in tags:
            raise DataError(f"{path}:{number}: expected a class name and a tag, each name once, got {columns}")
        tags[columns[0]] = columns[1]
    return tags
