# SPDX-License-Identifier: Apache-2.0
"""The seen-unseen curve of a trained model: its quality over the bias gamma on the seen classes.

``python -m padding.seen_bias --config-file FILE [--output DIR] KEY VALUE ...`` evaluates MODEL.WEIGHTS on the first set
of DATASETS.TEST, writes ``seen_unseen_curve.json`` and ``.png``, and prints area (AUSUC) and best harmonic mean. The
data set's evaluator type decides what is measured: panoptic quality, mean IoU, or AP50 and recall of instances.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor
from tqdm import tqdm

from padding.data.files import write_json
from padding.data.streams import build_eval_loader
from padding.engine.commands import add_config_arguments, command_parser, load_model, open_config, parse, start_log
from padding.errors import DataError
from padding.evaluation.grouping import ClassGroups
from padding.evaluation.instance import InstanceGroundTruth, mask_entries
from padding.evaluation.panoptic import PanopticGroundTruth
from padding.evaluation.semantic import SemanticGroundTruth
from padding.meta_arch import PADing
from padding.modeling.batching import resize_logits
from padding.modeling.inference import apply_seen_bias, binary_masks, panoptic_inference, top_pairs
from padding.modeling.label_space import evaluation_split
from padding.modeling.maskformer import MaskFormer
from padding.modeling.postprocessing import predict_image
from padding.study.curve import GAMMAS, Postprocess, RawPrediction, Sweep, draw_curve
from padding.study.curve import sweep_results as results_of
from padding.study.panoptic_sweep import Setting, sweep_settings
from padding.study.task_sweeps import Detect, InstanceSweep, QueryMasks, sweep_semantic

# Meta-architectures with a class and a mask for each query.
QUERY_MODELS = ("PADing", "MaskFormer")
# What is measured on each type of data set: name in reports -> field of the scores. The first one is drawn.
QUANTITIES = {
    "coco_panoptic_seg": {"PQ": "pq", "SQ": "sq", "RQ": "rq"},
    "sem_seg": {"mIoU": "iou"},
    "coco_instance": {"AP50": "ap50", "recall100": "recall", "AP": "ap"},
}


class Sizes(TypedDict):
    """(height, width) of the padded image, of the image in it, and of the original, as post-processing takes them."""

    padded_size: tuple[int, int]
    image_size: tuple[int, int]
    output_size: tuple[int, int]


@dataclass(frozen=True)
class QueryPrediction:
    """What the network says of one image: class logits (Q, K+1), mask logits (Q, H', W') at its own resolution."""

    image_id: int | str
    class_logits: Tensor
    mask_logits: Tensor
    sizes: Sizes

    def full_masks(self) -> Tensor:
        """(Q, h, w) mask logits at the original size."""
        return resize_logits(self.mask_logits, **self.sizes)

    def as_raw(self) -> RawPrediction:
        """On the CPU, masks at the original size."""
        masks = self.full_masks().cpu()
        return {"class_logits": self.class_logits.cpu(), "mask_logits": masks, "image_id": self.image_id}


@dataclass(frozen=True)
class SegmentorOutput:
    """What the frozen part of the network says of one image; any classifier can be put on top."""

    image_id: int | str
    outputs: dict[str, Tensor]  # of ``predict_queries``, a batch of one
    sizes: Sizes

    @torch.no_grad()
    def classified(self, model: MaskFormer) -> QueryPrediction:
        """With the class logits of ``model``, whose segmentor must be the one of these outputs."""
        class_logits, mask_logits = model.class_logits(self.outputs)[0], self.outputs["pred_masks"][0].float()
        return QueryPrediction(self.image_id, class_logits, mask_logits, self.sizes)


@torch.no_grad()
def segmentor_outputs(model: MaskFormer, loader: Iterable[list[dict[str, Any]]]) -> Iterator[SegmentorOutput]:
    """Run the network up to its class head, image by image; tensors stay on its device."""
    for batch in loader:
        images = model.preprocess(batch)
        outputs = {name: value for name, value in model.predict_queries(images).items() if isinstance(value, Tensor)}
        height, width = images.tensor.shape[-2:]
        for i, (sample, size) in enumerate(zip(batch, images.image_sizes, strict=True)):
            own = {name: value[i : i + 1] for name, value in outputs.items()}
            output_size = (sample["height"], sample["width"])
            sizes = Sizes(padded_size=(height, width), image_size=(size[0], size[1]), output_size=output_size)
            yield SegmentorOutput(sample["image_id"], own, sizes)


def query_predictions(model: MaskFormer, loader: Iterable[list[dict[str, Any]]]) -> Iterator[QueryPrediction]:
    """Run the network image by image; tensors stay on its device."""
    for output in segmentor_outputs(model, loader):
        yield output.classified(model)


def raw_predictions(model: MaskFormer, loader: Iterable[list[dict[str, Any]]]) -> Iterator[RawPrediction]:
    """Class logits (Q, K+1) and mask logits (Q, h, w) at the original size, image by image, on the CPU."""
    for raw in query_predictions(model, loader):
        yield raw.as_raw()


def postprocess_with_bias(model: MaskFormer, seen_ids: Sequence[int], gamma: float) -> Postprocess:
    """Return a function from a raw prediction to panoptic segments, gamma subtracted from the seen logits."""

    def postprocess(raw: RawPrediction) -> tuple[Any, Sequence[dict[str, Any]]]:
        return panoptic_inference(
            apply_seen_bias(raw["class_logits"], seen_ids, gamma),
            raw["mask_logits"],
            thing_ids=model.thing_ids,
            object_mask_threshold=model.inference.object_mask_threshold,
            overlap_threshold=model.inference.overlap_threshold,
        )

    return postprocess


def label_map_with_bias(
    model: MaskFormer, seen_ids: Sequence[int], gamma: float
) -> Callable[[QueryPrediction], npt.NDArray[np.int64]]:
    """Return a function from the network's output to labels (h, w), gamma subtracted from the seen logits."""
    options = replace(model.inference, semantic_on=True, panoptic_on=False, instance_on=False)

    def label_map(raw: QueryPrediction) -> npt.NDArray[np.int64]:
        prediction = predict_image(
            apply_seen_bias(raw.class_logits, seen_ids, gamma),
            raw.mask_logits,
            options=options,
            thing_ids=model.thing_ids,
            **raw.sizes,
        )
        return prediction["sem_seg"].max(dim=0).indices.cpu().numpy()

    return label_map


def detect_with_bias(model: MaskFormer, seen_ids: Sequence[int], gamma: float) -> Detect:
    """Return a function from class logits to detections, gamma subtracted from the seen logits."""
    keep_ids = model.thing_ids if model.inference.panoptic_on else None
    return lambda logits: top_pairs(apply_seen_bias(logits, seen_ids, gamma), model.inference.top_k, keep_ids)


def sweep_model(
    cfg: CfgNode, model: MaskFormer, gammas: Sequence[float] = GAMMAS, *, evaluator_type: str | None = None
) -> tuple[Sweep, ClassGroups]:
    """Sweep gamma on the first test set, in the measure that its evaluator type asks for.

    Classes that were added to the model compete, but are no part of the results.

    Args:
        cfg: the full configuration; MODEL.PADING.TEST.SEEN_BIAS should be 0, it is added to every gamma.
        model: trained; left in evaluation mode.
        gammas: ascending.
        evaluator_type: another measure than the data set's own: panoptic data also holds labels and instances.

    Returns:
        The sweep and the groups of its classes.

    Raises:
        ValueError: for a data set of another type.
    """
    dataset = cfg.DATASETS.TEST[0]
    sweeps = {"coco_panoptic_seg": _panoptic, "sem_seg": _semantic, "coco_instance": _instances}
    sweep = sweeps[evaluator_type or _evaluator_type(dataset)]
    with limited_to_data(cfg, model.eval()):
        return sweep(model, dataset, build_eval_loader(cfg, dataset), gammas)


def limited_to_data(cfg: CfgNode, model: MaskFormer) -> AbstractContextManager[None]:
    """Context in which classes that the first test set does not know are not predicted."""
    return model.limited_to(evaluation_split(cfg).num_classes) if isinstance(model, PADing) else nullcontext()


def _evaluator_type(dataset: str) -> str:
    found = MetadataCatalog.get(dataset).get("evaluator_type")
    if found not in QUANTITIES:
        raise DataError(f"data set '{dataset}' has evaluator_type {found!r}; gamma is swept on {sorted(QUANTITIES)}")
    return found


def _panoptic(model: MaskFormer, dataset: str, loader: Any, gammas: Sequence[float]) -> tuple[Sweep, ClassGroups]:
    truth = PanopticGroundTruth.of_dataset(dataset)
    raw = _with_progress(raw_predictions(model, loader), len(truth.image_ids))
    settings = [Setting(gamma, model.inference.object_mask_threshold) for gamma in gammas]
    overlap = model.inference.overlap_threshold
    sweep = sweep_settings(raw, truth, settings, thing_ids=model.thing_ids, overlap_threshold=overlap)
    return sweep, truth.groups


def _semantic(model: MaskFormer, dataset: str, loader: Any, gammas: Sequence[float]) -> tuple[Sweep, ClassGroups]:
    truth = SemanticGroundTruth.of_dataset(dataset)
    at = partial(label_map_with_bias, model, truth.groups.seen_ids)
    raw = ((raw.image_id, raw) for raw in query_predictions(model, loader))
    return sweep_semantic(_with_progress(raw, len(truth.image_ids)), at, truth, gammas), truth.groups


def _instances(model: MaskFormer, dataset: str, loader: Any, gammas: Sequence[float]) -> tuple[Sweep, ClassGroups]:
    truth = InstanceGroundTruth.of_dataset(dataset)

    def kept() -> Iterator[QueryMasks]:
        for raw in query_predictions(model, loader):
            # Boxes, codes and scores of masks do not depend on gamma: computed once, not for every gamma.
            masks, scores = binary_masks(raw.full_masks())
            shapes = mask_entries(masks.cpu(), truth.image(raw.image_id).size)
            logits = raw.class_logits.cpu()
            yield QueryMasks(image_id=raw.image_id, class_logits=logits, shapes=shapes, mask_scores=scores.cpu())

    at = partial(detect_with_bias, model, truth.groups.seen_ids)
    images = list(_with_progress(kept(), len(truth.image_ids)))
    return InstanceSweep(tuple(gammas), at, truth, images), truth.groups


def _with_progress(items: Iterable[Any], total: int) -> Iterable[Any]:
    return tqdm(items, total=total, desc="sweep over gamma", unit="image", mininterval=2.0)


def sweep_summary(
    cfg: CfgNode, model: MaskFormer, gammas: Sequence[float] = GAMMAS, *, evaluator_type: str | None = None
) -> dict[str, dict[str, Any]]:
    """Numbers of a sweep for each quantity of the data set; see ``curve.sweep_results``. The first one leads."""
    sweep, groups = sweep_model(cfg, model, gammas, evaluator_type=evaluator_type)
    quantities = QUANTITIES[evaluator_type or _evaluator_type(cfg.DATASETS.TEST[0])]
    return {name: results_of(sweep, groups, attribute) for name, attribute in quantities.items()}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line; returns what it writes."""
    parser = command_parser(__doc__)
    add_config_arguments(parser)
    parser.add_argument("--output", metavar="DIR", help="default: OUTPUT_DIR of the config")
    args = parse(parser, arguments)
    start_log()
    cfg = open_config(args.config_file, args.opts, architectures=QUERY_MODELS)
    results = sweep_summary(cfg, load_model(cfg))
    folder = Path(args.output or cfg.OUTPUT_DIR)
    write_json(folder / "seen_unseen_curve.json", results)
    name, main_result = next(iter(results.items()))
    points = [(point["seen"], point["unseen"]) for point in main_result["curve"]]
    draw_curve(folder / "seen_unseen_curve.png", {Path(args.config_file).stem: points}, name)
    message = "%s: AUSUC %.4f, best harmonic mean %.2f (seen %.2f, unseen %.2f) at gamma %g; written to %s"
    numbers = [main_result[key] for key in ("AUSUC", "best_hm", "best_hm_seen", "best_hm_unseen", "best_hm_gamma")]
    logging.getLogger("padding").info(message, name, *numbers, folder)
    return results
