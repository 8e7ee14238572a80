# SPDX-License-Identifier: Apache-2.0
"""Look at a trained model: figures and their numbers, from one pass over the evaluation set.

``python -m padding.plots --config-file FILE --output DIR [--only NAME ...] KEY VALUE ...`` (MODEL.WEIGHTS among the
pairs) writes, for the first set of DATASETS.TEST,

* ``tsne.png``: real and synthetic query embeddings of every class in the plane,
* ``primitives.png``, ``primitives.json``: which primitives each class calls up in the generator,
* ``curve.png``: unseen over seen PQ for all biases gamma,
* ``class_pq.png``: PQ of every class,
* ``confusion.png``, ``confusion.json``: which class stole the segment.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor
from tqdm import tqdm

from padding.data.files import write_json
from padding.data.streams import build_eval_loader
from padding.engine.commands import add_config_arguments, command_parser, load_model, open_config, parse, start_log
from padding.engine.random_state import preserved_random_state
from padding.errors import DataError
from padding.evaluation.grouping import ClassGroups
from padding.evaluation.panoptic import PanopticGroundTruth
from padding.evaluation.panoptic_confusion import confusion_results
from padding.look.evaluation_pass import Observation, observed_predictions
from padding.look.figures import draw_class_bars, draw_confusion, draw_embedding_map, draw_primitives
from padding.look.primitive_activations import characteristic_primitives, primitive_activations
from padding.meta_arch import PADing
from padding.modeling.maskformer import MaskFormer
from padding.study.curve import GAMMAS, draw_curve, sweep_results
from padding.study.panoptic_sweep import Setting, sweep_settings
from padding.study.seen_bias import QUERY_MODELS, limited_to_data, postprocess_with_bias

FIGURES = ("tsne", "primitives", "curve", "pq", "confusion")
# Enough to see a cluster, few enough for t-SNE in seconds.
FEATURES_PER_CLASS = 40
ACTIVATION_SAMPLES = 32
PRIMITIVES_SHOWN = 40
PRIMITIVES_LISTED = 5
MAX_PERPLEXITY = 30.0


def embed_in_plane(features: Tensor, *, seed: int) -> np.ndarray:
    """t-SNE of (n, D) features from their principal components: (n, 2).

    Raises:
        DataError: for fewer than four features.
    """
    from sklearn.manifold import TSNE  # slow to import, and only needed here

    if len(features) < 4:
        raise DataError(f"t-SNE needs at least 4 features, got {len(features)}; is the evaluation set empty?")
    perplexity = min(MAX_PERPLEXITY, (len(features) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(features.numpy())


@torch.no_grad()
def _synthetic_features(model: MaskFormer, per_class: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """(n, D) features and (n,) classes from the generator; empty for a method without one."""
    if not isinstance(model, PADing) or model.generation is None:
        return torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64)
    labels = torch.arange(len(model.class_embeddings), device=model.device).repeat_interleave(per_class)
    with preserved_random_state():
        torch.manual_seed(seed)
        return model.synthesise(labels).float().cpu(), labels.cpu()


def _draw_tsne(folder: Path, model: MaskFormer, observation: Observation, groups: ClassGroups, seed: int) -> None:
    real, real_labels = observation.features()
    fake, fake_labels = _synthetic_features(model, FEATURES_PER_CLASS // 2, seed=seed)
    features = torch.cat([part for part in (real, fake) if len(part)] or [real])
    synthetic = np.arange(len(features)) >= len(real)
    points = embed_in_plane(features, seed=seed)
    labels = torch.cat([real_labels, fake_labels]).numpy()
    draw_embedding_map(folder / "tsne.png", points, labels, synthetic, groups)


def _draw_primitives(folder: Path, model: PADing, groups: ClassGroups, seed: int) -> None:
    with preserved_random_state():
        torch.manual_seed(seed)
        weights = primitive_activations(model, samples=ACTIVATION_SAMPLES)
    shown = [characteristic_primitives(layer, PRIMITIVES_SHOWN).tolist() for layer in weights]
    draw_primitives(folder / "primitives.png", weights.numpy(), shown, groups)
    strongest = weights.topk(min(PRIMITIVES_LISTED, weights.shape[2]), dim=2)
    listed = {
        name: [
            [{"primitive": int(i), "weight": round(float(w), 5)} for i, w in zip(indices, values, strict=True)]
            for indices, values in zip(strongest.indices[:, row], strongest.values[:, row], strict=True)
        ]
        for row, name in enumerate(groups.names)
    }
    content = {"num_primitives": weights.shape[2], "strongest_by_class_and_layer": listed}
    write_json(folder / "primitives.json", content)


def _groups_of_model(model: MaskFormer, groups: ClassGroups) -> ClassGroups:
    """Classes of the model: those of the data set, and any that were added."""
    if not isinstance(model, PADing) or model.num_test_classes == groups.num_classes:
        return groups
    split = model.label_space
    return ClassGroups(split.names, split.seen_ids, split.unseen_ids, split.thing_ids, split.dataset_ids)


def _observe(
    cfg: CfgNode, model: MaskFormer, truth: PanopticGroundTruth, gammas: Sequence[float]
) -> tuple[Observation, list[tuple[float, float]]]:
    """One pass over the evaluation set; the curve has no points without gammas."""
    dataset, seen_ids = cfg.DATASETS.TEST[0], truth.groups.seen_ids
    observation = Observation(truth, postprocess_with_bias(model, seen_ids, 0.0), max_per_class=FEATURES_PER_CLASS)
    pairs = observed_predictions(model, build_eval_loader(cfg, dataset))
    progress = tqdm(pairs, total=len(truth.image_ids), desc=dataset, unit="image", mininterval=2.0)
    watched = observation.watch(progress)
    settings = [Setting(gamma, model.inference.object_mask_threshold) for gamma in gammas]
    overlap = model.inference.overlap_threshold
    with limited_to_data(cfg, model):
        sweep = sweep_settings(watched, truth, settings, thing_ids=model.thing_ids, overlap_threshold=overlap)
    if not gammas:
        return observation, []
    curve = sweep_results(sweep, truth.groups, "pq")["curve"]
    return observation, [(point["seen"], point["unseen"]) for point in curve]


def draw_figures(
    cfg: CfgNode, model: MaskFormer, folder: Path, only: Sequence[str] = FIGURES, *, seed: int = 0
) -> list[str]:
    """Draw figures of a model.

    Args:
        cfg: the full configuration; the first of DATASETS.TEST is a panoptic data set.
        model: trained; put into evaluation mode.
        folder: made if missing.
        only: names of ``FIGURES``; those that the method has nothing for are left out with a message.
        seed: of noise and t-SNE.

    Returns:
        The names of the figures drawn.

    Raises:
        ValueError: if the data set has no panoptic ground truth.
    """
    wanted = [name for name in FIGURES if name in only]
    model.eval()
    truth = PanopticGroundTruth.of_dataset(cfg.DATASETS.TEST[0])
    groups, known = truth.groups, _groups_of_model(model, truth.groups)
    if "primitives" in wanted and not (isinstance(model, PADing) and getattr(model, "dict_feature", None) is not None):
        logging.getLogger(__name__).info("No generator with primitives in this model: primitives.png is left out")
        wanted.remove("primitives")
    if "curve" in wanted and not groups.unseen_ids:
        logging.getLogger(__name__).info("%s has no unseen classes: curve.png is left out", cfg.DATASETS.TEST[0])
        wanted.remove("curve")
    if "primitives" in wanted and isinstance(model, PADing):
        _draw_primitives(folder, model, known, seed)
    if set(wanted) - {"primitives"}:
        observation, curve = _observe(cfg, model, truth, GAMMAS if "curve" in wanted else ())
        if "tsne" in wanted:
            _draw_tsne(folder, model, observation, known, seed)
        if "curve" in wanted:
            draw_curve(folder / "curve.png", {getattr(model, "method", "segmentor"): curve})
        if "pq" in wanted:
            draw_class_bars(folder / "class_pq.png", observation.quality.compute(), groups)
        if "confusion" in wanted:
            draw_confusion(folder / "confusion.png", observation.confusion, groups)
            content: dict[str, Any] = confusion_results(observation.confusion, groups)
            write_json(folder / "confusion.json", content)
    return wanted


def main(arguments: Sequence[str] | None = None) -> list[str]:
    """Command line; returns the names of the figures drawn."""
    parser = command_parser(__doc__)
    add_config_arguments(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--only", choices=FIGURES, action="append", help="one figure; may be repeated (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of noise and t-SNE")
    args = parse(parser, arguments)
    start_log()
    cfg = open_config(args.config_file, args.opts, architectures=QUERY_MODELS)
    drawn = draw_figures(cfg, load_model(cfg), args.output, args.only or FIGURES, seed=args.seed)
    logging.getLogger("padding").info("%s: %s", args.output, ", ".join(drawn))
    return drawn
