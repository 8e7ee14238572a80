# SPDX-License-Identifier: Apache-2.0
"""Means over all, seen and unseen classes, and their harmonic mean (generalised zero-shot protocol).

The harmonic mean is taken of the class-averaged seen and unseen numbers, never class by class. Classes that are absent
from the ground truth count in no mean; how many counted is reported beside each mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from padding.errors import DataError


@dataclass(frozen=True)
class ClassGroups:
    """What an evaluator must know of the classes of a data set, in contiguous ids.

    Attributes:
        names: one per class.
        seen_ids: classes with labels in training, ascending.
        unseen_ids: the others, ascending; empty for an ordinary data set, whose report then has no groups.
        thing_ids: countable classes.
        dataset_ids: id of each class in the data set's own numbering.
    """

    names: tuple[str, ...]
    seen_ids: tuple[int, ...]
    unseen_ids: tuple[int, ...]
    thing_ids: frozenset[int]
    dataset_ids: tuple[int, ...]

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.names)

    @property
    def contiguous_id(self) -> dict[int, int]:
        """Data-set id to contiguous id."""
        return {dataset_id: index for index, dataset_id in enumerate(self.dataset_ids)}

    @property
    def counted_ids(self) -> frozenset[int]:
        """Classes of the two groups; others (a ``subset`` left them out) are void in the ground truth."""
        return frozenset((*self.seen_ids, *self.unseen_ids))

    def subset(self, class_ids: frozenset[int]) -> "ClassGroups":
        """The same classes and ids, with the groups narrowed to ``class_ids`` (e.g. to the things)."""
        return ClassGroups(
            names=self.names,
            seen_ids=tuple(i for i in self.seen_ids if i in class_ids),
            unseen_ids=tuple(i for i in self.unseen_ids if i in class_ids),
            thing_ids=self.thing_ids & class_ids,
            dataset_ids=self.dataset_ids,
        )

    @classmethod
    def from_metadata(cls, metadata: Any) -> "ClassGroups":
        """Read the classes from a data set's metadata.

        Data sets registered by this project carry ``class_split``; for others, such as Detectron2's built-in ones,
        every class is seen.

        Args:
            metadata: Detectron2 ``Metadata`` with ``class_split``, or with ``stuff_classes`` or ``thing_classes``.
                ``evaluated_ids``, where given, are the only classes that count (contiguous ids).

        Raises:
            DataError: if the metadata names no classes.
        """
        split = metadata.get("class_split")
        if split is not None:
            groups = cls(split.names, split.seen_ids, split.unseen_ids, split.thing_ids, split.dataset_ids)
            evaluated = metadata.get("evaluated_ids")
            return groups if evaluated is None else groups.subset(frozenset(evaluated))
        names = tuple(metadata.get("stuff_classes") or metadata.get("thing_classes") or ())
        if not names:
            raise DataError(
                f"data set '{metadata.get('name')}' has neither class_split nor stuff_classes nor thing_classes in its "
                "metadata; register it with register_panoptic, or set one of them"
            )
        thing_map = metadata.get("thing_dataset_id_to_contiguous_id") or {}
        stuff_map = metadata.get("stuff_dataset_id_to_contiguous_id") or {}
        to_dataset_id = {new: old for old, new in {**stuff_map, **thing_map}.items()}
        return cls(
            names=names,
            seen_ids=tuple(range(len(names))),
            unseen_ids=(),
            thing_ids=frozenset(thing_map.values()),
            dataset_ids=tuple(to_dataset_id.get(i, i) for i in range(len(names))),
        )


@dataclass(frozen=True)
class GroupMeans:
    """Class-averaged numbers in the unit of the per-class numbers; NaN for a group in which no class counts.

    Attributes:
        all, seen, unseen: means over the classes of the group that are present.
        hm: harmonic mean of ``seen`` and ``unseen``.
        counts: classes that counted, by group name ("all", "seen", "unseen").
    """

    all: float
    seen: float
    unseen: float
    hm: float
    counts: dict[str, int]


def harmonic_mean(seen: float, unseen: float) -> float:
    """2su / (s + u); 0 when both are 0, NaN when either is NaN.

    >>> harmonic_mean(40.0, 10.0)
    16.0
    """
    total = seen + unseen
    return 2.0 * seen * unseen / total if total != 0 else 0.0


def group_means(
    per_class: npt.NDArray[np.floating],
    present: npt.NDArray[np.bool_],
    seen_ids: Sequence[int],
    unseen_ids: Sequence[int],
) -> GroupMeans:
    """Average a per-class quantity over the present classes of each group.

    Args:
        per_class: (K,) float; entries of absent classes are not looked at and may be NaN.
        present: (K,) bool, classes that count.
        seen_ids: contiguous ids of the seen classes.
        unseen_ids: contiguous ids of the unseen classes; "all" is the union of both.
    """
    members = {
        "all": np.asarray([*seen_ids, *unseen_ids], dtype=np.int64),
        "seen": np.asarray(seen_ids, dtype=np.int64),
        "unseen": np.asarray(unseen_ids, dtype=np.int64),
    }
    # Absent classes are left out of every mean, as Detectron2 and panopticapi do.
    kept = {group: ids[present[ids]] for group, ids in members.items()}
    means = {group: float(per_class[ids].mean()) if ids.size else float("nan") for group, ids in kept.items()}
    return GroupMeans(
        all=means["all"],
        seen=means["seen"],
        unseen=means["unseen"],
        hm=harmonic_mean(means["seen"], means["unseen"]),
        counts={group: int(ids.size) for group, ids in kept.items()},
    )


def grouped_results(
    per_class: Mapping[str, npt.NDArray[np.floating]], present: npt.NDArray[np.bool_], groups: ClassGroups
) -> dict[str, float]:
    """Flat results of several per-class quantities: ``X``, ``X_seen``, ``X_unseen``, ``X_hm`` and the class counts.

    The three groups are left out for a data set without unseen classes.

    Args:
        per_class: name of the quantity to its (K,) numbers.
        present: (K,) bool, classes that count.
        groups: which classes are seen and unseen.

    Returns:
        The numbers above, then ``num_classes`` and, with groups, ``num_classes_seen`` and ``num_classes_unseen``: how
        many classes counted.
    """
    results: dict[str, float] = {}
    counts: dict[str, int] = {}
    for name, values in per_class.items():
        means = group_means(values, present, groups.seen_ids, groups.unseen_ids)
        results[name], counts = means.all, means.counts
        if groups.unseen_ids:
            results.update({f"{name}_seen": means.seen, f"{name}_unseen": means.unseen, f"{name}_hm": means.hm})
    results["num_classes"] = counts.get("all", 0)
    if groups.unseen_ids:
        results.update(num_classes_seen=counts["seen"], num_classes_unseen=counts["unseen"])
    return results
