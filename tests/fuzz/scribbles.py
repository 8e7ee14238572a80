# SPDX-License-Identifier: Apache-2.0
"""Attacks on scribbles: XML, label PNGs, archives of them, and the manifest of a folder that was made here."""

from __future__ import annotations

import json
import random
import re
import xml.etree.ElementTree as ET
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from padding.data.class_split import ClassSplit
from padding.data.scribbles.folder import ScribbleFolder
from padding.data.scribbles.polylines import AnnotatedImage, Scribble, draw_scribbles, scribble_xml
from padding.data.scribbles.sources import ScribbleReader, find_scribbles
from padding.data.scribbles.tags import ScribbleTags
from tests.fuzz.harness import Target
from tests.fuzz.mutators import mutate_bytes, mutate_image, mutate_json, mutate_json_text

SIZE = (12, 16)
TAGS = ScribbleTags.of(ClassSplit(("background", "aeroplane"), (False, True), (0, 1)), {"aeroplane": "plane"})
LINES = (
    Scribble(1, np.array([[2.0, 3.0], [9.0, 5.0]])),
    Scribble(0, np.array([[3.0, 9.0], [8.0, 9.0], [8.0, 2.0]]), 5),
)
RASTER = draw_scribbles(LINES, SIZE)
NUMBERS = ("nan", "inf", "-1", "1e300", "3e9", "", "x", "0", "7.5", "1000000000", "٣", "-20", " 4 ")


@cache
def sound_xml() -> bytes:
    return scribble_xml(AnnotatedImage(LINES, SIZE), TAGS, image_name="a.jpg")


def labels_of(path: Path) -> np.ndarray:
    return ScribbleReader(find_scribbles(path), TAGS).label_map("a", SIZE)


def write_xml(folder: Path) -> None:
    (folder / "xml").mkdir()
    (folder / "xml" / "a.xml").write_bytes(sound_xml())


def damage_xml(folder: Path, rng: random.Random) -> str:
    path = folder / "xml" / "a.xml"
    text = path.read_bytes()
    kind = rng.choice((*["bytes", "number", "tag", "remove", "encoding"] * 8, "bomb"))
    if kind == "bytes":
        text, kind = mutate_bytes(text, rng)
    elif kind in ("number", "tag"):
        pattern = rb">[-0-9.]+<" if kind == "number" else rb">[a-z]+<"
        found = rng.choice([*re.finditer(pattern, text)])
        value = rng.choice(NUMBERS) if kind == "number" else rng.choice(("", "sea", "Plane ", "a" * 9000))
        text = text[: found.start() + 1] + value.encode() + text[found.end() - 1 :]
    elif kind == "remove":
        found = rng.choice([*re.finditer(rb"<(\w+)>[^<>]*</\1>", text)])
        text = text[: found.start()] + text[found.end() :]
    elif kind == "encoding":
        name = rng.choice((b"utf-16", b"latin-1", b"no-such", b"big5", b"utf-32"))
        text = text.replace(b"utf-8", name)
    else:
        entities = b"".join(b"<!ENTITY e%d '%s'>" % (i, b"&e%d;" % (i - 1) * 10 if i else b"x") for i in range(9))
        text = b"<!DOCTYPE annotation [" + entities + b"]>" + text.partition(b"?>")[2].replace(b">plane<", b">&e8;<")
    path.write_bytes(text)
    return f"xml {kind}"


def read_xml(folder: Path) -> None:
    found = labels_of(folder / "xml")
    root = ET.fromstring((folder / "xml" / "a.xml").read_bytes())
    lines = []
    for polygon in root.iter("polygon"):
        points = [(float(p.findtext("X")), float(p.findtext("Y"))) for p in polygon.iter("point")]
        label = TAGS.ids[polygon.findtext("tag").replace("_", "").replace("-", "").replace(" ", "").casefold()]
        if points:
            lines.append(Scribble(label, np.array(points), int(float(polygon.findtext("width") or 0))))
    np.testing.assert_array_equal(found, draw_scribbles(lines, SIZE))


def write_png(folder: Path) -> None:
    (folder / "png").mkdir()
    Image.fromarray(RASTER).save(folder / "png" / "a.png")


def damage_png(folder: Path, rng: random.Random) -> str:
    path = folder / "png" / "a.png"
    if rng.random() < 0.5:
        return mutate_image(path, rng)
    content, kind = mutate_bytes(path.read_bytes(), rng)
    path.write_bytes(content)
    return f"png {kind}"


def read_png(folder: Path) -> None:
    found = labels_of(folder / "png")
    with Image.open(folder / "png" / "a.png") as image:
        stored = np.array(image).astype(np.int64)
    np.testing.assert_array_equal(found, np.where(np.isin(stored, (254, 255)), 255, stored))


def write_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "s.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("deep/a.xml", sound_xml())
        archive.writestr("deep/b.xml", sound_xml())


def damage_zip(folder: Path, rng: random.Random) -> str:
    path = folder / "s.zip"
    content, kind = mutate_bytes(path.read_bytes(), rng)
    path.write_bytes(content)
    return f"zip {kind}"


def read_zip(folder: Path) -> None:
    # Checksums guard the content: what is read at all is what was written.
    np.testing.assert_array_equal(labels_of(folder / "s.zip"), RASTER)


def write_manifest(folder: Path) -> None:
    ScribbleFolder(folder / "set").write_manifest(
        {"kind": "simulated", "length": 0.5}, statistics={"coverage_pct": 2.5}
    )


def damage_manifest(folder: Path, rng: random.Random) -> str:
    path = ScribbleFolder(folder / "set").manifest
    if rng.random() < 0.3:
        content, kind = mutate_json_text(path.read_bytes(), rng)
        path.write_bytes(content)
        return kind
    changed, kind = mutate_json(json.loads(path.read_text()), rng)
    path.write_text(json.dumps(changed))
    return kind


def read_manifest(folder: Path) -> None:
    scribbles = ScribbleFolder(folder / "set")
    found, expected = scribbles.content(), json.loads(scribbles.manifest.read_bytes().decode("utf-8-sig", "replace"))
    assert found is not None, "no manifest"
    assert repr(found.settings) == repr(expected["settings"]), "settings"
    numbers = expected.get("statistics")
    assert repr(found.statistics and found.statistics.coverage_pct) == repr(numbers and float(numbers["coverage_pct"]))


TARGETS = (
    Target("scribble xml", write_xml, damage_xml, read_xml),
    Target("scribble png", write_png, damage_png, read_png),
    Target("scribble zip", write_zip, damage_zip, read_zip),
    Target("scribble manifest", write_manifest, damage_manifest, read_manifest),
)
