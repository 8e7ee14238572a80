# SPDX-License-Identifier: Apache-2.0
"""Weights expect images normalised as in their own training; with another mean a taxi becomes a prison."""

import logging
from collections.abc import Sequence

from torch import Tensor, nn

from padding.modeling.timm_backbone import TimmBackbone

Pixels = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, in [0, 255]."""

_IMAGENET: Pixels = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
# Layouts of files whose authors normalise so, with images in RGB.
_RGB_LAYOUTS = ("torchvision", "PVT", "ConvNeXt")
# Published means are rounded in several ways: 0.485 * 255 = 123.675.
_TOLERANCE = 1.0


def published_pixels(backbone: nn.Module, layout: str = "") -> set[Pixels]:
    """What is known of the normalisation of published weights of a backbone, images in RGB.

    Args:
        backbone: a network of timm has all that timm's own weights of this network expect.
        layout: kind of the weight file, as ``Imported.layout`` names it.

    Returns:
        The possible ones; empty: nothing is known.
    """
    if not isinstance(backbone, TimmBackbone):
        return {_IMAGENET} if any(name in layout for name in _RGB_LAYOUTS) else set()
    import timm

    tags = [tag for tag in timm.list_pretrained(f"{backbone.name}*") if tag.split(".")[0] == backbone.name]
    configs = [timm.get_pretrained_cfg(tag) for tag in tags]
    return {(_scaled(config.mean), _scaled(config.std)) for config in configs if config is not None}


def warn_of_other_pixels(
    backbone: nn.Module,
    mean: Tensor | Sequence[float],
    std: Tensor | Sequence[float],
    *,
    path: object,
    layout: str = "",
    keys: str = "MODEL.PIXEL_MEAN and PIXEL_STD",
) -> None:
    """Log a warning where images are normalised in another way than the weights of a backbone are known to expect.

    Args:
        backbone: that the weights were loaded into.
        mean: (C,) or (C, 1, 1), per channel in [0, 255].
        std: likewise.
        path: of the weights, for the message.
        layout: kind of the weight file.
        keys: that name ``mean`` and ``std`` in the configuration.
    """
    known = published_pixels(backbone, layout)
    used = (_numbers(mean), _numbers(std))
    if not known or any(_alike(used, one) for one in known):
        return
    wanted = " or ".join(f"{list(m)} and {list(s)}" for m, s in sorted(known))
    logging.getLogger(__name__).warning(
        "%s are %s and %s, but the published weights of this backbone, as in %s, expect %s of RGB images "
        "(INPUT.FORMAT RGB); with another normalisation the network sees other colors",
        keys,
        [round(value, 3) for value in used[0]],
        [round(value, 3) for value in used[1]],
        path,
        wanted,
    )


def _scaled(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(255 * value, 3) for value in values)


def _numbers(values: Tensor | Sequence[float]) -> tuple[float, ...]:
    return tuple(values.flatten().tolist()) if isinstance(values, Tensor) else tuple(map(float, values))


def _alike(first: Pixels, second: Pixels) -> bool:
    return all(
        len(a) == len(b) and all(abs(x - y) <= _TOLERANCE for x, y in zip(a, b, strict=True))
        for a, b in zip(first, second, strict=True)
    )
