# SPDX-License-Identifier: Apache-2.0
"""Own data: folders become registered sets, lists choose images, errors name the key, and training needs no code."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from PIL import Image

import train_net
from padding.data.class_split import class_split_of
from padding.data.folders import register_own_data
from padding.data.label_statistics import audit_labels
from padding.data.mappers import build_mapper
from padding.data.own_data import OWN_NAMES, OWN_UNSEEN
from padding.data.registration import _registered
from padding.engine import add_core_config

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _no_own_data_afterwards() -> Iterator[None]:
    yield
    for name in (*OWN_NAMES, OWN_UNSEEN):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name, None)
            _registered.discard(name)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Eight images of mixed endings, three classes and void value 9; the last four have no labels."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for index in range(8):
        labels = np.repeat(np.repeat(rng.choice([0, 1, 2, 9], (4, 5)).astype(np.uint8), 16, 0), 16, 1)
        image = np.stack([labels * 25, 255 - labels * 25, labels], -1)
        Image.fromarray(image).save(tmp_path / "images" / f"im_{index}{'.png' if index % 2 else '.jpg'}")
        if index < 4:
            Image.fromarray(labels).save(tmp_path / "labels" / f"im_{index}.png")
    (tmp_path / "classes.txt").write_text("# the third is never labeled\nroad\nsky\nunknown thing\n")
    (tmp_path / "val.txt").write_text("im_3\nim_2\n")
    (tmp_path / "labeled.txt").write_text("im_1\nim_0\n")
    (tmp_path / "unlabeled.txt").write_text("".join(f"im_{index}\n" for index in range(4, 8)))
    return tmp_path


def options(folder: Path, **changes: object) -> list[str]:
    keys = {
        "IMAGES": folder / "images",
        "LABELS": folder / "labels",
        "CLASSES": folder / "classes.txt",
        "VAL_LIST": folder / "val.txt",
        "VOID_VALUES": (9,),
        **changes,
    }
    return [word for key, value in keys.items() for word in (f"DATASETS.FOLDERS.{key}", str(value))]


def config(folder: Path, **changes: object) -> CfgNode:
    cfg = get_cfg()
    add_core_config(cfg)
    cfg.merge_from_list(options(folder, **changes))
    return cfg


def ids(name: str) -> list[str]:
    return [entry["image_id"] for entry in DatasetCatalog.get(name)]


def test_list_divides_the_folder(folders: Path) -> None:
    register_own_data(config(folders))
    assert ids("own_train") == ["im_0", "im_1", "im_4", "im_5", "im_6", "im_7"]
    assert ids("own_val") == ["im_3", "im_2"]
    assert [Path(entry["file_name"]).suffix for entry in DatasetCatalog.get("own_val")] == [".png", ".jpg"]
    assert class_split_of("own_train").names == ("road", "sky", "unknown thing")
    assert MetadataCatalog.get("own_val").sem_seg_label_map == {0: 0, 1: 1, 2: 2, 9: 255, 255: 255}
    assert MetadataCatalog.get("own_val").evaluator_type == "sem_seg"


def test_folders_of_their_own_to_evaluate_on(folders: Path) -> None:
    changes = {"VAL_LIST": "", "VAL_IMAGES": folders / "images", "VAL_LABELS": folders / "labels", "VOID_VALUES": ()}
    register_own_data(config(folders, **changes))
    assert ids("own_train") == ids("own_val") == [f"im_{index}" for index in range(8)]
    assert not hasattr(MetadataCatalog.get("own_val"), "sem_seg_label_map")


@pytest.mark.parametrize("void_values", [(9,), ()])
def test_unseen_names_make_a_zero_shot_problem(folders: Path, void_values: tuple[int, ...]) -> None:
    """Training has the seen classes alone, numbered anew; the last set counts the unseen ones alone."""
    register_own_data(config(folders, UNSEEN=["road"], VOID_VALUES=void_values))
    void = dict.fromkeys((*void_values, 255), 255)
    assert class_split_of("own_train").names == ("sky", "unknown thing")
    assert class_split_of("own_val").unseen_names == {"road"}
    assert MetadataCatalog.get("own_train").sem_seg_label_map == {0: 255, 1: 0, 2: 1, **void}
    assert MetadataCatalog.get(OWN_UNSEEN).sem_seg_label_map == {0: 0, 1: 255, 2: 255, **void}
    assert MetadataCatalog.get(OWN_UNSEEN).evaluated_ids == (0,)
    assert ids("own_train") == ["im_0", "im_1", "im_4", "im_5", "im_6", "im_7"]
    assert ids("own_val") == ids(OWN_UNSEEN) == ["im_3", "im_2"]


def test_masks_of_0_and_255_have_two_classes(tmp_path: Path) -> None:
    """What black and white masks mean is said by a key; the audit notices where nobody said it."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    mask = np.zeros((8, 10), np.uint8)
    mask[:, 5:] = 255
    Image.new("RGB", (10, 8)).save(tmp_path / "images" / "a.jpg")
    Image.fromarray(mask).save(tmp_path / "labels" / "a_mask.tif")
    (tmp_path / "classes.txt").write_text("ground\nwater\n")
    changes = {"VAL_LIST": "", "VOID_VALUES": (), "LABEL_SUFFIX": "_mask.tif"}
    audits = []
    for values in ((), (0, 255)):
        register_own_data(config(tmp_path, **changes, LABEL_VALUES=values))
        (entry,) = DatasetCatalog.get("own_train")
        label_map = getattr(MetadataCatalog.get("own_train"), "sem_seg_label_map", None)
        audits.append(audit_labels([entry], class_split_of("own_train").names, label_map=label_map))
    assert [audit.pixels.tolist() for audit in audits] == [[40, 0], [40, 40]]
    assert audits[1].problems() == []
    (problem,) = audits[0].problems()
    assert problem.startswith("255 covers 50.0 % and means nothing, while water has no pixel")
    assert "DATASETS.FOLDERS.LABEL_VALUES" in problem
    cfg = config(tmp_path, **changes, LABEL_VALUES=(0, 255), IMAGES=tmp_path / "images")
    cfg.merge_from_list(["DATASETS.TRAIN", "('own_train',)", "INPUT.DATASET_MAPPER_NAME", "semantic_resize"])
    cfg.merge_from_list(["INPUT.CROP.SIZE", "[8, 10]", "INPUT.RANDOM_FLIP", "none", "INPUT.FORMAT", "RGB"])
    sample = build_mapper(cfg, is_train=True)(entry)
    assert sample["sem_seg"].unique(return_counts=True)[1].tolist() == [40, 40]


def test_a_class_may_have_several_values(folders: Path) -> None:
    register_own_data(config(folders, LABEL_VALUES=[0, [1, 2], 7], VOID_VALUES=(9,)))
    assert MetadataCatalog.get("own_val").sem_seg_label_map == {0: 0, 1: 1, 2: 1, 7: 2, 9: 255, 255: 255}


def test_subfolders_pair_images_and_labels_of_one_name(tmp_path: Path) -> None:
    for part in ("day", "night"):
        for kind in ("images", "labels"):
            (tmp_path / kind / part).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / part / "a.tiff")
        Image.new("L", (4, 4)).save(tmp_path / "labels" / part / "a.png")
    (tmp_path / "classes.txt").write_text("ground\n")
    (tmp_path / "val.txt").write_text("night/a\n")
    register_own_data(config(tmp_path, VOID_VALUES=(), SUBFOLDERS=True))
    assert (ids("own_train"), ids("own_val")) == (["day/a"], ["night/a"])
    (entry,) = DatasetCatalog.get("own_val")
    assert entry["file_name"] == str(tmp_path / "images" / "night" / "a.tiff")
    assert entry["sem_seg_file_name"] == str(tmp_path / "labels" / "night" / "a.png")
    register_own_data(config(tmp_path, VOID_VALUES=(), VAL_LIST=""))
    with pytest.raises(ValueError, match="holds no image"):
        DatasetCatalog.get("own_train")


def test_nothing_unseen_registers_no_set_for_it(folders: Path) -> None:
    register_own_data(config(folders))
    assert OWN_UNSEEN not in DatasetCatalog
    assert class_split_of("own_val").unseen_names == frozenset()


def test_another_folder_replaces_the_first(folders: Path) -> None:
    register_own_data(config(folders))
    register_own_data(config(folders, VAL_LIST=""))
    assert len(ids("own_train")) == 8


def test_nothing_is_registered_by_default() -> None:
    cfg = get_cfg()
    add_core_config(cfg)
    register_own_data(cfg)
    assert "own_train" not in DatasetCatalog


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"LABELS": ""}, ValueError, "there are no labels; set LABELS"),
        ({"CLASSES": ""}, ValueError, r"FOLDERS\.CLASSES is empty"),
        ({"CLASSES": "nowhere.txt"}, FileNotFoundError, r"FOLDERS\.CLASSES: nowhere\.txt"),
        ({"IMAGES": ""}, ValueError, r"FOLDERS\.LABELS is set, but DATASETS\.FOLDERS\.IMAGES is empty"),
        ({"VAL_IMAGES": "x"}, ValueError, "set VAL_IMAGES and VAL_LABELS, or VAL_LIST"),
        ({"VAL_IMAGES": "x", "VAL_LABELS": "x"}, ValueError, "set VAL_IMAGES and VAL_LABELS, or VAL_LIST"),
        ({"VOID_VALUES": (0, 1, 2)}, ValueError, r"VOID_VALUES is \(0, 1, 2\)"),
        ({"VOID_VALUES": (-1,)}, ValueError, r"VOID_VALUES is \(-1,\)"),
        ({"LABEL_VALUES": (0, 1)}, ValueError, r"LABEL_VALUES has 2 entries for 3 classes"),
        ({"LABEL_VALUES": (0, 1, 1)}, ValueError, r"the value 1 means two things"),
        ({"LABEL_VALUES": (0, 1, 9)}, ValueError, r"the value 9 means two things"),
        ({"LABEL_VALUES": (0, 1, -3)}, ValueError, r"LABEL_VALUES has -3 for class 2; expected 0 to 65535"),
        ({"UNSEEN": ["rod"]}, ValueError, r"FOLDERS\.UNSEEN names \['rod'\], which .*classes\.txt does not list"),
        ({"UNSEEN": ["road", "sky", "unknown thing"]}, ValueError, "UNSEEN names all 3 classes"),
    ],
)
def test_errors_name_the_key(folders: Path, changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        register_own_data(config(folders, **changes))


def test_files_that_do_not_fit_are_reported_when_read(folders: Path) -> None:
    register_own_data(config(folders, IMAGES=folders / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder of images.*DATASETS\.FOLDERS"):
        ids("own_train")
    (folders / "val.txt").write_text("im_3\nim_99\n")
    register_own_data(config(folders))
    for name in OWN_NAMES:
        with pytest.raises(FileNotFoundError, match=r"no image im_99.*val\.txt lists"):
            ids(name)
    Image.new("RGB", (80, 64)).save(folders / "images" / "im_1.jpg")
    with pytest.raises(ValueError, match=r"im_1\.jpg and im_1\.png have one id|im_1\.png and im_1\.jpg have one id"):
        ids("own_train")


def test_training_on_own_folders_and_lists_needs_no_code(folders: Path) -> None:
    """Two labeled images, four without any label file, two to evaluate on."""
    words = [
        *("--config-file", str(ROOT / "configs" / "smoke" / "shapes_tcc.yaml"), *options(folders)),
        *("DATASETS.TRAIN", "('own_train',)", "DATASETS.TEST", "('own_val',)", "DATASETS.SPLIT", str(folders)),
        *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SOLVER.MAX_ITER", "2"),
        *("OUTPUT_DIR", str(folders / "run")),
    ]
    results = train_net.main(default_argument_parser().parse_args(words))
    assert 0 <= results["sem_seg"]["mIoU"] <= 100
    log = (folders / "run" / "log.txt").read_text()
    assert "2 labeled, 4 unlabeled" in log
