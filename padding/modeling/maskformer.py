# SPDX-License-Identifier: Apache-2.0
"""MaskFormer: a network that predicts a set of classified masks (MaskFormer, Sec. 3; Mask2Former, Sec. 3).

Wiring only. It trains in the label space of the training set and predicts in that of the test set, which may hold more
classes; the two are joined by class name. Alone it is the supervised baseline and the first stage of PADing.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_sem_seg_head
from detectron2.structures import ImageList
from torch import Tensor, nn

from padding.data.sample import Prediction
from padding.modeling.batching import (
    batch_images,
    prepare_targets,
    register_pixel_statistics,
    require_keys,
    sample_name,
)
from padding.modeling.class_balance import build_class_balance
from padding.modeling.criterion import MaskCriterion
from padding.modeling.inference import keep_classes, widen_logits
from padding.modeling.label_space import evaluation_split, num_learned_classes, training_split
from padding.modeling.matcher import HungarianMatcher
from padding.modeling.memory_order import build_ordered_backbone
from padding.modeling.postprocessing import InferenceOptions, predict_image


@META_ARCH_REGISTRY.register()
class MaskFormer(nn.Module):
    """Backbone, mask classification head and post-processing.

    ``forward`` takes a list of samples: in training with ``image`` (3, H_i, W_i) and ``instances``, and gives weighted
    losses; in evaluation with ``image`` and the original ``height`` and ``width``, and gives a ``Prediction`` each.
    """

    required_train_keys = ("image", "instances")

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(  # noqa: PLR0913  (the parts of the network, the label spaces and the constants of the input)
        self,
        *,
        backbone: nn.Module,
        sem_seg_head: nn.Module,
        criterion: MaskCriterion,
        class_ids: Sequence[int],
        num_test_classes: int,
        thing_ids: frozenset[int],
        inference: InferenceOptions,
        deep_supervision: bool,
        seed_points_by_image: bool,
        size_divisibility: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        keep_empty_segments: bool = False,
    ) -> None:
        """Put the parts together.

        Args:
            backbone: image -> features by name.
            sem_seg_head: features -> ``pred_logits``, ``pred_masks``, ``pred_embeddings``, ``aux_outputs``.
            criterion: losses of the head's output.
            class_ids: per training class its id in the test label space.
            num_test_classes: K of the test label space.
            thing_ids: countable classes of the test label space.
            inference: outputs and thresholds.
            deep_supervision: losses on the auxiliary predictions too.
            seed_points_by_image: random points of the losses depend on the image id alone (to compare runs exactly).
            size_divisibility: H and W of a batch are multiples of it.
            pixel_mean: per channel, in the channel order of the input.
            pixel_std: per channel.
            keep_empty_segments: segments without a pixel are matched too, as in the published code.
        """
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.class_ids = tuple(class_ids)
        self.num_test_classes = num_test_classes
        self.thing_ids = thing_ids
        self.active_ids: tuple[int, ...] | None = None
        self.inference = inference
        self.deep_supervision = deep_supervision
        self.seed_points_by_image = seed_points_by_image
        self.size_divisibility = size_divisibility
        self.keep_empty_segments = keep_empty_segments
        register_pixel_statistics(self, pixel_mean, pixel_std)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from a config.

        Raises:
            ConfigError: if the number of classes or the label spaces of the data sets do not fit together.
        """
        learned, asked = training_split(cfg), evaluation_split(cfg)
        num_learned_classes(cfg)  # before anything large is built
        backbone = build_ordered_backbone(cfg)
        options = cfg.MODEL.MASK_FORMER
        divisibility = options.SIZE_DIVISIBILITY
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": _build_criterion(cfg),
            # Joined by class name, whatever the ids of either label space.
            "class_ids": asked.ids_of(learned.names),
            "num_test_classes": asked.num_classes,
            "thing_ids": asked.thing_ids,
            "inference": _inference_options(cfg),
            "deep_supervision": options.DEEP_SUPERVISION,
            "seed_points_by_image": options.SEED_POINTS_BY_IMAGE,
            # A negative number asks for what the backbone needs, as in the published configs.
            "size_divisibility": divisibility if divisibility >= 0 else backbone.size_divisibility,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "keep_empty_segments": cfg.INPUT.KEEP_EMPTY_SEGMENTS,
        }

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[Prediction]:
        """Losses in training, predictions in evaluation."""
        if self.training:
            return self._training_losses(batched_inputs)
        with torch.no_grad():
            images = self.preprocess(batched_inputs)
            outputs = self.predict_queries(images)
            return self.postprocess(self.class_logits(outputs), outputs["pred_masks"], images, batched_inputs)

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalised, padded batch on the network's device."""
        return batch_images(
            batched_inputs,
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
            size_divisibility=self.size_divisibility,
        )

    def predict_queries(self, images: ImageList) -> dict[str, Any]:
        """Output of the head without auxiliary predictions, in the training label space."""
        return self.sem_seg_head(self.backbone(images.tensor), with_aux=False)

    def class_logits(self, outputs: dict[str, Any]) -> Tensor:
        """(B, Q, K+1) class logits in the test label space; classes without training data get -inf."""
        logits = widen_logits(outputs["pred_logits"].float(), self.class_ids, self.num_test_classes)
        return logits if self.active_ids is None else keep_classes(logits, self.active_ids)

    def restrict_to(self, class_ids: Sequence[int] | None) -> None:
        """Predict some classes of the test label space only; what looks like any other becomes no-object.

        Args:
            class_ids: contiguous ids; None for all classes again.

        Raises:
            ValueError: for an empty list or an id outside of the label space.
        """
        if class_ids is None:
            self.active_ids = None
            return
        wrong = [i for i in class_ids if not 0 <= i < self.num_test_classes]
        if wrong or not class_ids:
            raise ValueError(f"class ids {list(class_ids)}: expected at least one, all in [0, {self.num_test_classes})")
        self.active_ids = tuple(sorted(set(class_ids)))

    def postprocess(
        self, class_logits: Tensor, pred_masks: Tensor, images: ImageList, batched_inputs: list[dict[str, Any]]
    ) -> list[Prediction]:
        """Predictions of a batch at original sizes.

        Args:
            class_logits: (B, Q, K+1) in the test label space.
            pred_masks: (B, Q, H', W') mask logits.
            images: the batch, for its padded and true sizes.
            batched_inputs: the samples, for their original sizes.
        """
        padded_size = tuple(images.tensor.shape[-2:])
        return [
            # Masks stay at the network's resolution until it is known which of them are wanted.
            predict_image(
                logits,
                masks.float(),
                options=self.inference,
                thing_ids=self.thing_ids,
                padded_size=padded_size,
                image_size=tuple(size),
                output_size=(sample.get("height", size[0]), sample.get("width", size[1])),
            )
            for logits, masks, size, sample in zip(
                class_logits, pred_masks, images.image_sizes, batched_inputs, strict=True
            )
        ]

    def _training_losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        require_keys(batched_inputs, self.required_train_keys, type(self).__name__)
        images = self.preprocess(batched_inputs)
        # With deep supervision also the predictions before the first layer and after every other.
        outputs = self.sem_seg_head(self.backbone(images.tensor), with_aux=self.deep_supervision, as_products=True)
        targets = prepare_targets(
            batched_inputs,
            tuple(images.tensor.shape[-2:]),
            self.device,
            num_classes=self.criterion.num_classes,
            keep_empty=self.keep_empty_segments,
        )
        # crc32 of the id: the same seed on every machine, whatever the batch.
        seeds = [zlib.crc32(str(sample["image_id"]).encode()) for sample in batched_inputs]
        return self.criterion(
            outputs,
            targets,
            image_names=[sample_name(sample) for sample in batched_inputs],
            image_seeds=seeds if self.seed_points_by_image else None,
        )


def _inference_options(cfg: CfgNode) -> InferenceOptions:
    test = cfg.MODEL.MASK_FORMER.TEST
    return InferenceOptions(
        semantic_on=test.SEMANTIC_ON,
        panoptic_on=test.PANOPTIC_ON,
        instance_on=test.INSTANCE_ON,
        object_mask_threshold=test.OBJECT_MASK_THRESHOLD,
        overlap_threshold=test.OVERLAP_THRESHOLD,
        top_k=cfg.TEST.DETECTIONS_PER_IMAGE,
        # Panoptic and instance segments are decided at the original size, so that all outputs use the same masks.
        resize_first=test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE or test.PANOPTIC_ON or test.INSTANCE_ON,
    )


def _build_criterion(cfg: CfgNode) -> MaskCriterion:
    options = cfg.MODEL.MASK_FORMER
    weights = (options.CLASS_WEIGHT, options.MASK_WEIGHT, options.DICE_WEIGHT)
    return MaskCriterion(
        num_classes=num_learned_classes(cfg),
        matcher=HungarianMatcher(*weights, num_points=options.TRAIN_NUM_POINTS),
        weight_dict=dict(zip(("loss_ce", "loss_mask", "loss_dice"), weights, strict=True)),
        no_object_weight=options.NO_OBJECT_WEIGHT,
        num_points=options.TRAIN_NUM_POINTS,
        oversample_ratio=options.OVERSAMPLE_RATIO,
        importance_sample_ratio=options.IMPORTANCE_SAMPLE_RATIO,
        class_balance=build_class_balance(cfg, num_learned_classes(cfg)),
    )
