# SPDX-License-Identifier: Apache-2.0
"""PSI: a network that propagates patterns, and labels that grow from scribbles while it learns (ICCV 2021).

Wiring only. A training step is one forward: the scores grow the labels, T times; the labels, detached, train the
network [Theta], the scores, detached, train the threshold network [theta]. One backward is both updates of the paper's
alternation.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from padding.data.sample import IGNORE_LABEL
from padding.errors import ConfigError
from padding.modeling.batching import (
    batch_images,
    batch_label_maps,
    batch_valid_masks,
    map_size,
    register_pixel_statistics,
    require_keys,
)
from padding.modeling.diagnostics import note_observations, training_iteration
from padding.modeling.label_space import learned_split
from padding.modeling.teacher import target_pass, update_average, warmed_up
from padding.modeling.tta import SegmentationPlan, segment_sample
from psi import losses
from psi.color_affinity import cell_colors
from psi.grid import supervision_at_pixels, supervision_on_grid, valid_cells
from psi.label_diffusion import DiffusionStep, ThresholdNetwork, diffuse
from psi.label_quality import label_quality
from psi.network import SegmentationNetwork, build_network
from psi.options import GrowthOptions, LossOptions, TeacherOptions
from psi.supervision import PixelSupervision, Supervision

# No row or column of cells at stride 4 is cut; coarser maps may be.
_SIZE_DIVISIBILITY = 4


class LabelsAtStep(NamedTuple):
    """y_t of a batch: goes into a training step of the modes "inner_loop" and "rounds", comes out as y_{t+1}."""

    step: int = 0  # t
    grid: Supervision | None = None  # None: what came with the batch, scribbles or stored labels


class _Batch(NamedTuple):
    pixels: Tensor  # (B, 3, H, W) float, normalised; labels grow on these
    trained: Tensor  # the same, or their strong view, which the network learns on
    valid: Tensor  # (B, H, W) bool, False in padding
    scribbles: Tensor  # (B, H, W) int64
    stored: PixelSupervision | None  # labels of an earlier round, with the scribbles on top


class _Growth(NamedTuple):
    """What supervises a step, and how it came about."""

    supervision: PixelSupervision  # labels and weights of the pixels, (B, H, W)
    steps: list[DiffusionStep]  # empty where nothing grew
    cells: Tensor  # (B, h, w) bool, cells of the image
    after: LabelsAtStep


@META_ARCH_REGISTRY.register()
class PSI(nn.Module):
    """Scribble-supervised segmentation; in evaluation, the probabilities of the network, for which no scribble is read.

    ``forward`` takes samples with ``image`` (3, H, W) uint8; in training also ``sem_seg`` (H, W) int64, the scribbles,
    void where nothing is drawn, maybe ``valid`` (H, W) bool, False in padding, ``image_strong`` with WEAK_TO_STRONG, in
    the mode "rounds" ``diffused`` and ``diffused_weight`` of ``StoredLabelMapper``. It returns weighted losses
    ``loss_*`` in training, in evaluation ``[{"sem_seg": (K, h, w) float probabilities}]``.

    Attributes:
        network: [Theta], images -> logits.
        threshold_net: [theta]; None where no label ever grows.
        average: moving average of ``network``; None without MODEL.PSI.TEACHER.DECAY, or where nobody asks it.
    """

    required_train_keys = ("image", "sem_seg")

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        network: SegmentationNetwork,
        threshold_net: ThresholdNetwork,
        num_classes: int,
        growth: GrowthOptions,
        loss_options: LossOptions,
        teacher: TeacherOptions,
        plan: SegmentationPlan,
        pixels: tuple[Sequence[float], Sequence[float]],
    ) -> None:
        """Put the parts together.

        Args:
            network: images -> logits at stride 4.
            threshold_net: g.
            num_classes: K.
            growth: when and how labels grow.
            loss_options: weights and choices of the losses.
            teacher: whose scores grow the labels, and on which view.
            plan: how an image is segmented in evaluation.
            pixels: mean and standard deviation per channel, in the channel order of the input.
        """
        super().__init__()
        self.network = network
        self.threshold_net = threshold_net if growth.steps else None
        self.num_classes = num_classes
        self.growth = growth
        self.loss_options = loss_options
        self.teacher = teacher
        self.average: SegmentationNetwork | None = None
        if teacher.decay > 0 and (growth.steps or teacher.evaluate):
            self.average = copy.deepcopy(network).requires_grad_(False)
        self.plan = plan
        self.class_balance = loss_options.balance  # moves with the model
        if self.class_balance is not None and growth.diffusion.target == "soft":
            raise ConfigError(
                "MODEL.CLASS_BALANCE is for labels of one class, but MODEL.PSI.SLD.TARGET is 'soft'; choose 'hard'"
            )
        register_pixel_statistics(self, *pixels)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from a config; the classes are those of the training set, else of the test set."""
        node = cfg.MODEL.PSI
        split = learned_split(cfg)
        return {
            "network": build_network(cfg, split.num_classes),
            "threshold_net": ThresholdNetwork(hidden=node.SLD.THRESHOLD_NET.HIDDEN, bound=node.SLD.THRESHOLD_NET.BOUND),
            "num_classes": split.num_classes,
            "growth": GrowthOptions.from_config(cfg),
            "loss_options": LossOptions.from_config(cfg),
            "teacher": TeacherOptions.from_config(cfg),
            "plan": SegmentationPlan.from_config(cfg, size_divisibility=_SIZE_DIVISIBILITY),
            "pixels": (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD),
        }

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return self.pixel_mean.device

    def forward(
        self, batched_inputs: list[dict[str, Any]], labels: LabelsAtStep | None = None
    ) -> dict[str, Tensor] | tuple[dict[str, Tensor], LabelsAtStep] | list[dict[str, Tensor]]:
        """Losses in training, predictions in evaluation.

        Args:
            batched_inputs: see the class.
            labels: y_t, of a trainer that makes several passes over a batch or knows the round; None: y_0.

        Returns:
            In training the losses; with ``labels`` also y_{t+1}, which grew from them.

        Raises:
            KeyError: if a sample lacks what it must have.
        """
        if not self.training:
            require_keys(batched_inputs, self.required_train_keys[:1], type(self).__name__)
            pixels = {"pixel_mean": self.pixel_mean, "pixel_std": self.pixel_std}
            return [segment_sample(self.logits, sample, self.plan, **pixels) for sample in batched_inputs]

        # Images (B, 3, H, W) and their scribbles (B, H, W), padded to one size.
        require_keys(batched_inputs, self.required_train_keys, type(self).__name__)
        batch = self._batch(batched_inputs)

        # Scores: logits (B, K, H/4, W/4), and at the resolution of the scribbles for the loss (Sec. 3.1).
        logits = self.network(batch.trained, batch.valid)
        full = F.interpolate(logits, size=map_size(batch.trained), mode="bilinear", align_corners=False)

        # Labels: they grow on detached scores, so that no gradient of theirs reaches the network (SLD).
        growth = self._grow(logits.detach(), batch, labels or LabelsAtStep())

        # Losses: of the network on the labels (Eq. 10), of the threshold network on how they grew (L_sld).
        terms = self._network_losses(logits, full, growth.supervision, batch.valid) | self._threshold_losses(growth)
        note_observations("psi", _growth_observations(growth, batch.valid))
        return terms if labels is None else (terms, growth.after)

    def logits(self, view: Tensor) -> dict[str, Tensor]:
        """Class logits ``sem_seg`` (B, K, H/4, W/4) of images (B, 3, H, W) float, normalized; no scribble is read."""
        network = self.average if self.teacher.evaluate and self.average is not None else self.network
        return {"sem_seg": network(view)}

    # The moving average ---------------------------------------------------------------------------------------------

    @property
    def label_network(self) -> SegmentationNetwork:
        """The network whose scores grow labels: the moving average, or the trained one."""
        return self.network if self.average is None else self.average

    def update_average(self) -> None:
        """Move the average towards the network, once per optimizer step."""
        if self.average is not None:
            decay = self.teacher.decay
            if self.teacher.warm_up:
                decay = warmed_up(decay, training_iteration())
            update_average(self.average, self.network, decay)

    def reset_average(self) -> None:
        """Make the average equal to the network, as a training starts from the latter's weights."""
        if self.average is not None:
            self.average.load_state_dict(self.network.state_dict())

    # Training -------------------------------------------------------------------------------------------------------

    def _batch(self, samples: Sequence[dict[str, Any]]) -> _Batch:
        pixels = trained = self._pixels(samples)
        if self.teacher.weak_to_strong:
            require_keys(samples, ("image_strong",), f"{type(self).__name__} with WEAK_TO_STRONG")
            trained = self._pixels(samples, key="image_strong")
        place: dict[str, Any] = {"padded_size": map_size(pixels), "device": self.device}
        valid = batch_valid_masks(samples, **place)
        scribbles = batch_label_maps(samples, ignore_label=IGNORE_LABEL, **place)
        if self.growth.mode != "rounds" or "diffused" not in samples[0]:
            return _Batch(pixels, trained, valid, scribbles, None)
        # Labels of the last round, as images were flipped and cropped with them; weight 0 where there are none.
        labels = batch_label_maps(samples, ignore_label=IGNORE_LABEL, key="diffused", **place)
        weights = batch_label_maps(samples, ignore_label=0, key="diffused_weight", **place)
        stored = PixelSupervision.of_stored(scribbles, labels, weights, num_classes=self.num_classes)
        return _Batch(pixels, trained, valid, scribbles, stored)

    def _pixels(self, samples: Sequence[dict[str, Any]], key: str = "image") -> Tensor:
        """Normalised and padded images, (B, 3, H, W)."""
        statistics = {"pixel_mean": self.pixel_mean, "pixel_std": self.pixel_std}
        return batch_images(samples, **statistics, size_divisibility=_SIZE_DIVISIBILITY, key=key).tensor

    def _grow(self, logits: Tensor, batch: _Batch, labels: LabelsAtStep) -> _Growth:
        """Grow y_t on the network's scores; what supervises is y_T in "online", else y_t itself."""
        options = self.growth

        # y_t at the pixels. Scribbles and stored labels are finer than the grid: they supervise as they are until
        # something has grown.
        visible = batch.scribbles.masked_fill(~batch.valid, IGNORE_LABEL)
        given = batch.stored or PixelSupervision.of_scribbles(visible, num_classes=self.num_classes)
        if labels.grid is not None:
            given = self._at_pixels(labels.grid, batch)
        too_early = options.mode != "rounds" and training_iteration(options.start_iter) < options.start_iter
        if self.threshold_net is None or too_early:
            return _Growth(given, [], valid_cells(batch.valid, stride=options.stride), labels)

        # y_t on the grid (B, h, w), and the scores M (B, K, h, w) of its cells.
        drawn, cells = supervision_on_grid(
            batch.scribbles, batch.valid, num_classes=self.num_classes, stride=options.stride, stored=batch.stored
        )
        before = labels.grid or drawn
        if self.teacher.has_own_pass:
            with target_pass(self.label_network, self.teacher.batch_norm, key="MODEL.PSI.TEACHER.BATCH_NORM"):
                logits = self.label_network(batch.pixels, batch.valid)
        scores = logits.float().softmax(dim=1)
        if map_size(scores) != map_size(cells):  # another stride than the logits'
            scores = F.interpolate(scores, size=map_size(cells), mode="bilinear", align_corners=False)

        # y_{t+1} = max(y_t, B), once or T times, by the mode (Eq. 9).
        diffusion = options.diffusion_at(labels.step)
        colors = None
        if diffusion.affinity.mode != "none":
            raw = batch.pixels * self.pixel_std + self.pixel_mean
            colors = cell_colors(raw, map_size(cells), stride=options.stride)
        steps = diffuse(scores, before, cells, threshold_net=self.threshold_net, options=diffusion, colors=colors)
        after = steps[-1].supervision if steps else before
        supervision = self._at_pixels(after, batch) if options.mode == "online" else given
        return _Growth(supervision, steps, cells, LabelsAtStep(labels.step + 1, after))

    def _at_pixels(self, supervision: Supervision, batch: _Batch) -> PixelSupervision:
        return supervision_at_pixels(
            supervision,
            batch.scribbles,
            batch.valid,
            stride=self.growth.stride,
            num_classes=self.num_classes,
            soft=self.growth.diffusion.target == "soft",
        )

    def _network_losses(
        self, logits: Tensor, full: Tensor, supervision: PixelSupervision, valid: Tensor
    ) -> dict[str, Tensor]:
        """L_seg = L_ce + lambda_1 L_p, of logits (B, K, H/4, W/4) and ``full`` (B, K, H, W)."""
        options = self.loss_options
        begin = 0 if self.growth.mode == "rounds" else self.growth.start_iter
        ramp = options.diffused_ramp(max(training_iteration(begin) - begin, 0))
        cross_entropy = losses.segmentation_loss(
            full,
            supervision,
            region_norm=options.region_norm,
            diffused_weight=ramp * options.diffused_weight,
            balance=self.class_balance,
        )
        if options.smooth_weight <= 0:
            return {"loss_seg": cross_entropy}
        maps, where = full, valid
        if options.smooth_stride > 1:
            where = valid_cells(valid, stride=options.smooth_stride)
            maps = F.interpolate(logits, size=map_size(where), mode="bilinear", align_corners=False)
        smoothness = losses.smoothness(maps, where, on=options.smooth_on, reduction=options.smooth_reduction)
        return {"loss_seg": cross_entropy, "loss_smooth": options.smooth_weight * smoothness}

    def _threshold_losses(self, growth: _Growth) -> dict[str, Tensor]:
        """L_sld = L_ce(y_B, y_R0) + lambda_2 L_ce(M, y_B); its gradient reaches the threshold network alone."""
        if self.threshold_net is None:
            return {}
        if not growth.steps:
            # Every parameter takes part in every step, as DistributedDataParallel wants it.
            nothing = sum((p.sum() for p in self.threshold_net.parameters()), torch.zeros((), device=self.device)) * 0.0
            return {"loss_scribble_recall": nothing}
        recall, diffused = losses.threshold_losses(
            growth.steps, growth.cells, region=self.loss_options.diffusion_region
        )
        return {"loss_scribble_recall": recall, "loss_diffusion": self.loss_options.diffusion_weight * diffused}


def _growth_observations(growth: _Growth, valid: Tensor) -> dict[str, Tensor | float]:
    """Share of labeled pixels and, where labels grew, the mean threshold of the last step."""
    observed: dict[str, Tensor | float] = {"coverage": label_quality(growth.supervision, valid).coverage}
    if growth.steps:
        last = growth.steps[-1]
        # Slots without a class are fillers: image by image, the classes that are drawn differ in number.
        there = last.before.classes >= 0
        observed["threshold"] = last.threshold.detach()[there].sum() / there.sum().clamp_min(1)
    return observed
