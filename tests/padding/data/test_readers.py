# SPDX-License-Identifier: Apache-2.0
"""The one reader: right values for every kind of file, clear errors for the rest, the same for all who read."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from padding.data.class_split import ClassSplit, read_name_list
from padding.data.files import save_panoptic_png, write_json
from padding.data.label_statistics import audit_labels
from padding.data.loaders.listed_images import read_id_list
from padding.data.mappers import PanopticMapper, SemanticMapper
from padding.data.prepare.panoptic_png import LabelSegment, LabelTask, write_labels
from padding.data.readers import (
    displayed_size,
    read_json,
    read_label_map,
    read_mat_labels,
    read_panoptic_ids,
    read_text,
)
from padding.errors import DataError, MissingFileError
from padding.evaluation.panoptic import PanopticGroundTruth
from padding.evaluation.semantic import SemanticGroundTruth

LABELS = np.array([[0, 1, 2, 3], [3, 1, 0, 2]], np.uint8)
IDS = np.array([[0, 255, 256, 70_000], [2**24 - 1, 255, 0, 70_000]])
TURNED = 6  # EXIF orientation: the viewer turns the image by a quarter


def grey_png(path: Path, values: np.ndarray, bits: int) -> Path:
    """A grey PNG of 1, 2 or 4 bits, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b""
    for row in values:
        text = "".join(format(int(value), f"0{bits}b") for value in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = TURNED
    return exif


def as_palette(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values, mode="P")
    image.putpalette(np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).tobytes())
    return image


WRITERS: dict[str, Callable[[Path], tuple[Path, np.ndarray]]] = {
    "P": lambda p: (saved(p, as_palette(LABELS)), LABELS),
    "L": lambda p: (saved(p, Image.fromarray(LABELS * 85)), LABELS * 85),
    "1": lambda p: (saved(p, Image.fromarray(LABELS > 1)), (LABELS > 1).astype(np.uint8)),
    "2 bits": lambda p: (grey_png(p, LABELS, 2), LABELS),
    "4 bits": lambda p: (grey_png(p, LABELS + 12, 4), LABELS + 12),
    "I;16": lambda p: (saved(p, Image.fromarray(LABELS.astype(np.uint16) * 20_000)), LABELS.astype(np.uint16) * 20_000),
    "I": lambda p: (saved(p.with_suffix(".tif"), Image.fromarray(LABELS.astype(np.int32))), LABELS.astype(np.uint16)),
    "turned": lambda p: (saved(p, Image.fromarray(LABELS), exif=turned()), LABELS),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_label_map_holds_the_stored_numbers(tmp_path: Path, kind: str) -> None:
    path, expected = WRITERS[kind](tmp_path / "x.png")
    found = read_label_map(path)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype
    with path.open("rb") as file:
        np.testing.assert_array_equal(read_label_map(file, name="x"), expected)


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "turned"])
def test_panoptic_ids_are_the_stored_numbers(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.png"
    save_panoptic_png(IDS, path)
    if kind == "RGBA":
        rgba = np.dstack([np.array(Image.open(path)), np.full(IDS.shape, 7, np.uint8)])
        Image.fromarray(rgba).save(path)
    elif kind == "turned":
        saved(path, Image.open(path).copy(), exif=turned())
        assert displayed_size(path) == IDS.shape[::-1]
    found = read_panoptic_ids(path)
    np.testing.assert_array_equal(found, IDS)
    assert found.dtype == np.uint32
    assert found.flags.writeable


@pytest.mark.parametrize("reader", [read_panoptic_ids, read_label_map])
def test_missing_and_damaged_files_are_named(tmp_path: Path, reader: Callable[..., Any]) -> None:
    with pytest.raises(MissingFileError, match=r"absent\.png: no such file; obtain or generate it again"):
        reader(tmp_path / "absent.png")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n123")
    with pytest.raises(DataError, match=r"cut\.png: cannot be decoded .*; unpack it again"):
        reader(tmp_path / "cut.png", cure="unpack it again")


def test_file_cut_in_its_pixels_is_damaged(tmp_path: Path) -> None:
    save_panoptic_png(np.random.default_rng(0).integers(0, 2**24, (60, 80)), tmp_path / "x.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "x.png").read_bytes()[:900])
    with pytest.raises(DataError, match=r"cut\.png: cannot be decoded"):
        read_panoptic_ids(tmp_path / "cut.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "F"])
def test_other_images_are_no_label_map(tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path / ("c.tif" if mode == "F" else "c.png"), Image.new(mode, (2, 2)))
    cure = "datasets/prepare_color_labels" if mode.startswith("RGB") else "save class ids"
    with pytest.raises(DataError, match=rf"c\.\w+: a label map holds one number per pixel.*mode {mode}; {cure}"):
        read_label_map(path)


def test_labels_beyond_16_bits_are_refused(tmp_path: Path) -> None:
    for value in (-1, 70_000):
        path = saved(tmp_path / "x.tif", Image.fromarray(np.array([[0, value]], np.int32)))
        with pytest.raises(DataError, match=r"x\.tif: labels .* a label map holds 0 to 65535"):
            read_label_map(path)


@pytest.mark.parametrize("kind", ["L", "P", "16 bits"])
def test_other_images_hold_no_panoptic_ids(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.png"
    if kind == "16 bits":
        import cv2

        cv2.imwrite(str(path), np.full((2, 4, 3), 300, np.uint16))
    else:
        saved(path, as_palette(LABELS) if kind == "P" else Image.fromarray(LABELS))
    with pytest.raises(DataError, match=r"x\.png: segment ids are stored as 8-bit RGB, but this is an image of mode"):
        read_panoptic_ids(path)


def test_all_read_the_same_labels(tmp_path: Path) -> None:
    """Mapper, evaluator and audit agree on a file of one bit, of 16 bits, and on one with an orientation."""
    split = ClassSplit(names=("a", "b", "c", "d"), is_thing=(False,) * 4, dataset_ids=(0, 1, 2, 3))
    for kind in ("1", "P", "I;16", "turned"):
        path, labels = WRITERS[kind](tmp_path / "x.png")
        label_map = {int(value): i for i, value in enumerate(np.unique(labels))}
        expected = np.vectorize(label_map.get)(labels)
        entry = {"file_name": "x.jpg", "image_id": 1, "sem_seg_file_name": str(path)}
        mapper = SemanticMapper(
            num_classes=4, ignore_label=255, with_masks=False, label_map=label_map, is_train=True, plan=None
        )
        np.testing.assert_array_equal(mapper.read_labels(entry, LABELS.shape)[0], expected)
        name = f"all_read_{kind}"
        DatasetCatalog.register(name, lambda entry=entry: [entry])
        MetadataCatalog.get(name).set(class_split=split, sem_seg_label_map=label_map)
        np.testing.assert_array_equal(SemanticGroundTruth.of_dataset(name).read(1), expected)
        Image.new("RGB", LABELS.shape[::-1]).save(tmp_path / "x.jpg")
        audit = audit_labels([{**entry, "file_name": str(tmp_path / "x.jpg")}], split.names, label_map=label_map)
        assert audit.problems() == []
        assert audit.pixels.tolist() == np.bincount(expected.ravel(), minlength=4).tolist()


def test_all_read_the_same_ids(tmp_path: Path) -> None:
    """Mapper, evaluator and preparation agree on a panoptic PNG with an EXIF orientation."""
    path = tmp_path / "x.png"
    save_panoptic_png(IDS, path)
    saved(path, Image.open(path).copy(), exif=turned())
    segments = [{"id": int(i), "category_id": n % 2, "iscrowd": 0} for n, i in enumerate(np.unique(IDS)[1:])]
    expected = np.full(IDS.shape, 255)
    for segment in segments:
        expected[segment["id"] == IDS] = segment["category_id"]

    entry = {"file_name": "x.jpg", "pan_seg_file_name": str(path), "segments_info": segments}
    index, classes = PanopticMapper(is_train=True, plan=None).read_labels(entry, IDS.shape)
    np.testing.assert_array_equal(classes[index], expected)

    found = LabelTask(
        "x.json",
        *IDS.shape,
        path,
        tmp_path / "sem.png",
        tuple(LabelSegment(s["id"], s["category_id"]) for s in segments),
    )
    write_labels(found)
    np.testing.assert_array_equal(read_label_map(tmp_path / "sem.png"), expected)

    annotation = {"image_id": 1, "file_name": "x.png", "segments_info": segments}
    image = {"id": 1, "file_name": "x.jpg", "height": IDS.shape[0], "width": IDS.shape[1]}
    categories = [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]
    write_json(tmp_path / "x.json", {"images": [image], "annotations": [annotation], "categories": categories})
    metadata = MetadataCatalog.get("all_read_ids").set(
        class_split=ClassSplit(names=("a", "b"), is_thing=(True, True), dataset_ids=(0, 1)),
        panoptic_json=str(tmp_path / "x.json"),
        panoptic_root=str(tmp_path),
    )
    id_map, truth = PanopticGroundTruth.of_dataset(metadata.name).read(1)
    np.testing.assert_array_equal(id_map, IDS)
    assert truth == segments


def test_json_missing_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"absent\.json: no such file\. Prepare it\."):
        read_json(tmp_path / "absent.json", cure="Prepare it.")


@pytest.mark.parametrize("text", ['{"images": []}', "[]"])
def test_json_of_another_kind(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json: lacks .*annotations"):
        read_json(tmp_path / "a.json", required=("images", "annotations"))


def test_json_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(DataError, match=r"a\.json: holds no JSON object"):
        read_json(tmp_path / "a.json")


# --------------------------------------------------------------------------------------------------------------- text


def test_text_of_windows_is_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Füchse\r\nzwei\rdrei\n".encode("utf-8-sig"))
    assert read_text(tmp_path / "a.txt") == "Füchse\nzwei\ndrei\n"


@pytest.mark.parametrize(("encoding", "message"), [("utf-16", "UTF-16; save it"), ("latin-1", r"no UTF-8 \(byte 1\)")])
def test_text_of_another_encoding_is_named(encoding: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Füchse".encode(encoding))
    with pytest.raises(DataError, match=rf"a\.txt: the text is {message}"):
        read_text(tmp_path / "a.txt")
    with pytest.raises(DataError, match="a folder, expected a text file"):
        read_text(tmp_path)
    with pytest.raises(MissingFileError, match=r"b\.txt: no such file"):
        read_text(tmp_path / "b.txt")


@pytest.mark.parametrize("read", [read_name_list, read_id_list])
def test_lists_of_windows_name_what_they_name(read: Callable[[Path], tuple[str, ...]], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("background\r\nroad\r\n".encode("utf-8-sig"))
    assert read(tmp_path / "a.txt") == ("background", "road")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"other": np.ones((2, 3), np.uint8)}, "no labels can be read"),
        ({"labels": np.ones((2, 3))}, "float64 of shape"),
        ({"labels": np.ones((2, 3, 3), np.uint8)}, "not integers"),
        ({"labels": np.zeros((0, 0), np.uint8)}, "not integers"),
    ],
)
def test_mat_file_of_another_kind_is_refused(content: dict[str, np.ndarray], what: str, tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", content)
    with pytest.raises(DataError, match=rf"a\.mat: .*{what}"):
        read_mat_labels(tmp_path / "a.mat", "labels")


def test_mat_files_are_read_whatever_is_cut_off(tmp_path: Path) -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    scipy.io.savemat(tmp_path / "a.mat", {"labels": labels, "deep": {"labels": labels}}, do_compression=True)
    assert np.array_equal(read_mat_labels(tmp_path / "a.mat", "labels"), labels)
    assert np.array_equal(read_mat_labels(tmp_path / "a.mat", "deep.labels"), labels)
    content = (tmp_path / "a.mat").read_bytes()
    for length in (0, 10, 124, 130, len(content) // 2):
        (tmp_path / "a.mat").write_bytes(content[:length])
        with pytest.raises(DataError, match=r"a\.mat: no deep\.labels can be read"):
            read_mat_labels(tmp_path / "a.mat", "deep.labels")
    with pytest.raises(MissingFileError, match=r"b\.mat: no such file"):
        read_mat_labels(tmp_path / "b.mat", "labels")
