# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: NPY002  (Detectron2's augmentations draw from the global state)
"""Samples of semi-supervised training: images without labels, valid masks, strong views, crops of scaled images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from PIL import Image
from torchvision.transforms import v2

from padding.data.augmentation import ResizeByFactor, View, _with_hue, scale_and_crop, strong_colors
from padding.data.catalog import register_all
from padding.data.config import add_input_config
from padding.data.mappers import UnlabeledMapper, build_mapper
from padding.data.sets.camvid import register_camvid
from padding.data.streams import seeded
from tests.tiny_dense import noise, write_camvid

NAME = "camvid_train_sem_seg"


@pytest.fixture
def entry(tmp_path: Path) -> Any:
    """First image of a tiny CamVid, 48 x 64; as a PNG, without the grey of padding."""
    folder = write_camvid(tmp_path, count=1)
    (folder / "images" / "train" / "frame0.jpg").unlink()
    Image.fromarray(noise(0)).save(folder / "images" / "train" / "frame0.png")
    register_camvid(folder)
    yield DatasetCatalog.get(NAME)[0]
    register_all()


def config(**keys: Any) -> CfgNode:
    cfg = get_cfg()
    add_input_config(cfg)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (NAME,)
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.INPUT.SEMANTIC_MASKS = "semantic_scale_crop", False
    cfg.INPUT.SCALE_FACTORS, cfg.INPUT.CROP.SIZE = (1.0,), [80, 96]
    cfg.INPUT.FORMAT, cfg.INPUT.RANDOM_FLIP = "RGB", "none"
    for key, value in keys.items():
        cfg.merge_from_list([f"INPUT.{key}", value])
    return cfg


def draw(mapper: Any, entry: Any, seed: int = 0) -> dict[str, Any]:
    with seeded(seed):
        sample = mapper(entry)
    assert sample is not None
    return sample


# Unlabeled images ---------------------------------------------------------------------------------------------------


def test_no_label_is_needed_on_disk(entry: Any) -> None:
    Path(entry["sem_seg_file_name"]).unlink()
    cfg = config(VALID_MASK=True)
    sample = draw(UnlabeledMapper(cfg, is_train=True), entry)
    assert sample["is_labeled"] is False
    assert {"image", "valid"} <= set(sample)
    assert not {"sem_seg", "instances"} & set(sample)
    with pytest.raises(FileNotFoundError, match=r"frame0\.png: no such file"):
        draw(build_mapper(cfg, is_train=True), entry)


def test_labels_are_not_opened_where_there_are_some(entry: Any) -> None:
    Path(entry["sem_seg_file_name"]).write_text("no image")
    draw(UnlabeledMapper(config(), is_train=True), entry)


def test_unlabeled_image_is_augmented_like_a_labeled_one(entry: Any) -> None:
    cfg = config(SCALE_FACTORS=(0.5, 1.0, 2.0), RANDOM_FLIP="horizontal", VALID_MASK=True)
    for seed in range(6):
        labeled, plain = (draw(mapper(cfg, is_train=True), entry, seed) for mapper in (build_mapper, UnlabeledMapper))
        torch.testing.assert_close(labeled["image"], plain["image"])
        torch.testing.assert_close(labeled["valid"], plain["valid"])


def test_augmentation_that_looks_at_labels_is_refused(entry: Any) -> None:
    cfg = config(DATASET_MAPPER_NAME="mask_former_semantic")
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = True, 0.75
    with pytest.raises(ValueError, match="SINGLE_CATEGORY_MAX_AREA looks at labels"):
        UnlabeledMapper(cfg, is_train=True)


def test_maps_of_labeled_images_are_not_asked_of_unlabeled_ones(entry: Any) -> None:
    assert "saliency" not in draw(UnlabeledMapper(config(EXTRA_MAPS=["saliency"]), is_train=True), entry)


# Valid masks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical"])
def test_valid_is_false_exactly_in_the_padding(entry: Any, flip: str) -> None:
    """48 x 64 pixels in a crop of 40 x 96: all columns, some rows, padding at the right after every flip."""
    cfg = config(VALID_MASK=True, RANDOM_FLIP=flip)
    cfg.INPUT.CROP.SIZE = [40, 96]
    for seed in range(8):
        sample = draw(build_mapper(cfg, is_train=True), entry, seed)
        assert (sample["valid"].dtype, tuple(sample["valid"].shape)) == (torch.bool, (40, 96))
        assert torch.equal(sample["valid"], (sample["image"] != 128).all(0))
        assert torch.equal(sample["valid"].sum(1), torch.full((40,), 64))
        assert (sample["sem_seg"][~sample["valid"]] == 255).all()


def test_valid_follows_the_scale(entry: Any) -> None:
    counts = set()
    for seed in range(12):
        sample = draw(build_mapper(config(VALID_MASK=True, SCALE_FACTORS=(0.5, 1.0, 2.0)), is_train=True), entry, seed)
        valid = sample["valid"]
        rows, columns = int(valid.any(1).sum()), int(valid.any(0).sum())
        assert valid[:rows, :columns].all()
        assert not valid[rows:].any()
        assert not valid[:, columns:].any()
        counts.add((rows, columns))
    assert counts == {(24, 32), (48, 64), (80, 96)}


def test_void_is_not_padding(entry: Any) -> None:
    """Pixels without a label inside the image are valid: the unlabeled losses use them."""
    sample = draw(build_mapper(config(VALID_MASK=True), is_train=True), entry)
    assert (sample["sem_seg"][sample["valid"]] == 255).any()


def test_masks_and_strong_views_are_left_out_by_default(entry: Any) -> None:
    assert not {"valid", "image_strong"} & set(draw(build_mapper(config(), is_train=True), entry))


# Strong views -------------------------------------------------------------------------------------------------------


def test_strong_view_changes_colors_only(entry: Any) -> None:
    """Flat blocks: inside each block the strong view is flat as well, in the same place, and padding stays padding."""
    blocks = np.kron(noise(5, (6, 8)), np.ones((8, 8, 1), np.uint8))
    Image.fromarray(blocks).save(entry["file_name"])
    cfg, changed = config(STRONG_VIEW=True, VALID_MASK=True, RANDOM_FLIP="horizontal"), 0
    for seed in range(12):
        sample = draw(build_mapper(cfg, is_train=True), entry, seed)
        weak, strong = sample["image"][:, :48, :64], sample["image_strong"][:, :48, :64]
        assert (sample["image_strong"].dtype, sample["image_strong"].shape) == (torch.uint8, sample["image"].shape)
        assert (sample["image_strong"][:, ~sample["valid"]] == 128).all()
        changed += not torch.equal(weak, strong)
        centre = strong.unflatten(1, (6, 8)).unflatten(3, (8, 8))[:, :, 3:5, :, 3:5].float()
        # A blur of sigma 2 reaches the centre of a block of 8 only faintly.
        assert (centre.amax((2, 4)) - centre.amin((2, 4))).max() < 40
        edges = (weak[:, :, 1:].int() - weak[:, :, :-1].int()).abs().sum(0).float().mean(0)
        strong_edges = (strong[:, :, 1:].int() - strong[:, :, :-1].int()).abs().sum(0).float().mean(0)
        assert strong_edges.reshape(-1)[7::8].mean() > strong_edges.reshape(-1)[3::8].mean()
        assert edges.reshape(-1)[7::8].mean() > edges.reshape(-1)[3::8].mean()
    assert changed > 8


def test_strong_view_leaves_the_weak_one_as_it_is_without(entry: Any) -> None:
    cfg = {"SCALE_FACTORS": (0.5, 2.0), "RANDOM_FLIP": "horizontal"}
    for seed in range(4):
        plain = draw(build_mapper(config(**cfg), is_train=True), entry, seed)
        with_strong = draw(build_mapper(config(**cfg, STRONG_VIEW=True), is_train=True), entry, seed)
        torch.testing.assert_close(plain["image"], with_strong["image"])
        torch.testing.assert_close(plain["sem_seg"], with_strong["sem_seg"])


def test_several_strong_views_begin_with_the_only_one(entry: Any) -> None:
    one, three = (draw(build_mapper(config(STRONG_VIEW=True, STRONG_VIEWS=n), is_train=True), entry, 4) for n in (1, 3))
    assert {name for name in three if "strong" in name} == {"image_strong", "image_strong_2", "image_strong_3"}
    assert "image_strong_2" not in one
    for name in ("image", "image_strong"):
        assert torch.equal(one[name], three[name])
    assert not torch.equal(three["image_strong_2"], three["image_strong_3"])
    assert not any("strong" in name for name in draw(build_mapper(config(STRONG_VIEWS=2), is_train=True), entry, 4))


def test_strong_view_is_reproducible(entry: Any) -> None:
    mapper = build_mapper(config(STRONG_VIEW=True), is_train=True)
    views = [draw(mapper, entry, seed)["image_strong"] for seed in (1, 1, 2)]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_strong_view_knows_the_channel_order(entry: Any) -> None:
    rgb, bgr = (
        draw(build_mapper(config(STRONG_VIEW=True, FORMAT=form), is_train=True), entry, 3) for form in ("RGB", "BGR")
    )
    torch.testing.assert_close(rgb["image"], bgr["image"].flip(0))
    torch.testing.assert_close(rgb["image_strong"], bgr["image_strong"].flip(0))


def test_strong_colors_happen_as_often_as_they_should() -> None:
    """Grey with probability 0.2; left alone with 0.2 x 0.8 x 0.5 = 0.08."""
    image, grey, same = noise(1, (16, 16)), 0, 0
    for _ in range(300):
        strong = strong_colors(image)
        assert (strong.shape, strong.dtype) == (image.shape, np.uint8)
        grey += (strong[..., 0] == strong[..., 1]).all() and (strong[..., 1] == strong[..., 2]).all()
        same += np.array_equal(strong, image)
    assert 0.13 < grey / 300 < 0.27
    assert 0.03 < same / 300 < 0.14


# Scaled crops -------------------------------------------------------------------------------------------------------


def corner(seed: int, crop: tuple[int, int] = (16, 16)) -> tuple[int, int]:
    """Row and column at which a crop of a 64 x 64 image begins."""
    np.random.seed(seed)
    rows, columns = np.mgrid[:64, :64].astype(np.uint8)
    view = View(np.stack([rows, columns, rows], axis=-1))
    scale_and_crop(factors=(1.0,), sampling="choice", crop_size=crop, flip="none")(view)
    assert view.image.shape == (*crop, 3)
    return int(view.image[0, 0, 0]), int(view.image[0, 0, 1])


def test_rows_and_columns_of_the_crop_are_drawn_apart() -> None:
    corners = np.array([corner(seed) for seed in range(200)])
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.2
    assert corners.min(0).max() <= 2
    assert corners.max(0).min() >= 46
    assert len(np.unique(corners, axis=0)) > 150


def test_images_smaller_than_the_crop_are_kept_whole() -> None:
    plan = scale_and_crop(factors=(0.5,), sampling="choice", crop_size=(40, 24), flip="none")
    view = View(noise(0), np.zeros((48, 64), np.uint8))
    plan(view)
    assert view.image.shape == (24, 24, 3)
    assert view.labels is not None
    assert view.labels.shape == (24, 24)
    assert plan.output_size == (40, 24)


def scaled_sizes(sampling: str) -> set[tuple[int, int]]:
    """Sizes to which factors 0.5 and 1.25 bring an image of 48 x 64."""
    sizes = set()
    for seed in range(60):
        np.random.seed(seed)
        transform = ResizeByFactor((0.5, 1.25), sampling).get_transform(noise(0))
        sizes.add(transform.apply_image(noise(0)).shape[:2])
    return sizes


def test_scale_factors() -> None:
    assert scaled_sizes("choice") == {(24, 32), (60, 80)}
    between = scaled_sizes("range")
    heights = {height for height, _ in between}
    assert all(abs(width - height * 4 / 3) <= 1 for height, width in between)
    assert min(heights) < 28
    assert max(heights) > 56
    assert heights < {*range(24, 61)}
    assert len(heights) > 20


@pytest.mark.parametrize(("factors", "sampling"), [((), "choice"), ((0.0, 1.0), "range"), ((1.0,), "uniform")])
def test_wrong_scales_name_the_key(factors: tuple[float, ...], sampling: str) -> None:
    with pytest.raises(ValueError, match=r"INPUT\.SCALE_FACTORS is .* SCALE_SAMPLING"):
        ResizeByFactor(factors, sampling)


@pytest.mark.parametrize("turn", [-0.25, -0.01, 0.0, 0.1, 0.25])
def test_hue_is_turned_as_torchvision_turns_it(turn: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    image[:8] = image[:8, :, :1]  # grey has no hue
    expected = v2.functional.adjust_hue(torch.from_numpy(image).permute(2, 0, 1), turn).permute(1, 2, 0).numpy()
    difference = np.abs(_with_hue(image, turn).astype(int) - expected)
    assert difference.max() <= 1  # of rounding
    assert (difference > 0).mean() < 0.02
