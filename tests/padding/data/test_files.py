# SPDX-License-Identifier: Apache-2.0
"""The one writer: whole files or none, for two writers of one name, through errors and interrupts."""

import ast
import errno
import json
import multiprocessing
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from padding.data import files
from padding.data.files import (
    TEMPORARY,
    replace_folder,
    replacing,
    save_picture,
    save_png,
    without_nan,
    write_json,
    write_text,
)
from padding.errors import ConfigError, WriteError

ROOT = Path(__file__).parents[3]


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(TEMPORARY))


def test_folder_is_made_and_old_content_replaced(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "old, and longer")
    write_text(tmp_path / "new" / "a.txt", "å")
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "å"
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_error_or_interrupt_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    write_text(tmp_path / "a", "old")

    def write() -> None:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert (tmp_path / "a").read_text() == "old"
    assert not leftovers(tmp_path)


def test_failing_rename_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_text(tmp_path / "taken", "text")
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EDQUOT, "Disk quota exceeded; free some of your quota"),
        (errno.EROFS, "Read-only file system; choose a folder that you may write to"),
        (errno.EIO, "Input/output error; the disk fails"),
    ],
)
def test_what_refuses_every_write_is_named(tmp_path: Path, number: int, message: str) -> None:
    def hidden() -> None:
        try:
            raise OSError(number, os.strerror(number))
        finally:
            raise RuntimeError("a library's own words")

    def plain() -> None:
        raise OSError(number, os.strerror(number))

    def nested() -> None:
        with replacing(tmp_path / "inner"):
            plain()

    write_text(tmp_path / "a", "old")
    for fail, name in ((plain, "a"), (hidden, "a"), (nested, "inner")):
        with pytest.raises(WriteError, match=rf"{name} cannot be written: {message}"), replacing(tmp_path / "a"):
            fail()
    assert (tmp_path / "a").read_text() == "old"
    assert not leftovers(tmp_path)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for error in (OSError("without a number"), RuntimeError("of a bug"), FileNotFoundError(2, "a source is missing")):
        with pytest.raises(type(error)) as caught, replacing(tmp_path / "a"):
            raise error
        assert caught.value is error


def test_the_disk_has_the_content_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(files.os, "fsync", lambda _: seen.append((tmp_path / "a").exists()))
    write_text(tmp_path / "a", "text")
    assert seen == [False]
    save_png(np.zeros((2, 2), np.uint8), tmp_path / "b.png")  # images by the thousand do not wait
    assert seen == [False]


def write_often(path: str, letter: str, times: int) -> None:
    for _ in range(times):
        write_text(path, letter * 200_000)


def test_two_writers_of_one_name_never_make_a_broken_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_text(path, "x" * 200_000)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=write_often, args=(str(path), "y", 40))
    thread = threading.Thread(target=write_often, args=(str(path), "z", 40))
    process.start()
    thread.start()
    while process.is_alive() or thread.is_alive():
        text = path.read_text()
        assert len(text) == 200_000
        assert len(set(text)) == 1
    thread.join()
    process.join()
    assert process.exitcode == 0
    assert not leftovers(tmp_path)


def test_json_is_strict(tmp_path: Path) -> None:
    content = {1: [np.float32(0.5), float("nan"), np.int64(3)], "deep": {"inf": float("-inf"), "pair": (1, 2)}}
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "1": [0.5, None, 3],
        "deep": {"inf": None, "pair": [1, 2]},
    }
    assert without_nan("text") == "text"


def test_png_with_palette(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [1, 0]], np.uint8)
    save_png(labels, tmp_path / "a.png", palette=[(0, 0, 0), (255, 128, 0)])
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels)
        assert image.convert("RGB").getpixel((1, 0)) == (255, 128, 0)


def test_values_beyond_the_palette_are_kept(tmp_path: Path) -> None:
    """Pillow writes two bits a pixel for a palette of three colours: 255 became 3."""
    labels = np.array([[0, 2], [200, 255]], np.uint8)
    save_png(labels, tmp_path / "a.png", palette=[(0, 0, 0), (255, 128, 0), (0, 0, 255)])
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), labels)


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_picture_in_the_format_of_its_suffix(tmp_path: Path, ending: str) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[..., 0] = 200
    save_picture(picture, tmp_path / "new" / f"a.{ending}")
    with Image.open(tmp_path / "new" / f"a.{ending}") as image:
        assert image.format == {"png": "PNG", "jpg": "JPEG"}[ending]
        np.testing.assert_allclose(np.asarray(image), picture, atol=3)
    with pytest.raises(ConfigError, match="use a name that ends with"):
        save_picture(picture, tmp_path / "a.strange")
    assert not leftovers(tmp_path)


def test_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    for name, text in (("final", "old"), ("partial", "new")):
        write_text(tmp_path / name / "file", text)
    replace_folder(tmp_path / "partial", tmp_path / "final")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (tmp_path / "final" / "file").read_text() == "new"


def test_nobody_else_renames() -> None:
    """Write-then-rename lives in one place; ``str.replace`` has two arguments, ``Path.replace`` one."""
    found = []
    folders = [ROOT / name for name in ("padding", "tcc", "psi", "salseg", "datasets", "benchmarks")]
    for path in [
        *(file for folder in folders for file in folder.rglob("*.py")),
        ROOT / "train_net.py",
        ROOT / "demo.py",
    ]:
        if path == ROOT / "padding" / "data" / "files.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            one_argument = len(node.args) + len(node.keywords) == 1
            renames = name in ("rename", "replace") and one_argument and isinstance(node.func, ast.Attribute)
            if renames or name in ("NamedTemporaryFile", "mkstemp"):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    assert not found, "\n".join(found)
