# SPDX-License-Identifier: Apache-2.0
"""Labels of whole images, grown from their scribbles: for rounds of training, for reports and for pictures (PSI).

In training labels grow on crops. Here an image is segmented whole, without augmentation, and grown labels come at its
original size, whatever size the network sees it at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from padding.data.mappers import SemanticMapper, build_mapper
from padding.errors import ConfigError, MethodError
from padding.modeling.batching import map_size, normalize_image
from padding.modeling.tta import SegmentationPlan, segment
from psi.color_affinity import cell_colors
from psi.grid import supervision_at_pixels, supervision_on_grid
from psi.label_diffusion import DiffusionStep, diffuse
from psi.label_quality import LabelQuality, label_quality
from psi.meta_arch import PSI
from psi.supervision import PixelSupervision


class SupervisionReader:
    """Reads whole images of the training set: entry -> sample of the test mapper, and scribbles (h, w) int64."""

    def __init__(self, cfg: CfgNode) -> None:
        """Read INPUT and DATASETS.TRAIN.

        Raises:
            MethodError: if the training's mapper reads no semantic labels.
        """
        reader = build_mapper(cfg, is_train=True)
        if not isinstance(reader, SemanticMapper):
            raise MethodError(
                f"INPUT.DATASET_MAPPER_NAME is '{cfg.INPUT.DATASET_MAPPER_NAME}', which reads no semantic labels; PSI "
                "trains with 'StoredLabelMapper' or 'semantic_scale_crop'"
            )
        self._reader = reader
        whole = cfg.clone()
        whole.defrost()
        whole.DATASETS.TEST = cfg.DATASETS.TRAIN
        self._mapper = build_mapper(whole, is_train=False)

    def __call__(self, entry: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor]:
        """Read one image."""
        sample = self._mapper(entry)
        assert sample is not None  # a test mapper leaves nothing out
        labels, _ = self._reader.read_labels(sample, (sample["height"], sample["width"]))
        assert labels is not None
        return sample, torch.from_numpy(labels.astype(np.int64))


@dataclass(frozen=True)
class GrownLabels:
    """Labels of one image.

    Attributes:
        states: y_t at pixels (B = 1), T + 1 of them when grown from scribbles.
        steps: the diffusions between them, on the grid.
        scores: (K, h, w) float32, M at the image's size.
    """

    states: list[PixelSupervision]
    steps: list[DiffusionStep]
    scores: Tensor


@torch.no_grad()
def grow_labels(
    model: PSI,
    sample: Mapping[str, Any],
    scribbles: Tensor,
    *,
    stored: PixelSupervision | None = None,
    steps: Sequence[int] | None = None,
) -> GrownLabels:
    """Grow the labels of one image with the current network, or its moving average where that grows labels.

    Args:
        model: its mode is left as it is found; networks are read in evaluation mode.
        sample: of the test mapper: ``image`` (3, H, W) uint8 and the original ``height`` and ``width``, (h, w).
        scribbles: (h, w) int64, void where nothing is drawn.
        stored: y_t of this image (B = 1) to go on from; None: the scribbles.
        steps: which of the T steps to take; None: all.

    Returns:
        Labels on the model's device.

    Raises:
        ConfigError: for a model whose labels do not grow.
    """
    if model.threshold_net is None:
        raise ConfigError("MODEL.PSI.SLD.STEPS is 0: labels of this model do not grow")
    height, width = scribbles.shape
    scores = _scores(model, sample["image"], (height, width))
    stride, num_classes = model.growth.stride, model.num_classes
    drawn = scribbles.to(model.device)[None]
    valid = torch.ones_like(drawn, dtype=torch.bool)
    start, cells = supervision_on_grid(
        drawn,
        valid,
        num_classes=num_classes,
        stride=stride,
        stored=None if stored is None else stored.to(model.device),
    )
    # Radii are pixels of what the network sees.
    enlarged = height / sample["image"].shape[-2]
    chosen = range(model.growth.steps) if steps is None else steps
    radii = tuple(max(1, round(model.growth.diffusion.radii[t] * enlarged)) for t in chosen)
    colors = None
    if model.growth.diffusion.affinity.mode != "none":
        whole = F.interpolate(sample["image"].to(scores)[None], size=(height, width), mode="area")
        colors = cell_colors(whole, map_size(cells), stride=stride)
    diffusion = diffuse(
        F.interpolate(scores[None], size=cells.shape[-2:], mode="area"),
        start,
        cells,
        threshold_net=model.threshold_net,
        options=replace(model.growth.diffusion, radii=radii),
        colors=colors,
    )
    first = stored or PixelSupervision.of_scribbles(drawn, num_classes=num_classes)  # finer than the grid
    grown = [
        supervision_at_pixels(step.supervision, drawn, valid, stride=stride, num_classes=num_classes)
        for step in diffusion
    ]
    return GrownLabels([first, *grown], diffusion, scores)


def _scores(model: PSI, image: Tensor, size: tuple[int, int]) -> Tensor:
    """(K, h, w) scores M of one image (3, H, W) in one view, whatever the plan of the evaluation."""
    plan = SegmentationPlan(size_divisibility=model.plan.size_divisibility)
    pixels = normalize_image(image, model.pixel_mean, model.pixel_std)
    was_training = model.training
    model.eval()
    try:
        return segment(lambda view: {"scores": model.label_network(view)}, pixels, plan, output_size=size)["scores"]
    finally:
        model.train(was_training)


def quality_of(labels: GrownLabels, truth: Tensor | None) -> list[LabelQuality]:
    """Coverage and, with the dense truth (h, w) int64, accuracy of every state."""
    answer = None if truth is None else truth.to(labels.scores.device)[None]
    return [label_quality(state, torch.ones_like(state.scribbles), answer) for state in labels.states]
