# SPDX-License-Identifier: Apache-2.0
"""Label maps, panoptic ids and JSON annotations are read here alone, for training, evaluation and preparation alike.

Numbers are returned as they are stored: palettes are never looked at, and an EXIF orientation does not turn them (but
that of a TIFF, which Pillow obeys by itself).
"""

import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from padding.data.damage import LIMIT_KEY, check_image_size, check_png
from padding.errors import DataError, MissingFileError, UserError

_COLORS_CURE = "datasets/prepare_color_labels.py turns colours into class ids"
_CURE = "obtain or generate it again"
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, zlib.error)
_STRETCHED = {"L;2": 85, "L;4": 17}
"""Grey PNGs of 2 and 4 bits, which Pillow stretches to 0 to 255, and the factor."""
_ORIENTATION = 0x0112  # tag of EXIF; 5 to 8 swap height and width
_truncated_jpegs = False


def allow_truncated_jpegs(allowed: bool) -> None:
    """Set INPUT.ALLOW_TRUNCATED_JPEG for this process and the workers that it forks from now on."""
    global _truncated_jpegs
    _truncated_jpegs = allowed


@contextmanager
def opened_image(
    file: str | Path | BinaryIO, *, name: object = "", cure: str = _CURE, pixels: bool = True
) -> Iterator[Image.Image]:
    """Open an image; what goes wrong while it is decoded inside the ``with`` becomes an error that names the file.

    A PNG whose checksums are wrong is damaged, and so is a JPEG that ends early unless INPUT.ALLOW_TRUNCATED_JPEG.

    Args:
        file: path or open file.
        name: the file in messages; "": ``file``.
        cure: end of the messages: what to do.
        pixels: False where only the header is looked at: what follows it is not verified.

    Raises:
        MissingFileError: there is no such file.
        DataError: it cannot be decoded, or would take more memory than INPUT.MAX_UNPACKED_MB.
    """
    name = name or file
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        with _opened(file) as stream, Image.open(stream) as image:
            check_image_size(image, name)
            if pixels and image.format == "PNG" and image.fp is not None:
                check_png(image.fp)
            ImageFile.LOAD_TRUNCATED_IMAGES = before or (_truncated_jpegs and image.format in ("JPEG", "MPO"))
            yield image
    except UserError:
        raise
    except FileNotFoundError:
        raise MissingFileError(f"{name}: no such file; {cure}") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: {error}; raise {LIMIT_KEY} if the image is meant to be so large") from error
    except _DAMAGED as error:
        raise DataError(f"{name}: cannot be decoded ({error}), it is damaged or was cut; {cure}") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _opened(file: str | Path | BinaryIO) -> AbstractContextManager[BinaryIO]:
    """Open a path: given one, Pillow maps some TIFFs into memory, and mixes up the pixels of those to be turned."""
    return Path(file).open("rb") if isinstance(file, str | Path) else nullcontext(file)


def read_label_map(file: str | Path | BinaryIO, *, name: object = "", cure: str = _CURE) -> npt.NDArray[Any]:
    """Label map (h, w) of an index image: uint8, or uint16 where it has more bits; an image of one bit gives 0 and 1.

    Args:
        file: image of mode P, L, 1, I;16 or I.
        name: see ``opened_image``.
        cure: likewise.

    Raises:
        MissingFileError: there is no such file.
        DataError: it cannot be decoded, is of another mode, or holds a label outside 0 to 65535.
    """
    with opened_image(file, name=name, cure=cure) as image:
        if image.mode not in ("P", "L", "1", "I;16", "I"):
            raise DataError(
                f"{name or file}: a label map holds one number per pixel, but this is an image of mode {image.mode}; "
                f"{_COLORS_CURE if image.mode in ('RGB', 'RGBA') else 'save class ids of 8 or 16 bits'}"
            )
        stretched = _STRETCHED.get(raw_mode(image), 1)
        labels = np.asarray(image)
    if labels.dtype == np.uint8:
        return labels if stretched == 1 else labels // np.uint8(stretched)
    if labels.dtype == np.bool_:
        return labels.astype(np.uint8)
    if labels.size and (labels.min() < 0 or labels.max() > np.iinfo(np.uint16).max):
        raise DataError(
            f"{name or file}: labels {labels.min()} to {labels.max()}; a label map holds 0 to 65535, renumber them"
        )
    return labels.astype(np.uint16)


def read_panoptic_ids(file: str | Path, *, cure: str = _CURE) -> npt.NDArray[np.uint32]:
    """Segment ids of a panoptic PNG (COCO's format), (h, w): R + 256 G + 65536 B; alpha is not looked at.

    Args:
        file: RGB or RGBA image of 8 bits a channel.
        cure: see ``opened_image``.

    Raises:
        MissingFileError: there is no such file.
        DataError: it cannot be decoded, or is another kind of image.
    """
    with opened_image(file, cure=cure) as image:
        stored = raw_mode(image)
        if image.mode not in ("RGB", "RGBA") or "16" in stored:
            raise DataError(
                f"{file}: segment ids are stored as 8-bit RGB, but this is an image of mode "
                f"{stored if '16' in stored else image.mode}; name the folder of the panoptic PNGs"
            )
        packed = (image if image.mode == "RGB" else image.convert("RGB")).tobytes()
    # R, G, B and a byte of the next pixel are read as one number, much faster than three planes are added.
    width = image.width
    numbers = np.ndarray((image.height, width), "<u4", packed + b"\0", strides=(3 * width, 3))
    return numbers & np.uint32(0xFFFFFF)


def raw_mode(image: Image.Image) -> str:
    """How the file stores its pixels, such as "RGB;16B"; Pillow's ``mode`` says only what they become."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def displayed_size(path: str | Path, *, cure: str = _CURE) -> tuple[int, int]:
    """(h, w) of an image as the mappers read it, turned by its EXIF entry; its pixels are not decoded.

    Raises:
        MissingFileError: there is no such file.
        DataError: it is no image.
    """
    with opened_image(path, cure=cure, pixels=False) as image:
        turned = image.getexif().get(_ORIENTATION, 1) >= 5
        if turned and image.format == "TIFF":
            image.load()  # Pillow turns these itself, some versions before they are decoded
            turned = False
        width, height = image.size
    return (width, height) if turned else (height, width)


def read_mat_labels(path: str | Path, field: str, *, cure: str = _CURE) -> npt.NDArray[Any]:
    """Labels of a MATLAB file, (h, w), integers.

    Args:
        path: of the ``.mat`` file.
        field: name of the matrix, "GTcls.Segmentation" for one in a struct.
        cure: what the user can do, for messages.

    Raises:
        MissingFileError: there is no such file.
        DataError: it is damaged, of another format, or has no such matrix of integers.
    """
    import scipy.io

    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; {cure}")
    name, *inner = field.split(".")
    try:
        found = scipy.io.loadmat(path, squeeze_me=bool(inner), struct_as_record=False)[name]
        for attribute in inner:
            found = getattr(found, attribute)
    except Exception as error:  # scipy raises whatever damaged bytes lead it to
        raise DataError(f"{path}: no {field} can be read ({type(error).__name__}: {error}); {cure}") from error
    labels = np.asarray(found)
    if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in "iu":
        raise DataError(f"{path}: {field} is {labels.dtype} of shape {labels.shape}, not integers (h, w); {cure}")
    return labels


def read_text(path: str | Path) -> str:
    """UTF-8 text; the mark in front that Windows' editors write (BOM) is no part of it, line ends become one newline.

    Raises:
        MissingFileError: there is no such file.
        DataError: it has another encoding, or is no text.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder, expected a text file") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else f"no UTF-8 (byte {error.start})"
        raise DataError(f"{path}: the text is {found}; save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | Path, *, required: Iterable[str] = (), cure: str = "") -> dict[str, Any]:
    """Parse a JSON file whose top level is an object.

    Args:
        path: the file.
        required: keys the object must hold.
        cure: sentence appended to every error: how the file is obtained.

    Raises:
        MissingFileError: there is no such file.
        DataError: it is not valid JSON (as when a download was cut), not an object, or lacks a key.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file. {cure}".rstrip())
    try:
        with path.open(encoding="utf-8-sig") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: not valid JSON ({error}); the file is damaged or was cut while it was written. "
            f"Obtain it again. {cure}".rstrip()
        ) from error
    missing = [key for key in required if not isinstance(content, dict) or key not in content]
    if missing or not isinstance(content, dict):
        lacks = f"lacks {missing}, which this kind of file holds" if missing else "holds no JSON object"
        raise DataError(f"{path}: {lacks}. {cure}".rstrip())
    return content
