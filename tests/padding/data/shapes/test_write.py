# SPDX-License-Identifier: Apache-2.0
"""Files of the embedded data set: formats, equal bytes, resume, repair, verification."""

import contextlib
import hashlib
import io
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from padding.data.class_embeddings import load_class_embeddings
from padding.data.class_split import read_name_list
from padding.data.shapes import write as shapes_write
from padding.data.shapes.check import check_shapes
from padding.data.shapes.classes import ShapesConfig, class_table, embed_classes, shapes_split
from padding.data.shapes.render import render_image
from padding.data.shapes.write import IMAGE_FOLDERS, write_missing_shapes, write_shapes

CONFIG = ShapesConfig(num_train=7, num_val=5, size=64, radius_px=(8.0, 14.0))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    write_shapes(root, CONFIG)
    return root


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_ids(path: Path) -> np.ndarray:
    bgr = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.int64)
    return bgr[..., 2] + 256 * bgr[..., 1] + 65536 * bgr[..., 0]


def with_counts(num_train: int, num_val: int) -> ShapesConfig:
    return ShapesConfig(num_train=num_train, num_val=num_val, size=64, radius_px=(8.0, 14.0))


def edit_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_files_are_equal_whatever_the_number_of_workers(made: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(shapes_write, "_CHUNK", 2)  # several jobs per worker
    chunked = tmp_path / "chunked"
    done: list[int] = []
    manifest = write_shapes(chunked, CONFIG, num_workers=2, on_progress=done.append)
    assert sum(done) == manifest["rendered"] == 12
    shutil.rmtree(chunked / "shapes/.records")  # the only files whose cut depends on the chunk size
    plain = {name: digest for name, digest in digests(made).items() if ".records" not in name}
    assert digests(chunked) == plain


def test_written_images_are_the_rendered_ones(made: Path):
    scene = render_image(CONFIG, "val", 2)
    folder = made / "shapes"
    expected = {
        "images": scene.image[..., ::-1],
        "images_camouflaged": scene.camouflaged[..., ::-1],
        "sem_seg": scene.semantic,
        "sem_seg_coarse": scene.coarse,
        "saliency": scene.saliency,
    }
    for name, array in expected.items():
        read = cv2.imread(str(folder / name / "val/000000000003.png"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(read, array), name
    assert np.array_equal(read_ids(folder / "panoptic/val/000000000003.png"), scene.panoptic_ids)


@pytest.mark.parametrize("split", ["train", "val"])
def test_panoptic_json_describes_the_id_pngs(made: Path, split: str):
    folder = made / "shapes"
    panoptic = json.loads((folder / f"annotations/panoptic_{split}.json").read_text())
    assert len(panoptic["images"]) == len(panoptic["annotations"]) == CONFIG.count(split)
    categories = {category["id"]: category for category in panoptic["categories"]}
    assert len(categories) == 42
    for image, annotation in zip(panoptic["images"], panoptic["annotations"], strict=True):
        assert annotation["image_id"] == image["id"]
        assert (folder / "images" / split / image["file_name"]).is_file()
        ids = read_ids(folder / "panoptic" / split / annotation["file_name"])
        assert ids.shape == (image["height"], image["width"])
        areas = dict(zip(*(array.tolist() for array in np.unique(ids, return_counts=True)), strict=True))
        assert areas == {segment["id"]: segment["area"] for segment in annotation["segments_info"]}
        for segment in annotation["segments_info"]:
            assert segment["iscrowd"] == 0
            assert segment["category_id"] in categories
            assert split == "val" or categories[segment["category_id"]]["name"] not in shapes_split().unseen_names


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_api_reads_the_instances(made: Path, split: str):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(made / f"shapes/annotations/instances_{split}.json"))
    assert sorted(coco.getCatIds()) == list(range(1, 31))
    assert len(coco.getImgIds()) == CONFIG.count(split)
    for image_id in coco.getImgIds():
        ids = read_ids(made / "shapes/panoptic" / split / f"{image_id:012d}.png")
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        assert 1 <= len(annotations) <= 5
        for annotation in annotations:
            mask = coco.annToMask(annotation).astype(bool)
            assert len(np.unique(ids[mask])) == 1
            assert np.array_equal(mask, ids == ids[mask][0])
            assert annotation["area"] == mask.sum()
            assert annotation["bbox"] == mask_util.toBbox(annotation["segmentation"]).tolist()


def test_embeddings_split_and_manifest(made: Path):
    folder = made / "shapes"
    names = shapes_split().names
    rows = load_class_embeddings(folder / "class_embeddings.npz", names, l2_normalize=False)
    assert np.array_equal(rows, embed_classes(CONFIG))
    assert set(read_name_list(folder / "split.txt")) == shapes_split().unseen_names
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["complete"] is True
    assert manifest["counts"] == {"train": 7, "val": 5}
    assert manifest["parameters"]["seed"] == 0
    assert manifest["sha256"] == hashlib.sha256((folder / "sha256sums.txt").read_bytes()).hexdigest()
    assert check_shapes(made) == []


def test_second_run_keeps_everything(copy: Path):
    before = digests(copy)
    assert write_shapes(copy, CONFIG)["rendered"] == 0
    assert digests(copy) == before


def test_interrupted_run_continues(made: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(shapes_write, "_CHUNK", 3)

    def stop_after_two(_: int) -> None:
        done.append(0)
        if len(done) == 2:
            raise KeyboardInterrupt

    done: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path, CONFIG, on_progress=stop_after_two)
    (tmp_path / "shapes/images/val/.000000000001.png.1.2.tmp").write_bytes(b"half a fi")
    (problem,) = check_shapes(tmp_path)
    assert "unfinished" in problem
    assert write_shapes(tmp_path, CONFIG)["rendered"] == 12 - 6
    assert not list(tmp_path.rglob("*.part"))
    assert check_shapes(tmp_path) == []
    name = "shapes/sha256sums.txt"
    assert (tmp_path / name).read_bytes() == (made / name).read_bytes()


def test_missing_data_are_written_and_complete_ones_are_left_alone(made: Path, copy: Path, monkeypatch):
    calls: list[int] = []
    monkeypatch.setattr(shapes_write, "write_shapes", lambda root, config, on_progress: calls.append(config.num_train))
    write_missing_shapes(copy, with_counts(9, 3))
    assert calls == []
    manifest = copy / "shapes" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "complete": False}))
    write_missing_shapes(copy, with_counts(9, 3))
    manifest.unlink()
    write_missing_shapes(copy, CONFIG)
    assert calls == [9, CONFIG.num_train]


def test_changed_counts_cost_only_the_difference(made: Path, copy: Path, tmp_path: Path):
    assert write_shapes(copy, with_counts(9, 3))["rendered"] == 2
    assert check_shapes(copy) == []
    assert len(list((copy / "shapes/images/train").iterdir())) == 9
    assert len(list((copy / "shapes/saliency/val").iterdir())) == 3
    assert write_shapes(copy, CONFIG)["rendered"] == 2
    assert digests(copy) == digests(made)


def test_other_parameters_are_refused_unless_overwrite(copy: Path):
    other = ShapesConfig(num_train=7, num_val=5, size=64, radius_px=(8.0, 14.0), seed=3)
    before = digests(copy)
    with pytest.raises(ValueError, match=r"seed 0 -> 3.*--overwrite"):
        write_shapes(copy, other)
    assert digests(copy) == before
    assert write_shapes(copy, other, overwrite=True)["rendered"] == 12
    assert check_shapes(copy) == []


@pytest.mark.parametrize("folder", IMAGE_FOLDERS)
@pytest.mark.parametrize("damage", ["delete", "cut", "flip"])
def test_check_finds_a_bad_file_and_a_new_run_mends_it(made: Path, copy: Path, folder: str, damage: str):
    path = copy / "shapes" / folder / "train/000000000004.png"
    content = path.read_bytes()
    if damage == "delete":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(content[:60] + bytes([content[60] ^ 255]) + content[61:])
    problems = check_shapes(copy)
    assert any(str(path) in problem for problem in problems)
    assert write_shapes(copy, CONFIG)["rendered"] == 1
    assert digests(copy) == digests(made)


def test_check_finds_an_image_that_does_not_belong(copy: Path):
    extra = copy / "shapes/images/train/000000000099.png"
    extra.write_bytes(b"")
    assert check_shapes(copy) == [f"{extra}: not part of the data set; delete it"]


def test_check_finds_wrong_json(copy: Path):
    panoptic = copy / "shapes/annotations/panoptic_train.json"
    (unseen_id,) = (entry["id"] for entry in class_table() if entry["name"] == "red star")
    original = panoptic.read_text()

    def unseen(content) -> None:
        content["annotations"][2]["segments_info"][0]["category_id"] = unseen_id

    def area(content) -> None:
        content["annotations"][0]["segments_info"][0]["area"] += 1

    def ids(content) -> None:
        content["annotations"][1]["segments_info"][0]["id"] += 1

    def size(content) -> None:
        content["images"][0]["height"] = 99

    def count(content) -> None:
        del content["images"][-1], content["annotations"][-1]

    def unknown(content) -> None:
        content["annotations"][2]["segments_info"][0]["category_id"] = 77

    def orphan(content) -> None:
        content["annotations"][2]["image_id"] = 1234

    def categories(content) -> None:
        content["categories"].reverse()

    expected = {
        unseen: "unseen class 'red star' in a training image",
        area: "area or box",
        ids: "only in the PNG or only in the JSON",
        size: "the annotations say (99, 64)",
        count: "lists 6 images",
        unknown: "unknown category 77",
        orphan: "missing or of the wrong kind: 1234",
        categories: "its categories are not",
    }
    for change, message in expected.items():
        edit_json(panoptic, change)
        problems = check_shapes(copy)
        assert any(message in problem for problem in problems), (change.__name__, problems)
        assert any("damaged" in problem for problem in problems)
        panoptic.write_text(original)
    assert check_shapes(copy) == []


def test_check_finds_missing_instances_and_broken_tables(copy: Path):
    folder = copy / "shapes"
    instances = folder / "annotations/instances_val.json"
    edit_json(instances, lambda content: content["annotations"].pop())
    assert any("instances differ" in problem for problem in check_shapes(copy))
    instances.write_text(instances.read_text()[:100])
    assert any("not readable" in problem and str(instances) in problem for problem in check_shapes(copy))
    write_shapes(copy, CONFIG)
    assert check_shapes(copy) == []
    (folder / "sha256sums.txt").write_text("")
    assert any("digest differs" in problem for problem in check_shapes(copy))
    (folder / "sha256sums.txt").unlink()
    assert any("sha256sums.txt: missing" in problem for problem in check_shapes(copy))
    (folder / "manifest.json").write_text("{")
    assert any("manifest.json: not readable" in problem for problem in check_shapes(copy))
    write_shapes(copy, CONFIG)
    assert check_shapes(copy) == []
    edit_json(folder / "manifest.json", lambda content: content.update(version=0))
    assert any("generator version 0" in problem for problem in check_shapes(copy))
    with pytest.raises(ValueError, match="generator version 0 -> "):
        write_shapes(copy, CONFIG)


def test_check_of_an_empty_folder_names_the_command(tmp_path: Path):
    (problem,) = check_shapes(tmp_path)
    assert "prepare_shapes.py" in problem
