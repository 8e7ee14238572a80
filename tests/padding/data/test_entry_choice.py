# SPDX-License-Identifier: Apache-2.0
"""Choosing entries: spread over the set, or by name."""

from typing import Any

import pytest

from padding.data.entry_choice import choose_entries

ENTRIES: list[dict[str, Any]] = [{"file_name": f"a/{name}.png", "image_id": i} for i, name in enumerate("pqrstuvwxy")]


def ids(entries: list[dict[str, Any]]) -> list[int]:
    return [entry["image_id"] for entry in entries]


@pytest.mark.parametrize(("number", "chosen"), [(1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (0, [*range(10)])])
def test_spread_from_the_first_to_the_last(number: int, chosen: list[int]) -> None:
    assert ids(choose_entries(ENTRIES, number=number)) == chosen
    assert choose_entries(ENTRIES, number=99) == ENTRIES


def test_by_id_or_stem_in_the_order_asked_for() -> None:
    assert ids(choose_entries(ENTRIES, ids=["s", "0"], number=5)) == [3, 0]
    twice = [*ENTRIES, {"file_name": "b/s.png", "image_id": 77}]
    assert ids(choose_entries(twice, ids=["s"])) == [3, 77]
    with pytest.raises(ValueError, match="no test image is called z, 44; the first ones are 0, p, 1, q"):
        choose_entries(ENTRIES, ids=["z", "p", "44"], what="test image")
