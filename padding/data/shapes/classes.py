# SPDX-License-Identifier: Apache-2.0
"""Classes and parameters of the embedded data set ``shapes``: names, attributes, zero-shot split, class embeddings.

Every class is a combination of attributes: a thing is a shape with a look, stuff is a colour with a pattern. Unseen
classes are combinations that no training image shows while each of their attributes is shown by seen classes, which is
what a zero-shot method needs to transfer (PADing, Sec. 3: relations between class embeddings).
"""

from __future__ import annotations

import colorsys
import json
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from padding.data.class_split import ClassSplit, read_name_list
from padding.data.roots import splits_dir
from padding.errors import ConfigError

SHAPES = ("disk", "square", "triangle", "star", "plus", "ring")
LOOKS = ("red", "striped", "dotted", "checked", "magenta")
COLOURS = ("grey", "brown", "teal", "olive")
PATTERNS = ("plain", "hatch", "blobs")
SPLITS = ("train", "val")
UNSEEN_FILE = "shapes_zsp.txt"
# Label set of the dense semantic tasks: 42 shape x look labels are too slow to learn for a small dense network.
COARSE_NAMES = LOOKS + tuple(f"{colour} {pattern}" for colour in COLOURS for pattern in PATTERNS)

_FIRST_STUFF_ID = 101
_LOOK_HUES = {"red": 0.0, "striped": 0.40, "dotted": 0.60, "checked": 0.14, "magenta": 0.86}
_STUFF_DRAWING_COLORS = {
    "grey": (143, 146, 153),
    "brown": (140, 107, 82),
    "teal": (77, 133, 133),
    "olive": (135, 138, 82),
}


@dataclass(frozen=True)
class ShapesConfig:
    """Parameters of the generator; equal parameters and equal numpy give equal bytes.

    Image ``index`` of a split depends on every field except ``num_train`` and ``num_val``, so a larger data set begins
    with the images of a smaller one.
    """

    num_train: int = 3000  # training images, which show seen classes only
    num_val: int = 400  # validation images, which show all classes
    size: int = 128  # height and width in pixels
    seed: int = 0  # >= 0, also seeds the class embeddings
    max_objects: int = 5  # largest number of things in one image; the smallest is 1
    radius_px: tuple[float, float] = (12.0, 25.0)  # least and largest radius of a thing
    max_hidden_frac: float = 0.5  # largest part of a thing that others or the image border may hide
    max_region_covered_frac: float = 0.75  # largest part of a background region that things may cover
    two_regions_frac: float = 0.5  # part of the images with two background regions
    texture_period_px: tuple[float, float] = (7.0, 8.0)  # least and largest period of stripes, dots and checks
    brightness_jitter: float = 0.12  # largest relative change of an object's brightness
    hue_jitter: float = 0.025  # largest turn of an object's hue, in full turns
    lighting: float = 0.16  # largest relative change of brightness between the centre and the edge of an image
    shadow: float = 0.35  # darkness of the soft shadow that a thing casts
    noise_sigma: float = 0.05  # standard deviation of the independent noise, of a value range of 1
    correlated_sigma: float = 0.03  # the same for the smooth noise
    camouflage_frac: float = 0.4  # part of the mean background colour mixed into the things of ``images_camouflaged``
    embedding_width: int = 64  # length of a class embedding
    embedding_noise: float = 0.02  # standard deviation added to each component of a class embedding

    def __post_init__(self) -> None:
        if self.num_train < 0 or self.num_val < 0:
            raise ConfigError(f"num_train and num_val must be >= 0, got {self.num_train} and {self.num_val}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must lie in [0, 2**32), got {self.seed}")
        if self.max_objects < 1:
            raise ConfigError(f"max_objects must be >= 1, got {self.max_objects}")
        if not 2 <= self.radius_px[0] <= self.radius_px[1] <= self.size / 2:
            raise ConfigError(f"radius_px must grow from >= 2 to <= size / 2 = {self.size / 2}, got {self.radius_px}")
        if self.embedding_width < len(_ATTRIBUTES):
            raise ConfigError(f"embedding_width must be >= {len(_ATTRIBUTES)} attributes, got {self.embedding_width}")

    def count(self, split: str) -> int:
        """Number of images of ``"train"`` or ``"val"``."""
        return {"train": self.num_train, "val": self.num_val}[split]

    def image_parameters(self) -> dict[str, Any]:
        """What decides the content of an image, as JSON values: all fields but the counts, and the unseen names."""
        fields = {k: v for k, v in asdict(self).items() if k not in ("num_train", "num_val")}
        return json.loads(json.dumps({**fields, "unseen": sorted(shapes_split().unseen_names)}))


@cache
def _table() -> tuple[dict[str, Any], ...]:
    things = [
        {
            "name": f"{look} {shape}",
            "isthing": 1,
            "supercategory": shape,
            "color": _thing_color(look, position),
            "shape": shape,
            "look": look,
        }
        for position, shape in enumerate(SHAPES)
        for look in LOOKS
    ]
    stuff = [
        {
            "name": f"{colour} {pattern}",
            "isthing": 0,
            "supercategory": pattern,
            "color": [channel + 26 * (position - 1) for channel in _STUFF_DRAWING_COLORS[colour]],
            "colour": colour,
            "pattern": pattern,
        }
        for colour in COLOURS
        for position, pattern in enumerate(PATTERNS)
    ]
    entries = [{"id": i, **entry} for i, entry in enumerate(things, start=1)]
    entries += [{"id": i, **entry} for i, entry in enumerate(stuff, start=_FIRST_STUFF_ID)]
    return tuple(entries)


def _thing_color(look: str, position: int) -> list[int]:
    """Drawing colour: the hue tells the look, lightness and saturation tell the shape."""
    lightness = (0.36, 0.44, 0.52, 0.60, 0.68, 0.76)[position]
    hue = _LOOK_HUES[look] + 0.012 * (position - 2)
    return [round(255 * channel) for channel in colorsys.hls_to_rgb(hue % 1.0, lightness, 0.85 - 0.05 * position)]


def class_table() -> list[dict[str, Any]]:
    """The 42 categories in COCO form, things 1..30, then stuff 101..112; the position is the contiguous id.

    Returns:
        Dicts with ``id, name, isthing, supercategory, color`` and the attributes: ``shape`` and ``look`` of a thing,
        ``colour`` and ``pattern`` of stuff.
    """
    return [{**entry, "color": list(entry["color"])} for entry in _table()]


@cache
def shapes_split() -> ClassSplit:
    """All 42 classes; the unseen ones are read from ``datasets/splits/shapes_zsp.txt``."""
    return ClassSplit.from_categories(class_table(), read_name_list(splits_dir() / UNSEEN_FILE))


@cache
def coarse_ids() -> tuple[int, ...]:
    """Per contiguous id, the id in ``COARSE_NAMES``: a thing's look, or the stuff class itself."""
    return tuple(COARSE_NAMES.index(entry["look"] if entry["isthing"] else entry["name"]) for entry in _table())


@cache
def shapes_coarse_split() -> ClassSplit:
    """The 17 classes of ``COARSE_NAMES``, everything seen: 5 looks of things and 12 stuff classes."""
    colors = {COARSE_NAMES[coarse]: entry["color"] for coarse, entry in zip(coarse_ids(), _table(), strict=True)}
    return ClassSplit(
        names=COARSE_NAMES,
        is_thing=tuple(name in LOOKS for name in COARSE_NAMES),
        dataset_ids=tuple(range(len(COARSE_NAMES))),
        colors=tuple(colors[name] for name in COARSE_NAMES),
    )


_ATTRIBUTES = ("thing", "stuff", *SHAPES, *LOOKS, *COLOURS, *PATTERNS)


def _attribute_rows() -> npt.NDArray[np.float64]:
    """(42, 20) zeros and ones: thing or stuff, shape, look, colour, pattern."""
    rows = np.zeros((len(_table()), len(_ATTRIBUTES)))
    for row, entry in zip(rows, _table(), strict=True):
        kind = "thing" if entry["isthing"] else "stuff"
        values = [kind, *(entry[key] for key in ("shape", "look", "colour", "pattern") if key in entry)]
        row[[_ATTRIBUTES.index(value) for value in values]] = 1.0
    return rows


def embed_classes(config: ShapesConfig) -> npt.NDArray[np.float32]:
    """Class embeddings: one-hot attributes, turned into a wider space, with a little noise.

    Two things that share one attribute have a cosine of about 2/3, two that share none 1/3, a thing and stuff 0.

    Returns:
        (42, E) float32 with rows of length 1, in the order of ``class_table``.
    """
    # Four words set this stream apart from those of the images, which are (seed, split, index).
    rng = np.random.default_rng((config.seed, 0, 0, 3))
    width = config.embedding_width
    directions, _ = np.linalg.qr(rng.standard_normal((width, len(_ATTRIBUTES))))
    rows = _attribute_rows() @ directions.T
    rows += config.embedding_noise * rng.standard_normal(rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
