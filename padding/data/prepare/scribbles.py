# SPDX-License-Identifier: Apache-2.0
"""Scribble files of a data set: simulate, convert, check; resumable, atomic, by several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from padding.data.class_split import ClassSplit, class_split_of
from padding.data.files import save_png, write_bytes
from padding.data.prepare.panoptic_audit import map_tasks
from padding.data.readers import displayed_size, read_label_map
from padding.data.sample import IGNORE_LABEL, SCRIBBLE_PADDING
from padding.data.scribbles.folder import ScribbleFolder
from padding.data.scribbles.polylines import AnnotatedImage, draw_scribbles, parse_scribble_xml, scribble_xml
from padding.data.scribbles.simulator import SimulatorConfig, simulate_scribbles
from padding.data.scribbles.sources import ScribbleReader, ScribbleSource
from padding.data.scribbles.statistics import ScribbleStatistics, count_image
from padding.data.scribbles.tags import ScribbleTags
from padding.data.sets.scribbles import label_key
from padding.data.targets import translate_labels
from padding.errors import PreparationError

_SHOWN = 5
_BAR: dict[str, Any] = {"unit": "img", "disable": None}


@dataclass(frozen=True)
class ScribbleTask:
    """One image: its name, its file, and where its dense labels are, if anywhere."""

    key: str
    image_file: Path
    dense_file: Path | None


@dataclass(frozen=True)
class LabelSpace:
    """The classes, and how the dense label files number them."""

    split: ClassSplit  # the classes; that of the name "background" is eroded more
    tags: ScribbleTags  # names in XML files
    # Value in the dense file -> class id or 255; None: the values are class ids and 255.
    label_map: Mapping[int, int] | None = None

    @property
    def background(self) -> int | None:
        """Class id of the background, None without one."""
        return self.split.names.index("background") if "background" in self.split.names else None

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """Colours of the PNGs: those of the classes, and white for unlabelled pixels."""
        white = (255, 255, 255)
        return (*self.split.colors, *[white] * (256 - self.split.num_classes))


def tasks_of_dataset(
    name: str, tags: ScribbleTags, *, with_dense: bool = True
) -> tuple[list[ScribbleTask], LabelSpace]:
    """Images and classes of a registered data set with dense semantic labels.

    Args:
        name: of the data set.
        tags: what tags mean in its annotation files.
        with_dense: whether its label files are looked at.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    space = LabelSpace(class_split_of(name), tags, MetadataCatalog.get(name).get("sem_seg_label_map"))
    tasks = []
    for entry in DatasetCatalog.get(name):
        if with_dense and "sem_seg_file_name" not in entry:
            raise PreparationError(f"data set '{name}' has no semantic label files; name one that has")
        dense_file = Path(entry["sem_seg_file_name"]) if with_dense else None
        tasks.append(ScribbleTask(label_key(entry), Path(entry["file_name"]), dense_file))
    return tasks, space


def simulate_files(
    tasks: Sequence[ScribbleTask],
    space: LabelSpace,
    config: SimulatorConfig,
    folder: ScribbleFolder,
    *,
    num_workers: int = 0,
    overwrite: bool = False,
) -> tuple[ScribbleStatistics, int]:
    """Simulate the scribbles of all images; those that are there and right are kept.

    Returns:
        The statistics, which hold no contradiction, and the number of images written.

    Raises:
        PreparationError: dense labels cannot be read, or the folder belongs to something else.
    """
    settings = {"kind": "simulated", **config.as_json(), "classes": list(space.split.names)}
    folder.begin(settings, overwrite=overwrite)
    folder.xml("").parent.mkdir(exist_ok=True)
    one = partial(_simulate, space=space, config=config, folder=folder)
    statistics, written = _run(one, tasks, space, num_workers, "simulate")
    folder.write_manifest(settings, complete=True, statistics=statistics.as_json(space.split.names))
    return statistics, written


def convert_scribbles(
    tasks: Sequence[ScribbleTask],
    space: LabelSpace,
    reader: ScribbleReader,
    folder: ScribbleFolder,
    *,
    missing_as_empty: bool = False,
    num_workers: int = 0,
    overwrite: bool = False,
) -> tuple[ScribbleStatistics, int]:
    """Write the label PNGs of published scribbles, and compare them with dense labels where there are any.

    Args:
        tasks: the images.
        space: the classes.
        reader: of the published files.
        folder: where the PNGs go.
        missing_as_empty: images without a file get a label map without labels.
        num_workers: processes; 0: this one.
        overwrite: replace what is there.

    Returns:
        The statistics, and the number of images written.

    Raises:
        PreparationError: files are missing or cannot be read, or the folder belongs to something else.
    """
    # All missing files are found before anything is written, not one by one.
    missing = [task.key for task in tasks if task.key not in reader.source.members]
    if missing and not missing_as_empty:
        raise PreparationError(
            f"{reader.source.path}: no {reader.source.format} file for {len(missing)} of {len(tasks)} images, first "
            f"{', '.join(missing[:_SHOWN])}. Complete the files, or pass --missing-as-empty to leave them unlabelled"
        )
    settings = _reader_settings(reader, space)
    folder.begin(settings, overwrite=overwrite)
    template = replace(reader, source=replace(reader.source, members={}))
    one = partial(_convert, space=space, reader=template, folder=folder)
    # A worker gets the path of its file alone: a list of ten thousand for each of them would be most of the work.
    jobs = [(task, reader.source.only(task.key)) for task in tasks]
    statistics, written = _run(one, jobs, space, num_workers, "convert")
    folder.write_manifest(settings, complete=True, statistics=statistics.as_json(space.split.names))
    return statistics, written


def check_scribbles(
    tasks: Sequence[ScribbleTask], space: LabelSpace, folder: ScribbleFolder, *, num_workers: int = 0
) -> tuple[ScribbleStatistics, list[str]]:
    """Statistics of all label PNGs, and what training would fail on or learn wrongly, a line each; writes nothing."""
    problems: list[str] = []
    statistics = ScribbleStatistics.empty(space.split.num_classes)
    results = map_tasks(partial(_check, space=space, folder=folder), tasks, num_workers=num_workers)
    for result in tqdm(results, total=len(tasks), desc="check", **_BAR):
        if isinstance(result, str):
            problems.append(result)
        else:
            statistics.add(result)
    known = {task.key for task in tasks}
    strays = sorted(path.name for path in folder.path.glob("[!.]*.png") if path.stem not in known)
    if strays:
        problems.append(f"{folder.path}: {len(strays)} files of no image, delete them: {', '.join(strays[:_SHOWN])}")
    if (folder.settings() or {}).get("kind") == "simulated" and statistics.contradictions.any():
        problems.append(f"{folder.path}: simulated scribbles contradict the dense labels; simulate again")
    return statistics, problems


Result = tuple[ScribbleStatistics, bool]


def _run(
    function: Callable[[Any], Result], jobs: Sequence[Any], space: LabelSpace, num_workers: int, title: str
) -> tuple[ScribbleStatistics, int]:
    statistics, written = ScribbleStatistics.empty(space.split.num_classes), 0
    results: Iterator[Result] = map_tasks(function, jobs, num_workers=num_workers)
    for counts, is_new in tqdm(results, total=len(jobs), desc=title, **_BAR):
        statistics.add(counts)
        written += is_new
    return statistics, written


def _reader_settings(reader: ScribbleReader, space: LabelSpace) -> dict[str, Any]:
    values = None if reader.value_map is None else {str(k): v for k, v in sorted(reader.value_map.items())}
    return {
        "kind": "converted",
        "source": reader.source.path.name,
        "format": reader.source.format,
        "width": reader.width,
        "first_label": reader.first_label,
        "value_map": values,
        "rescale": reader.rescale,
        "classes": list(space.split.names),
    }


def _simulate(task: ScribbleTask, space: LabelSpace, config: SimulatorConfig, folder: ScribbleFolder) -> Result:
    dense = _dense_labels(task, space)
    if dense is None:
        raise PreparationError(f"{task.key}: no dense labels to simulate from; the data set needs its label files")
    num_classes = space.split.num_classes
    # Kept if the lines give the same raster, and the raster does not leave the classes of the dense labels.
    earlier = _earlier_simulation(task, space, config, folder)
    if earlier is not None and earlier.shape == dense.shape:
        counts = count_image(earlier, num_classes, key=task.key, dense=dense)
        if not _violates(counts):
            return counts, False
    scribbles = simulate_scribbles(dense, config, key=task.key, num_classes=num_classes, background=space.background)
    size = (dense.shape[0], dense.shape[1])
    raster = draw_scribbles(scribbles, size, width=config.width)
    counts = count_image(raster, num_classes, key=task.key, dense=dense)
    if _violates(counts):
        raise AssertionError(f"{task.key}: a simulated scribble leaves its class")
    lines = scribble_xml(AnnotatedImage(scribbles, size), space.tags, image_name=task.image_file.name)
    write_bytes(folder.xml(task.key), lines, flush=False)
    # The PNG goes last: where it stands, the lines stand too.
    save_png(raster, folder.png(task.key), palette=space.palette)
    return counts, True


def _violates(counts: ScribbleStatistics) -> bool:
    return bool(counts.contradictions.any() or counts.on_void)


def _earlier_simulation(
    task: ScribbleTask, space: LabelSpace, config: SimulatorConfig, folder: ScribbleFolder
) -> npt.NDArray[np.uint8] | None:
    """Label map of an earlier run if its lines are there and give the same; else None."""
    try:
        raster = read_label_map(folder.png(task.key))
        content = folder.xml(task.key).read_bytes()
        image = parse_scribble_xml(content, space.tags, where=str(folder.xml(task.key)))
    except (OSError, ValueError):
        return None
    if image.size != raster.shape:
        return None
    drawn = draw_scribbles(image.scribbles, image.size, width=config.width)
    return drawn if np.array_equal(drawn, raster) else None


def _convert(
    job: tuple[ScribbleTask, ScribbleSource], space: LabelSpace, reader: ScribbleReader, folder: ScribbleFolder
) -> Result:
    task, source = job
    size = displayed_size(task.image_file)
    if source.members:
        try:
            raster = replace(reader, source=source).label_map(task.key, size)
        except (OSError, ValueError) as error:
            raise PreparationError(str(error)) from error
    else:
        raster = np.full(size, IGNORE_LABEL, np.uint8)
    try:
        # Equal labels are not written again: caches go by the time of change.
        is_new = not np.array_equal(read_label_map(folder.png(task.key)), raster)
    except (OSError, ValueError):
        is_new = True
    if is_new:
        save_png(raster, folder.png(task.key), palette=space.palette)
    dense = _dense_labels(task, space)
    if dense is not None and dense.shape != raster.shape:
        raise PreparationError(f"{task.dense_file}: {dense.shape} labels of an image of {size}; obtain both again")
    return count_image(raster, space.split.num_classes, key=task.key, dense=dense), is_new


def _check(task: ScribbleTask, space: LabelSpace, folder: ScribbleFolder) -> ScribbleStatistics | str:
    path, num_classes = folder.png(task.key), space.split.num_classes
    try:
        raster, size = read_label_map(path), displayed_size(task.image_file)
        dense = _dense_labels(task, space)
    except (OSError, ValueError) as error:
        return str(error)
    if raster.shape != size:
        return f"{path}: {raster.shape} labels of an image of {size} (height, width); convert or simulate again"
    if dense is not None and dense.shape != size:
        return f"{task.dense_file}: {dense.shape} labels of an image of {size} (height, width); obtain both again"
    # Padding of published scribbles counts as void.
    raster = np.where(raster == SCRIBBLE_PADDING, IGNORE_LABEL, raster).astype(np.uint8)
    wrong = [int(value) for value in np.unique(raster) if num_classes <= value < IGNORE_LABEL]
    if wrong:
        return f"{path}: holds the values {wrong[:_SHOWN]}; expected 0 to {num_classes - 1}, {SCRIBBLE_PADDING} and 255"
    return count_image(raster, num_classes, key=task.key, dense=dense)


def _dense_labels(task: ScribbleTask, space: LabelSpace) -> npt.NDArray[np.uint8] | None:
    """Dense labels as class ids; anything else void. None if there is no such file."""
    if task.dense_file is None or not task.dense_file.is_file():
        return None
    labels = read_label_map(task.dense_file)
    if space.label_map is not None:
        labels = translate_labels(labels, space.label_map, path=task.dense_file)
    return np.where(labels < space.split.num_classes, labels, IGNORE_LABEL).astype(np.uint8)
