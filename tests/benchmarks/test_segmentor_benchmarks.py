# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of the segmentor's parts: both forms give one result, and every number is there."""

from benchmarks import criterion, instance_encoding, instance_mapper, post_processing


def test_codes_of_masks_are_those_of_detectron2() -> None:
    result = instance_encoding.main(["--masks", "5", "--height", "40", "--width", "56", "--repeats", "1"])
    assert result["equal"] is True
    assert result["ratio"] > 0


def test_tiles_give_the_segments_of_whole_tensors() -> None:
    words = ["--segments", "3", "12", "--height", "96", "--width", "130", "--repeats", "1"]
    result = post_processing.main(words)
    for count in ("3", "12"):
        assert result[count]["max_difference"] == 0
        assert result[count]["peak_mb_tiled"] > 0


def test_losses_are_those_of_float_copies() -> None:
    result = criterion.main(["--targets", "3", "--side", "64", "--repeats", "1"])
    assert result["3"]["max_difference"] < 1e-4


def test_targets_of_polygons_and_of_masks_differ_at_borders() -> None:
    words = ["--images", "1", "--objects", "3", "--points", "8", "--side", "320", "--repeats", "1"]
    result = instance_mapper.main(words)
    assert 0 < result["differing"] < 0.2
    assert result["ratio"] > 0
