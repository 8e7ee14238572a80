# SPDX-License-Identifier: Apache-2.0
"""Frames of video files, cameras and network streams one by one, and videos written in the same way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from padding.data.files import replacing
from padding.errors import UserError

Frame = npt.NDArray[np.uint8]
DEFAULT_RATE = 25.0  # frames per second, where the source does not say


class UnreadableError(UserError, ValueError):
    """An input is damaged; the others can still be used."""


def is_live(source: str) -> bool:
    """Whether an input is a camera, by its number, or a stream, by its address."""
    return source.isdecimal() or "://" in source


def video_frames(source: str | Path) -> tuple[float, int, Iterator[Frame]]:
    """Open a video.

    Args:
        source: file, number of a camera, or address of a stream.

    Returns:
        Frames per second, number of frames (0 if the file does not say), and the frames as RGB (h, w, 3) uint8.

    Raises:
        UnreadableError: if it cannot be opened.
    """
    name = str(source)
    capture = cv2.VideoCapture(int(name) if name.isdecimal() else name)
    if not capture.isOpened():
        if name.isdecimal():
            raise UnreadableError(f"camera {name} cannot be opened; is it connected, and used by nobody else?")
        raise UnreadableError(f"{name} cannot be opened as a video; convert it, for example to .mp4 with H.264")

    def frames() -> Iterator[Frame]:
        try:
            while True:
                ok, frame = capture.read()
                if not ok:
                    return
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)  # type: ignore[misc]
        finally:
            capture.release()

    rate = capture.get(cv2.CAP_PROP_FPS) or DEFAULT_RATE
    return rate, max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0), frames()


def frame_name(video: str, number: int) -> str:
    """Name of what is written of a frame, without ending: a file in a folder of the video, numbered from 0 on."""
    return f"{video}/{number:06d}"


class VideoSink:
    """Takes the frames of one video; the first says the size."""

    def __init__(self, path: Path, rate: float) -> None:
        """Prepare to write to ``path``; its ending chooses the container."""
        self.num_frames = 0
        self._path = path
        self._rate = rate
        self._writer: cv2.VideoWriter | None = None

    def add(self, frame: Frame) -> None:
        """Write a frame, RGB (h, w, 3) uint8.

        Raises:
            UserError: OpenCV cannot write such a file.
        """
        if self._writer is None:
            height, width = frame.shape[:2]
            kind = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._path), kind, self._rate, (width, height))
            if not self._writer.isOpened():
                raise UserError(f"cannot write {self._path}: OpenCV has no mp4v encoder here, or no such folder")
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.num_frames += 1

    def close(self) -> None:
        """End the file."""
        if self._writer is not None:
            self._writer.release()


@contextmanager
def writing_video(path: Path, rate: float, *, source: str) -> Iterator[VideoSink]:
    """Hand out what takes frames; at the end, or after Ctrl-C, ``path`` is the whole video of the frames so far.

    Args:
        path: ends with .mp4.
        rate: frames per second.
        source: where the frames come from, for the message.

    Raises:
        UnreadableError: there was no frame.
        WriteError: the disk is full or fails.
    """
    with replacing(path, keep_suffix=True) as temporary:
        sink = VideoSink(temporary, rate)
        try:
            yield sink
        except KeyboardInterrupt:
            if not sink.num_frames:
                raise
        finally:
            sink.close()
        if not sink.num_frames:
            raise UnreadableError(f"{source} holds no readable frame")
