# SPDX-License-Identifier: Apache-2.0
"""Photographs: what is not 8-bit colour is scaled by the stated rule or refused, never clipped in silence."""

from pathlib import Path

import cv2
import numpy as np
import PIL
import pytest
from detectron2.data.detection_utils import read_image
from packaging.version import Version
from PIL import Image

from padding.data.photographs import in_channels, read_photograph
from padding.data.readers import displayed_size
from padding.errors import ConfigError, DataError, MissingFileError

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040  # 0 to 65520


def written(path: Path, array: np.ndarray) -> Path:
    Image.fromarray(array).save(path)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_grey_of_16_bits_has_the_range_of_its_type(name: str, tmp_path: Path) -> None:
    image = read_photograph(written(tmp_path / name, RAMP))
    assert image.shape == (8, 8, 3)
    np.testing.assert_array_equal(image[..., 0], np.rint(RAMP / 65535.0 * 255.0))
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_colours_of_16_bits_have_the_range_of_their_type(name: str, tmp_path: Path) -> None:
    bgr = np.stack([RAMP, RAMP // 2, RAMP // 4], axis=-1)
    cv2.imwrite(str(tmp_path / name), bgr)
    image = read_photograph(tmp_path / name)
    assert np.abs(image[..., ::-1] - bgr / 65535.0 * 255.0).max() <= 1.0
    with pytest.raises(DataError, match=rf"{name}: INPUT.VALUE_RANGE is set, but of colours of 16 bits"):
        read_photograph(tmp_path / name, value_range=(0, 4095))


def test_a_range_of_values_is_obeyed(tmp_path: Path) -> None:
    image = read_photograph(written(tmp_path / "a.png", RAMP // 16), value_range=(100, 2000), channels="L")
    expected = ((RAMP // 16).astype(float) - 100) / 1900 * 255
    np.testing.assert_array_equal(image[..., 0], np.rint(expected.clip(0, 255)))
    assert image.shape == (8, 8, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_numbers_without_a_range_are_refused(dtype: type, tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", (RAMP / 65520 * (1 if dtype is np.float32 else 1000)).astype(dtype))
    with pytest.raises(DataError, match=r"a\.tif: holds numbers of type .*set INPUT.VALUE_RANGE"):
        read_photograph(path)
    top = 1.0 if dtype is np.float32 else 1000
    image = read_photograph(path, value_range=(0, top))
    assert (image.min(), image.max()) == (0, 255)
    assert abs(float(image.mean()) - 127.5) < 1.0


def test_what_is_no_number_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", np.array([[0.0, np.nan]], np.float32))
    with pytest.raises(DataError, match=r"a\.tif: holds values that are no numbers"):
        read_photograph(path, value_range=(0.0, 1.0))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", ["RGB", "BGR", "L"])
def test_images_of_8_bits_are_read_as_detectron2_reads_them(mode: str, channels: str, tmp_path: Path) -> None:
    picture = Image.effect_noise((9, 7), 90).convert("RGB").convert(mode)
    if mode == "YCbCr" and Version(PIL.__version__) < Version("11"):
        pytest.skip("Pillow 10 writes YCbCr TIFF files that it cannot read")
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned to the right
    picture.save(path, exif=exif)
    image = read_photograph(path, channels=channels)
    assert image.shape == (9, 7, 1 if channels == "L" else 3)
    if path.suffix == ".png":
        np.testing.assert_array_equal(image, read_image(str(path), format=channels))
    upright = in_channels(picture.transpose(Image.Transpose.ROTATE_270), channels)
    np.testing.assert_array_equal(image, upright)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_turned_tiff_is_the_turned_png(orientation: int, compression: str | None, tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(63, dtype=np.uint8).reshape(7, 9))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    picture.save(tmp_path / "a.tif", exif=exif, compression=compression)
    expected = read_photograph(tmp_path / "a.png")
    np.testing.assert_array_equal(read_photograph(tmp_path / "a.tif"), expected)
    assert displayed_size(tmp_path / "a.tif") == displayed_size(tmp_path / "a.png") == expected.shape[:2]


def test_damage_and_wrong_settings_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.png", RAMP)
    with pytest.raises(ConfigError, match=r"INPUT.FORMAT is 'HSV'; expected one of RGB, BGR, L"):
        read_photograph(path, channels="HSV")
    with pytest.raises(ConfigError, match=r"INPUT.VALUE_RANGE is \(5, 5\); expected"):
        read_photograph(path, value_range=(5, 5))
    path.write_bytes(path.read_bytes()[:70])
    with pytest.raises(DataError, match=r"a\.png: cannot be decoded .*; buy it"):
        read_photograph(path, cure="buy it")
    with pytest.raises(MissingFileError, match=r"b\.png: no such file"):
        read_photograph(tmp_path / "b.png")
