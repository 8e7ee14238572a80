# SPDX-License-Identifier: Apache-2.0
"""Hook of mkdocs: ``<!-- section FILE HEADING -->`` in a page becomes that section of a README, which says it once."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_MARK = re.compile(r"<!-- section (\S+) (.+?) -->")
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?://)[^)]*\)")
_PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*\)")


def section(name: str, heading: str) -> str:
    """Text below a heading of level two, without pictures; links inside the repository become their text.

    Raises:
        KeyError: there is no such heading; a strict build stops.
    """
    text = (ROOT / name).read_text(encoding="utf-8")
    parts = re.split(r"^## +(.+)$", text, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    if heading not in found:
        raise KeyError(f"{name} has no section '{heading}'; it has {', '.join(found)}")
    return _LINK.sub(r"\1", _PICTURE.sub("", found[heading])).strip()


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return _MARK.sub(lambda mark: section(mark[1], mark[2]), markdown)
