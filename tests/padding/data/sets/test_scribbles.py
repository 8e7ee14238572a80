# SPDX-License-Identifier: Apache-2.0
"""Registered scribble sets: images and classes of the dense sets, labels of the scribbles, samples of the mapper."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from padding.data.catalog import register_all, register_listed_images, register_scribbles
from padding.data.class_split import ClassSplit, class_split_of
from padding.data.mappers import build_mapper
from padding.data.scribbles.simulator import SimulatorConfig
from padding.data.sets.scribbles import SCRIBBLE_SETS, label_key, scribble_tags
from padding.engine import add_core_config

SPLIT = ClassSplit(("ground", "hill", "house"), (False, False, True), (0, 1, 2))
SIMULATED = ("shapes_train_scribble_coarse", "camvid_train_scribble", "ccp_train_scribble", "cityscapes_train_scribble")
RASTER = np.array([[0, 255, 1], [2, 254, 255]], np.uint8)


pytestmark = pytest.mark.usefixtures("restored_catalogs")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images with dense labels and scribbles, registered as "hills" and "hills_scribble"."""
    for name, ending, array in (
        ("images", "jpg", np.zeros((2, 3, 3), np.uint8)),
        ("dense", "png", np.zeros((2, 3), np.uint8)),
        ("scribbles", "png", RASTER),
    ):
        (tmp_path / name).mkdir()
        for image_id in ("a", "b"):
            Image.fromarray(array).save(tmp_path / name / f"{image_id}.{ending}")
    register_listed_images("hills", class_split=SPLIT, image_root=tmp_path / "images", label_root=tmp_path / "dense")
    register_scribbles("hills_scribble", dense="hills", label_root=tmp_path / "scribbles", cure="draw them")
    return tmp_path


def test_images_of_the_dense_set_with_other_labels(root: Path) -> None:
    dense, scribbled = DatasetCatalog.get("hills"), DatasetCatalog.get("hills_scribble")
    assert [e["file_name"] for e in dense] == [e["file_name"] for e in scribbled]
    assert [e["sem_seg_file_name"] for e in scribbled] == [str(root / "scribbles" / f"{i}.png") for i in "ab"]
    assert class_split_of("hills_scribble") == SPLIT
    assert MetadataCatalog.get("hills_scribble").dense_set == "hills"


def test_samples_ignore_unlabelled_and_padded_pixels(root: Path) -> None:
    cfg = get_cfg()
    add_core_config(cfg)
    cfg.DATASETS.TRAIN = ("hills_scribble",)
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MIN_SIZE_TRAIN = (2,)
    cfg.INPUT.CROP.ENABLED = False
    sample = build_mapper(cfg, is_train=True)(DatasetCatalog.get("hills_scribble")[0])
    np.testing.assert_array_equal(sample["sem_seg"].numpy(), np.where(RASTER == 254, 255, RASTER))


def test_missing_scribbles_name_the_cure(root: Path) -> None:
    (root / "scribbles" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.png: no such file.* draw them"):
        DatasetCatalog.get("hills_scribble")


def test_unknown_dense_set() -> None:
    with pytest.raises(ValueError, match="data set 'nowhere' is not registered"):
        register_scribbles("x", dense="nowhere", label_root="x")


def test_key_of_an_image() -> None:
    assert label_key({"file_name": "a/b_leftImg8bit.png", "image_id": "b"}) == "b"
    assert label_key({"file_name": "a/000012.jpg", "image_id": 12}) == "000012"


def test_table_is_registered_with_dense_test_sets(tmp_path: Path) -> None:
    register_all(tmp_path)
    assert set(SCRIBBLE_SETS) == {
        "voc_2012_train_aug_scribble",
        "pascal_context_train_scribble_60",
        "pascal_context_train_scribble_59",
        "camvid_train_scribble",
        "ccp_train_scribble",
        "shapes_train_scribble_coarse",
        "cityscapes_train_scribble",
        *(f"{name}_length_{pct}" for name in SIMULATED for pct in (0, 10, 25, 50)),
    }
    for name, one in SCRIBBLE_SETS.items():
        assert class_split_of(name) == class_split_of(one.dense)
        metadata = MetadataCatalog.get(name)
        assert metadata.evaluator_type == "sem_seg"
        assert metadata.label_root == str(tmp_path / one.folder)
        assert metadata.sem_seg_label_map[254] == metadata.sem_seg_label_map[255] == 255
        assert SCRIBBLE_SETS[one.written_as or name].folder == one.folder
        SimulatorConfig(**one.simulator)
    label_map = MetadataCatalog.get("pascal_context_train_scribble_59").sem_seg_label_map
    assert [label_map[value] for value in (0, 1, 59)] == [255, 0, 58]
    register_all()


def test_shortened_sets_differ_in_length_and_folder_alone() -> None:
    one, half = SCRIBBLE_SETS["shapes_train_scribble_coarse"], SCRIBBLE_SETS["shapes_train_scribble_coarse_length_50"]
    assert half.folder == Path("shapes/scribble_coarse_length_50/train")
    assert half.dense == one.dense
    assert half.simulator == {**one.simulator, "length": 0.5}
    assert len({(one.folder, one.written_as) for one in SCRIBBLE_SETS.values()}) == len(SCRIBBLE_SETS)


def test_tags_of_the_published_sets() -> None:
    register_all()
    for dense in ("voc_2012_train_aug_sem_seg", "pascal_context_train_60"):
        tags, names = scribble_tags(dense), class_split_of(dense).names
        assert tags.id_of("plane", where="") == tags.id_of("aeroplane", where="") == names.index("aeroplane")
        assert tags.id_of("table", where="") == names.index("diningtable")
    assert scribble_tags("pascal_context_train_60").id_of("bedclothes", where="") == 52
    assert scribble_tags("camvid_train_sem_seg").names == class_split_of("camvid_train_sem_seg").names
