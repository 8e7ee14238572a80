# SPDX-License-Identifier: Apache-2.0
"""Look over the data of a configuration, or a COCO file of an annotation tool, and say what is wrong with it.

    python -m padding.data.doctor --config-file configs/shapes_zsp.yaml [KEY VALUE ...]
    python -m padding.data.doctor --json annotations.json --images folder [--panoptic folder]

What stops a training is found without one: files, sizes, ids, label values, objects that are crowds, classes without
a pixel, images that are in training and evaluation. Every file is looked at; a training looks at some of them at its
start. With --evaluate the model is built and two images of every test set are evaluated.

Exit status: 0 sound, 1 errors found, 2 input that cannot be used.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from padding.data import checks
from padding.data.checks import Finding
from padding.data.files import write_json
from padding.engine.commands import add_config_arguments, command_parser, open_config, parse
from padding.errors import ConfigError, UserError, run_command


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    add_config_arguments(parser, required=False)
    parser.add_argument("--json", metavar="FILE", help="COCO annotations of instances or panoptic segments")
    parser.add_argument("--images", metavar="DIR", help="folder of the images of --json")
    parser.add_argument("--panoptic", default="", metavar="DIR", help="folder of the PNGs of a panoptic --json")
    parser.add_argument("--evaluate", action="store_true", help="build the model and evaluate two images of every set")
    parser.add_argument("--output", metavar="FILE", help="write the findings as JSON too")
    args = parse(parser, arguments)
    if bool(args.config_file) == bool(args.json) or bool(args.json) != bool(args.images):
        parser.error("give --config-file, or --json and --images")
    return args


def look_at_json(json_file: str | Path, images: str | Path, panoptic: str | Path = "") -> list[Finding]:
    """Findings of one COCO file, with its own categories.

    Args:
        json_file: instances (``segmentation``) or panoptic segments (``segments_info``).
        images: folder of the images.
        panoptic: folder of the PNGs with segment ids.
    """
    from padding.data.class_split import ClassSplit
    from padding.data.coco_json import InstanceFile, PanopticFile, findings_of
    from padding.data.loaders.instances_json import load_instances
    from padding.data.loaders.panoptic_json import load_panoptic
    from padding.data.readers import read_json

    place = str(json_file)
    found = findings_of(json_file, PanopticFile, images) if panoptic else findings_of(json_file, InstanceFile, images)
    if found.problems:
        return [Finding("error", place, text) for text in found.problems]
    try:
        content = read_json(json_file, required=("images", "annotations", "categories"))
        split = ClassSplit.from_categories(content["categories"])
        if panoptic:
            entries: list[Any] = load_panoptic(
                panoptic_json=json_file, image_root=images, panoptic_root=panoptic, class_split=split
            )
        else:
            entries = load_instances(json_file=json_file, image_root=images, class_split=split)
    except (UserError, ValueError) as error:
        return [Finding("error", place, str(error))]
    findings = [Finding("warning", place, text) for text in found.remarks]
    findings += [*checks.check_ids(place, entries), *checks.check_sizes(place, entries)]
    findings += checks.check_objects(place, entries, split.names)
    findings += _read_masks(place, entries)
    return [*findings, *(_compare_areas(json_file, panoptic) if panoptic else ())]


def _read_masks(place: str, entries: Sequence[Any]) -> list[Finding]:
    """Every mask as training reads it."""
    from tqdm import tqdm

    from padding.data.augmentation import AugmentationPlan
    from padding.data.mappers import InstanceMapper, PanopticMapper

    kinds = {"annotations": InstanceMapper, "segments_info": PanopticMapper}
    kind = next((mapper for key, mapper in kinds.items() if entries and key in entries[0]), None)
    if kind is None:
        return []
    mapper = kind(is_train=True, plan=AugmentationPlan(geometric=()))
    problems = []
    for entry in tqdm(entries, desc="masks", unit="img", disable=None, leave=False):
        try:
            mapper(entry)
        except (UserError, OSError) as error:
            problems.append(Finding("error", place, str(error)))
    return problems


def _compare_areas(json_file: str | Path, panoptic: str | Path) -> list[Finding]:
    """Segments whose ``area`` is not the number of their pixels; what cannot be read is found elsewhere."""
    import numpy as np

    from padding.data.panoptic_table import read_panoptic_file
    from padding.data.readers import read_panoptic_ids

    wrong = []
    for annotation in read_panoptic_file(json_file).entries():
        try:
            values, counts = np.unique(read_panoptic_ids(Path(panoptic) / annotation.file_name), return_counts=True)
        except (UserError, OSError):
            continue
        pixels = dict(zip(values.tolist(), counts.tolist(), strict=True))
        wrong += [
            f"segment {segment.id} of {annotation.file_name} has {segment.area:g} for {pixels.get(segment.id, 0)}"
            for segment in annotation.segments_info
            if segment.area not in (None, pixels.get(segment.id, 0))
        ]
    text = f"{len(wrong)} segments have another 'area' than pixels, first: {wrong[0] if wrong else ''}; pixels count"
    return [Finding("warning", str(json_file), text)] if wrong else []


def look_at_config(args: argparse.Namespace) -> list[Finding]:
    """Findings over all data sets of a configuration."""
    from padding.engine.start_check import find_faults, try_evaluation
    from padding.engine.trainer import TRAINER_REGISTRY

    cfg = open_config(args.config_file, args.opts)
    if not cfg.DATASETS.TRAIN and not cfg.DATASETS.TEST:
        raise ConfigError(f"{args.config_file}: DATASETS.TRAIN and DATASETS.TEST are empty; name a data set")
    findings = find_faults(cfg, contents=True)
    if args.evaluate:
        try:
            try_evaluation(cfg, TRAINER_REGISTRY.get(cfg.TRAINER).build_model(cfg))
        except UserError as error:
            findings.append(Finding("error", "evaluation", str(error)))
    return findings


def _run(arguments: Sequence[str] | None) -> int:
    args = parse_arguments(arguments)
    findings = look_at_json(args.json, args.images, args.panoptic) if args.json else look_at_config(args)
    for finding in sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.level)):
        print(finding)  # noqa: T201  (the command's result)
    counts = {level: sum(finding.level == level for finding in findings) for level in ("error", "warning")}
    print(f"{counts['error']} errors, {counts['warning']} warnings")  # noqa: T201
    if args.output:
        write_json(args.output, {"findings": [vars(finding) for finding in findings], **counts})
    return 1 if counts["error"] else 0


main = partial(run_command, _run, failure=2)
