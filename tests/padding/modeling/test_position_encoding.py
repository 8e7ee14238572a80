# SPDX-License-Identifier: Apache-2.0
"""The sine encoding against a loop over its definition."""

import math

import pytest
import torch

from padding.modeling.position_encoding import sine_position_encoding


def test_every_entry_follows_the_definition() -> None:
    height, width, channels = 3, 5, 12
    encoding = sine_position_encoding(height, width, channels)
    assert encoding.shape == (1, channels, height, width)
    assert encoding.dtype == torch.float32
    for channel in range(channels):
        for row in range(height):
            for column in range(width):
                is_row = channel < channels // 2
                position = (row + 1) / (height + 1e-6) if is_row else (column + 1) / (width + 1e-6)
                within = channel % (channels // 2)
                angle = 2 * math.pi * position / 10000 ** (2 * (within // 2) / (channels // 2))
                expected = math.sin(angle) if within % 2 == 0 else math.cos(angle)
                assert encoding[0, channel, row, column].item() == pytest.approx(expected, abs=1e-5)


def test_it_depends_on_the_relative_position_only() -> None:
    small, large = sine_position_encoding(4, 4, 8), sine_position_encoding(8, 8, 8)
    torch.testing.assert_close(small, large[:, :, 1::2, 1::2])


def test_channels_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="got 6 channels, expected a multiple of 4"):
        sine_position_encoding(2, 2, 6)
