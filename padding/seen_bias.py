# SPDX-License-Identifier: Apache-2.0
"""The seen-unseen curve of a trained model: panoptic quality over the bias gamma on the seen classes.

``python -m padding.seen_bias --config-file FILE [--output DIR] KEY VALUE ...`` evaluates MODEL.WEIGHTS on the first set
of DATASETS.TEST, writes ``seen_unseen_curve.json`` and ``.png``, and prints area (AUSUC) and best harmonic mean.
"""

import argparse
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from padding.config import add_padding_config
from padding.data.catalog import register_all
from padding.data.streams import build_eval_loader
from padding.engine.setup import load_cfg
from padding.engine.trainer import TRAINER_REGISTRY
from padding.evaluation.panoptic import PanopticGroundTruth
from padding.evaluation.report import write_text_atomically
from padding.evaluation.sweep import GAMMAS, PanopticSweep, Postprocess, RawPrediction, draw_curve, sweep_panoptic
from padding.evaluation.sweep import sweep_results as results_of
from padding.modeling.batching import resize_logits
from padding.modeling.inference import apply_seen_bias, panoptic_inference
from padding.modeling.maskformer import MaskFormer

__all__ = ["load_model", "postprocess_with_bias", "raw_predictions", "sweep_model"]


@torch.no_grad()
def raw_predictions(model: MaskFormer, loader: Iterable[list[dict[str, Any]]]) -> Iterator[RawPrediction]:
    """Class logits (Q, K+1) and mask logits (Q, h, w) at the original size, image by image, on the CPU."""
    for batch in loader:
        images = model.preprocess(batch)
        outputs = model.predict_queries(images)
        padded_size = tuple(images.tensor.shape[-2:])
        logits = model.class_logits(outputs)
        for i, (sample, size) in enumerate(zip(batch, images.image_sizes, strict=True)):
            masks = resize_logits(
                outputs["pred_masks"][i].float(),
                image_size=tuple(size),
                output_size=(sample["height"], sample["width"]),
                padded_size=padded_size,
            )
            yield {"class_logits": logits[i].cpu(), "mask_logits": masks.cpu(), "image_id": sample["image_id"]}


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


def sweep_model(cfg: CfgNode, model: MaskFormer, gammas: Sequence[float] = GAMMAS) -> tuple[PanopticSweep, Any]:
    """Sweep gamma on the first test set.

    Args:
        cfg: the full configuration; MODEL.PADING.TEST.SEEN_BIAS should be 0, it is added to every gamma.
        model: trained; left in evaluation mode.
        gammas: ascending.

    Returns:
        The sweep and the groups of its classes.
    """
    dataset = cfg.DATASETS.TEST[0]
    truth = PanopticGroundTruth.of_dataset(dataset)
    seen_ids = truth.groups.seen_ids
    model.eval()
    raw = raw_predictions(model, build_eval_loader(cfg, dataset))
    progress = tqdm(raw, total=len(truth.image_ids), desc="sweep over gamma", unit="image", mininterval=2.0)
    at: Callable[[float], Postprocess] = lambda gamma: postprocess_with_bias(model, seen_ids, gamma)  # noqa: E731
    return sweep_panoptic(progress, at, truth, gammas), truth.groups


def load_model(cfg: CfgNode) -> MaskFormer:
    """Build the model of ``cfg`` and load MODEL.WEIGHTS, all of it."""
    trainer_class = TRAINER_REGISTRY.get(cfg.TRAINER)
    model = trainer_class.build_model(cfg)
    trainer_class.load_weights(model, cfg.MODEL.WEIGHTS, complete=True)
    return model.eval()


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line; returns what it writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--output", metavar="DIR", help="default: OUTPUT_DIR of the config")
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs, MODEL.WEIGHTS among them")
    args = parser.parse_args(arguments)
    setup_logger(name="padding")
    cfg = load_cfg(args.config_file, args.opts, (add_padding_config,))
    register_all()
    sweep, groups = sweep_model(cfg, load_model(cfg))
    results = {quantity.upper(): results_of(sweep, groups, quantity) for quantity in ("pq", "sq", "rq")}
    folder = Path(args.output or cfg.OUTPUT_DIR)
    write_text_atomically(folder / "seen_unseen_curve.json", json.dumps(results, indent=2) + "\n")
    points = [(point["seen"], point["unseen"]) for point in results["PQ"]["curve"]]
    draw_curve(folder / "seen_unseen_curve.png", {Path(args.config_file).stem: points})
    pq = results["PQ"]
    logging.getLogger("padding").info(
        "AUSUC %.4f, best harmonic mean %.2f (seen %.2f, unseen %.2f) at gamma %g; written to %s",
        *(pq[key] for key in ("AUSUC", "best_hm", "best_hm_seen", "best_hm_unseen", "best_hm_gamma")),
        folder,
    )
    return results


if __name__ == "__main__":
    main()
