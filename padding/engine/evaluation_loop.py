# SPDX-License-Identifier: Apache-2.0
"""Evaluate a model on every data set of DATASETS.TEST and write the numbers down."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn

from padding.data.files import write_json
from padding.data.streams import build_eval_loader
from padding.engine.random_state import preserved_random_state
from padding.engine.saved_predictions import PredictionSaver
from padding.evaluation.build import build_evaluator
from padding.evaluation.workers import ending_workers
from padding.modeling.postprocessing import InferenceOptions


def evaluate(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    """Run a model over DATASETS.TEST. Training goes on afterwards as if nothing had happened. Collective.

    Args:
        cfg: the full configuration.
        model: without DistributedDataParallel; put into eval mode and back.

    Returns:
        On rank 0 ``{task: {metric: value}}`` for one test set, ``{data set: {task: ...}}`` for several; elsewhere {}.
    """
    results: dict[str, Any] = {}
    folder = Path(cfg.OUTPUT_DIR) / "inference"
    with preserved_random_state():
        for name in cfg.DATASETS.TEST:
            logging.getLogger(__name__).info("Evaluating on %s", name)
            with ending_workers(build_evaluator(cfg, name, folder / name)) as evaluator:
                used = evaluator
                if cfg.TEST.SAVE_PREDICTIONS:
                    used = DatasetEvaluators([evaluator, PredictionSaver(name, folder / name / "predictions")])
                with labels_where_enough(model, used):
                    results[name] = inference_on_dataset(model, build_eval_loader(cfg, name), used)
            if comm.is_main_process():
                print_csv_format(results[name])
    if not comm.is_main_process():
        return {}
    write_json(_metrics_file(cfg), results)
    return next(iter(results.values())) if len(results) == 1 else results


@contextmanager
def labels_where_enough(model: nn.Module, evaluator: DatasetEvaluator) -> Iterator[None]:
    """Let a model predict the best class of each pixel alone where nobody looks at the scores of all classes.

    The same labels, without writing and reading K maps of floats an image.

    Args:
        model: changed inside if its ``inference`` is an ``InferenceOptions``.
        evaluator: one that does not say ``needs_scores`` False gets scores.
    """
    holder: Any = model
    options = getattr(holder, "inference", None)
    parts = getattr(evaluator, "_evaluators", [evaluator])
    parts = [part for one in parts for part in getattr(one, "_evaluators", [one])]
    if not isinstance(options, InferenceOptions) or any(getattr(part, "needs_scores", True) for part in parts):
        yield
        return
    holder.inference = replace(options, semantic_labels=True)
    try:
        yield
    finally:
        holder.inference = options


def add_to_metrics(cfg: CfgNode, name: str, entry: Mapping[str, Any]) -> None:
    """Add an entry to the ``metrics.json`` of the last evaluation. On rank 0 only.

    Args:
        cfg: OUTPUT_DIR.
        name: its key beside the data sets' names; an old entry is replaced.
        entry: nested, plain.
    """
    path = _metrics_file(cfg)
    known = json.loads(path.read_text()) if path.is_file() else {}
    write_json(path, {**known, name: entry})


def _metrics_file(cfg: CfgNode) -> Path:
    return Path(cfg.OUTPUT_DIR) / "inference" / "metrics.json"
