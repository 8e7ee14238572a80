# SPDX-License-Identifier: Apache-2.0
"""The class that Roboflow writes above all others: named after the project, and of no object."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol, TypeVar


class LabelledCategory(Protocol):
    """A class of a COCO file."""

    id: int
    name: str
    supercategory: Any


AnyCategory = TypeVar("AnyCategory", bound=LabelledCategory)


def placeholder_of(categories: Sequence[AnyCategory]) -> AnyCategory | None:
    """The class that Roboflow writes above all others, named after the project; None where there is none.

    Its name may be that of a class, so that it is found by its place: without a supercategory, and that of all others.
    """
    roots = [category for category in categories if category.supercategory == "none"]
    if len(roots) != 1 or len(categories) == 1:
        return None
    (root,) = roots
    others = [category for category in categories if category is not root]
    above = all(category.supercategory == root.name and category.id != root.id for category in others)
    return root if above else None


def without_placeholder(categories: list[AnyCategory], used: Collection[int | None]) -> list[AnyCategory]:
    """The classes but for ``placeholder_of`` them, if no object has it.

    Args:
        categories: of a file.
        used: ids of the classes of its objects; None stands for any.
    """
    placeholder = placeholder_of(categories)
    if placeholder is None or placeholder.id in used or None in used:
        return categories
    return [category for category in categories if category is not placeholder]
