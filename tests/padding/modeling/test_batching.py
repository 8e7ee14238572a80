# SPDX-License-Identifier: Apache-2.0
"""Tests of padding and resizing, and of the errors that name a sample."""

from typing import Any

import pytest
import torch
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import BitMasks, Instances
from torch import nn

from padding.modeling.batching import (
    batch_images,
    batch_label_maps,
    batch_valid_masks,
    original_size,
    prepare_targets,
    register_pixel_statistics,
    require_keys,
    resize_logits,
)

MEAN, STD = torch.tensor([10.0, 20.0, 30.0]).view(3, 1, 1), torch.tensor([2.0, 4.0, 5.0]).view(3, 1, 1)


def sample(height: int = 5, width: int = 7, **extra: Any) -> dict[str, Any]:
    return {"image": torch.full((3, height, width), 30, dtype=torch.uint8), "file_name": "a.png", "image_id": 3} | extra


def with_instances(labels: list[int], masks: torch.Tensor) -> dict[str, Any]:
    instances = Instances(tuple(masks.shape[-2:]))
    instances.gt_classes, instances.gt_masks = torch.tensor(labels, dtype=torch.int64), masks
    return sample(*masks.shape[-2:], instances=instances)


def batch(samples: list[dict[str, Any]], divisibility: int = 4) -> Any:
    return batch_images(samples, pixel_mean=MEAN, pixel_std=STD, size_divisibility=divisibility)


def test_images_are_normalised_then_padded_with_the_mean() -> None:
    images = batch([sample(5, 7), sample(6, 3)])
    assert images.tensor.shape == (2, 3, 8, 8)
    assert images.image_sizes == [(5, 7), (6, 3)]
    assert images.tensor[0, :, 0, 0].tolist() == [10.0, 2.5, 0.0]
    assert not images.tensor[0, :, 5:].any()
    assert not images.tensor[1, :, :, 3:].any()
    assert batch([sample(5, 7)], divisibility=0).tensor.shape == (1, 3, 5, 7)


def test_another_image_of_the_samples_is_normalised_as_well() -> None:
    strong = torch.full((3, 5, 7), 20, dtype=torch.uint8)
    images = batch_images(
        [sample(5, 7, image_strong=strong)], pixel_mean=MEAN, pixel_std=STD, size_divisibility=4, key="image_strong"
    )
    assert images.tensor[0, :, 0, 0].tolist() == [5.0, 0.0, -2.0]


def test_pixel_statistics_are_buffers_that_no_checkpoint_holds() -> None:
    model = nn.Module()
    register_pixel_statistics(model, [10.0, 20.0, 30.0], [2.0, 4.0, 5.0])
    assert torch.equal(model.get_buffer("pixel_mean"), MEAN)
    assert torch.equal(model.get_buffer("pixel_std"), STD)
    assert not model.state_dict()


def test_original_size_is_the_one_that_was_read_before_resizing() -> None:
    assert original_size({**sample(5, 7), "height": 50, "width": 71}) == (50, 71)
    assert original_size(sample(5, 7)) == (5, 7)


def test_image_of_the_wrong_shape_names_the_sample() -> None:
    with pytest.raises(ValueError, match=r"a.png \(id 3\) has shape \(5, 7, 3\); expected \(3, height, width\)"):
        batch([sample(image=torch.zeros(5, 7, 3))])


def test_label_maps_are_padded_with_ignore() -> None:
    maps = [sample(2, 3, sem_seg=torch.ones(2, 3, dtype=torch.int64)), sample(4, 1, sem_seg=torch.zeros(4, 1).long())]
    labels = batch_label_maps(maps, padded_size=(4, 4), ignore_label=255, device="cpu")
    assert labels.dtype == torch.int64
    assert labels[0].tolist() == [[1, 1, 1, 255], [1, 1, 1, 255], [255] * 4, [255] * 4]
    assert labels[1, :, 0].tolist() == [0, 0, 0, 0]


def test_padding_of_mapper_and_batch_is_not_valid() -> None:
    marked = torch.ones(5, 7, dtype=torch.bool)
    marked[:, 6] = False
    masks = batch_valid_masks([sample(4, 6), sample(5, 7, valid=marked)], padded_size=(6, 8), device="cpu")
    assert masks.dtype == torch.bool
    assert [mask.sum().item() for mask in masks] == [4 * 6, 5 * 6]
    assert masks[0, :4, :6].all()


def test_label_map_of_another_size_names_key_and_sample() -> None:
    wrong = sample(2, 3, saliency=torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"'saliency' of sample a.png .* has size \(3, 2\), its image \(2, 3\)"):
        batch_label_maps([wrong], padded_size=(4, 4), ignore_label=0, device="cpu", key="saliency")


def test_targets_drop_empty_masks_and_pad() -> None:
    masks = torch.zeros(3, 4, 6, dtype=torch.bool)
    masks[0, :2], masks[2, :, 5] = True, True
    [target] = prepare_targets([with_instances([7, 8, 9], masks)], (8, 8), "cpu", num_classes=10)
    assert target["labels"].tolist() == [7, 9]
    assert target["masks"].shape == (2, 8, 8)
    assert target["masks"].dtype == torch.bool
    torch.testing.assert_close(target["masks"][:, :4, :6], masks[[0, 2]])
    assert int(target["masks"].sum()) == int(masks.sum())


def test_targets_accept_bitmasks_and_no_instances() -> None:
    masks = torch.ones(1, 4, 6, dtype=torch.bool)
    samples = [with_instances([1], masks), with_instances([], masks[:0])]
    samples[0]["instances"].gt_masks = BitMasks(masks)
    targets = prepare_targets(samples, (4, 8), "cpu", num_classes=2)
    assert [len(target["labels"]) for target in targets] == [1, 0]
    assert targets[1]["masks"].shape == (0, 4, 8)


@pytest.mark.parametrize("label", [-1, 4])
def test_class_out_of_range_names_sample_and_key(label: int) -> None:
    bad = with_instances([0, label], torch.ones(2, 4, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"a.png \(id 3\) has classes .* knows 0 to 3.*NUM_CLASSES"):
        prepare_targets([bad], (4, 8), "cpu", num_classes=4)


def test_resizing_is_the_published_two_steps() -> None:
    logits = torch.randn(3, 8, 6)
    padded = torch.nn.functional.interpolate(logits[None], size=(32, 24), mode="bilinear", align_corners=False)[0]
    expected = sem_seg_postprocess(padded, (29, 20), 50, 41)
    resized = resize_logits(logits, padded_size=(32, 24), image_size=(29, 20), output_size=(50, 41))
    torch.testing.assert_close(resized, expected)
    torch.testing.assert_close(resize_logits(padded, image_size=(29, 20), output_size=(50, 41)), expected)
    assert resize_logits(logits[:0], padded_size=(32, 24), image_size=(29, 20), output_size=(5, 4)).shape == (0, 5, 4)


def test_missing_key_names_sample_model_and_cure() -> None:
    with pytest.raises(KeyError, match=r"a.png \(id 3\) has no 'instances', which PSI trains on.*DATASET_MAPPER_NAME"):
        require_keys([sample()], ("image", "instances"), "PSI")
    require_keys([sample()], ("image",), "PSI")
