# SPDX-License-Identifier: Apache-2.0
"""Evaluate a model on every data set of DATASETS.TEST and write the numbers down."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn

from padding.data.files import write_json
from padding.data.streams import build_eval_loader
from padding.engine.random_state import preserved_random_state
from padding.engine.saved_predictions import PredictionSaver
from padding.evaluation.build import build_evaluator


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
            evaluator = build_evaluator(cfg, name, folder / name)
            if cfg.TEST.SAVE_PREDICTIONS:
                evaluator = DatasetEvaluators([evaluator, PredictionSaver(name, folder / name / "predictions")])
            results[name] = inference_on_dataset(model, build_eval_loader(cfg, name), evaluator)
            if comm.is_main_process():
                print_csv_format(results[name])
    if not comm.is_main_process():
        return {}
    write_json(_metrics_file(cfg), results)
    return next(iter(results.values())) if len(results) == 1 else results


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
