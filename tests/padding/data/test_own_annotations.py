# SPDX-License-Identifier: Apache-2.0
"""Own COCO annotations by keys alone: what annotation tools export, classes by name, unseen classes, chosen images."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from padding.data.catalog import register_all
from padding.data.class_split import class_split_of
from padding.data.folders import register_own_data
from padding.data.own_annotations import read_categories
from padding.data.own_data import OWN_UNSEEN
from padding.engine import add_core_config
from padding.evaluation.instance import InstanceEvaluator
from padding.evaluation.panoptic import PanopticEvaluator
from tests.tiny_data import write_tiny_panoptic
from tests.tiny_own import nothing_left

BOX = [0, 0, 4, 0, 4, 3, 0, 3]


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    with nothing_left():
        yield


def config(**keys: object) -> CfgNode:
    cfg = get_cfg()
    add_core_config(cfg)
    cfg.merge_from_list([word for key, value in keys.items() for word in (f"DATASETS.FOLDERS.{key}", str(value))])
    return cfg


def write(folder: Path, content: dict[str, Any], name: str = "annotations.json") -> dict[str, Path]:
    """A JSON, and images of 4 x 6 where it says they are, as far as that is below ``images``."""
    (folder / name).write_text(json.dumps(content))
    return {"IMAGES": folder / "images", "ANNOTATIONS": folder / name}


def photograph(folder: Path, name: str) -> None:
    (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4)).save(folder / "images" / name)


def thing(image: object, category: int, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "segmentation": [BOX], **more}


def coco(images: dict[Any, str], categories: list[Any], annotations: list[Any], **of_images: Any) -> dict[str, Any]:
    listed = [{"id": key, "file_name": name, "height": 4, "width": 6, **of_images} for key, name in images.items()]
    return {"images": listed, "categories": categories, "annotations": annotations}


UNCOMPRESSED = {"size": [4, 6], "counts": [0, 12, 12]}
EXPORTS = {
    # Ids from 1, attributes, folders below that of the images.
    "cvat": (
        "day/a.jpg",
        coco(
            {1: "day/a.jpg"},
            [{"id": 1, "name": "cat", "supercategory": ""}],
            [thing(1, 1, id=1, iscrowd=0, area=12.0, bbox=[0, 0, 4, 3], attributes={"occluded": False})],
            license=0,
            flickr_url="",
            date_captured=0,
        ),
    ),
    # Ids from 0, no supercategory, a folder of the server in front of the name.
    "label studio": (
        "a.jpg",
        coco(
            {0: "../../label-studio/data/media/upload/3/a.jpg"},
            [{"id": 0, "name": "cat"}],
            [thing(0, 0, id=0, ignore=0, iscrowd=0, area=12, bbox=[0.0, 0.0, 4.0, 3.0])],
        ),
    ),
    # A placeholder with the id 0 that no object has.
    "roboflow": (
        "a_jpg.rf.0a1b.jpg",
        coco(
            {0: "a_jpg.rf.0a1b.jpg"},
            [{"id": 0, "name": "pets", "supercategory": "none"}, {"id": 1, "name": "cat", "supercategory": "pets"}],
            [thing(0, 1, id=0, iscrowd=0, area=12, bbox=[0, 0, 4, 3])],
            extra={"name": "a.jpg"},
        ),
    ),
    # Masks as uncompressed run-length code, boxes as whole numbers.
    "supervisely": (
        "a.png",
        coco(
            {7: "a.png"},
            [{"id": 3, "name": "cat", "supercategory": "cat"}],
            [thing(7, 3, id=1, iscrowd=0, segmentation=UNCOMPRESSED)],
        ),
    ),
    # Written on Windows, with null where nothing is known.
    "labelme": (
        "JPEGImages/a.jpg",
        coco(
            {0: "JPEGImages\\a.jpg"},
            [{"id": 0, "name": "cat", "supercategory": None}],
            [thing(0, 0, id=0, iscrowd=0)],
            license=0,
            url=None,
            date_captured=None,
        ),
    ),
}


@pytest.mark.parametrize("tool", EXPORTS)
def test_exports_of_annotation_tools_train_and_score_as_they_are(tool: str, tmp_path: Path) -> None:
    name, content = EXPORTS[tool]
    photograph(tmp_path, name)
    files = write(tmp_path, content)
    (tmp_path / "classes.txt").write_text("cat\n")
    register_own_data(config(**files, CLASSES=tmp_path / "classes.txt", VAL_ANNOTATIONS=files["ANNOTATIONS"]))
    for dataset in ("own_train", "own_val"):
        (entry,) = DatasetCatalog.get(dataset)
        assert entry["file_name"] == str(tmp_path / "images" / name)
        assert [a["category_id"] for a in entry["annotations"]] == [0]
    results = scores_of_the_truth("own_val")
    assert results["segm"]["AP"] == pytest.approx(100)


PETS = {0: {"name": "pets"}, 1: {"supercategory": "pets"}, 2: {"supercategory": "pets"}}
ROBOFLOW = [
    {"id": 0, "name": "cat", "supercategory": "none"},
    {"id": 1, "name": "cat", "supercategory": "cat"},
    {"id": 2, "name": "dog", "supercategory": "cat"},
]


@pytest.mark.parametrize(
    ("changed", "objects", "expected"),
    [
        ({}, [1, 2], ["cat", "dog"]),  # the project's name is a class's too
        (PETS, [], ["cat", "dog"]),
        ({0: {"name": "pets"}}, [1], ["pets", "cat", "dog"]),  # not above all others
        (PETS, [0, 1], ["pets", "cat", "dog"]),
    ],
)
def test_the_placeholder_of_roboflow_is_no_class(
    changed: dict[int, dict[str, str]], objects: list[int], expected: list[str], tmp_path: Path
) -> None:
    categories = [{**category, **changed.get(i, {})} for i, category in enumerate(ROBOFLOW)]
    files = write(tmp_path, coco({0: "a.jpg"}, categories, [thing(0, name, id=i) for i, name in enumerate(objects)]))
    assert [category.name for category in read_categories(str(files["ANNOTATIONS"]))] == expected
    photograph(tmp_path, "a.jpg")
    register_own_data(config(**files))
    (entry,) = DatasetCatalog.get("own_train")
    assert [a["category_id"] for a in entry["annotations"]] == [expected.index(categories[i]["name"]) for i in objects]


def scores_of_the_truth(dataset: str) -> Any:
    """Evaluate the annotations of a set as if they were predictions."""
    import torch
    from detectron2.structures import Instances

    from padding.data.masks import annotation_mask

    evaluator = InstanceEvaluator(dataset)
    for entry in DatasetCatalog.get(dataset):
        size = (entry["height"], entry["width"])
        predicted = Instances(size)
        masks = [annotation_mask(a, size) for a in entry["annotations"]]
        predicted.pred_masks = torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *size), np.uint8)).bool()
        predicted.pred_classes = torch.tensor([a["category_id"] for a in entry["annotations"]], dtype=torch.int64)
        predicted.scores = torch.ones(len(masks))
        evaluator.process([entry], [{"instances": predicted}])
    return evaluator.evaluate()


def test_classes_of_two_files_are_joined_by_name(tmp_path: Path) -> None:
    """The file to evaluate on numbers its classes in another way, and alone has an unseen one."""
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        photograph(tmp_path, name)
    train = coco(
        {1: "a.jpg", 2: "b.jpg"},
        [{"id": 5, "name": "dog"}, {"id": 9, "name": "cat"}],
        [thing(1, 9), thing(2, 5)],
    )
    val = coco(
        {1: "c.jpg"},
        [{"id": 0, "name": "cat"}, {"id": 1, "name": "zebra"}, {"id": 2, "name": "dog"}],
        [thing(1, 0), thing(1, 1)],
    )
    files = write(tmp_path, train)
    write(tmp_path, val, "val.json")
    register_own_data(config(**files, VAL_ANNOTATIONS=tmp_path / "val.json", UNSEEN=["zebra"]))
    assert class_split_of("own_train").names == ("dog", "cat")
    assert class_split_of("own_val").names == ("dog", "cat", "zebra")
    assert class_split_of("own_val").unseen_names == {"zebra"}
    assert [e["annotations"][0]["category_id"] for e in DatasetCatalog.get("own_train")] == [1, 0]
    assert [a["category_id"] for a in DatasetCatalog.get("own_val")[0]["annotations"]] == [1, 2]
    assert MetadataCatalog.get(OWN_UNSEEN).evaluated_ids == (2,)
    assert scores_of_the_truth("own_val")["segm"]["num_classes_unseen"] == 1
    assert scores_of_the_truth(OWN_UNSEEN)["segm"]["AP"] == pytest.approx(100)


def test_images_with_unseen_objects_are_left_out_of_training_and_other_classes_of_everything(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        photograph(tmp_path, name)
    classes = [{"id": i, "name": name} for i, name in enumerate(("cat", "dog", "bird"))]
    content = coco(
        {1: "a.jpg", 2: "b.jpg", 3: "c.jpg"},
        classes,
        [thing(1, 0), thing(1, 2), thing(2, 1), thing(2, 0), thing(3, 0), thing(3, 1)],
    )
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    (tmp_path / "val.txt").write_text("c\n")
    keys = {**write(tmp_path, content), "CLASSES": tmp_path / "classes.txt", "VAL_LIST": tmp_path / "val.txt"}
    register_own_data(config(**keys, UNSEEN=["dog"]))
    (kept,) = DatasetCatalog.get("own_train")
    assert Path(kept["file_name"]).name == "a.jpg"
    assert [a["category_id"] for a in kept["annotations"]] == [0]
    (test,) = DatasetCatalog.get("own_val")
    assert Path(test["file_name"]).name == "c.jpg"
    assert [a["category_id"] for a in test["annotations"]] == [1, 0]


def test_panoptic_segments_of_unseen_classes_are_void_in_training(tmp_path: Path) -> None:
    tiny = write_tiny_panoptic(tmp_path)
    (tmp_path / "val.txt").write_text("000000000002\n000000000001\n")
    keys = {"IMAGES": tmp_path / "images", "ANNOTATIONS": tmp_path / "panoptic.json", "PANOPTIC": tmp_path / "panoptic"}
    register_own_data(config(**keys, VAL_LIST=tmp_path / "val.txt", UNSEEN=["lake", "gem"]))
    assert class_split_of("own_val").names == tiny.class_split.names
    assert class_split_of("own_val").is_thing == tiny.class_split.is_thing
    assert class_split_of("own_train").names == ("box", "tower", "sky", "ground")
    assert [len(entry.get("void_segment_ids", ())) for entry in DatasetCatalog.get("own_train")] == [0, 2]
    val = DatasetCatalog.get("own_val")
    assert [entry["image_id"] for entry in val] == [2, 1]
    evaluator = PanopticEvaluator("own_val")
    assert evaluator.truth.read(2)[1][0]["category_id"] in range(6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"LABELS": "x"}, r"ANNOTATIONS and DATASETS\.FOLDERS\.LABELS are two kinds of labels"),
        ({"ANNOTATIONS": "", "PANOPTIC": "x", "LABELS": "x"}, r"PANOPTIC is set, but DATASETS\.FOLDERS\.ANNOTATIONS"),
        ({"VAL_PANOPTIC": "x"}, r"VAL_PANOPTIC is set, but DATASETS\.FOLDERS\.PANOPTIC is empty"),
        ({"VAL_IMAGES": "x"}, "set VAL_IMAGES and VAL_ANNOTATIONS, or VAL_LIST"),
        ({"VAL_ANNOTATIONS": "x", "VAL_LIST": "y"}, "set VAL_IMAGES and VAL_ANNOTATIONS, or VAL_LIST"),
        ({"UNSEEN": ["cow"]}, r"UNSEEN names \['cow'\], which .*annotations\.json does not list; it has cat, dog"),
        ({"UNSEEN": ["cat", "dog"]}, "UNSEEN names all 2 classes"),
        ({"CLASSES": "classes.txt"}, r"lists \['cow'\], which .* does not have; its classes are cat, dog"),
        ({"PANOPTIC": "x"}, "class 'cat' has no 'isthing'"),
        ({"ANNOTATIONS": "nowhere.json"}, r"nowhere\.json: no such file\. The files are those of DATASETS\.FOLDERS"),
        ({"VAL_ANNOTATIONS": "val.json"}, r"val\.json: lacks the class 'dog'"),
        ({"ANNOTATIONS": "twice.json"}, "category name 'cat' stands 2 times"),
        ({"ANNOTATIONS": "empty.json"}, r"empty\.json: 'categories' is empty"),
        ({"SALIENCY_IMAGES": "x"}, r"SALIENCY_IMAGES is set, but DATASETS\.FOLDERS\.SALIENCY is empty"),
    ],
)
def test_errors_name_the_key_or_the_file(
    keys: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photograph(tmp_path, "a.jpg")
    classes = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    files = write(tmp_path, coco({1: "a.jpg"}, classes, [thing(1, 0)]))
    write(tmp_path, coco({1: "a.jpg"}, classes[:1], []), "val.json")
    write(tmp_path, coco({1: "a.jpg"}, [classes[0], {"id": 3, "name": "cat"}], []), "twice.json")
    write(tmp_path, coco({1: "a.jpg"}, [], []), "empty.json")
    Path("classes.txt").write_text("cat\ncow\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        register_own_data(config(**{**files, **keys}))


def test_a_list_names_images_of_the_annotations(tmp_path: Path) -> None:
    photograph(tmp_path, "night/a.jpg")
    files = write(tmp_path, coco({1: "night/a.jpg"}, [{"id": 0, "name": "cat"}], []))
    (tmp_path / "val.txt").write_text("night/a\na\n")
    register_own_data(config(**files, VAL_LIST=tmp_path / "val.txt"))
    assert DatasetCatalog.get("own_train") == []
    with pytest.raises(FileNotFoundError, match="lists a and 0 others of 2 that the annotations do not have"):
        DatasetCatalog.get("own_val")


def test_saliency_of_own_images(tmp_path: Path) -> None:
    """By the images' names, a suffix and subfolders; images without a map are none of the set."""
    register_all(tmp_path)
    for name in ("day/a", "day/b", "night/c"):
        photograph(tmp_path, f"{name}.jpg")
        (tmp_path / "maps" / name).parent.mkdir(parents=True, exist_ok=True)
        if name != "day/b":
            Image.new("L", (6, 4), 255).save(tmp_path / "maps" / f"{name}_sal.png")
    (tmp_path / "val.txt").write_text("night/c\n")
    keys = {"SALIENCY": tmp_path / "maps", "SALIENCY_SUFFIX": "_sal.png", "SUBFOLDERS": True}
    register_own_data(config(**keys, IMAGES=tmp_path / "images", VAL_LIST=tmp_path / "val.txt"))
    assert [entry["image_id"] for entry in DatasetCatalog.get("own_train_saliency")] == ["day/a"]
    assert [entry["image_id"] for entry in DatasetCatalog.get("own_val_saliency")] == ["night/c"]
    assert MetadataCatalog.get("own_val_saliency").evaluator_type == "saliency"
    assert "own_train" not in DatasetCatalog
    # Images of their own, also to evaluate on.
    keys |= {"SALIENCY_IMAGES": tmp_path / "images" / "day", "SALIENCY": tmp_path / "maps" / "day"}
    val = {"VAL_SALIENCY": tmp_path / "maps" / "night", "VAL_SALIENCY_IMAGES": tmp_path / "images" / "night"}
    register_own_data(config(**keys, **val))
    assert [entry["image_id"] for entry in DatasetCatalog.get("own_val_saliency")] == ["c"]
    register_own_data(config(**{**keys, "SALIENCY_SUFFIX": ".png"}))
    with pytest.raises(FileNotFoundError, match=r"a map of none of the 2 images, such as a\.png"):
        DatasetCatalog.get("own_train_saliency")
