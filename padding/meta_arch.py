# SPDX-License-Identifier: Apache-2.0
"""PADing: a frozen segmentor, a generator of unseen features, and a classifier retrained on both (CVPR 2023, Fig. 2).

Wiring only. ``extract`` gives the features of a batch as data; ``forward(features, step=...)`` returns the losses of
one of the two optimisers, so that DistributedDataParallel wraps both; in evaluation only the class logits differ from
``MaskFormer``.
"""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from padding.bank.feature_bank import FeatureBatch
from padding.build import (
    ClassifierOptions,
    Generation,
    build_classifier_options,
    build_generation,
    load_embeddings,
)
from padding.data.class_split import ClassSplit
from padding.data.sample import Prediction
from padding.errors import ConfigError, check_choice
from padding.losses import mmd, weighted_cross_entropy
from padding.modeling.batching import prepare_targets, require_keys, sample_name, to_device
from padding.modeling.inference import apply_seen_bias, keep_classes
from padding.modeling.label_space import evaluation_split
from padding.modeling.maskformer import MaskFormer
from padding.modeling.point_sampling import image_generators
from padding.objective import LabelledFeatures
from padding.projection import ProjectionClassifier
from padding.query_features import pool_under_masks

METHODS = ("supervised", "projection", "generative")
STEPS = ("generator", "classifier")
TEST_MODES = ("gzsl", "zsl")
# Standard deviation of the classifier's initial rows, as far as the segmentor does not give them.
CLASSIFIER_INIT_STD = 0.01


@META_ARCH_REGISTRY.register()
class PADing(MaskFormer):
    """Zero-shot segmentation on top of a segmentor trained on seen classes.

    ``forward`` in training takes samples or a ``FeatureBatch`` and returns weighted losses; in evaluation samples, and
    returns predictions over all classes of the test label space. Backbone and head stay frozen, in eval mode.
    """

    class_embeddings: Tensor
    seen_ids: Tensor
    unseen_ids: Tensor
    class_weight: Tensor
    new_fc: nn.Linear

    @configurable
    def __init__(  # noqa: PLR0913  (label space, the parts of each method, and how they are trained and tested)
        self,
        *,
        method: str,
        split: ClassSplit,
        class_embeddings: Tensor | None,
        projection: ProjectionClassifier | None,
        generation: Generation | None,
        classifier: ClassifierOptions,
        embedding_dim: int,
        pooled_features: Sequence[str] = (),
        test_mode: str,
        seen_bias: float,
        **segmentor: Any,
    ) -> None:
        """Put the parts together.

        Args:
            method: one of ``METHODS``.
            split: test label space; its unseen classes are the ones to generate.
            class_embeddings: (K, E) in the order of the split; None for METHOD "supervised".
            projection: classifier of METHOD "projection".
            generation: parts of METHOD "generative".
            classifier: how the classifier is trained.
            embedding_dim: D of the features: width of the segmentor's queries, and of the maps pooled for them.
            pooled_features: backbone maps whose mean under each query's mask stands beside its embedding.
            test_mode: ``gzsl`` or ``zsl``.
            seen_bias: gamma, subtracted from seen logits in evaluation; may be changed at any time.
            segmentor: arguments of ``MaskFormer``.
        """
        super().__init__(**segmentor)
        check_choice("MODEL.PADING.METHOD", method, METHODS)
        check_choice("MODEL.PADING.TEST.MODE", test_mode, TEST_MODES)
        self.method = method
        self.test_mode = test_mode
        self.seen_bias = seen_bias
        self.options = classifier
        self.pooled_features = tuple(pooled_features)
        self.embedding_dim = embedding_dim
        self.requires_grad_(False)
        self._register_label_space(split, class_embeddings)
        self.projection = projection
        self.generation = generation
        if generation is not None:
            self._add_generation(generation, embedding_dim)
        self.train()  # new modules are in training mode, the segmentor's too: freeze it from the first batch on

    def _register_label_space(self, split: ClassSplit, class_embeddings: Tensor | None) -> None:
        """Constants of the label space; rebuilt from the configuration, so no part of a checkpoint."""
        self.label_space = split
        self.num_test_classes = split.num_classes
        self.thing_ids = split.thing_ids
        weight = torch.ones(split.num_classes + 1)
        weight[list(split.unseen_ids)] = self.options.unseen_weight
        weight[-1] = self.options.no_object_weight
        constants = {
            "class_embeddings": torch.zeros(split.num_classes, 0) if class_embeddings is None else class_embeddings,
            "seen_ids": torch.tensor(split.seen_ids, dtype=torch.int64),
            "unseen_ids": torch.tensor(split.unseen_ids, dtype=torch.int64),
            "class_weight": weight,
        }
        for name, value in constants.items():
            self.register_buffer(name, value.to(self.device), persistent=False)

    def widen(self, split: ClassSplit, class_embeddings: Tensor) -> None:
        """Move to a label space with further classes behind the present ones; rows of the classifier start at zero.

        Logits of the present classes and of no-object stay what they are. Optimisers hold on to the old classifier.

        Args:
            split: begins with the present classes.
            class_embeddings: (K', E) in the order of ``split``.

        Raises:
            ValueError: if ``split`` does not begin with the present classes, METHOD is "supervised", or E differs.
        """
        old, names = self.num_test_classes, self.label_space.names
        if split.names[:old] != names:
            raise ValueError(f"the wider label space begins with {split.names[:3]}..., not with {names[:3]}...")
        if self.method == "supervised":
            raise ConfigError("MODEL.PADING.METHOD 'supervised' knows no class embeddings; it cannot learn new classes")
        expected = (split.num_classes, self.class_embeddings.shape[1])
        if tuple(class_embeddings.shape) != expected:
            raise ValueError(f"class embeddings of shape {tuple(class_embeddings.shape)}, expected {expected}")
        self._register_label_space(split, class_embeddings)
        if self.generation is not None:
            self.new_fc = _wider_linear(self.new_fc, split.num_classes - old)

    def _add_generation(self, generation: Generation, embedding_dim: int) -> None:
        """Register the trainable parts under the names of the released checkpoints."""
        # K classes of the test label space, then no-object: rows that no weights fill start near 0.
        self.new_fc = nn.Linear(embedding_dim, self.num_test_classes + 1)
        nn.init.normal_(self.new_fc.weight, std=CLASSIFIER_INIT_STD)
        nn.init.zeros_(self.new_fc.bias)
        self.fc_projection = generation.projection
        self.dict_feature = generation.primitives
        self.generator = generation.generator
        if generation.disentangle is not None:
            self.projection_related = generation.disentangle.related
            self.projection_unrelated = generation.disentangle.unrelated
            self.decoder = generation.disentangle.decoder
            self.relation = generation.disentangle.relation

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from a config.

        Raises:
            MissingFileError, ConfigError: naming the key at fault.
        """
        node = cfg.MODEL.PADING
        arguments = super().from_config(cfg)
        split = evaluation_split(cfg)
        embeddings = None if node.METHOD == "supervised" else load_embeddings(cfg, split)
        width = 0 if embeddings is None else embeddings.shape[1]
        channels = cfg.MODEL.MASK_FORMER.HIDDEN_DIM + _pooled_channels(arguments["backbone"], node.POOLED_FEATURES)
        projection = generation = None
        if node.METHOD == "projection":
            projection = ProjectionClassifier(channels, width, temperature=node.PROJECTION.TEMPERATURE)
        elif node.METHOD == "generative":
            if not split.unseen_ids:
                raise ConfigError(
                    "MODEL.PADING.METHOD 'generative' needs unseen classes, but the label space of "
                    f"{cfg.DATASETS.TEST or cfg.DATASETS.TRAIN} has none; name the set that has them in DATASETS.TEST."
                )
            generation = build_generation(node, channels, width)
        return {
            **arguments,
            "method": node.METHOD,
            "split": split,
            "class_embeddings": embeddings,
            "projection": projection,
            "generation": generation,
            "classifier": build_classifier_options(node),
            "embedding_dim": channels,
            "pooled_features": node.POOLED_FEATURES,
            "test_mode": node.TEST.MODE,
            "seen_bias": node.TEST.SEEN_BIAS,
        }

    @property
    def frozen_parts(self) -> tuple[nn.Module, nn.Module]:
        """What a feature depends on: the way of an image to its queries."""
        return self.backbone, self.sem_seg_head

    def train(self, mode: bool = True) -> "PADing":
        """Training mode for the new parts only: the segmentor must give the same features as in evaluation."""
        super().train(mode)
        for frozen in (*self.frozen_parts, self.criterion):
            frozen.eval()
        return self

    def step_modules(self, step: str) -> nn.ModuleDict:
        """Trainable modules of one optimiser, ``generator`` or ``classifier``; may be empty."""
        names = {
            "generator": (
                "fc_projection",
                "dict_feature",
                "generator",
                "projection_related",
                "projection_unrelated",
                "relation",
                "decoder",
            ),
            "classifier": ("new_fc", "projection"),
        }[step]
        modules = {name: getattr(self, name, None) for name in names}
        return nn.ModuleDict({name: module for name, module in modules.items() if module is not None})

    def forward(
        self, batch: list[dict[str, Any]] | FeatureBatch, step: str | None = None
    ) -> dict[str, Tensor] | list[Prediction]:
        """Losses in training, predictions in evaluation.

        Args:
            batch: samples; in training also features from ``extract`` or a bank, of all ranks together.
            step: one of ``STEPS``; None for the losses of both, which share no gradient.
        """
        # Samples: features of the frozen segmentor first (Sec. 3.1). Features of a bank come as they are.
        if not isinstance(batch, FeatureBatch):
            if not self.training:
                return super().forward(batch)
            batch = self.extract(batch)
        losses: dict[str, Tensor] = {}
        # Step "generator": synthetic features of seen and unseen classes against the real ones (Eq. 2 to 6).
        if step in (None, "generator") and self.generation is not None:
            losses |= self._generator_losses(batch, self.generation)
        # Step "classifier": its last layer on real features and synthetic ones held constant.
        if step in (None, "classifier") and self.method != "supervised":
            losses |= self._classifier_losses(batch)
        return losses

    @torch.no_grad()
    def extract(self, batched_inputs: list[dict[str, Any]]) -> FeatureBatch:
        """Run the frozen segmentor and label its queries by matching them to the targets.

        Args:
            batched_inputs: B training samples.

        Returns:
            B * Q rows, image by image; labels in the test label space.
        """
        require_keys(batched_inputs, self.required_train_keys, type(self).__name__)
        images = self.preprocess(batched_inputs)
        outputs = self.predict_queries(images)
        if self.options.official_head_pad:  # logits of the released head's zero rows
            outputs = {**outputs, "pred_logits": F.pad(outputs["pred_logits"], (0, len(self.unseen_ids)))}
        # Matching is by class and mask (Mask2Former), as in the segmentor's own training, on its logits.
        targets = prepare_targets(
            batched_inputs,
            tuple(images.tensor.shape[-2:]),
            self.device,
            num_classes=self.criterion.num_classes,
            keep_empty=self.keep_empty_segments,
        )
        seeds = [zlib.crc32(str(sample["image_id"]).encode()) for sample in batched_inputs]
        matches = self.criterion.matcher(
            outputs,
            targets,
            image_names=[sample_name(sample) for sample in batched_inputs],
            generator=image_generators(seeds) if self.seed_points_by_image else None,
        )
        embeddings = outputs["pred_embeddings"].float()
        # (B, Q) labels: the matched segment's class in the test label space, else no-object, K.
        class_ids = to_device(torch.tensor(self.class_ids), self.device)
        labels = torch.full(embeddings.shape[:2], self.num_test_classes, device=self.device)
        for row, target, (query_idx, target_idx) in zip(labels, targets, matches, strict=True):
            row[query_idx] = class_ids[target["labels"][target_idx]]
        labels = labels.flatten()
        return FeatureBatch(embeddings.flatten(0, 1), labels, torch.ones_like(labels, dtype=torch.float32))

    def predict_queries(self, images: ImageList) -> dict[str, Any]:
        """See ``MaskFormer``; ``pred_embeddings`` (B, Q, D) also hold what is pooled under the masks."""
        maps = self.backbone(images.tensor)
        outputs = self.sem_seg_head(maps, with_aux=False)
        if self.pooled_features:
            pooled = pool_under_masks([maps[name] for name in self.pooled_features], outputs["pred_masks"])
            outputs["pred_embeddings"] = torch.cat([outputs["pred_embeddings"].float(), pooled], dim=-1)
        return outputs

    def synthesise(self, labels: Tensor) -> Tensor:
        """Synthetic features of some classes: (n,) int64 -> (n, D), one independent sample for each."""
        conditions = self.class_embeddings[labels]
        if self.fc_projection is None or self.dict_feature is None:
            return self.generator(conditions)
        return self.generator(self.fc_projection(conditions), self.dict_feature.weight)

    def classify(self, embeddings: Tensor) -> Tensor:
        """Logits of the retrained classifier: (..., D) -> (..., K+1), test label space."""
        if self.projection is not None:
            return self.projection(embeddings, self.class_embeddings)
        return self.new_fc(embeddings)

    def class_logits(self, outputs: dict[str, Any]) -> Tensor:
        """(B, Q, K+1) logits in the test label space, seen classes lowered by gamma, or left out in mode ``zsl``."""
        if self.method == "supervised":
            logits = super().class_logits(outputs)
        else:
            logits = self.classify(outputs["pred_embeddings"].float()).float()
        seen_ids = self.label_space.seen_ids
        if self.test_mode == "zsl":
            return logits.index_fill(-1, self._left_out(), float("-inf"))
        # gamma > 0 makes up for what seen rows gain from real features (calibrated stacking); 0 is the paper.
        logits = apply_seen_bias(logits, seen_ids, self.seen_bias)
        return logits if self.active_ids is None else keep_classes(logits, self.active_ids)

    def restrict_to(self, class_ids: Sequence[int] | None) -> None:
        """Predict some classes only. In mode ``zsl`` nothing else competes with them, else see ``MaskFormer``.

        Raises:
            ConfigError: in mode ``zsl`` also for a seen class.
        """
        seen = [self.label_space.names[i] for i in class_ids or () if i in set(self.label_space.seen_ids)]
        if seen and self.test_mode == "zsl":
            raise ConfigError(
                f"MODEL.PADING.TEST.MODE is 'zsl', which predicts unseen classes only, but {seen} were seen in "
                "training; leave them out, or set the mode to 'gzsl'"
            )
        super().restrict_to(class_ids)

    @contextmanager
    def limited_to(self, num_classes: int) -> Iterator[None]:
        """Within the context, added classes still compete but are not predicted: a data set does not know them.

        Args:
            num_classes: those of the data set, the first ones.
        """
        active = self.active_ids
        if self.num_test_classes > num_classes:
            predicted = self.label_space.unseen_ids if self.test_mode == "zsl" else range(num_classes)
            self.active_ids = tuple(i for i in active or predicted if i < num_classes)
        try:
            yield
        finally:
            self.active_ids = active

    def _left_out(self) -> Tensor:
        """Ids of the classes that are no part of the label space in mode ``zsl``."""
        kept = set(self.label_space.unseen_ids if self.active_ids is None else self.active_ids)
        return to_device(torch.tensor([i for i in range(self.num_test_classes) if i not in kept]), self.device)

    def _generator_losses(self, batch: FeatureBatch, generation: Generation) -> dict[str, Tensor]:
        """MMD, classification consistency, and the structure losses."""
        # No-object rows are real features too, but no class that could be synthesised.
        real = batch.select((batch.labels < self.num_test_classes).nonzero().squeeze(1))
        # One synthetic feature for each real one, of the same class: both sides of Eq. 2 then have one label column.
        seen = self.synthesise(real.labels)
        unseen = self.synthesise(self.unseen_ids)
        losses = {
            "loss_mmd": mmd(real.embeddings, seen, generation.mmd, real_labels=real.labels, fake_labels=real.labels)
        }
        weights = generation.structure.weights
        if weights.consistency > 0:
            consistency = self._consistency(seen, real.labels, among_all=generation.consistency_among_all)
            losses["loss_consistency"] = weights.consistency * consistency
        # Parts of the seen set: with USE_REAL_SEEN real and synthetic rows, (2 n, D), stand side by side.
        if generation.use_real_seen:
            seen_set = LabelledFeatures(torch.cat([real.embeddings, seen]), real.labels.repeat(2))
        else:
            seen_set = LabelledFeatures(seen, real.labels)
        unseen_set = LabelledFeatures(unseen, self.unseen_ids)
        targets = self._semantic_targets(generation)
        return losses | generation.structure(seen_set, unseen_set, targets, self.unseen_ids, generation.disentangle)

    def _semantic_targets(self, generation: Generation) -> Tensor:
        """(K, E) embeddings, or (K, D) projected ones."""
        targets = self.class_embeddings
        if generation.project_targets and self.fc_projection is not None:
            targets = self.fc_projection(targets)
        return targets.detach() if generation.detach_targets else targets

    def _consistency(self, features: Tensor, labels: Tensor, *, among_all: bool) -> Tensor:
        """The current classifier, held constant, should recognise synthetic features among the seen or all classes."""
        # detach: the gradient goes through the features, the classifier itself is trained in its own step.
        weight, bias = self.new_fc.weight.detach(), self.new_fc.bias.detach()
        rows = torch.arange(len(bias), device=bias.device) if among_all else self.seen_ids
        logits = F.linear(features, weight[rows], bias[rows])
        columns = torch.searchsorted(rows, labels)
        return weighted_cross_entropy(logits, columns, torch.ones_like(columns, dtype=torch.float32))

    def _classifier_losses(self, batch: FeatureBatch) -> dict[str, Tensor]:
        """Weighted cross-entropy on real features and, for METHOD "generative", synthetic unseen ones."""
        embeddings, labels, weights = batch
        if self.generation is not None:
            # The generator is constant in this step: no graph through it.
            fake_labels = self._draw_unseen()
            with torch.no_grad():
                fake = self.synthesise(fake_labels)
            embeddings = torch.cat([embeddings, fake.to(embeddings.dtype)])
            labels = torch.cat([labels, fake_labels])
            weights = torch.cat([weights, torch.ones_like(fake_labels, dtype=weights.dtype)])
        logits = self.classify(embeddings)
        if self.projection is not None:
            # Unseen classes are appended at test time only: they are no negatives in training.
            logits = logits.index_fill(-1, self.unseen_ids, float("-inf"))
        return {"loss_classifier": weighted_cross_entropy(logits, labels, weights * self.class_weight[labels])}

    def _draw_unseen(self) -> Tensor:
        """Labels of the synthetic features of one iteration."""
        total = len(self.unseen_ids)
        wanted = min(self.options.classes_per_iter or total, total)
        # Different classes, NUM_PER_CLASS features of each.
        chosen = to_device(torch.randperm(total)[:wanted], self.device)
        return self.unseen_ids[chosen].repeat_interleave(self.options.num_per_class)


def _pooled_channels(backbone: Backbone, names: Sequence[str]) -> int:
    """Channels of the named maps of a backbone, together.

    Raises:
        ConfigError: the backbone has no such map.
    """
    shapes = backbone.output_shape()
    if unknown := [name for name in names if name not in shapes]:
        raise ConfigError(f"MODEL.PADING.POOLED_FEATURES names {unknown}; the backbone has {', '.join(shapes)}")
    return sum(shapes[name].channels for name in names)


def _wider_linear(narrow: nn.Linear, extra: int) -> nn.Linear:
    """The same layer with ``extra`` rows of zeros before the last row, no-object."""
    # Not initialised at random: adding classes leaves the global random state alone.
    wide = nn.utils.skip_init(nn.Linear, narrow.in_features, narrow.out_features + extra).to(narrow.weight)
    with torch.no_grad():
        for new, old in ((wide.weight, narrow.weight), (wide.bias, narrow.bias)):
            new.zero_()
            new[: len(old) - 1] = old[:-1]
            new[-1] = old[-1]
    return wide
