# SPDX-License-Identifier: Apache-2.0
"""Files are written here, and only here: a reader sees the old file or the whole new one, never a part.

A file grows under a temporary name beside its own, which belongs to one process and thread, is flushed to the disk and
renamed; on an error, or an interrupt, it is removed. What a killed process leaves begins with a dot and ends with
``.tmp``.
"""

import errno
import json
import math
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from padding.errors import ConfigError, WriteError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPORARY = ".*.tmp"
"""Glob pattern of the names under which files grow."""


_OWN_FOLDER = "choose a folder that you may write to, or change its permissions"
_CURES = {
    errno.ENOSPC: "free some space, or choose a folder on another disk",
    errno.EDQUOT: "free some of your quota, or choose a folder on another disk",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: _OWN_FOLDER,
    errno.EACCES: _OWN_FOLDER,
    errno.EPERM: _OWN_FOLDER,
    errno.EIO: "the disk fails; choose a folder on another one",
}
"""What refuses a write whatever is written, and what to do."""


@contextmanager
def naming_unwritable(path: str | Path, *, kept: str = "") -> Iterator[None]:
    """Let errors of a full, failing or read-only disk name the file that was being written.

    Args:
        path: the file.
        kept: what the message says about an older file.

    Raises:
        WriteError: for such an error, also where a library hides it behind a ``RuntimeError`` of its own.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(error, WriteError) or cause is None or cause.errno not in _CURES:
            raise
        raise WriteError(f"{path} cannot be written: {cause.strerror}; {_CURES[cause.errno]}{kept}") from error


@contextmanager
def replacing(path: str | Path, *, flush: bool = True, keep_suffix: bool = False) -> Iterator[Path]:
    """Hand out a temporary path to write to; at the end it becomes ``path``, on an error it is removed.

    Args:
        path: the file; its folder is made when missing. The temporary path has another suffix: name the format where a
            writer would guess it.
        flush: wait until the disk has the content, milliseconds a file. Without it a crash of the machine, not of the
            process, can leave an empty file: for images by the thousand that are checked before they are used.
        keep_suffix: the temporary path ends as ``path`` does, for writers that choose a format by that alone (videos);
            what a killed process leaves then ends with ``.tmp`` and that suffix.

    Raises:
        WriteError: the disk is full or fails, or the folder may not be written to; an older file is kept.
    """
    path = Path(path)
    ending = f".tmp{path.suffix}" if keep_suffix else ".tmp"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}{ending}")
    with naming_unwritable(path, kept=". What was there before is unchanged"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if flush:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes, *, flush: bool = True) -> None:
    """Write a file that readers see either whole or not at all."""
    with replacing(path, flush=flush) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text that readers see either whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, content: Any, *, indent: int | None = 1) -> None:
    """Write strict JSON in the same way: a number that does not exist (NaN) or is infinite is null."""
    write_text(path, json.dumps(without_nan(content), indent=indent) + "\n")


def without_nan(value: Any) -> Any:
    """The same nested mappings and lists with plain numbers for numpy's and torch's, None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def replace_folder(partial: Path, final: Path) -> None:
    """Give a complete folder its final name; an older one of that name is removed."""
    replaced = final.with_name(final.name + ".replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    partial.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)


def set_aside(path: Path) -> Path:
    """Keep a file that is about to be replaced under the name ``<name>.previous``; return that path."""
    return path.replace(path.with_name(f"{path.name}.previous"))


def save_figure(figure: "Figure", path: str | Path, *, dpi: int = 150) -> None:
    """Write a figure of matplotlib in the format that the suffix names."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format=Path(path).suffix.lstrip("."))


def save_picture(picture: npt.NDArray[np.uint8], path: str | Path) -> None:
    """Write RGB (h, w, 3) uint8 in the format that the suffix names, without waiting for the disk.

    Raises:
        ConfigError: for a suffix that is no picture's.
    """
    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    if kind not in Image.SAVE:
        raise ConfigError(f"{path} cannot be written: use a name that ends with .png or .jpg")
    with replacing(path, flush=False) as temporary:
        Image.fromarray(picture).save(temporary, format=kind, quality=95)


def save_png(array: npt.NDArray[np.uint8], path: str | Path, *, palette: Sequence[Sequence[int]] = ()) -> None:
    """Write an image as PNG, without waiting for the disk.

    Args:
        array: (h, w) or (h, w, 3) uint8.
        path: the PNG.
        palette: RGB of the values 0, 1, ... of an (h, w) array, shown by image viewers; values beyond it are black.
    """
    image = Image.fromarray(array)
    if len(palette):
        # Of a shorter palette Pillow would write fewer bits a pixel, which the value 255 does not fit in.
        image.putpalette([int(channel) for color in palette for channel in color] + [0] * 3 * (256 - len(palette)))
    with replacing(path, flush=False) as temporary:
        image.save(temporary, format="PNG")


def save_panoptic_png(ids: npt.NDArray[np.integer], path: str | Path) -> None:
    """Write segment ids (h, w), 0 to 2**24 - 1, as ``readers.read_panoptic_ids`` reads them."""
    save_png(np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8), path)
