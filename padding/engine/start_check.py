# SPDX-License-Identifier: Apache-2.0
"""What would stop a training after hours is found before its first iteration.

The data sets of the run are looked over (files, ids, sizes, a sample of the labels), every mapper makes one sample, and
once the model is there, two images of every test set are evaluated, so that each evaluator is built and each metric
computed. DATASETS.CHECK_AT_START False switches it off; ``python -m padding.data.doctor`` looks at everything.
"""

from __future__ import annotations

import difflib
import functools
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from padding.data import checks
from padding.data.checks import Finding
from padding.data.own_data import KEY, OWN_DENSE, OWN_NAMES, OWN_SALIENCY, OWN_UNSEEN
from padding.data.registration import registered_names
from padding.errors import ConfigError, DataError, UserError

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from torch import nn

logger = logging.getLogger(__name__)

HEADERS = 2000  # images of a set whose headers are read at the start
LABELS = 32  # label images of a set that are read at the start
_TRIED = 2  # images of a test set
_SHOWN = 5


@dataclass(frozen=True)
class CheckedSet:
    """Entries of one data set of a run, or the error that came in their place.

    Attributes:
        name: of the data set, with the key that names it.
        dataset: registered name.
        entries: as listed.
        labels: keys of the label files that the run reads.
    """

    name: str
    dataset: str
    entries: Sequence[Mapping[str, Any]]
    labels: tuple[str, ...]


def check_run(cfg: CfgNode) -> None:
    """Look over the data of a training; on rank 0, and every rank learns of an error. Collective.

    Raises:
        DataError: names what was found; warnings are logged.
    """
    from detectron2.utils import comm

    findings = find_faults(cfg, headers=HEADERS, labels=LABELS) if comm.is_main_process() else []
    for finding in findings:
        if finding.level == "warning":
            logger.warning("%s: %s", finding.place, finding.text)
    places: dict[str, list[str]] = {}  # the labeled and the unlabeled images of a set have some faults in common
    for finding in findings:
        if finding.level == "error":
            places.setdefault(finding.text, []).append(finding.place)
    errors = [f"{' and '.join(where)}: {text}" for text, where in places.items()]
    errors = next((found for found in comm.all_gather(errors) if found), [])
    if errors:
        more = f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        raise DataError(
            f"{'; '.join(errors[:_SHOWN])}{more}. 'python -m padding.data.doctor --config-file ...' shows everything; "
            "DATASETS.CHECK_AT_START False starts all the same"
        )


def find_faults(cfg: CfgNode, *, headers: int = 0, labels: int = 0, contents: bool = False) -> list[Finding]:
    """Findings over all data sets of a configuration.

    Args:
        cfg: with its data sets registered.
        headers: images of each set whose headers are read; 0: all.
        labels: label images of each set that are read; 0: all.
        contents: look for images that are in training and evaluation under two names.
    """
    findings: list[Finding] = []
    train, test = list(_sets(training_sets(cfg), findings)), list(_sets(test_sets(cfg), findings))
    for part, is_train in ((train, True), (test, False)):
        for one in part:
            findings += _findings_of(one, headers=headers, labels=labels)
            findings += _sample(cfg, one, is_train=is_train)
    for of_train in train:
        for of_test in test:
            places = (of_train.name, of_test.name)
            findings += checks.check_leak(places, of_train.entries, of_test.entries, contents=contents)
    return findings


def training_sets(cfg: CfgNode) -> list[tuple[str, str, Any, tuple[str, ...]]]:
    """Name, registered name, what lists the entries, and which labels training reads, of each set of a training."""
    from detectron2.data import DatasetCatalog

    from padding.data.semi_stream import load_semi_supervised_entries

    data = cfg.DATASETS
    targets = ("pan_seg_file_name", "sem_seg_file_name")
    saliency = [
        (f"{name} (DATASETS.TRAIN_SALIENCY)", name, lambda name=name: DatasetCatalog.get(name), ("saliency_file_name",))
        for name in data.TRAIN_SALIENCY
    ]
    if data.TRAIN and (data.SPLIT or data.TRAIN_UNLABELED):
        label = f"{', '.join(data.TRAIN)} (DATASETS.TRAIN"
        both = functools.cache(lambda: load_semi_supervised_entries(cfg))
        return [
            (f"{label}, labeled)", data.TRAIN[0], lambda: both()[0], targets),
            (f"{label}, unlabeled)", data.TRAIN[0], lambda: both()[1], ()),
            *saliency,
        ]
    plain = [
        (f"{name} (DATASETS.TRAIN)", name, lambda name=name: DatasetCatalog.get(name), targets) for name in data.TRAIN
    ]
    return [*plain, *saliency]


def test_sets(cfg: CfgNode) -> list[tuple[str, str, Any, tuple[str, ...]]]:
    """The same of each set of an evaluation."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    kinds = {"saliency": ("saliency_file_name",), "sem_seg": ("sem_seg_file_name",)}
    return [
        (
            f"{name} (DATASETS.TEST)",
            name,
            lambda name=name: DatasetCatalog.get(name),
            kinds.get(MetadataCatalog.get(name).get("evaluator_type", ""), ("pan_seg_file_name",)),
        )
        for name in cfg.DATASETS.TEST
    ]


def _sets(listed: Sequence[tuple[str, str, Any, tuple[str, ...]]], findings: list[Finding]) -> Iterator[CheckedSet]:
    """Entries of each set; an error of its loader becomes a finding."""
    for name, dataset, load, labels in listed:
        try:
            entries = load()
        except KeyError:
            findings.append(Finding("error", name, f"is not registered; {_how_to_register(dataset)}"))
        except (UserError, OSError) as error:
            findings.append(Finding("error", name, str(error)))
        else:
            if not entries and labels:
                findings.append(Finding("error", name, "holds no image"))
            yield CheckedSet(name, dataset, entries, labels)


def _how_to_register(dataset: str) -> str:
    """The key that registers a set of the user's own, else names that are like it."""
    keys = {OWN_SALIENCY[0]: "SALIENCY", OWN_SALIENCY[1]: "SALIENCY and VAL_LIST, or VAL_SALIENCY"}
    keys |= {OWN_NAMES[0]: "IMAGES", OWN_NAMES[1]: "VAL_LIST, or the keys VAL_*", OWN_UNSEEN: "UNSEEN and VAL_*"}
    keys |= {OWN_DENSE: "SCRIBBLES and LABELS"}
    if dataset in keys:
        return f"set {KEY}.{keys[dataset]}"
    near = difflib.get_close_matches(dataset, registered_names(), n=3, cutoff=0.0)
    return f"names like it are {', '.join(near)}"


def _findings_of(one: CheckedSet, *, headers: int, labels: int) -> Iterator[Finding]:
    from detectron2.data import MetadataCatalog

    from padding.data.class_split import class_split_of

    place, entries = one.name, one.entries
    # A panoptic PNG is read in place of semantic labels.
    if "pan_seg_file_name" in one.labels and entries and "pan_seg_file_name" in entries[0]:
        needed: tuple[str, ...] = ("pan_seg_file_name",)
    else:
        needed = tuple(key for key in one.labels if key != "pan_seg_file_name")
    missing = list(checks.check_files(place, entries, ("file_name", *needed)))
    yield from missing
    yield from checks.check_ids(place, entries)
    if missing:
        return
    yield from checks.check_sizes(place, entries, limit=headers)
    names = class_split_of(one.dataset).names
    yield from checks.check_objects(place, entries, names)
    if "saliency_file_name" in needed:
        yield from checks.check_saliency(place, entries, limit=labels)
    if needed == ("sem_seg_file_name",) and entries and all(key in entries[0] for key in needed):
        label_map = getattr(MetadataCatalog.get(one.dataset), "sem_seg_label_map", None)
        yield from checks.check_labels(place, entries, names, label_map=label_map, limit=labels)


def _sample(cfg: CfgNode, one: CheckedSet, *, is_train: bool) -> Iterator[Finding]:
    """Map the first entry as training or evaluation will."""
    from padding.data.mappers import build_mapper
    from padding.data.streams import seeded

    if not one.entries or "saliency_file_name" in one.labels or not one.labels:
        return  # mappers of their own, which the first iteration or the first evaluation calls
    try:
        with seeded(0):
            build_mapper(cfg, is_train=is_train)(dict(one.entries[0]))
    except (UserError, OSError) as error:
        yield Finding("error", one.name, str(error))


def try_evaluation(cfg: CfgNode, model: nn.Module) -> None:
    """Evaluate two images of every test set, and find TEST.BEST_METRIC among the results. Collective.

    The model and all random numbers are as before.

    Args:
        cfg: of the training.
        model: without DistributedDataParallel.

    Raises:
        UserError: what the evaluation after the last iteration would have raised.
    """
    from detectron2.evaluation.testing import flatten_results_dict
    from detectron2.utils import comm

    from padding.engine.random_state import preserved_random_state

    with preserved_random_state(), _in_evaluation(model), _only_warnings():
        results = {name: _evaluate_two(cfg, model, name) for name in cfg.DATASETS.TEST}
    if not comm.is_main_process() or not results:
        return
    found = next(iter(results.values())) if len(results) == 1 else results
    metric = cfg.TEST.BEST_METRIC
    if metric and metric not in (flat := flatten_results_dict(found)):
        near = difflib.get_close_matches(metric, flat, n=3, cutoff=0.0)
        raise ConfigError(
            f"TEST.BEST_METRIC is '{metric}', which no evaluation of this run gives; nearest: {', '.join(near)}"
        )


def _evaluate_two(cfg: CfgNode, model: nn.Module, name: str) -> Any:
    from detectron2.data import DatasetCatalog

    from padding.data.mappers import build_mapper
    from padding.evaluation.build import build_evaluator
    from padding.evaluation.panoptic import PanopticEvaluator

    listed = DatasetCatalog.get(name)
    entries = listed[:_TRIED]
    if not entries:
        raise DataError(f"{name} (DATASETS.TEST): holds no image")
    mapper = build_mapper(cfg, is_train=False)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        evaluator = build_evaluator(cfg, name, folder)
        evaluator.reset()
        for part in getattr(evaluator, "_evaluators", [evaluator]):
            if isinstance(part, PanopticEvaluator):
                known = set(part.truth.image_ids)
                for entry in listed:
                    if entry["image_id"] not in known:
                        part.truth.annotation(entry["image_id"])  # raises what the evaluation would
        for entry in entries:
            inputs = [mapper(dict(entry))]
            evaluator.process(inputs, model(inputs))
        return evaluator.evaluate()


@contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _only_warnings() -> Iterator[None]:
    """Leave tables of two images out of the log."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)
