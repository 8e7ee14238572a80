# SPDX-License-Identifier: Apache-2.0
"""What ``padding.tuning`` measures on half A and on half B, in the measure of the data set: PQ or mean IoU.

The frozen segmentor sees the images once; every classifier on top of it is measured from the outputs that are kept.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from padding.bank.feature_bank import weights_digest
from padding.data.streams import build_eval_loader
from padding.errors import DataError
from padding.evaluation.panoptic import PanopticGroundTruth
from padding.evaluation.semantic import SemanticGroundTruth
from padding.modeling.maskformer import MaskFormer
from padding.study.curve import (
    GAMMA_END,
    GAMMAS,
    AccumulatedSweep,
    RawPrediction,
    SeenUnseenCurve,
    area_under_curve,
    best_harmonic_mean,
    half_of_images,
    seen_unseen_curve,
)
from padding.study.panoptic_sweep import Setting, sweep_settings
from padding.study.seen_bias import QueryPrediction, SegmentorOutput, segmentor_outputs
from padding.study.task_sweeps import MaskGrid, sweep_masks

THRESHOLDS = (0.1, 0.2, 0.3, 0.5, 0.7)
TUNING_GAMMAS = tuple(float(gamma) for gamma in range(-3, 11))
# Semantic sweeps look at every n-th pixel of every n-th row; what is reported at the chosen gamma counts all pixels.
GRID = 8
SEMANTIC_GAMMAS: tuple[float, ...] = (-GAMMA_END, *(float(step) for step in range(-12, 13)), GAMMA_END)
Truth = TypeVar("Truth", PanopticGroundTruth, SemanticGroundTruth)


class HalfMeasures(Generic[Truth]):
    """The segmentor's outputs, kept for the next classifier on the same segmentor; subclasses measure."""

    truth_type: ClassVar[Any]
    thresholds: ClassVar[tuple[float | None, ...]]

    def __init__(self) -> None:
        self.segmentor_key: tuple[str, str] | None = None
        self._outputs: list[SegmentorOutput] = []
        self._truths: dict[str, Truth] = {}

    def on_half_a(self, cfg: CfgNode, model: MaskFormer) -> dict[str, Any]:
        """Harmonic mean on half A at every threshold and gamma.

        Returns:
            ``{"points": [{threshold, gamma, seen, unseen, hm}, ...]}``, percent; no threshold where none is tuned,
            because files do not keep None and NaN apart.
        """
        points = []
        curves = self.curves_of_a(cfg, model)
        for threshold, curve in zip(self.thresholds, curves, strict=True):
            tuned = {} if threshold is None else {"threshold": threshold}
            columns = zip(curve.gammas, curve.seen, curve.unseen, curve.harmonic_means, strict=True)
            points += [
                {**tuned, "gamma": gamma, "seen": seen, "unseen": unseen, "hm": hm}
                for gamma, seen, unseen, hm in columns
            ]
        return {"points": points}

    @abstractmethod
    def on_half_b(self, cfg: CfgNode, model: MaskFormer) -> dict[str, Any]:
        """Area under the curve of half B, and its harmonic mean at the gamma that is best on half A.

        Returns:
            ``AUSUC`` in [0, 1]; ``hm``, ``seen``, ``unseen``, ``hm_at_gamma_0`` in percent; ``gamma``.
        """

    @abstractmethod
    def curves_of_a(self, cfg: CfgNode, model: MaskFormer) -> list[SeenUnseenCurve]:
        """Half A over gamma, one curve a threshold."""

    def truth_of(self, cfg: CfgNode) -> Truth:
        """Ground truth of the first test set."""
        dataset = cfg.DATASETS.TEST[0]
        if dataset not in self._truths:
            self._truths[dataset] = self.truth_type.of_dataset(dataset)
        return self._truths[dataset]

    def predictions(self, cfg: CfgNode, model: MaskFormer, *, half: int | None) -> Iterator[QueryPrediction]:
        """Of the images of one half, 0 for A, or of both; the segmentor runs again only for another segmentor."""
        half_of = half_of_images(self.truth_of(cfg).image_ids)
        dataset = cfg.DATASETS.TEST[0]
        key = (weights_digest([model.backbone, model.sem_seg_head]), dataset)
        if key != self.segmentor_key:
            self._outputs = list(segmentor_outputs(model.eval(), build_eval_loader(cfg, dataset)))
            self.segmentor_key = key
        for output in self._outputs:
            if half in (None, half_of[output.image_id]):
                yield output.classified(model)


class PanopticHalves(HalfMeasures[PanopticGroundTruth]):
    """Panoptic quality, at every object-mask threshold."""

    truth_type = PanopticGroundTruth
    thresholds = THRESHOLDS

    def curves_of_a(self, cfg: CfgNode, model: MaskFormer) -> list[SeenUnseenCurve]:
        """See ``HalfMeasures``."""
        settings = [Setting(gamma, threshold) for threshold in THRESHOLDS for gamma in TUNING_GAMMAS]
        scores, groups = self._sweep(cfg, model, settings, half=0).scores("a"), self.truth_of(cfg).groups
        size = len(TUNING_GAMMAS)
        parts = [scores[i : i + size] for i in range(0, len(scores), size)]
        return [seen_unseen_curve(TUNING_GAMMAS, part, groups) for part in parts]

    def on_half_b(self, cfg: CfgNode, model: MaskFormer) -> dict[str, Any]:
        """See ``HalfMeasures``."""
        settings = [Setting(gamma, model.inference.object_mask_threshold) for gamma in GAMMAS]
        sweep, groups = self._sweep(cfg, model, settings, half=None), self.truth_of(cfg).groups
        a, b = (seen_unseen_curve(GAMMAS, sweep.scores(half), groups) for half in "ab")
        best = best_harmonic_mean(a, b)
        return {
            "AUSUC": area_under_curve(b.seen, b.unseen),
            "hm": best.hm,
            "seen": best.seen,
            "unseen": best.unseen,
            "gamma": best.gamma,
            "hm_at_gamma_0": b.harmonic_means[GAMMAS.index(0.0)],
        }

    def _sweep(
        self, cfg: CfgNode, model: MaskFormer, settings: Sequence[Setting], *, half: int | None
    ) -> AccumulatedSweep:
        raw: Iterator[RawPrediction] = (output.as_raw() for output in self.predictions(cfg, model, half=half))
        overlap = model.inference.overlap_threshold
        return sweep_settings(raw, self.truth_of(cfg), settings, thing_ids=model.thing_ids, overlap_threshold=overlap)


class SemanticHalves(HalfMeasures[SemanticGroundTruth]):
    """Mean IoU. Curves are counted on a grid of pixels, what is reported at the chosen gamma on all of them."""

    truth_type = SemanticGroundTruth
    thresholds = (None,)

    def __init__(self) -> None:
        super().__init__()
        self._grids: dict[tuple[Any, int | str], MaskGrid] = {}

    def curves_of_a(self, cfg: CfgNode, model: MaskFormer) -> list[SeenUnseenCurve]:
        """See ``HalfMeasures``."""
        return [self._curve(cfg, model, SEMANTIC_GAMMAS, half=0)]

    def on_half_b(self, cfg: CfgNode, model: MaskFormer) -> dict[str, Any]:
        """See ``HalfMeasures``."""
        a, b = (self._curve(cfg, model, SEMANTIC_GAMMAS, half=half) for half in (0, 1))
        best = best_harmonic_mean(a, b)
        exact = self._curve(cfg, model, (best.gamma,), half=1, all_pixels=True)
        return {
            "AUSUC": area_under_curve(b.seen, b.unseen),
            "hm": exact.harmonic_means[0],
            "seen": exact.seen[0],
            "unseen": exact.unseen[0],
            "gamma": best.gamma,
            "hm_at_gamma_0": b.harmonic_means[SEMANTIC_GAMMAS.index(0.0)],
        }

    def _curve(
        self, cfg: CfgNode, model: MaskFormer, gammas: Sequence[float], *, half: int, all_pixels: bool = False
    ) -> SeenUnseenCurve:
        truth = self.truth_of(cfg)
        entries = (
            (raw.image_id, raw.class_logits, self._grid(raw, truth, 1 if all_pixels else GRID))
            for raw in self.predictions(cfg, model, half=half)
        )
        return seen_unseen_curve(gammas, sweep_masks(entries, truth, gammas).scores("ab"[half]), truth.groups, "iou")

    def _grid(self, raw: QueryPrediction, truth: SemanticGroundTruth, step: int) -> MaskGrid:
        """The grid of an image; those of all pixels are too large to be kept."""
        key = (self.segmentor_key, raw.image_id)
        if step == 1:
            return MaskGrid.of(raw, truth.read(raw.image_id), step)
        if key not in self._grids:
            self._grids[key] = MaskGrid.of(raw, truth.read(raw.image_id), step)
        return self._grids[key]


_MEASURES: dict[str, type[HalfMeasures[Any]]] = {"coco_panoptic_seg": PanopticHalves, "sem_seg": SemanticHalves}


def half_measures_of(dataset: str) -> HalfMeasures[Any]:
    """What is measured on a registered data set.

    Raises:
        DataError: for instances, whose precision is not tuned here.
    """
    evaluator_type = MetadataCatalog.get(dataset).get("evaluator_type")
    if evaluator_type not in _MEASURES:
        raise DataError(
            f"data set '{dataset}' has evaluator_type {evaluator_type!r}; rows are tuned on {', '.join(_MEASURES)}"
        )
    return _MEASURES[evaluator_type]()
