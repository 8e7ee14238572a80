# SPDX-License-Identifier: Apache-2.0
"""Saliency sets: layouts, pairing by name, what is missing, the table of names, classes that are salient."""

import os
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from padding.data.catalog import register_all
from padding.data.class_split import class_split_of
from padding.data.saliency.maps import read_saliency
from padding.data.sets.camvid import register_camvid
from padding.data.sets.saliency import (
    DERIVED_SETS,
    SALIENCY_PARTS,
    SALIENCY_SETS,
    SALIENT_CLASSES,
    load_saliency,
    pair_saliency,
    register_derived_saliency,
    register_saliency,
)
from padding.data.shapes.classes import ShapesConfig
from padding.data.shapes.render import render_image
from padding.data.shapes.write import write_shapes
from tests.tiny_dense import blocks, save, write_camvid, write_cityscapes, write_voc

pytestmark = pytest.mark.usefixtures("restored_catalogs")


def write_pairs(images: Path, masks: Path, *stems: str, ending: str = ".jpg") -> None:
    for seed, stem in enumerate(stems):
        save(images / f"{stem}{ending}", np.full((12, 16, 3), 9 * seed, np.uint8))
        save(masks / f"{stem}.png", blocks((0, 255), seed=seed, size=(12, 16), block=4))


# Folders of images and maps as the archives have them, and as copies rename them.
LAYOUTS = {
    "duts_train": ("DUTS-TR/DUTS-TR-Image", "DUTS-TR/DUTS-TR-Mask"),
    "duts_test": ("DUTS-TE/DUTS-TE-Image", "DUTS-TE/DUTS-TE-Mask"),
    "ecssd_test": ("ECSSD/images", "ECSSD/ground_truth_mask"),
    "hku_is_test": ("HKU-IS/imgs", "HKU-IS/gt"),
    "pascal_s_test": ("PASCAL-S/Image", "PASCAL-S/Mask"),
    "dut_omron_test": ("DUT-OMRON/DUT-OMRON-image", "DUT-OMRON/pixelwiseGT-new-PNG"),
}


@pytest.mark.parametrize("name", SALIENCY_SETS)
def test_published_layouts(tmp_path: Path, name: str) -> None:
    images, masks = (tmp_path / folder for folder in LAYOUTS[name])
    write_pairs(images, masks, "b", "a", ending=".png" if name == "hku_is_test" else ".jpg")
    register_all(tmp_path)
    entries = DatasetCatalog.get(name)
    assert [entry["image_id"] for entry in entries] == ["a", "b"]
    saliency, known = read_saliency(entries[0])
    np.testing.assert_array_equal(saliency * 255, np.asarray(Image.open(masks / "a.png")))
    assert known.all()
    metadata = MetadataCatalog.get(name)
    assert (metadata.evaluator_type, metadata.stuff_classes) == ("saliency", ["background", "salient"])


@pytest.mark.parametrize(("images", "masks"), [("Images", "masks"), ("image", "Mask"), ("img", "GT"), ("imgs", "gt")])
def test_other_layouts(tmp_path: Path, images: str, masks: str) -> None:
    write_pairs(tmp_path / "ECSSD" / images, tmp_path / "ECSSD" / masks, "0001")
    (entry,) = load_saliency(tmp_path / "ECSSD")
    assert entry["file_name"] == str(tmp_path / "ECSSD" / images / "0001.jpg")
    assert entry["saliency_file_name"] == str(tmp_path / "ECSSD" / masks / "0001.png")


def test_published_counts() -> None:
    """As printed in the papers of the sets."""
    assert {one.name: one.count for one in SALIENCY_SETS.values()} == {
        "duts_train": 10553,
        "duts_test": 5019,
        "ecssd_test": 1000,
        "hku_is_test": 4447,
        "pascal_s_test": 850,
        "dut_omron_test": 5168,
    }


def test_parts_of_a_set_published_without_any(tmp_path: Path) -> None:
    """Every fifth image is for tests; together the parts are the set."""
    folder = tmp_path / "ECSSD"
    register_all(tmp_path)
    write_pairs(folder / "images", folder / "ground_truth_mask", "a", "b", "c", "d")
    with pytest.raises(ValueError, match=r"set of 4 images cannot be divided .* every 5th is for tests"):
        DatasetCatalog.get("ecssd_test_200")
    write_pairs(folder / "images", folder / "ground_truth_mask", *"abcdefghijk")
    assert [entry["image_id"] for entry in DatasetCatalog.get("ecssd_test_200")] == ["e", "j"]
    assert [entry["image_id"] for entry in DatasetCatalog.get("ecssd_train_800")] == list("abcdfghik")
    for name, (whole, _) in SALIENCY_PARTS.items():
        assert MetadataCatalog.get(name).evaluator_type == "saliency"
        known = DatasetCatalog.get(whole)
        assert all(entry in known for entry in DatasetCatalog.get(name))


@pytest.mark.skipif("SEGMENTATION_TEST_DATA" not in os.environ, reason="needs real images")
def test_parts_of_the_published_set_have_the_numbers_in_their_names(tmp_path: Path) -> None:
    source = Path(os.environ["SEGMENTATION_TEST_DATA"]) / "ecssd"
    if not source.is_dir():
        pytest.skip("no ECSSD")
    (tmp_path / "ECSSD").symlink_to(source)
    register_all(tmp_path)
    for name, number in (("ecssd_train_800", 800), ("ecssd_test_200", 200)):
        assert len(DatasetCatalog.get(name)) == number


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    with pytest.raises(FileNotFoundError, match=r"nothing: no such folder\. Get it"):
        load_saliency(tmp_path / "nothing", cure="Get it.")
    save(images / "a.jpg", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(FileNotFoundError, match=r"has no folder of maps \(masks, mask, ground_truth_mask, gt"):
        load_saliency(tmp_path)
    masks.mkdir()
    with pytest.raises(ValueError, match=r"masks: holds no image"):
        load_saliency(tmp_path)
    write_pairs(images, masks, "a", "b", "c")
    (masks / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"masks: has no map of b\.jpg, nor of 0 other images"):
        load_saliency(tmp_path)
    (images / "b.jpg").unlink()
    (images / "c.jpg").unlink()
    with pytest.raises(ValueError, match=r"images: has no image of the map c\.png, nor of 0 others"):
        load_saliency(tmp_path)
    pairs = pair_saliency(tmp_path)
    assert ([entry["image_id"] for entry in pairs.entries], pairs.without_image) == (["a"], ("c.png",))
    save(images / "a.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"a\.jpg and a\.png have one id"):
        pair_saliency(tmp_path)


def test_generated_shapes_have_saliency_for_both_kinds_of_images(tmp_path: Path) -> None:
    config = ShapesConfig(num_train=2, num_val=1, size=64, max_objects=2)
    write_shapes(tmp_path, config)
    register_all(tmp_path)
    scene = render_image(config, "train", 0)
    for name, picture in (("shapes_train_saliency", scene.camouflaged), ("shapes_train_saliency_plain", scene.image)):
        entries = DatasetCatalog.get(name)
        assert [entry["image_id"] for entry in entries] == ["000000000001", "000000000002"]
        np.testing.assert_array_equal(np.asarray(Image.open(entries[0]["file_name"])), picture)
        np.testing.assert_array_equal(read_saliency(entries[0])[0], scene.saliency.astype(np.float32) / 255)
    assert len(DatasetCatalog.get("shapes_val_saliency")) == 1


def test_derived_sets_follow_the_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_all(tmp_path)
    write_camvid(tmp_path)
    write_cityscapes(tmp_path, monkeypatch)
    write_voc(tmp_path, monkeypatch)
    # Values in the files, written out: CamVid's 6 sign, 8 car, 9 pedestrian, 10 bicyclist and 11 void; train ids 11 to
    # 18; VOC's 1 to 20.
    salient = {"camvid": (6, 8, 9, 10), "cityscapes": tuple(range(11, 19)), "voc_2012": tuple(range(1, 21))}
    void = {"camvid": 11, "cityscapes": 255, "voc_2012": 255}
    for name, (dense, _) in DERIVED_SETS.items():
        family = next(one for one in SALIENT_CLASSES if name.startswith(one))
        entries = DatasetCatalog.get(name)
        assert [e["file_name"] for e in entries] == [e["file_name"] for e in DatasetCatalog.get(dense)]
        for entry in entries:
            with Image.open(entry["sem_seg_file_name"]) as image:
                labels = np.asarray(image)
            saliency, known = read_saliency(entry)
            np.testing.assert_array_equal(known, labels != void[family])
            np.testing.assert_array_equal(saliency, np.isin(labels, salient[family]))
        assert MetadataCatalog.get(name).salient_classes == salient[family]
    assert len(DERIVED_SETS) == 6


def test_salient_classes_are_objects() -> None:
    """Stuff is never salient, with the exception of CamVid's signs."""
    register_all("nowhere")
    for family in SALIENT_CLASSES:
        split = class_split_of(f"{family}_val_sem_seg")
        things = {split.names[i] for i in split.thing_ids}
        assert set(SALIENT_CLASSES[family]) == things | ({"sign"} if family == "camvid" else set())


def test_registration_refuses_classes_that_do_not_exist(tmp_path: Path) -> None:
    register_camvid(tmp_path)
    with pytest.raises(ValueError, match=r"'x': boat is to be salient, but the classes of 'camvid_train_sem_seg' are"):
        register_derived_saliency("x", dense="camvid_train_sem_seg", salient=("car", "boat"))
    with pytest.raises(ValueError, match=r"'x': nothing is to be salient"):
        register_derived_saliency("x", dense="camvid_train_sem_seg", salient=())


def test_own_folder(tmp_path: Path) -> None:
    write_pairs(tmp_path / "photos", tmp_path / "alpha", "a")
    register_saliency("own_saliency", tmp_path, images=("photos",), masks=("alpha",))
    assert len(DatasetCatalog.get("own_saliency")) == 1
    assert class_split_of("own_saliency").names == ("background", "salient")
