# SPDX-License-Identifier: Apache-2.0
"""Arrays made of label files, against slow obvious references."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T

from padding.data import targets
from padding.data.sample import SegmentInfo


def test_check_size_names_both_sizes() -> None:
    targets.check_size("a.png", (4, 5, 3), {"height": 4, "width": 5})
    targets.check_size("a.png", (4, 5), {})
    with pytest.raises(ValueError, match=r"a\.png: the file is 4 x 5 .*say 5 x 4"):
        targets.check_size("a.png", (4, 5), {"height": 5, "width": 4})


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_label_range_names_file_and_values(dtype: type) -> None:
    labels = np.array([[0, 2, 255]], dtype)
    targets.check_label_range(labels, num_classes=3, ignore_label=255, path="a.png")
    with pytest.raises(ValueError, match=r"a\.png: holds the label 2, 255, but the data set has 2 classes \(0 to 1\)"):
        targets.check_label_range(labels, num_classes=2, ignore_label=254, path="a.png")


def segments_of(*triples: tuple[int, int, int]) -> list[SegmentInfo]:
    return [{"id": i, "category_id": c, "iscrowd": crowd, "isthing": True} for i, c, crowd in triples]


def test_index_map_and_semantic_labels() -> None:
    ids = np.array([[0, 9, 9], [70000, 70000, 5], [5, 0, 8]], np.uint32)
    segments = segments_of((70000, 4, 0), (9, 1, 0), (5, 2, 1))
    index = targets.segment_index_map(ids, segments, void_ids=[8])
    assert index.dtype == np.uint8
    assert index.tolist() == [[0, 2, 2], [1, 1, 3], [3, 0, 0]]
    assert targets.instance_classes(segments).tolist() == [4, 1, -1]
    assert targets.semantic_labels(index, segments, ignore_label=255).tolist() == [
        [255, 1, 1],
        [4, 4, 2],
        [2, 255, 255],
    ]


def test_index_map_of_many_segments_is_wide() -> None:
    ids = np.arange(1, 401, dtype=np.uint32).reshape(20, 20)
    segments = segments_of(*((i, 0, 0) for i in range(1, 401)))
    index = targets.segment_index_map(ids, segments)
    assert index.dtype == np.uint16
    np.testing.assert_array_equal(index, ids)
    edge = targets.segment_index_map(np.arange(1, 255, dtype=np.uint32)[None], segments[:254])
    assert edge.dtype == np.uint8
    assert edge.max() == 254


def test_unlisted_segment_id_names_the_file() -> None:
    with pytest.raises(ValueError, match=r"p\.png: holds the segment ids \[8\], which the panoptic JSON does not list"):
        targets.segment_index_map(np.array([[1, 8]], np.uint32), segments_of((1, 0, 0)), path="p.png")


@pytest.mark.parametrize("segment_id", [0, -3, 2**24])
def test_impossible_segment_id_names_the_file(segment_id: int) -> None:
    with pytest.raises(ValueError, match=rf"p\.png: the panoptic JSON lists segment ids from {segment_id}"):
        targets.segment_index_map(np.zeros((2, 2), np.uint32), segments_of((segment_id, 0, 0)), path="p.png")


def test_index_maps_do_not_depend_on_earlier_ones() -> None:
    targets.segment_index_map(np.array([[7, 7]], np.uint32), segments_of((7, 0, 0)))
    with pytest.raises(ValueError, match=r"\[7\]"):
        targets.segment_index_map(np.array([[7, 1]], np.uint32), segments_of((1, 0, 0)))


def test_label_map_to_instances_equals_reference() -> None:
    labels = np.random.default_rng(0).integers(0, 12, (9, 13)).astype(np.uint8)
    labels[labels == 7] = 8
    labels[labels == 11] = 255
    classes = np.array([3, -1, 5, 5, 0, 1, 2, 9, 9, 4, 4], np.int64)
    instances = targets.label_map_to_instances(labels, classes)
    expected = [v for v in range(len(classes)) if classes[v] >= 0 and (labels == v).any()]
    assert 7 not in expected
    assert instances.gt_classes.tolist() == [classes[v] for v in expected]
    assert instances.gt_masks.dtype == torch.bool
    assert instances.image_size == (9, 13)
    for mask, value in zip(instances.gt_masks.numpy(), expected, strict=True):
        np.testing.assert_array_equal(mask, labels == value)


def test_no_instances_keep_their_shape() -> None:
    instances = targets.label_map_to_instances(np.full((4, 6), 255, np.uint8), np.arange(3))
    assert instances.gt_masks.shape == (0, 4, 6)
    assert instances.gt_classes.dtype == torch.int64
    assert len(targets.masks_to_instances(np.zeros((0, 4, 6), bool), np.zeros(0, np.int64))) == 0


def test_empty_masks_are_dropped() -> None:
    masks = np.zeros((3, 4, 4), bool)
    masks[1, 2, 3] = True
    instances = targets.masks_to_instances(masks, np.array([5, 6, 7]))
    assert instances.gt_classes.tolist() == [6]
    assert instances.gt_masks.sum() == 1


def test_wide_labels_are_transformed_as_narrow_ones() -> None:
    labels = np.random.default_rng(0).integers(0, 200, (11, 17)).astype(np.uint8)
    transform = T.TransformList(
        [T.ResizeTransform(11, 17, 23, 31), T.HFlipTransform(31), T.CropTransform(3, 2, 20, 15)]
    )
    narrow = targets.transform_labels(transform, labels)
    wide = targets.transform_labels(transform, labels.astype(np.uint16) * 256 + 3)
    assert wide.dtype == np.uint16
    np.testing.assert_array_equal(wide, narrow.astype(np.uint16) * 256 + 3)


def test_pad_to_size() -> None:
    padded = targets.pad_to_size(np.ones((2, 3), np.uint8), (4, 5), 255)
    assert padded.dtype == np.uint8
    assert padded[:2, :3].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert (padded == 255).sum() == 20 - 6
    same = np.ones((2, 3, 3), np.uint8)
    assert targets.pad_to_size(same, None, 0) is same
    assert targets.pad_to_size(same, (2, 3), 0) is same
    with pytest.raises(ValueError, match=r"x\.png is 2 x 3 .*does not fit the padded 2 x 2.*SIZE_DIVISIBILITY"):
        targets.pad_to_size(same, (2, 2), 0, name="x.png")
