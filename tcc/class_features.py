# SPDX-License-Identifier: Apache-2.0
"""Class-aware feature consistency distillation, CFCD (Eq. 3 to 7): what a student's features say about its classes.

Each student's features are averaged per class (prototypes, Eq. 5) under the labels of its peer (Eq. 3, 4); the cosine
of every pixel with the prototype of its class (Eq. 6) is one number per pixel, whatever the width of the features, and
the students are to agree in it (Eq. 7). The idea without the cross is IFVD's (ECCV 2020).

Nothing of size (B, D, N) is made but the features: prototypes and similarities are two matrix products over one-hot
labels, and the similarity with the pixel's own class is picked from a (B, K, N) table.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from padding.errors import ConfigError, check_choice
from padding.modeling.processes import sum_over_processes
from tcc.losses import confident, mean_over_pixels

_CHOICES = {
    "LABEL_SOURCE": ("cross", "own", "agree"),
    "PROTOTYPE_SCOPE": ("image", "batch", "batch_sync"),
    "DIRECTION": ("mutual", "cnn_to_vit", "vit_to_cnn"),
    "NORMALIZE": ("none", "standardize"),
    "RESIZE": ("features", "similarity"),
}
_SMALLEST_NORM = 1e-6


@dataclass(frozen=True)
class ConsistencyOptions:
    """The keys MODEL.TCC.CFCD.* of the same names; see ``tcc/config.py``."""

    stride: int = 16
    label_source: str = "cross"
    prototype_scope: str = "image"
    detach_prototype: bool = False
    direction: str = "mutual"
    min_pixels: int = 1
    conf_threshold: float = 0.0
    normalize: str = "none"
    resize: str = "features"

    def __post_init__(self) -> None:
        """Check the choices.

        Raises:
            ConfigError: names the key.
        """
        for key, known in _CHOICES.items():
            value = getattr(self, key.lower())
            check_choice(f"MODEL.TCC.CFCD.{key}", value, known)
        if self.stride < 1 or self.min_pixels < 1:
            raise ConfigError(
                f"MODEL.TCC.CFCD has STRIDE {self.stride} and MIN_PIXELS {self.min_pixels}; expected at least 1"
            )


class PixelLabels(NamedTuple):
    """Labels that pixels are grouped by, and which of them count."""

    labels: Tensor  # (B, h, w) int64 in [0, K); anything where not valid
    valid: Tensor  # (B, h, w) bool


def labels_of(logits: Tensor, valid: Tensor, conf_threshold: float = 0.0) -> PixelLabels:
    """Pseudo labels: the best class of each pixel, without gradient (L_k of Eq. 3 and 4).

    Args:
        logits: (B, K, H, W) float.
        valid: (B, H, W) bool.
        conf_threshold: less confident pixels do not count.
    """
    return PixelLabels(logits.detach().max(dim=1).indices, valid & confident(logits, conf_threshold))


def on_grid(pixels: PixelLabels, size: tuple[int, int]) -> PixelLabels:
    """Labels of the pixels nearest to the centres of a coarser grid's cells."""
    if tuple(pixels.labels.shape[-2:]) == tuple(size):
        return pixels
    # The pixel in which a cell's center lies.
    rows, columns = (
        ((torch.arange(cells, device=pixels.labels.device) + 0.5) * length / cells).long()
        for cells, length in zip(size, pixels.labels.shape[-2:], strict=True)
    )
    return PixelLabels(*(part[:, rows[:, None], columns] for part in pixels))


def class_similarity(
    features: Tensor, pixels: PixelLabels, num_classes: int, options: ConsistencyOptions
) -> tuple[Tensor, Tensor]:
    """Cosine of every pixel's feature with the mean feature of its class (Eq. 5 and 6).

    Features (1,0), (0,1), (1,1), (2,0) with labels 0, 0, 1, 1 give 0.7071, 0.7071, 0.8944, 0.9487.

    Args:
        features: (B, D, h, w) float.
        pixels: labels on the same grid.
        num_classes: K.
        options: scope of the prototypes, their gradient, least number of pixels.

    Returns:
        (B, h, w) float32 in [-1, 1], 0 where it is not defined, and (B, h, w) bool: where it is.
    """
    with torch.autocast(features.device.type, enabled=False):
        flat = features.float().flatten(2)  # (B, D, N)
        valid = pixels.valid.flatten(1)
        labels = torch.where(valid, pixels.labels.flatten(1), 0)
        classes = torch.arange(num_classes, device=labels.device)
        # (B, K, N), pixels last as in the features: the gradients of both products then need no transposed copy.
        member = ((labels[:, None] == classes[:, None]) & valid[:, None]).to(flat.dtype)
        sums, counts = flat @ member.transpose(1, 2), member.sum(dim=2)  # (B, D, K), (B, K)
        if options.prototype_scope != "image":
            sums, counts = sums.sum(dim=0, keepdim=True), counts.sum(dim=0, keepdim=True)
        if options.prototype_scope == "batch_sync":
            sums, counts = sum_over_processes(sums), sum_over_processes(counts)
        # Eq. 5: the mean feature of each class, (B, D, K); (1, D, K) where the batch shares them.
        prototypes = sums / counts[:, None].clamp_min(1)
        if options.detach_prototype:
            prototypes = prototypes.detach()
        table = prototypes.transpose(1, 2) @ flat  # (B, K, N)
        # <feature, prototype> of every class, of which gather takes the pixel's own: (B, K, N) -> (B, N).
        of_label = table.gather(1, labels[:, None])[:, 0]
        # Eq. 6: divided by both norms, (B, N) each.
        norms = _norm(flat), _norm(prototypes).expand(len(flat), -1).gather(1, labels)
        cosine = of_label / (norms[0] * norms[1])
        # A vector of zeros has no direction, and a gradient without bound.
        defined = valid & (torch.minimum(*norms) > _SMALLEST_NORM)
        defined &= counts.expand(len(flat), -1).gather(1, labels) >= options.min_pixels
        shape = pixels.labels.shape
        return torch.where(defined, cosine, cosine.new_zeros(())).view(shape), defined.view(shape)


def feature_consistency(
    features: tuple[Tensor, Tensor],
    labels: tuple[PixelLabels, PixelLabels],
    num_classes: int,
    options: ConsistencyOptions,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared difference of the two students' similarity maps (Eq. 7).

    The symmetric form gives each student the gradient of a one-way loss towards a fixed peer: the value is not doubled.

    Args:
        features: of the CNN (B, D1, h1, w1) and the transformer (B, D2, h2, w2).
        labels: of the CNN and the transformer, (B, H, W) in full resolution; true labels: twice the same.
        num_classes: K.
        options: every choice of MODEL.TCC.CFCD.

    Returns:
        Scalar >= 0, float32, mean over the defined cells of each image, then over images; and observations: mean
        similarity of each student, share of cells on which the labels agree.
    """
    height, width = labels[0].labels.shape[-2:]
    grid = (-(-height // options.stride), -(-width // options.stride))
    # The masking of Eq. 3 and 4: the peer's labels group a student's features.
    chosen = _assigned_labels(labels, options.label_source)
    maps, defined = [], []
    for feature, pixels in zip(features, chosen, strict=True):
        similarity, where = _similarity_on(grid, feature, pixels, num_classes, options)
        maps.append(similarity)
        defined.append(where)
    # Eq. 7 compares cells that both students define; (B, h, w).
    both = defined[0] & defined[1]
    first, second = (_normalized(part, both, options.normalize) for part in maps)
    # One-way forms: the other student is a fixed target.
    if options.direction == "cnn_to_vit":
        first = first.detach()
    elif options.direction == "vit_to_cnn":
        second = second.detach()
    loss = mean_over_pixels((first - second) ** 2, both)
    agree = on_grid(PixelLabels((labels[0].labels == labels[1].labels).long(), labels[0].valid & labels[1].valid), grid)
    observations = {
        "similarity_cnn": mean_over_pixels(maps[0].detach(), both),
        "similarity_vit": mean_over_pixels(maps[1].detach(), both),
        "label_agreement": mean_over_pixels(agree.labels.float(), agree.valid),
    }
    return loss, observations


def _assigned_labels(labels: tuple[PixelLabels, PixelLabels], source: str) -> tuple[PixelLabels, PixelLabels]:
    """Labels that each student's features are grouped by; "cross" is the masking of Eq. 3 and 4."""
    if source == "cross":
        return labels[1], labels[0]
    if source == "own":
        return labels
    same = labels[0].valid & labels[1].valid & (labels[0].labels == labels[1].labels)
    return PixelLabels(labels[0].labels, same), PixelLabels(labels[1].labels, same)


def _similarity_on(
    grid: tuple[int, int], features: Tensor, pixels: PixelLabels, num_classes: int, options: ConsistencyOptions
) -> tuple[Tensor, Tensor]:
    """Similarity map on the common grid: features are brought there first, or the map afterwards."""
    if options.resize == "features" or tuple(features.shape[-2:]) == grid:
        if tuple(features.shape[-2:]) != grid:
            features = F.interpolate(features.float(), size=grid, mode="bilinear", align_corners=False)
        return class_similarity(features, on_grid(pixels, grid), num_classes, options)
    size = (features.shape[-2], features.shape[-1])
    similarity, defined = class_similarity(features, on_grid(pixels, size), num_classes, options)
    resized = F.interpolate(similarity[:, None], size=grid, mode="bilinear", align_corners=False)[:, 0]
    # A cell counts if no undefined one took part in its mean.
    share = F.interpolate(defined[:, None].float(), size=grid, mode="bilinear", align_corners=False)[:, 0]
    return resized, (share > 1 - 1e-6) & on_grid(pixels, grid).valid


def _normalized(values: Tensor, valid: Tensor, how: str) -> Tensor:
    """With "standardize" mean 0 and deviation 1 over the valid cells of each image."""
    if how == "none":
        return values
    count = valid.sum(dim=(1, 2), keepdim=True).clamp_min(1)
    # Deviations of invalid cells are set to 0: they leave mean, variance and the loss.
    centered = (values - (values * valid).sum(dim=(1, 2), keepdim=True) / count) * valid
    variance = (centered**2).sum(dim=(1, 2), keepdim=True) / count
    return centered / (variance + 1e-6).sqrt()


def _norm(vectors: Tensor) -> Tensor:
    """Euclidean norm over dimension 1, at least the smallest one, where its gradient is 0."""
    # Not vector_norm: over a dimension that is not the last it is slower and sums with less precision.
    return (vectors**2).sum(dim=1).clamp_min(_SMALLEST_NORM**2).sqrt()
