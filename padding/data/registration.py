# SPDX-License-Identifier: Apache-2.0
"""Register one data set in one of three formats: COCO panoptic, semantic PNGs, COCO instances.

Every set carries its label space in its metadata, as ``class_split``; a zero-shot training set is *narrow*, labelled
with the seen classes alone, and a zero-shot (ZSL) test set counts unseen classes alone (PADing, Sec. 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from padding.data.class_split import ClassSplit
from padding.data.loaders.instances_json import load_instances
from padding.data.loaders.listed_images import load_listed_images
from padding.data.loaders.panoptic_json import UnseenPolicy, load_panoptic
from padding.data.loaders.sem_seg_list import ImagePolicy, load_sem_seg
from padding.data.sample import IGNORE_LABEL, LABEL_DIVISOR, DatasetDict
from padding.errors import DataError

_registered: set[str] = set()
_remembering: list[dict[str, list[DatasetDict]]] = []


@contextmanager
def listed_once() -> Iterator[None]:
    """Within the block a data set is listed once, however often it is asked for; long annotation files take seconds."""
    if _remembering:
        yield
        return
    _remembering.append({})
    try:
        yield
    finally:
        _remembering.clear()


def _listed(name: str, loader: Callable[[], list[DatasetDict]]) -> list[DatasetDict]:
    if not _remembering:
        return loader()
    known = _remembering[0]
    if name not in known:
        known[name] = loader()
    return list(known[name])


def registered_names() -> tuple[str, ...]:
    """Names registered by this project, sorted."""
    return tuple(sorted(_registered))


def register_panoptic(  # noqa: PLR0913  (one argument per file or folder)
    name: str,
    *,
    class_split: ClassSplit,
    image_root: str | Path,
    panoptic_root: str | Path,
    panoptic_json: str | Path,
    sem_seg_root: str | Path = "",
    json_file: str | Path = "",
    seen_only: bool = False,
    unseen_policy: UnseenPolicy = "error",
    evaluate_unseen_only: bool = False,
    evaluator_type: str = "coco_panoptic_seg",
    cure: str = "",
) -> None:
    """Register a data set in COCO panoptic format under ``name``; files are read when the set is first used.

    Args:
        name: new name; a set registered by this function earlier is replaced.
        class_split: the label space of the set, for training usually ``split.seen_only()``.
        image_root: folder of the images.
        panoptic_root: folder of the PNGs with segment ids.
        panoptic_json: COCO panoptic annotations.
        sem_seg_root: folder of semantic PNGs whose values are the contiguous ids of ``class_split``; may be empty.
        json_file: COCO instance annotations for instance evaluation; may be empty.
        seen_only: no unseen class may appear though ``class_split`` holds some (training in a wide label space).
        unseen_policy: see ``padding.data.loaders.panoptic_json.load_panoptic``; with "ignore_pixels" categories outside
            the label space are void in the evaluation, too.
        evaluate_unseen_only: seen classes count as void in the evaluation (for MODEL.PADING.TEST.MODE "zsl").
        evaluator_type: "coco_panoptic_seg", or "sem_seg" for the semantic task alone.
        cure: sentence for error messages: how the files are obtained.

    Raises:
        ValueError: ``name`` belongs to a data set that was registered by somebody else.
    """
    files = {
        "image_root": str(image_root),
        "panoptic_root": str(panoptic_root),
        "panoptic_json": str(panoptic_json),
        "sem_seg_root": str(sem_seg_root),
    }
    options = {"class_split": class_split, "seen_only": seen_only, "unseen_policy": unseen_policy, "cure": cure}
    register_data_set(
        name,
        partial(load_panoptic, **options, **files),  # type: ignore[arg-type]
        class_split,
        evaluator_type,
        unseen_only=evaluate_unseen_only,
        files={**files, "json_file": str(json_file)},
    )
    if unseen_policy == "ignore_pixels":
        from detectron2.data import MetadataCatalog

        MetadataCatalog.get(name).outside_is_void = True


def register_sem_seg(  # noqa: PLR0913  (one argument per file or folder)
    name: str,
    *,
    class_split: ClassSplit,
    image_root: str | Path,
    sem_seg_root: str | Path,
    image_list: str | Path,
    label_map: Mapping[int, int] | None = None,
    unseen_policy: ImagePolicy = "ignore_pixels",
    evaluate_unseen_only: bool = False,
    cure: str = "",
) -> None:
    """Register images with one semantic PNG each under ``name``; files are read when the set is first used.

    Args:
        name: new name; a set registered by this project earlier is replaced.
        class_split: the label space of the set, for training usually ``split.seen_only()``.
        image_root: folder of the images.
        sem_seg_root: folder of index PNGs with the images' names.
        image_list: JSON whose ``images`` are read, see ``padding.data.loaders.sem_seg_list.load_sem_seg``.
        label_map: value in the PNG -> contiguous id of ``class_split`` or the ignore label 255; None: the values are
            contiguous ids and 255 already.
        unseen_policy: "ignore_pixels" (unseen pixels are 255 in the PNGs, or made so by ``label_map``) or
            "drop_image" (images whose entry counts unseen pixels are left out).
        evaluate_unseen_only: seen classes count as void in the evaluation (for MODEL.PADING.TEST.MODE "zsl").
        cure: sentence for error messages: how the files are obtained.

    Raises:
        DataError: ``name`` belongs to somebody else, or ``label_map`` leads outside the label space.
    """
    if label_map is not None:
        outside = sorted({*label_map.values()} - {*range(class_split.num_classes), IGNORE_LABEL})
        if outside:
            raise DataError(
                f"data set '{name}': label_map leads to {outside[:5]}, but there are {class_split.num_classes} classes "
                f"(0 to {class_split.num_classes - 1}) and the ignore label {IGNORE_LABEL}"
            )
    files = {"image_root": str(image_root), "sem_seg_root": str(sem_seg_root), "image_list": str(image_list)}
    register_data_set(
        name,
        partial(load_sem_seg, unseen_policy=unseen_policy, cure=cure, **files),
        class_split,
        "sem_seg",
        unseen_only=evaluate_unseen_only,
        label_map=label_map,
        files=files,
    )


def register_listed_images(  # noqa: PLR0913  (one argument per file or folder)
    name: str,
    *,
    class_split: ClassSplit,
    image_root: str | Path,
    label_root: str | Path,
    image_ids: str | Path | None = None,
    excluded_ids: str | Path | None = None,
    image_name: str = "",
    label_name: str = "{id}.png",
    subfolders: bool = False,
    label_map: Mapping[int, int] | None = None,
    background_id: int | None = None,
    evaluate_unseen_only: bool = False,
    cure: str = "",
) -> None:
    """Register images with one semantic PNG each, found by their ids, under ``name``.

    Args:
        name: new name; a set registered by this project earlier is replaced.
        class_split: the label space of the set.
        image_root: folder of the images.
        label_root: folder of the label PNGs.
        image_ids: text file of image ids; None: every image of the folder.
        excluded_ids: text file of ids that are left out of the folder.
        image_name: see ``padding.data.loaders.listed_images.load_listed_images``.
        label_name: likewise.
        subfolders: likewise.
        label_map: value in the PNG -> contiguous id or the ignore label; None: the values are contiguous ids and 255.
        background_id: class that evaluation also leaves out, see ``SemSegEvaluator``.
        evaluate_unseen_only: seen classes count as void in the evaluation (for MODEL.PADING.TEST.MODE "zsl").
        cure: sentence for error messages: how the files are obtained.

    Raises:
        ValueError: ``name`` belongs to a data set that was registered by somebody else.
    """
    files = {"image_root": str(image_root), "label_root": str(label_root)}
    loader = partial(
        load_listed_images,
        **files,
        image_ids=image_ids,
        excluded_ids=excluded_ids,
        image_name=image_name,
        label_name=label_name,
        subfolders=subfolders,
        cure=cure,
    )
    register_data_set(
        name, loader, class_split, "sem_seg", unseen_only=evaluate_unseen_only, label_map=label_map, files=files
    )
    if background_id is not None:
        from detectron2.data import MetadataCatalog

        MetadataCatalog.get(name).background_id = background_id


def register_instances(
    name: str,
    *,
    class_split: ClassSplit,
    image_root: str | Path,
    json_file: str | Path,
    evaluate_unseen_only: bool = False,
    cure: str = "",
) -> None:
    """Register a data set in COCO instance format under ``name``; files are read when the set is first used.

    Args:
        name: new name; a set registered by this project earlier is replaced.
        class_split: the label space of the set, things only, for training usually ``split.seen_only()``.
        image_root: folder of the images.
        json_file: COCO instance annotations: polygons or run-length code.
        evaluate_unseen_only: seen classes are left out of the evaluation (for MODEL.PADING.TEST.MODE "zsl").
        cure: sentence for error messages: how the files are obtained.

    Raises:
        DataError: ``name`` belongs to somebody else, or a class is stuff.
    """
    stuff = [class_name for class_name, thing in zip(class_split.names, class_split.is_thing, strict=True) if not thing]
    if stuff:
        raise DataError(f"data set '{name}': instances of stuff {stuff[:5]}; restrict the class_split to its things")
    files = {"image_root": str(image_root), "json_file": str(json_file)}
    register_data_set(
        name,
        partial(load_instances, class_split=class_split, cure=cure, **files),  # type: ignore[arg-type]
        class_split,
        "coco_instance",
        unseen_only=evaluate_unseen_only,
        files=files,
    )


def register_data_set(
    name: str,
    loader: Callable[[], list[DatasetDict]],
    class_split: ClassSplit,
    evaluator_type: str,
    *,
    unseen_only: bool,
    files: Mapping[str, str],
    label_map: Mapping[int, int] | None = None,
) -> None:
    """Put loader and metadata into Detectron2's catalogs, replacing what this project put there before.

    What the functions above have in common, for a further format.

    Args:
        name: new name; a set registered by this project earlier is replaced.
        loader: lists the images when the set is first used.
        class_split: the label space of the set.
        evaluator_type: key of ``padding.evaluation.build.EVALUATOR_BUILDERS``.
        unseen_only: seen classes count as void in the evaluation.
        files: further metadata, where the files lie.
        label_map: value in semantic PNGs -> contiguous id or the ignore label.

    Raises:
        DataError: ``name`` belongs to a data set that was registered by somebody else.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    if name in DatasetCatalog:
        if name not in _registered:
            raise DataError(f"a data set '{name}' is registered already, not by this project; choose another name")
        DatasetCatalog.remove(name)
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)  # a metadata field accepts one value only, so another root needs a new object
    # Lazily: thousands of entries are listed when a set is used, not when all are registered.
    DatasetCatalog.register(name, partial(_listed, name, loader))
    thing_ids = {key: i for key, i in class_split.contiguous_id.items() if i in class_split.thing_ids}
    metadata = MetadataCatalog.get(name).set(
        class_split=class_split,
        # One numbering for things and stuff: Detectron2's Visualizer then needs every name in both lists.
        thing_classes=list(class_split.names),
        stuff_classes=list(class_split.names),
        thing_colors=list(class_split.colors),
        stuff_colors=list(class_split.colors),
        thing_dataset_id_to_contiguous_id=thing_ids,
        stuff_dataset_id_to_contiguous_id=dict(class_split.contiguous_id),
        ignore_label=IGNORE_LABEL,
        label_divisor=LABEL_DIVISOR,
        evaluator_type=evaluator_type,
        **files,
    )
    if unseen_only:
        metadata.set(evaluated_ids=class_split.unseen_ids)
        label_map = _only_unseen(label_map, class_split)
    if label_map is not None:
        metadata.set(sem_seg_label_map=dict(label_map))
    _registered.add(name)


def _only_unseen(label_map: Mapping[int, int] | None, class_split: ClassSplit) -> dict[int, int]:
    """The label map (default: none needed) with the seen classes made void."""
    # Values of unseen classes stay, all others become void before anything is counted.
    known = {i: i for i in (*range(class_split.num_classes), IGNORE_LABEL)} if label_map is None else label_map
    unseen = frozenset(class_split.unseen_ids)
    return {value: label if label in unseen else IGNORE_LABEL for value, label in known.items()}
