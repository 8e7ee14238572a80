# SPDX-License-Identifier: Apache-2.0
"""Look for the usual mistakes in label images: colours, ids that are no class, other sizes, nothing but void.

    python -m padding.data.label_audit --images DIR --labels DIR --classes FILE [--list FILE] [--void 11]
    python -m padding.data.label_audit --dataset voc_2012_train_sem_seg

Exit status: 0 sound, 1 problems found, 2 input that cannot be used.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from padding.data.catalog import register_all
from padding.data.class_split import class_split_of
from padding.data.folders import own_label_map
from padding.data.label_statistics import audit_labels
from padding.data.loaders.listed_images import load_listed_images, read_id_list
from padding.data.own_data import folder_classes
from padding.data.prepare.command import report
from padding.data.registration import registered_names
from padding.data.semi_splits import select_entries
from padding.errors import ConfigError, run_command


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", metavar="NAME", help="registered semantic data set, instead of folders")
    parser.add_argument("--images", metavar="DIR", help="as DATASETS.FOLDERS.IMAGES")
    parser.add_argument("--labels", metavar="DIR", help="as DATASETS.FOLDERS.LABELS")
    parser.add_argument("--classes", metavar="FILE", help="as DATASETS.FOLDERS.CLASSES")
    parser.add_argument("--list", metavar="FILE", help="ids of images that need labels (default: all, labels optional)")
    parser.add_argument("--void", type=int, nargs="*", default=(), metavar="N", help="as DATASETS.FOLDERS.VOID_VALUES")
    parser.add_argument(
        "--values", type=int, nargs="*", default=(), metavar="N", help="as DATASETS.FOLDERS.LABEL_VALUES"
    )
    parser.add_argument("--suffix", default=".png", metavar="TEXT", help="as DATASETS.FOLDERS.LABEL_SUFFIX")
    parser.add_argument("--subfolders", action="store_true", help="as DATASETS.FOLDERS.SUBFOLDERS")
    args = parser.parse_args(arguments)
    folders = (args.images, args.labels, args.classes)
    if bool(args.dataset) == any(folders) or (any(folders) and not all(folders)):
        parser.error("give --dataset, or all of --images, --labels and --classes")
    return args


def _selected(args: argparse.Namespace) -> tuple[list[Any], tuple[str, ...], Mapping[int, int] | None]:
    if not args.dataset:
        names = folder_classes(args.classes).names
        listed: list[Any] = [
            *load_listed_images(
                image_root=args.images,
                label_root=args.labels,
                image_ids=args.list,
                label_name=f"{{id}}{args.suffix}",
                subfolders=args.subfolders,
            )
        ]
        return listed, names, own_label_map(len(names), args.void, args.values)
    from detectron2.data import DatasetCatalog, MetadataCatalog

    register_all()
    entries = DatasetCatalog.get(args.dataset) if args.dataset in registered_names() else []
    if not entries or "sem_seg_file_name" not in entries[0]:
        raise ConfigError(f"'{args.dataset}' is no data set with semantic label files; known are {registered_names()}")
    if args.list:
        entries = select_entries(entries, read_id_list(args.list), split=args.list, data=(args.dataset,))
    label_map = getattr(MetadataCatalog.get(args.dataset), "sem_seg_label_map", None)
    return entries, class_split_of(args.dataset).names, label_map


def _audit(arguments: Sequence[str] | None) -> int:
    args = parse_arguments(arguments)
    entries, names, label_map = _selected(args)
    audit = audit_labels(entries, names, label_map=label_map)
    return report(audit.problems(all_labeled=args.list is not None), audit.lines())


main = partial(run_command, _audit, failure=2)
