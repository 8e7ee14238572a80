# SPDX-License-Identifier: Apache-2.0
"""Attacks on what a user writes by hand: configurations, lists of names, folders of images and labels, TIFF files."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode, get_cfg
from PIL import Image

from padding.data.checks import check_labels, check_sizes
from padding.data.class_split import read_name_list
from padding.data.folders import own_label_map
from padding.data.loaders.listed_images import load_listed_images
from padding.data.own_data import folder_classes
from padding.data.photographs import read_photograph
from padding.data.prepare.color_labels import read_color_labels, read_color_table
from padding.engine import add_core_config
from padding.engine.setup import _check_values, _merge_file
from tests.fuzz.harness import Target
from tests.fuzz.mutators import mutate_bytes

SIZE = (12, 16)
NAMES = ("ground", "water", "füchse")
BASE = 'SOLVER:\n  MAX_ITER: 10\n  BASE_LR: 0.1\nDATASETS:\n  TRAIN: ("a", "b")\n'
CONFIG = "# text\n_BASE_: base.yaml\nSOLVER:\n  MAX_ITER: 20\nINPUT:\n  MIN_SIZE_TRAIN: (5, 6)\nMODEL: {DEVICE: cpu}\n"
LINES = (
    *("SOLVER: 5", "MODEL:", "_BASE_: c.yaml", "_BASE_: [base.yaml, base.yaml]", "_BASE_: .", "_BASE_: 3"),
    *("SOLVER: {MAX_ITER: 1}", "SOLVER: {MAX_ITER: many}", "SOLVER: {MAX_ITER: -5}", "NO_SUCH_KEY: 1", "SEED: 1.5"),
    *(
        "SEED: !!python/name:os.system",
        "? [1, 2]\n: 3",
        "1: 2",
        "a: &x [*x]",
        "- 5",
        "---\nSEED: 1",
        "SEED: 2020-01-01",
    ),
    *(
        "\tSEED: 1",
        "SEED: 'x",
        "{",
        "DATASETS: {TRAIN: [[1]]}",
        "MODEL: {DEVICE: [cuda]}",
        "<<: {SEED: 3}",
        "%YAML 9.9",
    ),
)


def write_config(folder: Path) -> None:
    (folder / "base.yaml").write_text(BASE)
    (folder / "c.yaml").write_text(CONFIG)


def mutate_text(path: Path, lines: tuple[str, ...], rng: random.Random) -> str:
    """Bytes of a text, its encoding, or one of its lines."""
    content = path.read_bytes()
    kind = rng.choice(("bytes", "bytes", "line", "line", "line", "drop", "twice", "bom", "utf-16", "crlf"))
    if kind == "bytes":
        changed, kind = mutate_bytes(content, rng)
        path.write_bytes(changed)
        return f"text {kind}"
    text = content.decode().splitlines()
    place = rng.randrange(len(text))
    if kind == "line":
        text.insert(place, rng.choice(lines))
    elif kind == "drop":
        del text[place]
    elif kind == "twice":
        text.insert(place, text[place])
    encoding = {"bom": "utf-8-sig", "utf-16": "utf-16"}.get(kind, "utf-8")
    path.write_bytes(("\r\n" if kind == "crlf" else "\n").join(text).encode(encoding))
    return f"text {kind}"


def read_config(folder: Path) -> None:
    cfg = get_cfg()
    add_core_config(cfg)
    _merge_file(cfg, str(folder / "c.yaml"))
    _check_values(cfg)
    assert isinstance(cfg.SOLVER, CfgNode), "a section became a value"
    assert isinstance(cfg.SOLVER.MAX_ITER, int), "a number became something else"
    assert cfg.SOLVER.MAX_ITER >= 0, "a negative length"


def write_list(folder: Path) -> None:
    (folder / "classes.txt").write_text("# classes\n" + "\n".join(NAMES) + "\n")


def read_list(folder: Path) -> None:
    found = read_name_list(folder / "classes.txt")
    text = (folder / "classes.txt").read_bytes().decode("utf-8-sig")
    lines = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").splitlines()]
    assert list(found) == [line.rpartition("\t")[2] for line in lines if line and not line.startswith("#")], (
        "other names"
    )
    assert not any("\ufeff" in name for name in found), "a mark in a name"


def labels() -> np.ndarray:
    return (np.arange(SIZE[0] * SIZE[1], dtype=np.uint8) % 3).reshape(SIZE)


def write_folders(folder: Path) -> None:
    for name in ("images", "labels"):
        (folder / name).mkdir()
    write_list(folder)
    for index in range(2):
        Image.fromarray(np.full((*SIZE, 3), index * 90, np.uint8)).save(folder / "images" / f"{index}.png")
        Image.fromarray(labels()).save(folder / "labels" / f"{index}.png")


def damage_folders(folder: Path, rng: random.Random) -> str:
    path = rng.choice(sorted(folder.glob("*/*.png")))
    kind = rng.choice(("delete", "folder", "values", "void", "size", "bytes", "rename"))
    if kind == "delete":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "rename":
        path.rename(path.with_name(rng.choice(("a.png", "0.jpg", "1.tif", "x.txt"))))
    elif kind == "bytes":
        changed, kind = mutate_bytes(path.read_bytes(), rng)
        path.write_bytes(changed)
    else:
        value = 255 if kind == "void" else rng.randrange(256)
        size = (rng.randrange(1, 20), rng.randrange(1, 20)) if kind == "size" else SIZE
        Image.fromarray(np.full(size, value, np.uint8)).save(folder / "labels" / "0.png")
    return f"folders {kind}"


def read_folders(folder: Path) -> None:
    """Whatever the checks do not find must be readable."""
    split = folder_classes(folder / "classes.txt")
    entries = load_listed_images(image_root=folder / "images", label_root=folder / "labels")
    found = [
        *check_sizes("set", entries),
        *check_labels("set", entries, split.names, label_map=own_label_map(split.num_classes, ())),
    ]
    if any(finding.level == "error" for finding in found):
        return
    for entry in entries:
        assert read_photograph(entry["file_name"]).shape[:2] == SIZE, "a size that nobody noticed"


TIFF_MODES = ("L", "RGB", "I;16", "F", "I", "1", "CMYK")


def write_tiff(folder: Path) -> None:
    Image.fromarray(labels() * 80).save(folder / "a.tif")


def damage_tiff(folder: Path, rng: random.Random) -> str:
    """Another kind of pixels, and in half of the cases damaged bytes."""
    mode = rng.choice(TIFF_MODES)
    grey = labels().astype(np.float32) / 2
    exif = Image.Exif()
    exif[0x0112] = rng.randrange(1, 9)
    if mode in ("F", "I", "I;16"):
        scaled = grey if mode == "F" else (grey * 65535).astype(np.uint16 if mode == "I;16" else np.int32)
        image = Image.fromarray(scaled)
    else:
        image = Image.fromarray((grey * 255).astype(np.uint8)).convert(mode)
    image.save(folder / "a.tif", exif=exif, compression=rng.choice((None, "tiff_lzw", "tiff_deflate")))
    if rng.random() < 0.5:
        changed, kind = mutate_bytes((folder / "a.tif").read_bytes(), rng)
        (folder / "a.tif").write_bytes(changed)
        return f"tiff {mode} {kind}"
    return f"tiff {mode}"


def read_tiff(folder: Path) -> None:
    image = read_photograph(folder / "a.tif")
    assert image.dtype == np.uint8, "not scaled to bytes"
    assert image.ndim == 3, "no channels"


COLORS = {"ground": (0, 0, 0), "water way": (128, 64, 128), "füchse": (255, 0, 9)}
COLOR_LINES = (
    *("sky,1,2,3", "1 2 3 sky", "sky #010203", "sky:1,2,3::", "# sky:1,2,3", "sky", "1,2,3", "1,2,3,4", "sky,1,2,300"),
    *("name,r,g,b", "ground,1,2,3", "sky,0,0,0", ",,,", "sky,-1,2,3", "sky,1.5,2,3", "\t", '"sky",1,2,3'),
)


def write_colors(folder: Path) -> None:
    lines = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in COLORS.items()]
    (folder / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines) + "\n")
    Image.fromarray(np.array(list(COLORS.values()), np.uint8)[labels()]).save(folder / "a.png")


def damage_colors(folder: Path, rng: random.Random) -> str:
    if rng.random() < 0.7:
        return mutate_text(folder / "labelmap.txt", COLOR_LINES, rng)
    changed, kind = mutate_bytes((folder / "a.png").read_bytes(), rng)
    (folder / "a.png").write_bytes(changed)
    return f"colors {kind}"


def read_colors(folder: Path) -> None:
    """Every pixel has the id of the class whose color it shows, and the void name is no class."""
    table = read_color_table(folder / "labelmap.txt")
    found = read_color_labels(folder / "a.png", table=table)
    shown = np.asarray(Image.open(folder / "a.png").convert("RGB"))
    assert len(set(table.names)) == len(table.names) == len(set(table.colors)), "a name or color twice"
    assert (np.array(table.colors)[found] == shown).all(), "the color of another class"


TARGETS = (
    Target("configuration", write_config, lambda folder, rng: mutate_text(folder / "c.yaml", LINES, rng), read_config),
    Target(
        "name list",
        write_list,
        lambda folder, rng: mutate_text(folder / "classes.txt", (*NAMES, "#", "\t"), rng),
        read_list,
    ),
    Target("folders", write_folders, damage_folders, read_folders),
    Target("colors", write_colors, damage_colors, read_colors),
    Target("tiff", write_tiff, damage_tiff, read_tiff),
)
