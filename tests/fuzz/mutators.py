# SPDX-License-Identifier: Apache-2.0
"""Ways to damage a file: JSON by its structure, anything by its bytes, images by what they are."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAN, INFINITY = float("nan"), float("inf")
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "5", "x", "NaN", "é\u2028", "\ud800", "../x.png", "\0", "a" * 5000),
    *(0, 1, -1, 2, 255, 256, 0.5, 3.0, -0.0, 1 << 24, 1 << 31, 1 << 40, 1 << 64, -(1 << 63), 10**30),
    *(1e-300, 3e9, -3e9, 1e20, 1e308, NAN, INFINITY, -INFINITY),
    *([], {}, [[]], [None], [[1, 2]], [1, 2, 3, 4, 5, 6], {"size": [1, 1], "counts": "0"}, {"": None}),
)


def places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key in a JSON value."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(items):
        yield content, key
        yield from places(value)


def mutate_json(content: Any, rng: random.Random) -> tuple[Any, str]:
    """A JSON value with one to three changes, and their kind."""
    kinds = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = list(places(content))
        if not found:
            break
        container, key = rng.choice(found)
        kind = rng.choice(
            ("replace", "replace", "replace", "delete", "repeat", "number", "wrap", "swap", "rename", "text")
        )
        kinds.append(kind)
        content = _changed(content, container, key, kind, rng)
    return content, "json " + "+".join(sorted(set(kinds)))


def _changed(content: Any, container: Any, key: Any, kind: str, rng: random.Random) -> Any:
    value = container[key]
    if kind == "replace":
        container[key] = json.loads(json.dumps(rng.choice(ODD_VALUES)))
    elif kind == "delete":
        del container[key]
    elif kind == "repeat" and isinstance(container, list):
        container.insert(rng.randrange(len(container) + 1), json.loads(json.dumps(value)))
    elif kind == "number" and isinstance(value, (int, float)):
        container[key] = value + rng.choice((-1, 1, 7, -100, 1000, 0.25, 1e6, 3e9))
    elif kind == "wrap":
        container[key] = rng.choice(([value], {"value": value}, [[value]]))
    elif kind == "swap":
        other, other_key = rng.choice(list(places(content)))
        # A copy: a value inside itself is no JSON.
        container[key] = json.loads(json.dumps(other[other_key]))
    elif kind == "rename" and isinstance(container, dict):
        container[rng.choice((f"{key}s", key.upper(), "id", ""))] = container.pop(key)
    elif kind == "text":
        container[key] = str(value)
    return content


def mutate_json_text(text: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The bytes of a JSON file of another form: encodings, marks, nesting, other top levels, damaged bytes."""
    kind = rng.choice(
        ("bom", "utf-16", "list", "nested", "empty", "number", "two", "latin-1", "bytes", "bytes", "bytes")
    )
    if kind == "bytes":
        return mutate_bytes(text, rng)
    changed = {
        "bom": b"\xef\xbb\xbf" + text,
        "utf-16": text.decode().encode("utf-16"),
        "list": b"[" + text + b"]",
        "nested": b'{"images": ' + b"[" * rng.choice((10, 1000, 100_000)),
        "empty": rng.choice((b"", b" ", b"null", b"{}", b"[]", b'""', b"0")),
        "number": b"1" * rng.choice((1, 400, 5000)),
        "two": text + text,
        "latin-1": text.replace(b"a", b"\xe4", 1),
    }[kind]
    return changed, f"text {kind}"


def mutate_bytes(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Flipped bits, a part that is missing, repeated, zeroed or inserted, or a cut; and the kind."""
    kind = rng.choice(("flip", "flip", "cut", "remove", "zero", "insert", "repeat"))
    if not content:
        return rng.randbytes(3), "bytes insert"
    start = rng.randrange(len(content))
    stop = min(len(content), start + rng.choice((1, 2, 4, 16, 64, 400)))
    changed = bytearray(content)
    if kind == "flip":
        for _ in range(rng.choice((1, 1, 2, 8))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del changed[start:]
    elif kind == "remove":
        del changed[start:stop]
    elif kind == "zero":
        changed[start:stop] = bytes(stop - start)
    elif kind == "insert":
        changed[start:start] = rng.randbytes(rng.choice((1, 2, 16, 300)))
    else:
        changed[start:start] = content[start:stop]
    return bytes(changed), f"bytes {kind}"


def mutate_image(path: Path, rng: random.Random) -> str:
    """Another kind of image in the place of an RGB PNG, or other pixels; returns the kind."""
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB"))
    kind = rng.choice(("L", "P", "1", "I;16", "LA", "RGBA", "black", "pixel", "turned", "size", "jpeg", "CMYK", "rows"))
    turned = Image.Exif()
    turned[0x0112] = rng.randrange(9)
    options: dict[str, Any] = {"exif": turned} if kind == "turned" else {}
    if kind == "black":
        pixels[:] = 0
    elif kind == "pixel":
        pixels[rng.randrange(len(pixels)), rng.randrange(pixels.shape[1])] = [rng.randrange(256) for _ in range(3)]
    elif kind == "size":
        pixels = pixels[: rng.randrange(1, len(pixels) + 1), : rng.randrange(1, pixels.shape[1] + 1)]
    elif kind == "rows":
        pixels = np.roll(pixels, rng.randrange(len(pixels)), axis=0)
    image = Image.fromarray(pixels)
    if kind in ("L", "P", "1", "RGBA", "LA", "CMYK"):
        image = image.convert(kind)
    elif kind == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    file = io.BytesIO()
    image.save(file, format="JPEG" if kind in ("jpeg", "CMYK") else "PNG", **options)
    path.write_bytes(file.getvalue())
    return f"image {kind}"
