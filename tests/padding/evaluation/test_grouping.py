# SPDX-License-Identifier: Apache-2.0
import math
from collections.abc import Callable

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from padding.data.class_split import ClassSplit
from padding.evaluation.grouping import ClassGroups, group_means, grouped_results, harmonic_mean


def test_harmonic_mean_values() -> None:
    assert harmonic_mean(41.5, 15.3) == pytest.approx(22.36, abs=0.005)  # PADing, Tab. 1 (printed truncated, 22.3)
    assert harmonic_mean(0.0, 0.0) == 0.0
    assert harmonic_mean(80.0, 0.0) == 0.0
    assert harmonic_mean(30.0, 30.0) == 30.0
    assert math.isnan(harmonic_mean(30.0, float("nan")))


def test_mean_is_of_class_averages_not_class_by_class() -> None:
    values = np.array([80.0, 20.0, 10.0, 30.0])
    means = group_means(values, np.ones(4, dtype=bool), (0, 1), (2, 3))
    assert (means.seen, means.unseen, means.all) == (50.0, 20.0, 35.0)
    assert means.hm == pytest.approx(2 * 50 * 20 / 70)


def test_absent_classes_are_left_out_and_counted() -> None:
    values = np.array([80.0, np.nan, 10.0, 0.0])
    means = group_means(values, np.array([True, False, True, True]), (0, 1), (2, 3))
    assert (means.seen, means.unseen) == (80.0, 5.0)
    assert means.all == 30.0
    assert means.counts == {"all": 3, "seen": 1, "unseen": 2}


def test_group_without_present_class_is_nan() -> None:
    means = group_means(np.array([80.0, 0.0]), np.array([True, False]), (0,), (1,))
    assert means.all == 80.0
    assert math.isnan(means.unseen)
    assert math.isnan(means.hm)


def test_grouped_results_names(split: ClassSplit, register: Callable[..., str]) -> None:
    groups = ClassGroups.from_metadata(MetadataCatalog.get(register("with_split", [], class_split=split)))
    results = grouped_results({"PQ": np.arange(5.0), "SQ": np.ones(5)}, np.ones(5, dtype=bool), groups)
    assert list(results)[:4] == ["PQ", "PQ_seen", "PQ_unseen", "PQ_hm"]
    assert results["PQ_seen"] == pytest.approx((0 + 1 + 3) / 3)
    assert results["PQ_unseen"] == 3.0
    assert [results[f"num_classes{suffix}"] for suffix in ("", "_seen", "_unseen")] == [5, 3, 2]


def test_ordinary_data_set_has_no_groups(register: Callable[..., str]) -> None:
    name = register(
        "ordinary", [], thing_classes=["a", "b"], thing_dataset_id_to_contiguous_id={7: 0, 9: 1}, json_file="x.json"
    )
    groups = ClassGroups.from_metadata(MetadataCatalog.get(name))
    assert groups.contiguous_id == {7: 0, 9: 1}
    assert groups.thing_ids == {0, 1}
    assert set(grouped_results({"AP": np.ones(2)}, np.ones(2, dtype=bool), groups)) == {"AP", "num_classes"}


def test_metadata_without_classes_is_an_error(register: Callable[..., str]) -> None:
    with pytest.raises(ValueError, match="'nameless' has neither class_split"):
        ClassGroups.from_metadata(MetadataCatalog.get(register("nameless", [])))
