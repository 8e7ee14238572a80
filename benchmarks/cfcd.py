# SPDX-License-Identifier: Apache-2.0
"""Class-aware consistency (TCC, Eq. 3 to 7) on one CPU thread: classes one after another against two matrix products.

``loop`` is the form in which the idea was published (IFVD, ECCV 2020): class by class, a full-size mask and a full-size
copy of the features in which the pixels of that class are replaced by their mean, then a cosine of two full-size maps.
``vectorised`` is ``tcc.class_features.feature_consistency``. Both get the features of the two students on a common grid
and full-size labels, and compute loss and gradients. The default is a crop of 512 x 512, batch 2, 21 classes, stride 16
with the last maps of the students (2048 and 512 channels), and as a detail stride 4 with two decoders of 256 channels.

* ``time_ratio``: CPU time of forward and backward of ``loop`` over ``vectorised``, medians of alternating runs;
* ``memory_ratio``: the same of the bytes kept for the backward pass, the features included, each storage counted once;
* ``max_difference``: of the similarity maps and of the losses; ``max_gradient_difference``: of the gradients, relative
  to their largest entry, and for each form its difference from the loop in float64.

``memory`` lines list the kept bytes at further strides; from fake tensors, without computing anything.

    python -m benchmarks.cfcd [--size 512] [--batch 2] [--classes 21] [--channels 2048 512] [--stride 16] [--repeats 7]
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import add_numbers, relative_difference, time_in_turn
from padding.errors import run_command
from tcc.class_features import ConsistencyOptions, PixelLabels, class_similarity, feature_consistency, on_grid

Features = tuple[Tensor, Tensor]
Labels = tuple[Tensor, Tensor]
Form = Callable[[Features, Labels, int], Tensor]
DECODER_CHANNELS = (256, 256)
DECODER_STRIDE = 4


def loop_similarity(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Cosine of each pixel with its class's mean, class by class (IFVD's form of Eq. 5 and 6).

    Args:
        features: (B, D, h, w) float.
        labels: (B, H, W) int64; ignored pixels keep their own feature, so that their cosine is 1.
        num_classes: K.

    Returns:
        (B, h, w) float32.
    """
    size = (features.shape[2], features.shape[3])
    resized = F.interpolate(labels[:, None].float(), size=size, mode="nearest-exact").expand_as(features)
    centers = features.clone()
    for label in range(num_classes):
        mask = (resized == label).float()
        mean = (mask * features).sum(dim=(2, 3), keepdim=True) / (mask.sum(dim=(2, 3), keepdim=True) + 1e-6)
        centers = (1 - mask) * centers + mask * mean
    return F.cosine_similarity(features, centers, dim=1)


def loop_consistency(features: Features, labels: Labels, num_classes: int) -> Tensor:
    """Mean squared difference of both maps; each student's features are grouped by the labels of the other."""
    maps = [
        loop_similarity(feature, peer, num_classes) for feature, peer in zip(features, reversed(labels), strict=True)
    ]
    return F.mse_loss(maps[0], maps[1])


def vectorised_similarity(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The same map as the training computes it."""
    pixels = on_grid(_all_valid(labels), (features.shape[2], features.shape[3]))
    return class_similarity(features, pixels, num_classes, ConsistencyOptions())[0]


def vectorised_consistency(features: Features, labels: Labels, num_classes: int) -> Tensor:
    """The same loss as the training computes it."""
    options = ConsistencyOptions(stride=labels[0].shape[-1] // features[0].shape[-1])
    return feature_consistency(features, (_all_valid(labels[0]), _all_valid(labels[1])), num_classes, options)[0]


def _all_valid(labels: Tensor) -> PixelLabels:
    return PixelLabels(labels, torch.ones_like(labels, dtype=torch.bool))


FORMS: dict[str, Form] = {"loop": loop_consistency, "vectorised": vectorised_consistency}


@dataclass(frozen=True)
class Case:
    """What is computed."""

    size: int  # height and width of the images
    batch: int  # B
    classes: int  # K
    channels: tuple[int, int]  # of the two students' features
    stride: int  # image pixels per cell of the common grid

    def inputs(self) -> tuple[Features, Labels]:
        """Random features, those of the CNN as after a ReLU, and labels in blocks on which the students half agree."""
        torch.manual_seed(0)
        cells = self.size // self.stride
        first, second = (torch.randn(self.batch, width, cells, cells) for width in self.channels)
        blocks = torch.randint(0, self.classes, (2, self.batch, 1, 8, 8))
        blocks[1] = torch.where(torch.rand(blocks[1].shape) < 0.5, blocks[0], blocks[1])
        full = F.interpolate(blocks.flatten(0, 1).float(), size=(self.size, self.size), mode="nearest-exact")
        labels = full[:, 0].long().split(self.batch)
        return (first.relu().requires_grad_(), second.requires_grad_()), (labels[0], labels[1])


def kept_bytes(form: Form, case: Case) -> int:
    """Bytes that the backward pass of one form needs, each storage counted once; nothing is computed."""
    kept: dict[int, Tensor] = {}  # the tensors are held, or a new storage could get the address of an old one

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FakeTensorMode():
        features, labels = case.inputs()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = form(features, labels, case.classes)
        assert loss.requires_grad
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def run(form: Form, case: Case, inputs: tuple[Features, Labels]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Loss, gradients of the features."""
    features, labels = inputs
    loss = form(features, labels, case.classes)
    return loss.detach(), torch.autograd.grad(loss, features)


def measure(case: Case, repeats: int) -> dict[str, float]:
    """Time both forms in turn and compare loss, gradients and kept bytes.

    Args:
        case: what is computed.
        repeats: timed runs of each form.
    """
    inputs = case.inputs()
    medians, results = time_in_turn({name: partial(run, form, case, inputs) for name, form in FORMS.items()}, repeats)
    (expected_loss, expected_gradients), (loss, gradients) = (results[name] for name in ("loop", "vectorised"))
    return {
        "time_ratio": round(medians["loop"] / medians["vectorised"], 1),
        "max_difference": max(float((expected_loss - loss).abs()), map_difference(inputs, case)),
        "max_gradient_difference": relative_difference(gradients, expected_gradients),
        **{f"{name}_seconds": round(median, 4) for name, median in medians.items()},
        **memory(case),
    }


def memory(case: Case) -> dict[str, float]:
    """Kept MiB of both forms, and their ratio."""
    kept = {name: kept_bytes(form, case) for name, form in FORMS.items()}
    mib = {f"{name}_mib": round(size / 2**20, 1) for name, size in kept.items()}
    return {**mib, "memory_ratio": round(kept["loop"] / kept["vectorised"], 1)}


def map_difference(inputs: tuple[Features, Labels], case: Case) -> float:
    """Largest difference of the similarity maps of both forms, in both students."""
    features, labels = inputs
    with torch.no_grad():
        pairs = [
            (form(feature, peer, case.classes) for form in (loop_similarity, vectorised_similarity))
            for feature, peer in zip(features, reversed(labels), strict=True)
        ]
        return max(float((loop - vectorised).abs().max()) for loop, vectorised in pairs)


def float64_differences(case: Case) -> dict[str, float]:
    """How far the gradients of both forms in float32 are from those of the loop in float64."""
    features, labels = case.inputs()
    doubled = (features[0].detach().double().requires_grad_(), features[1].detach().double().requires_grad_())
    expected = run(loop_consistency, case, (doubled, labels))[1]
    return {
        f"{name}_gradient_error": relative_difference(run(form, case, (features, labels))[1], expected)
        for name, form in FORMS.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print details, then one JSON object."""
    parser = argparse.ArgumentParser(description="class by class against two matrix products, one thread")
    add_numbers(parser, size=512, batch=2, classes=21, stride=16, repeats=7)
    parser.add_argument("--channels", type=int, nargs=2, default=(2048, 512), help="of CNN and transformer")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    common = {"size": args.size, "batch": args.batch, "classes": args.classes}
    last = Case(**common, channels=tuple(args.channels), stride=args.stride)
    decoder = Case(**common, channels=DECODER_CHANNELS, stride=DECODER_STRIDE)
    for case in (last, decoder, Case(**common, channels=DECODER_CHANNELS, stride=1)):
        print(json.dumps({"memory": {"stride": case.stride, "channels": case.channels, **memory(case)}}))
    print(json.dumps({"decoder": {"channels": DECODER_CHANNELS, "stride": DECODER_STRIDE, **measure(decoder, 1)}}))
    result = {**measure(last, args.repeats), **float64_differences(last)}
    print(json.dumps({**common, "channels": last.channels, "stride": last.stride, **result}))


if __name__ == "__main__":
    sys.exit(run_command(main))
