# SPDX-License-Identifier: Apache-2.0
"""Whole image, windows, scales and mirror against what they must leave unchanged and against a slow loop."""

from collections.abc import Mapping
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from torch import Tensor, nn

from padding.engine.config import add_solver_config
from padding.modeling.tta import SegmentationPlan, scored_pixels, segment, segment_sample, window_starts

K = 4
POINTWISE = nn.Conv2d(3, K, 1)


@pytest.fixture(autouse=True)
def _weights() -> None:
    nn.init.normal_(POINTWISE.weight, std=2.0)
    nn.init.normal_(POINTWISE.bias)


def pointwise(images: Tensor) -> Mapping[str, Tensor]:
    """Each pixel by itself: neither windows nor padding nor mirror may change anything."""
    return {"scores": POINTWISE(images)}


def contextual(images: Tensor) -> Mapping[str, Tensor]:
    """A quarter of the resolution, and every pixel depends on its neighbours and on the left differently than right."""
    kernel = torch.arange(3.0 * K * 25).reshape(K, 3, 5, 5).sub(37).sin()
    return {"scores": F.conv2d(images, kernel, stride=4, padding=2)}


def image(height: int = 37, width: int = 53) -> Tensor:
    return torch.randn(3, height, width)


def softmax(logits: Tensor) -> Tensor:
    return logits[0].softmax(dim=0)


def test_whole_image_at_its_own_scale_is_the_network_itself() -> None:
    picture = image(64, 96)
    found = segment(contextual, picture, SegmentationPlan())["scores"]
    logits = F.interpolate(contextual(picture[None])["scores"], size=(64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, softmax(logits))
    assert not found.requires_grad


@pytest.mark.parametrize("divisibility", [1, 32])
@pytest.mark.parametrize(("height", "width"), [(37, 53), (1, 1), (31, 65)])
def test_odd_sizes_are_padded_and_cut_back(height: int, width: int, divisibility: int) -> None:
    seen = []

    def network(images: Tensor) -> Mapping[str, Tensor]:
        seen.append(images)
        return pointwise(images)

    picture = image(height, width)
    found = segment(network, picture, SegmentationPlan(size_divisibility=divisibility))["scores"]
    torch.testing.assert_close(found, softmax(POINTWISE(picture[None])))
    assert [n % divisibility for n in seen[0].shape[-2:]] == [0, 0]
    assert torch.equal(seen[0][0, :, :height, :width], picture)
    assert seen[0].sum() == pytest.approx(picture.sum().item(), abs=1e-3)  # the padding is 0


@pytest.mark.parametrize(
    ("crop", "stride"), [((16, 16), (16, 16)), ((16, 24), (5, 7)), ((37, 8), (1, 8)), ((64, 64), (40, 40))]
)
@pytest.mark.parametrize("flip", [False, True])
def test_windows_of_a_pointwise_network_equal_the_whole(
    crop: tuple[int, int], stride: tuple[int, int], flip: bool
) -> None:
    plan = SegmentationPlan(mode="slide", crop_size=crop, stride=stride, flip=flip, size_divisibility=8)
    picture = image()
    torch.testing.assert_close(segment(pointwise, picture, plan)["scores"], softmax(POINTWISE(picture[None])))


@pytest.mark.parametrize(
    ("length", "window", "stride"), [(37, 16, 16), (37, 16, 5), (16, 16, 3), (9, 16, 16), (33, 1, 1)]
)
def test_windows_cover_everything_and_end_with_the_image(length: int, window: int, stride: int) -> None:
    starts = window_starts(length, window, stride)
    covered = {pixel for start in starts for pixel in range(start, min(start + window, length))}
    assert covered == set(range(length))
    assert starts == sorted(set(starts))
    assert starts[-1] == max(length - window, 0)
    assert all(later - earlier <= stride for earlier, later in pairwise(starts))


def test_sliding_equals_a_slow_loop_over_pixels_and_windows() -> None:
    """Sum and count kept pixel by pixel; the network sees every window by itself, so the overlaps matter."""
    height, width, crop, stride = 22, 27, (16, 16), (7, 9)
    picture = image(height, width)
    tops, lefts = [0, 6], [0, 9, 11]
    total, count = torch.zeros(K, height, width), torch.zeros(height, width)
    for top in tops:
        for left in lefts:
            window = picture[None, :, top : top + 16, left : left + 16]
            logits = F.interpolate(contextual(window)["scores"], size=(16, 16), mode="bilinear", align_corners=False)
            probabilities = softmax(logits)
            for y in range(16):
                for x in range(16):
                    total[:, top + y, left + x] += probabilities[:, y, x]
                    count[top + y, left + x] += 1
    plan = SegmentationPlan(mode="slide", crop_size=crop, stride=stride, size_divisibility=16)
    found = segment(contextual, picture, plan)["scores"]
    torch.testing.assert_close(found, total / count)
    assert (
        found - segment(contextual, picture, SegmentationPlan())["scores"]
    ).abs().max() > 0.05  # it is no whole image


def test_image_smaller_than_the_window_is_padded_to_it() -> None:
    sizes = []

    def network(images: Tensor) -> Mapping[str, Tensor]:
        sizes.append(tuple(images.shape[-2:]))
        return pointwise(images)

    plan = SegmentationPlan(mode="slide", crop_size=(48, 40), stride=(32, 32), size_divisibility=32)
    found = segment(network, image(37, 53), plan)["scores"]
    assert found.shape == (K, 37, 53)
    assert sizes == [(64, 64)] * 2  # one row, two columns of windows; 48 x 40 rounded up to multiples of 32


def test_flip_changes_nothing_for_a_network_that_mirrors_along() -> None:
    def symmetric(images: Tensor) -> Mapping[str, Tensor]:
        kernel = torch.linspace(-1, 1, 3 * K * 9).reshape(K, 3, 3, 3).cos()
        return {"scores": F.conv2d(images, kernel + kernel.flip(-1), padding=1)}

    picture = image(32, 64)
    plain, flipped = (segment(symmetric, picture, SegmentationPlan(flip=flip))["scores"] for flip in (False, True))
    torch.testing.assert_close(flipped, plain)
    plain, flipped = (segment(contextual, picture, SegmentationPlan(flip=flip))["scores"] for flip in (False, True))
    assert (flipped - plain).abs().max() > 0.05  # this one does not, so the mirror was used
    mirrored = segment(contextual, picture.flip(-1), SegmentationPlan(flip=True))["scores"]
    torch.testing.assert_close(mirrored.flip(-1), flipped)  # the mean over both does not know left from right


def test_scales_and_flip_equal_a_slow_mean() -> None:
    picture, size = image(40, 48), (40, 48)
    views = []
    for scale in (0.5, 1.0, 1.75):
        target = (round(40 * scale), round(48 * scale))
        view = F.interpolate(picture[None], size=target, mode="bilinear", antialias=True)
        for mirror in (False, True):
            seen = view.flip(-1) if mirror else view
            padded = F.pad(seen, (0, -target[1] % 32, 0, -target[0] % 32))
            logits = F.interpolate(contextual(padded)["scores"], size=padded.shape[-2:], mode="bilinear")
            probabilities = softmax(logits[:, :, : target[0], : target[1]])
            probabilities = probabilities.flip(-1) if mirror else probabilities
            views.append(F.interpolate(probabilities[None], size=size, mode="bilinear")[0])
    plan = SegmentationPlan(scales=(0.5, 1.0, 1.75), flip=True)
    found = segment(contextual, picture, plan)["scores"]
    torch.testing.assert_close(found, torch.stack(views).mean(dim=0))
    torch.testing.assert_close(found.sum(dim=0), torch.ones(size))


def test_several_outputs_share_the_passes() -> None:
    calls = []

    def network(images: Tensor) -> Mapping[str, Tensor]:
        calls.append(images.shape)
        return {**pointwise(images), "coarse": contextual(images)["scores"], "saliency": images[:, :1]}

    picture = image()
    plan = SegmentationPlan(mode="slide", crop_size=(32, 32), stride=(20, 20), scales=(1.0, 1.5), flip=True)
    found = segment(network, picture, plan)
    assert len(calls) == 2 * (2 * 3 + 3 * 4)  # 37 x 53 and 56 x 80 pixels
    assert {name: tuple(part.shape) for name, part in found.items()} == {
        "scores": (K, 37, 53),
        "coarse": (K, 37, 53),
        "saliency": (1, 37, 53),
    }
    alone = segment(lambda images: {"coarse": contextual(images)["scores"]}, picture, plan)["coarse"]
    torch.testing.assert_close(found["coarse"], alone)
    single = segment(network, picture, SegmentationPlan())["saliency"]  # one channel: a yes-or-no map
    torch.testing.assert_close(single, picture[:1].sigmoid())


def test_output_size_of_the_original_image() -> None:
    picture = image()
    found = segment(pointwise, picture, SegmentationPlan(), output_size=(80, 100))["scores"]
    small = segment(pointwise, picture, SegmentationPlan())["scores"]
    torch.testing.assert_close(found, F.interpolate(small[None], size=(80, 100), mode="bilinear")[0])


def test_middle_of_the_image_alone() -> None:
    picture = image()
    plan = SegmentationPlan(mode="center_crop", crop_size=(17, 64), flip=True)
    found = segment(pointwise, picture, plan)["scores"]
    scored = scored_pixels(found)
    assert scored[10:27].all()  # 17 rows from (37 - 17) / 2 on, all 53 columns
    assert scored.sum() == 17 * 53
    torch.testing.assert_close(found[:, 10:27], softmax(POINTWISE(picture[None]))[:, 10:27])
    assert scored_pixels(segment(pointwise, picture, SegmentationPlan())["scores"]).all()


def test_sums_are_kept_in_single_precision() -> None:
    picture = image(32, 32)
    half = segment(lambda images: {"s": POINTWISE(images).half()}, picture, SegmentationPlan(flip=True))["s"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, softmax(POINTWISE(picture[None]).half().float()))


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"image has shape \(2, 3, 8, 8\)"):
        segment(pointwise, torch.zeros(2, 3, 8, 8), SegmentationPlan())
    with pytest.raises(ValueError, match=r"output 'x' has shape \(32, 32\) for one image; expected \(1, K, h, w\)"):
        segment(lambda images: {"x": images[0, 0]}, image(), SegmentationPlan(mode="center_crop", crop_size=(32, 32)))


def test_plan_comes_from_the_configuration() -> None:
    cfg = cfg_with()
    assert SegmentationPlan.from_config(cfg) == SegmentationPlan()
    opts = {"MODE": "slide", "CROP_SIZE": [800, 768], "SCALES": [0.5, 1], "FLIP": True}
    plan = SegmentationPlan.from_config(cfg_with(**opts), size_divisibility=4)
    assert plan == SegmentationPlan("slide", (800, 768), (533, 512), (0.5, 1.0), flip=True, size_divisibility=4)
    assert SegmentationPlan.from_config(cfg_with(**opts, STRIDE=(400, 0))).stride == (400, 512)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ({"MODE": "sliding"}, r"TEST\.SEM_SEG\.MODE is 'sliding'; known are whole, slide, center_crop"),
        ({"MODE": "slide", "STRIDE": (600, 10)}, r"TEST\.SEM_SEG\.STRIDE is \(600, 10\); expected 1 to \(512, 512\)"),
        ({"MODE": "slide", "CROP_SIZE": (0, 8)}, r"TEST\.SEM_SEG\.CROP_SIZE is \(0, 8\)"),
        ({"CROP_SIZE": (8,)}, r"TEST\.SEM_SEG\.CROP_SIZE is \(8,\); expected a height and a width"),
        ({"SCALES": ()}, r"TEST\.SEM_SEG\.SCALES is \(\)"),
        ({"SCALES": (1.0, -0.5)}, r"TEST\.SEM_SEG\.SCALES is \(1\.0, -0\.5\)"),
    ],
)
def test_senseless_keys_are_named(opts: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationPlan.from_config(cfg_with(**opts))


def cfg_with(**keys: object) -> CfgNode:
    cfg = get_cfg()
    add_solver_config(cfg)
    for key, value in keys.items():
        cfg.TEST.SEM_SEG[key] = value
    return cfg


def test_sample_is_normalised_and_comes_out_at_its_original_size() -> None:
    pixels = torch.randint(0, 256, (3, 32, 64), dtype=torch.uint8)
    mean, std = torch.tensor([100.0, 110.0, 120.0]).view(3, 1, 1), torch.tensor([50.0, 60.0, 70.0]).view(3, 1, 1)
    plan = SegmentationPlan(flip=True)
    expected = segment(contextual, (pixels - mean) / std, plan, output_size=(20, 41))["scores"]
    sample = {"image": pixels, "height": 20, "width": 41}
    assert torch.equal(segment_sample(contextual, sample, plan, pixel_mean=mean, pixel_std=std)["scores"], expected)
    alone = segment_sample(contextual, {"image": pixels}, plan, pixel_mean=mean, pixel_std=std)["scores"]
    assert alone.shape == (K, 32, 64)
