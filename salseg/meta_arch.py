# SPDX-License-Identifier: Apache-2.0
"""SalSeg: segmentation and saliency learned together on one encoder.

Wiring only: images pass through backbone and pyramid, which both tasks share, then through segmentation decoder and
``SaliencyBranch``; ``losses`` and ``TaskWeighting`` make the total. Images of a step are grouped by the labels they
have, and each group is one pass.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from torch import Tensor, nn

from padding.data.sample import IGNORE_LABEL
from padding.errors import ConfigError
from padding.modeling.batching import (
    batch_images,
    batch_label_maps,
    map_size,
    register_pixel_statistics,
    require_keys,
    sample_name,
)
from padding.modeling.deeplab import DeepLabDecoder
from padding.modeling.diagnostics import note_observations
from padding.modeling.label_space import learned_split
from padding.modeling.memory_order import build_ordered_backbone
from padding.modeling.tta import SegmentationPlan, segment_sample
from salseg.batch_norm import SaliencyStatistics
from salseg.heads import (
    SaliencyBranch,
    SharedFeatures,
    build_branch,
    build_pyramid,
    deeplab_options,
    feature_names,
)
from salseg.loss_balance import TaskBalance
from salseg.losses import LossSum, join, saliency_loss, segmentation_loss
from salseg.task_weighting import TASKS, TaskWeighting, tasks_of

# Strides up to 32, and what networks of timm need.
_SIZE_DIVISIBILITY = 32
_LABEL_OF = {"seg": "sem_seg", "saliency": "saliency"}


def _build_weighting(node: CfgNode, weighting: str) -> TaskWeighting:
    keys = node.BALANCE
    balance = TaskBalance(floor=tuple(keys.FLOOR), running_mean=keys.RUNNING_MEAN, pixel_sums=keys.PIXEL_SUMS)
    return TaskWeighting(weighting, weights=node.WEIGHTS, clamp=node.LOG_VARIANCE.CLAMP, balance=balance)


class _Group(NamedTuple):
    """Images that have the same kinds of labels."""

    samples: list[dict[str, Any]]
    tasks: tuple[str, ...]


@META_ARCH_REGISTRY.register()
class SalSeg(nn.Module):
    """Shared backbone and pyramid, segmentation decoder, saliency branch.

    ``forward`` takes samples with ``image`` (3, H, W) uint8. In training those with ``sem_seg`` (H, W) int64 train the
    segmentation, those with ``saliency`` (1, H, W) float in [0, 1] and ``saliency_valid`` (H, W) bool the saliency;
    one sample may have both. It returns weighted losses ``loss_*`` in training, in evaluation
    ``[{"sem_seg": (K, h, w) probabilities, "saliency": (h, w) in [0, 1]}]``, all float32.

    Attributes:
        backbone, pyramid: shared; called the encoder together.
        decoder: gives the K class logits.
        branch: gives the saliency; None in a model without it.
        statistics: policy of the encoder's batch norm.
        weighting: of the losses.
        class_weights: (K,) of the segmentation loss; 1 unless the trainer sets them.
    """

    required_train_keys = ("image",)
    training_only = ("weighting.",)  # so that a training with other task weights can be evaluated

    pixel_mean: Tensor
    pixel_std: Tensor
    class_weights: Tensor

    @configurable
    def __init__(  # noqa: PLR0913  (the parts of the network are four of nine)
        self,
        *,
        backbone: Backbone,
        pyramid: nn.Module,
        in_features: tuple[str, str],
        decoder: DeepLabDecoder,
        branch: SaliencyBranch | None,
        weighting: TaskWeighting,
        statistics: str,
        evaluation: tuple[SegmentationPlan, bool],
        pixels: tuple[Sequence[float], Sequence[float]],
    ) -> None:
        """Put the parts together.

        Args:
            backbone: image -> maps by name.
            pyramid: last map -> x_mid.
            in_features: names of the low-level and the last map.
            decoder: low-level map and x_mid -> K logits.
            branch: the same -> saliency; None: segmentation alone.
            weighting: of the losses.
            statistics: one of ``batch_norm.POLICIES``.
            evaluation: how an image is segmented, and whether saliency is returned as well.
            pixels: mean and standard deviation per channel, in the channel order of the input.
        """
        super().__init__()
        self.backbone = backbone
        self.pyramid = pyramid
        self.in_features = in_features
        self.decoder = decoder
        self.branch = branch
        self.num_classes = decoder.predictor.out_channels
        self.weighting = weighting
        shared = [backbone, pyramid] if branch is None or branch.decoder is not None else [backbone, pyramid, decoder]
        self.statistics = SaliencyStatistics(statistics, shared)
        self.plan, predict_saliency = evaluation
        self.predict_saliency = predict_saliency and branch is not None
        register_pixel_statistics(self, *pixels)
        self.register_buffer("class_weights", torch.ones(self.num_classes), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from a config; the classes are those of the training set, else of the test set.

        The segmentation is built before the branch, so that a seed gives it the same values with and without.
        """
        node = cfg.MODEL.SALSEG
        tasks = tasks_of(node.WEIGHTING)
        split = learned_split(cfg)
        backbone = build_ordered_backbone(cfg)
        names = feature_names(node, backbone)
        low_channels, last_channels = (backbone.output_shape()[name].channels for name in names)
        pyramid = build_pyramid(node, last_channels)

        def decoder(num_maps: int) -> DeepLabDecoder:
            return DeepLabDecoder(
                low_channels=low_channels,
                high_channels=node.ASPP.CHANNELS,
                num_classes=num_maps,
                options=deeplab_options(node),
            )

        segmentation = decoder(split.num_classes)
        if "seg" not in tasks:
            segmentation.requires_grad_(False)
        branch = None
        if "saliency" in tasks and node.SALIENCY.ENABLED:
            branch = build_branch(node, split.num_classes, decoder)
        elif "seg" not in tasks:
            raise ConfigError("MODEL.SALSEG.WEIGHTING 'saliency_only' needs MODEL.SALSEG.SALIENCY.ENABLED True")
        weighting = node.WEIGHTING if branch is not None else "seg_only"
        return {
            "backbone": backbone,
            "pyramid": pyramid,
            "in_features": names,
            "decoder": segmentation,
            "branch": branch,
            "weighting": _build_weighting(node, weighting),
            # With one task alone its statistics are the only ones.
            "statistics": node.SALIENCY.BN_STATS if tasks == TASKS and branch is not None else "shared",
            "evaluation": (
                SegmentationPlan.from_config(cfg, size_divisibility=_SIZE_DIVISIBILITY),
                node.TEST.SALIENCY,
            ),
            "pixels": (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD),
        }

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return self.pixel_mean.device

    def set_class_weights(self, weights: Tensor) -> None:
        """Weigh the classes in the segmentation loss.

        Args:
            weights: (K,) float > 0.

        Raises:
            ValueError: for anything else.
        """
        if weights.shape != self.class_weights.shape or not bool((weights > 0).all()):
            raise ValueError(f"class weights {weights.tolist()}: expected {self.num_classes} numbers > 0")
        self.class_weights.copy_(weights)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, predictions in evaluation.

        Raises:
            KeyError: if a sample lacks what it must have.
            ValueError: if a sample has labels of no task.
        """
        require_keys(batched_inputs, self.required_train_keys, type(self).__name__)
        if not self.training:
            pixels = {"pixel_mean": self.pixel_mean, "pixel_std": self.pixel_std}
            predictions = [segment_sample(self.logits, sample, self.plan, **pixels) for sample in batched_inputs]
            # Saliency is one map: (1, h, w) -> (h, w).
            return [{name: maps[0] if name == "saliency" else maps for name, maps in p.items()} for p in predictions]

        # Sums of costs and of weights, from one pass for each kind of labels that images have.
        parts: dict[str, list[LossSum]] = {}
        for group in self._groups(batched_inputs):
            for task, part in self._group_losses(group).items():
                parts.setdefault(task, []).append(part)

        # One mean per task over all passes, so that the split into passes does not weigh; then their sum (Eq. 8).
        losses = join(parts, TASKS, self.device)
        observations: dict[str, Tensor | float] = {task: loss.mean.detach() for task, loss in losses.items()}
        observations |= {f"weight_{task}": weight for task, weight in self.weighting.weights.items()}
        for learned in (self.weighting.log_variances, self.weighting.log_temperatures):
            observations |= {f"log_variance_{task}": s.detach() for task, s in learned.items()}
        note_observations("salseg", observations)
        return self.weighting(losses)

    # Training -----------------------------------------------------------------------------------------------------

    def _groups(self, samples: Sequence[dict[str, Any]]) -> list[_Group]:
        """Samples by the tasks they have labels for, of those that are trained."""
        groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for sample in samples:
            tasks = tuple(task for task in self.weighting.tasks if _LABEL_OF[task] in sample)
            if not tasks:
                wanted = " or ".join(f"'{_LABEL_OF[task]}'" for task in self.weighting.tasks)
                raise ConfigError(
                    f"sample {sample_name(sample)} has no {wanted}, which MODEL.SALSEG.WEIGHTING trains; set "
                    "SOLVER.IMS_PER_BATCH_SALIENCY and DATASETS to fit"
                )
            groups.setdefault(tasks, []).append(sample)
        return [_Group(members, tasks) for tasks, members in groups.items()]

    def _group_losses(self, group: _Group) -> dict[str, LossSum]:
        # Images (B, 3, H, W), normalised and padded to one size.
        pixels = batch_images(
            group.samples, pixel_mean=self.pixel_mean, pixel_std=self.pixel_std, size_divisibility=_SIZE_DIVISIBILITY
        ).tensor
        size = map_size(pixels)

        # Shared features: low level (B, C_l, H/4, W/4), x_mid (B, C, H/16, W/16). Saliency images alone must not move
        # the statistics of the segmentation. Class logits (B, K, H/4, W/4) where a task asks for them (Eq. 1).
        with nullcontext() if "seg" in group.tasks else self.statistics.saliency_pass():
            features = self._encode(pixels)
            shared = self.branch is not None and self.branch.decoder is None
            logits = self.decoder(*features)[0] if "seg" in group.tasks or shared else None

        losses = {}
        if "seg" in group.tasks:
            assert logits is not None
            labels = batch_label_maps(group.samples, padded_size=size, ignore_label=IGNORE_LABEL, device=self.device)
            wide = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
            losses["seg"] = segmentation_loss(self._sharpened("seg", wide), labels, self.class_weights)
        if "saliency" in group.tasks:
            # y_sal from s_fea and s_seg (Eq. 2 to 4), against maps (B, 1, H, W) where ``valid`` (B, H, W) is True.
            assert self.branch is not None
            losses["saliency"] = saliency_loss(
                self._sharpened("saliency", self.branch(features, size, logits)),
                self._padded(group.samples, "saliency", size),
                self._padded(group.samples, "saliency_valid", size),
            )
        return losses

    def _sharpened(self, task: str, logits: Tensor) -> Tensor:
        """Logits at the temperature of the task, which only "likelihood" has."""
        factor = self.weighting.sharpness(task)
        return logits if factor is None else logits.float() * factor

    def _encode(self, pixels: Tensor) -> SharedFeatures:
        """Low-level map and x_mid of images (B, 3, H, W)."""
        features = self.backbone(pixels)
        low, last = self.in_features
        return features[low], self.pyramid(features[last])

    def _padded(self, samples: Sequence[dict[str, Any]], key: str, size: tuple[int, int]) -> Tensor:
        require_keys(samples, (key,), type(self).__name__)
        return batch_label_maps(samples, padded_size=size, ignore_label=0, device=self.device, key=key)

    # Evaluation ---------------------------------------------------------------------------------------------------

    def logits(self, view: Tensor) -> dict[str, Tensor]:
        """Class logits, and saliency if it is wanted, of images (B, 3, H, W) float, normalized.

        Returns:
            ``sem_seg`` (B, K, H/4, W/4), ``saliency`` (B, 1, H, W).
        """
        features = self._encode(view)
        logits = self.decoder(*features)[0]
        classes = self._sharpened("seg", logits)
        if not self.predict_saliency:
            return {"sem_seg": classes}
        assert self.branch is not None
        of_saliency = logits
        if self.statistics.policy == "per_task":
            # Saliency was learned under statistics of its own, which is a second pass through the encoder.
            with self.statistics.saliency_pass():
                features = self._encode(view)
                of_saliency = self.decoder(*features)[0] if self.branch.decoder is None else logits
        saliency = self._sharpened("saliency", self.branch(features, map_size(view), of_saliency))
        return {"sem_seg": classes, "saliency": saliency}
