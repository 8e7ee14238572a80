# SPDX-License-Identifier: Apache-2.0
"""Registration: names, label spaces, metadata, repeated calls, and the two real COCO images."""

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from padding.data.catalog import coco_zsp_split, register_all, register_panoptic
from padding.data.class_split import class_split_of
from padding.data.sets.coco_photographs import photograph_files, samples_dir
from tests.tiny_data import TinyPanoptic, write_tiny_panoptic

NAMES = (
    "shapes_train_panoptic_zsp",
    "shapes_val_panoptic_zsp",
    "coco_2017_train_panoptic_zsp",
    "coco_2017_train_panoptic_zsp_ignore_pixels",
    "coco_2017_train_panoptic_zsp_wide",
    "coco_2017_val_panoptic_zsp",
)
# Name -> classes, unseen classes, classes that count in the evaluation.
TASKS = {
    "shapes_val_panoptic_zsp_unseen": (42, 7, 7),
    "shapes_train_sem_seg_zss": (35, 0, 35),
    "shapes_val_sem_seg_zss": (42, 7, 42),
    "shapes_val_sem_seg_zss_unseen": (42, 7, 7),
    "shapes_train_instances_zsi": (25, 0, 25),
    "shapes_val_instances_zsi": (30, 5, 30),
    "shapes_val_instances_zsi_unseen": (30, 5, 5),
    "coco_2017_val_panoptic_zsp_unseen": (133, 14, 14),
    "coco_2017_train_stuff_zss": (156, 0, 156),
    "coco_2017_train_stuff_zss_drop_image": (156, 0, 156),
    "coco_2017_val_stuff_zss": (171, 15, 171),
    "coco_2017_val_stuff_zss_unseen": (171, 15, 15),
    "coco_2014_train_instances_zsi_48_17": (48, 0, 48),
    "coco_2014_val_instances_zsi_48_17": (65, 17, 65),
    "coco_2014_val_instances_zsi_48_17_unseen": (65, 17, 17),
    "coco_2014_train_instances_zsi_65_15": (65, 0, 65),
    "coco_2014_val_instances_zsi_65_15": (80, 15, 80),
    "coco_2014_val_instances_zsi_65_15_unseen": (80, 15, 15),
}
# The two sets of photographs, for both tasks.
for _name in (
    "coco128_{}_panoptic_zsp",
    "coco128_{}_sem_seg_zss",
    "coco_samples_{}_panoptic_zsp",
    "coco_samples_{}_sem_seg_zss",
):
    TASKS |= {_name.format("train"): (119, 0, 119), _name.format("val"): (133, 14, 133)}
    TASKS[_name.format("val") + "_unseen"] = (133, 14, 14)
for _name in ("coco128_{}_panoptic_zsp_26_6", "coco128_{}_sem_seg_zss_26_6"):
    TASKS |= {_name.format("train"): (26, 0, 26), _name.format("val"): (32, 6, 32)}
    TASKS[_name.format("val") + "_unseen"] = (32, 6, 6)


pytestmark = pytest.mark.usefixtures("restored_catalogs")


@pytest.fixture
def tiny(tmp_path: Path) -> TinyPanoptic:
    return write_tiny_panoptic(tmp_path / "tiny")


def test_register_all_registers_the_table(tmp_path: Path) -> None:
    register_all(tmp_path)
    assert set(NAMES) <= set(DatasetCatalog.list())
    sizes = {name: class_split_of(name).num_classes for name in NAMES}
    assert sizes == dict(zip(NAMES, (35, 42, 119, 119, 133, 133), strict=True))
    unseen = {name: len(class_split_of(name).unseen_ids) for name in NAMES}
    assert unseen == dict(zip(NAMES, (0, 7, 0, 0, 14, 14), strict=True))


def test_register_all_registers_the_three_tasks(tmp_path: Path) -> None:
    register_all(tmp_path)
    found = {}
    for name in TASKS:
        split, metadata = class_split_of(name), MetadataCatalog.get(name)
        counted = metadata.get("evaluated_ids", tuple(range(split.num_classes)))
        found[name] = (split.num_classes, len(split.unseen_ids), len(counted))
    assert found == TASKS
    ours = {name for name in DatasetCatalog.list() if "_zs" in name}
    assert ours == {*NAMES, *TASKS}


@pytest.mark.parametrize("val", [name for name in TASKS if "_val_" in name])
def test_narrow_training_space_is_the_seen_part(tmp_path: Path, val: str) -> None:
    """Except for COCO-Stuff's second policy every test set has a training set of its name."""
    register_all(tmp_path)
    train, wide = class_split_of(val.removesuffix("_unseen").replace("_val_", "_train_")), class_split_of(val)
    assert train.names == tuple(wide.names[i] for i in wide.seen_ids)


def test_train_and_val_agree_by_name(tmp_path: Path) -> None:
    register_all(tmp_path)
    for train, val in (NAMES[:2], (NAMES[2], NAMES[5])):
        wide = class_split_of(val)
        assert class_split_of(train).names == tuple(wide.names[i] for i in wide.seen_ids)


def test_metadata_speaks_detectron2(tmp_path: Path) -> None:
    register_all(tmp_path)
    metadata = MetadataCatalog.get("coco_2017_val_panoptic_zsp")
    assert metadata.thing_classes == metadata.stuff_classes == list(coco_zsp_split().names)
    assert len(metadata.thing_dataset_id_to_contiguous_id) == 80
    assert metadata.thing_dataset_id_to_contiguous_id[21] == 19
    assert len(metadata.stuff_dataset_id_to_contiguous_id) == 133
    assert metadata.stuff_dataset_id_to_contiguous_id[200] == 132
    assert len(metadata.stuff_colors) == len(metadata.thing_colors) == 133
    assert (metadata.ignore_label, metadata.label_divisor) == (255, 1000)
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert metadata.panoptic_json == str(tmp_path / "coco/annotations/panoptic_val2017.json")
    assert metadata.json_file == str(tmp_path / "coco/annotations/instances_val2017.json")


def test_another_root_replaces_the_first(tmp_path: Path) -> None:
    register_all(tmp_path / "a")
    register_all(tmp_path / "b")
    assert MetadataCatalog.get(NAMES[0]).image_root == str(tmp_path / "b/shapes/images/train")


def test_missing_data_error_says_how_to_make_them(tmp_path: Path) -> None:
    register_all(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"panoptic_train\.json.*prepare_shapes"):
        DatasetCatalog.get("shapes_train_panoptic_zsp")
    with pytest.raises(FileNotFoundError, match=r"panoptic_train2017_seen\.json.*prepare_coco_zsp"):
        DatasetCatalog.get("coco_2017_train_panoptic_zsp")
    with pytest.raises(FileNotFoundError, match=r"stuff_train2017\.json.*prepare_coco_zss"):
        DatasetCatalog.get("coco_2017_train_stuff_zss")
    with pytest.raises(FileNotFoundError, match=r"instances_val2014_gzsi_65_15\.json.*prepare_coco_zsi"):
        DatasetCatalog.get("coco_2014_val_instances_zsi_65_15")


def test_own_data_set_loads_and_may_be_registered_again(tiny: TinyPanoptic) -> None:
    for _ in range(2):
        register_panoptic("tiny_catalog", **tiny.registration, json_file=tiny.json_file)
    assert len(DatasetCatalog.get("tiny_catalog")) == 4
    assert class_split_of("tiny_catalog") == tiny.class_split


def test_foreign_name_is_not_overwritten(tiny: TinyPanoptic) -> None:
    DatasetCatalog.register("tiny_foreign", list)
    with pytest.raises(ValueError, match="'tiny_foreign' is registered already"):
        register_panoptic("tiny_foreign", **tiny.registration)


def test_class_split_of_detectron2_sets() -> None:
    split = class_split_of("coco_2017_val_100_panoptic_separated")
    assert split.names[0] == "things"
    DatasetCatalog.register("tiny_plain", list)
    MetadataCatalog.get("tiny_plain").set(thing_classes=["a"], stuff_classes=["a", "b"])
    plain = class_split_of("tiny_plain")
    assert plain.names == ("a", "b")
    assert plain.is_thing == (True, False)


def test_class_split_of_unknown_or_nameless_set() -> None:
    with pytest.raises(ValueError, match="'tiny_absent' is not registered"):
        class_split_of("tiny_absent")
    DatasetCatalog.register("tiny_nameless", list)
    with pytest.raises(ValueError, match="'tiny_nameless' has no class names"):
        class_split_of("tiny_nameless")


def test_real_coco_images_hold_unseen_classes() -> None:
    files, split = photograph_files(samples_dir(), "train"), coco_zsp_split()
    register_panoptic("real_val", class_split=split, **files)
    assert len(DatasetCatalog.get("real_val")) == 7
    register_panoptic("real_train", class_split=split.seen_only(), **files)
    with pytest.raises(ValueError, match=r"image 000000000089\.jpg holds 'cardboard'"):
        DatasetCatalog.get("real_train")
    register_panoptic("real_train", class_split=split.seen_only(), unseen_policy="drop_image", **files)
    assert [entry["image_id"] for entry in DatasetCatalog.get("real_train")] == [370, 436]
    register_panoptic("real_train", class_split=split.seen_only(), unseen_policy="ignore_pixels", **files)
    entries = DatasetCatalog.get("real_train")
    assert len(entries) == 7
    assert sum("void_segment_ids" in entry for entry in entries) == 5
