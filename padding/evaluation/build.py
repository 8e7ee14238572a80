# SPDX-License-Identifier: Apache-2.0
"""From the ``evaluator_type`` in a data set's metadata to the evaluators that run on it."""

from collections.abc import Callable
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from padding.errors import ConfigError, DataError
from padding.evaluation.instance import InstanceEvaluator
from padding.evaluation.panoptic import PanopticEvaluator
from padding.evaluation.saliency import SaliencyEvaluator
from padding.evaluation.semantic import SemSegEvaluator
from padding.evaluation.workers import ParallelEvaluators


def _build_semantic(cfg: CfgNode, dataset_name: str, output_folder: Path) -> list[DatasetEvaluator]:
    node = cfg.TEST.SEM_SEG
    # A model that segments the middle of an image alone is evaluated there alone.
    only_scored = node.MODE == "center_crop"
    return [SemSegEvaluator(dataset_name, output_folder, parts=node.PARTS, only_scored=only_scored)]


def _build_instance(_: CfgNode, dataset_name: str, output_folder: Path) -> list[DatasetEvaluator]:
    return [InstanceEvaluator(dataset_name, output_folder)]


def _build_saliency(_: CfgNode, dataset_name: str, output_folder: Path) -> list[DatasetEvaluator]:
    return [SaliencyEvaluator(dataset_name, output_folder)]


def _build_for_panoptic_data(cfg: CfgNode, dataset_name: str, output_folder: Path) -> list[DatasetEvaluator]:
    """Each task that the model's test switches turn on; all tasks for a model without switches."""
    evaluators: list[DatasetEvaluator] = []
    if _test_switch(cfg, "SEMANTIC_ON"):
        evaluators += _build_semantic(cfg, dataset_name, output_folder)
    if _test_switch(cfg, "PANOPTIC_ON"):
        evaluators.append(PanopticEvaluator(dataset_name, output_folder))
    if _test_switch(cfg, "INSTANCE_ON"):
        evaluators += _build_instance(cfg, dataset_name, output_folder)
    return evaluators


EVALUATOR_BUILDERS: dict[str, Callable[[CfgNode, str, Path], list[DatasetEvaluator]]] = {
    "coco_panoptic_seg": _build_for_panoptic_data,
    "coco_instance": _build_instance,
    "coco": _build_instance,
    "sem_seg": _build_semantic,
    "cityscapes_sem_seg": _build_semantic,
    "saliency": _build_saliency,
}


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | Path | None = None) -> DatasetEvaluator:
    """Evaluator of one data set.

    Args:
        cfg: reads ``MODEL.MASK_FORMER.TEST.{SEMANTIC,PANOPTIC,INSTANCE}_ON``, which choose the tasks on panoptic data
            where they are present, ``TEST.SEM_SEG.{PARTS,MODE}``, ``TEST.EVALUATION_WORKERS`` and ``OUTPUT_DIR``.
        dataset_name: registered data set.
        output_folder: where reports go; default ``OUTPUT_DIR/inference/<dataset_name>``.

    Raises:
        ValueError: for an unknown ``evaluator_type``, or when every task is switched off.
    """
    folder = Path(cfg.OUTPUT_DIR, "inference", dataset_name) if output_folder is None else Path(output_folder)
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type not in EVALUATOR_BUILDERS:
        raise DataError(
            f"data set '{dataset_name}' has evaluator_type {evaluator_type!r}; known are {sorted(EVALUATOR_BUILDERS)}. "
            "Is it registered (register_all)?"
        )
    evaluators = EVALUATOR_BUILDERS[evaluator_type](cfg, dataset_name, folder)
    if not evaluators:
        raise ConfigError(
            f"nothing to evaluate on '{dataset_name}': set one of MODEL.MASK_FORMER.TEST.SEMANTIC_ON, PANOPTIC_ON, "
            "INSTANCE_ON to True"
        )
    if cfg.TEST.EVALUATION_WORKERS:
        return ParallelEvaluators(evaluators, cfg.TEST.EVALUATION_WORKERS)
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def _test_switch(cfg: CfgNode, name: str) -> bool:
    node = cfg.MODEL.get("MASK_FORMER", {}).get("TEST", {})
    return bool(node.get(name, True))
