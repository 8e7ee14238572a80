# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: NPY002  (Detectron2's augmentations draw from the global state)
"""Samples with saliency: geometry, padding, void, binary or grey targets, alone and beside class labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from fvcore.transforms.transform import HFlipTransform
from PIL import Image

from padding.data.augmentation import BorderedRotation
from padding.data.mappers import build_mapper
from padding.data.saliency.mapper import JointSaliencyMapper, SaliencyMapper, transform_saliency
from padding.data.sets.camvid import register_camvid
from padding.data.sets.saliency import load_derived_saliency, register_derived_saliency
from padding.engine import add_core_config
from tests.tiny_dense import noise, save, write_camvid

NAME = "camvid_train_sem_seg"


pytestmark = pytest.mark.usefixtures("restored_catalogs")


def config(*opts: Any) -> CfgNode:
    cfg = get_cfg()
    add_core_config(cfg)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (NAME,)
    cfg.INPUT.FORMAT, cfg.INPUT.RANDOM_FLIP, cfg.INPUT.SALIENCY.SIZE = "RGB", "none", (48, 64)
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.INPUT.SEMANTIC_MASKS = "semantic_scale_crop", False
    cfg.INPUT.CROP.SIZE, cfg.INPUT.SCALE_FACTORS = [48, 64], (1.0,)
    cfg.merge_from_list([*opts])
    return cfg


def draw(mapper: Any, entry: Any, seed: int = 0) -> dict[str, Any]:
    np.random.seed(seed)
    torch.manual_seed(seed)
    return mapper(entry)


@pytest.fixture
def ramp(tmp_path: Path) -> dict[str, Any]:
    """An image of 48 x 64 with one grey value a column."""
    image = np.repeat(np.arange(64, dtype=np.uint8)[None] * 4, 48, axis=0)
    save(tmp_path / "a.png", np.repeat(image[..., None], 3, axis=2))
    save(tmp_path / "a_map.png", image)
    return {"file_name": str(tmp_path / "a.png"), "saliency_file_name": str(tmp_path / "a_map.png"), "image_id": "a"}


@pytest.fixture
def derived(tmp_path: Path) -> dict[str, Any]:
    register_camvid(write_camvid(tmp_path, count=1))
    return dict(load_derived_saliency(NAME, (6, 8, 9, 10))[0])


def test_sample_has_image_and_saliency_but_no_classes(ramp: dict[str, Any]) -> None:
    sample = draw(SaliencyMapper(config(), is_train=True), ramp)
    assert (sample["image"].dtype, sample["image"].shape) == (torch.uint8, (3, 48, 64))
    assert (sample["saliency"].dtype, sample["saliency"].shape) == (torch.float32, (1, 48, 64))
    assert (sample["saliency_valid"].dtype, sample["saliency_valid"].shape) == (torch.bool, (48, 64))
    assert sample["saliency_valid"].all()
    assert "sem_seg" not in sample
    assert sample["is_labeled"] is False
    assert (sample["height"], sample["width"]) == (48, 64)
    assert torch.equal(sample["saliency"][0], (sample["image"][0] > 128).float())


def test_grey_values_are_kept_on_demand(ramp: dict[str, Any]) -> None:
    sample = draw(SaliencyMapper(config("INPUT.SALIENCY.BINARIZE", False), is_train=True), ramp)
    torch.testing.assert_close(sample["saliency"][0] * 255, sample["image"][0].float())


def test_flips_reach_image_and_saliency(ramp: dict[str, Any]) -> None:
    mapper = SaliencyMapper(config("INPUT.SALIENCY.BINARIZE", False, "INPUT.RANDOM_FLIP", "horizontal"), is_train=True)
    flipped = set()
    for seed in range(8):
        sample = draw(mapper, ramp, seed)
        torch.testing.assert_close(sample["saliency"][0] * 255, sample["image"][0].float())
        flipped.add(bool(sample["image"][0, 0, 0] > 128))
    assert flipped == {True, False}


def test_whole_image_is_resized_whatever_its_shape(ramp: dict[str, Any]) -> None:
    sample = draw(SaliencyMapper(config("INPUT.SALIENCY.SIZE", (96, 32)), is_train=True), ramp)
    assert sample["saliency"].shape == (1, 96, 32)
    assert sample["image"].shape == (3, 96, 32)
    # Left half dark, right half bright, as in the file; the resized image decides within one pixel.
    assert sample["saliency"][0, :, :15].sum() == 0
    assert sample["saliency"][0, :, 17:].min() == 1


def test_scale_and_crop_pads_with_what_is_not_valid(ramp: dict[str, Any]) -> None:
    opts = (
        "INPUT.SALIENCY.MODE",
        "scale_crop",
        "INPUT.SALIENCY.CROP",
        (40, 80),
        "INPUT.SALIENCY.SCALE_FACTORS",
        (1.0,),
    )
    sample = draw(SaliencyMapper(config(*opts, "INPUT.VALID_MASK", True), is_train=True), ramp)
    assert sample["saliency"].shape == (1, 40, 80)
    expected = torch.zeros(40, 80, dtype=torch.bool)
    expected[:, :64] = True
    assert torch.equal(sample["saliency_valid"], expected)
    assert torch.equal(sample["valid"], expected)
    assert sample["saliency"][0, :, 64:].sum() == 0
    assert (sample["image"][:, :, 64:] == 128).all()
    half = draw(SaliencyMapper(config(*opts[:-1], (0.5,)), is_train=True), ramp)
    assert int(half["saliency_valid"].sum()) == 24 * 32


def test_colors_change_with_the_key_and_geometry_does_not(ramp: dict[str, Any]) -> None:
    plain, jittered = (
        draw(SaliencyMapper(config("INPUT.COLOR_AUG_SSD", on), is_train=True), ramp, seed=3) for on in (False, True)
    )
    assert not torch.equal(plain["image"], jittered["image"])
    assert torch.equal(plain["saliency"], jittered["saliency"])


def test_derived_saliency_leaves_void_out(derived: dict[str, Any]) -> None:
    labels = np.asarray(Image.open(derived["sem_seg_file_name"]))
    sample = draw(SaliencyMapper(config(), is_train=True), derived)
    np.testing.assert_array_equal(sample["saliency_valid"].numpy(), labels != 11)
    np.testing.assert_array_equal(sample["saliency"][0].numpy(), np.isin(labels, (6, 8, 9, 10)))


def test_void_does_not_dilute_an_object_beside_it() -> None:
    """Columns: background, object, void; at half size the columns pair up differently."""
    saliency = np.zeros((4, 12), np.float32)
    known = np.ones((4, 12), bool)
    saliency[:, 4:7] = 1
    known[:, 7:] = False
    resize = T.ResizeTransform(4, 12, 2, 6)
    grey, valid = transform_saliency(saliency, known, resize)
    assert valid[0].tolist() == [True, True, True, True, False, False]
    # Half of the fourth pixel is unknown and the other half an object.
    assert grey[0, 3] == 255
    assert grey[0, 2] > 200
    assert not grey[~valid].any()


def test_what_is_known_everywhere_is_resized_like_any_grey_map() -> None:
    saliency = np.random.default_rng(0).integers(0, 256, (21, 30)).astype(np.float32) / 255
    for transform in (T.ResizeTransform(21, 30, 40, 17), HFlipTransform(30)):
        grey, valid = transform_saliency(saliency, np.ones((21, 30), bool), transform)
        assert valid.all()
        expected = transform.apply_image(np.rint(saliency * 255).astype(np.uint8))
        np.testing.assert_array_equal(grey, expected)


def test_corners_of_a_rotation_are_unknown() -> None:
    rotation = BorderedRotation(40, 40, 45, image_border=(0, 0, 0), label_border=255)
    grey, valid = transform_saliency(np.ones((40, 40), np.float32), np.ones((40, 40), bool), rotation)
    assert not valid[0, 0]
    assert valid[20, 20]
    assert (grey[valid] == 255).all()
    assert not grey[~valid].any()


def test_joint_samples_keep_labels_and_saliency_of_one_geometry(derived: dict[str, Any]) -> None:
    """Scaled, cropped and flipped, saliency is where the salient classes are, up to the pixels on borders."""
    opts = ("INPUT.SCALE_FACTORS", (2.0,), "INPUT.RANDOM_FLIP", "horizontal")
    mapper = JointSaliencyMapper(config(*opts), is_train=True)
    for seed in range(4):
        sample = draw(mapper, derived, seed)
        assert sample["is_labeled"] is True
        assert sample["sem_seg"].shape == sample["saliency"].shape[1:] == sample["saliency_valid"].shape == (48, 64)
        expected = torch.isin(sample["sem_seg"], torch.tensor([6, 8, 9, 10]))
        both = sample["saliency_valid"] & (sample["sem_seg"] != 255)
        wrong = (sample["saliency"][0].bool() != expected) & both
        assert wrong.float().mean() < 0.03
        assert expected.any()


def test_joint_samples_are_those_of_the_semantic_mapper(derived: dict[str, Any]) -> None:
    cfg = config("INPUT.RANDOM_FLIP", "horizontal")
    plain, joint = (draw(mapper(cfg), derived, 5) for mapper in (_semantic, _joint))
    assert torch.equal(plain["image"], joint["image"])
    assert torch.equal(plain["sem_seg"], joint["sem_seg"])


def _semantic(cfg: CfgNode) -> Any:
    return build_mapper(cfg, is_train=True)


def _joint(cfg: CfgNode) -> Any:
    return JointSaliencyMapper(cfg, is_train=True)


def test_padding_of_joint_samples_is_not_valid(derived: dict[str, Any]) -> None:
    sample = draw(JointSaliencyMapper(config("INPUT.CROP.SIZE", (64, 96)), is_train=True), derived)
    assert not sample["saliency_valid"][48:].any()
    assert not sample["saliency_valid"][:, 64:].any()
    assert (sample["sem_seg"][48:] == 255).all()


def test_mappers_have_names_and_leave_test_images_whole(ramp: dict[str, Any]) -> None:
    save(Path(ramp["file_name"]), noise(1, (50, 70)))
    register_camvid(Path("nowhere"))
    for name in ("SaliencyMapper", "JointSaliencyMapper"):
        cfg = config("INPUT.DATASET_MAPPER_NAME", name, "INPUT.MIN_SIZE_TEST", 0)
        sample = build_mapper(cfg, is_train=False)(ramp)
        assert sample is not None
        assert sample["image"].shape == (3, 50, 70)
        assert "saliency" not in sample


def test_settings_that_cannot_be_used(ramp: dict[str, Any], derived: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"INPUT\.SALIENCY\.MODE is 'crop'; choose 'resize' or 'scale_crop'"):
        SaliencyMapper(config("INPUT.SALIENCY.MODE", "crop"), is_train=True)
    with pytest.raises(ValueError, match=r"INPUT\.SALIENCY\.SIZE or INPUT\.CROP\.SIZE is \(352,\); expected"):
        SaliencyMapper(config("INPUT.SALIENCY.SIZE", (352,)), is_train=True)
    plain = {key: value for key, value in derived.items() if key != "salient_classes"}
    with pytest.raises(ValueError, match=r"frame0\.jpg: has no saliency"):
        draw(SaliencyMapper(config(), is_train=True), plain)
    save(Path(ramp["saliency_file_name"]), np.zeros((48, 60), np.uint8))
    with pytest.raises(ValueError, match=r"a_map\.png: the file is 48 x 60 .*say 48 x 64"):
        draw(SaliencyMapper(config(), is_train=True), ramp)


def test_registered_sets_can_be_mapped(tmp_path: Path, derived: dict[str, Any]) -> None:
    register_derived_saliency("camvid_cars", dense=NAME, salient=("car",))
    (entry,) = DatasetCatalog.get("camvid_cars")
    sample = draw(SaliencyMapper(config(), is_train=True), entry)
    whole = draw(SaliencyMapper(config(), is_train=True), derived)
    assert 0 < sample["saliency"].sum() < whole["saliency"].sum()
