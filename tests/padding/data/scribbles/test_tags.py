# SPDX-License-Identifier: Apache-2.0
"""Tags of scribble files: spellings, tables, errors."""

from pathlib import Path

import pytest

from padding.data.class_split import ClassSplit
from padding.data.scribbles.tags import ScribbleTags, read_tag_table

SPLIT = ClassSplit(("background", "pottedplant", "tv monitor"), (False, True, True), (0, 1, 2))
TAGS = ScribbleTags.of(SPLIT, {"pottedplant": "plant", "tv monitor": "monitor"})


def test_tags_ignore_case_and_blanks_and_accept_class_names() -> None:
    for tag in ("plant", "PLANT", "potted plant", "Potted_Plant", " pottedplant "):
        assert TAGS.id_of(tag, where="") == 1
    assert TAGS.names == ("background", "plant", "monitor")


def test_ambiguous_and_unknown_tags_of_a_table() -> None:
    with pytest.raises(ValueError, match="the tag 'Background' means both 'background' and 'pottedplant'"):
        ScribbleTags.of(SPLIT, {"pottedplant": "Background"})
    with pytest.raises(ValueError, match="not among the 3 classes: 'potplant'"):
        ScribbleTags.of(SPLIT, {"potplant": "plant"})


def test_tag_table(tmp_path: Path) -> None:
    table = tmp_path / "tags.tsv"
    table.write_text("# name, tag\naeroplane\tplane\n\ntv monitor\tmonitor\n")
    assert read_tag_table(table) == {"aeroplane": "plane", "tv monitor": "monitor"}
    table.write_text("aeroplane\tplane\naeroplane\tjet\n")
    with pytest.raises(ValueError, match=r"tags\.tsv:2: expected a class name and a tag, each name once"):
        read_tag_table(table)
    with pytest.raises(FileNotFoundError, match=r"none\.tsv: no such table"):
        read_tag_table(tmp_path / "none.tsv")
