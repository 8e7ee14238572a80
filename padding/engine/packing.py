# SPDX-License-Identifier: Apache-2.0
"""One file is a model: what ``python -m padding.pack`` writes and ``Predictor.from_file`` opens, for every method.

A packed model needs no YAML, no registered data set and no checkout: its label spaces are registered under names of
their own when it is opened. Keys that name data or files of the training are left out.
"""

import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from padding.data.class_split import ClassSplit
from padding.data.files import write_bytes
from padding.data.registration import register_data_set
from padding.data.sample import DatasetDict
from padding.engine.commands import load_config, method_configs, prepare_process
from padding.engine.records import METRICS
from padding.engine.setup import load_cfg_text
from padding.engine.trainer import TRAINER_REGISTRY
from padding.errors import ConfigError, DataError
from padding.modeling.label_space import evaluation_split, learned_split
from padding.modeling.weights.packed import FORMAT_VERSION, Description, PackedClasses, packed_bytes, read_description

SUFFIX = ".safetensors"
_OF_THE_TRAINING = (
    "DATASETS",
    "OUTPUT_DIR",
    "OUTPUT_OVERWRITE",
    "MODEL.DEVICE",
    "TEST.BEST_METRIC",
    "TEST.EXPECTED_RESULTS",
)
_DEPTH = 2
_PLACES = ("WEIGHTS", "PATH", "CACHE")  # keys of these names that hold a text name files


def pack_model(cfg: CfgNode, model: nn.Module, output: str | Path) -> Description:
    """Write a trained model with all that is needed to use it.

    Args:
        cfg: its configuration; data sets are registered. Results of its last evaluation are read beside MODEL.WEIGHTS.
        model: with its weights.
        output: ``*.safetensors``.

    Returns:
        What the file says about the model, without its entries.

    Raises:
        ConfigError: the name has another ending, or is that of MODEL.WEIGHTS.
    """
    output = Path(output)
    if output.suffix != SUFFIX:
        raise ConfigError(f"{output}: a packed model is a {SUFFIX} file; change the ending")
    if cfg.MODEL.WEIGHTS and output.resolve() == Path(cfg.MODEL.WEIGHTS).resolve():
        raise ConfigError(f"{output} is the weight file to be read; choose another name")
    # The sets that it knows where the model itself may know more classes: those are among its entries.
    description = Description(
        format=FORMAT_VERSION,
        configuration=portable_configuration(cfg),
        learned=PackedClasses.of(learned_split(cfg)),
        predicted=PackedClasses.of(evaluation_split(cfg)),
        results=last_results(Path(cfg.MODEL.WEIGHTS).parent),
        entries={},
    )
    content = {"model": model.state_dict(), **TRAINER_REGISTRY.get(cfg.TRAINER).packed_entries(cfg, model)}
    write_bytes(output, packed_bytes(description, content))
    return description


def open_packed(path: str | Path, opts: Sequence[str] = ()) -> CfgNode:
    """Configuration of a packed model; its label spaces are registered, MODEL.WEIGHTS is the file.

    Args:
        path: of the model.
        opts: KEY, VALUE, ... of its configuration.

    Raises:
        MissingFileError: there is no such file.
        CheckpointError: it is no packed model, of another version, or damaged.
        ConfigError: an unknown key.
    """
    description = read_description(path)
    cfg = load_cfg_text(description.configuration, opts, method_configs(), place=str(path))
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(path)
    cfg.DATASETS.TRAIN = (_register(path, "learned", description.learned.split()),)
    cfg.DATASETS.TEST = (_register(path, "predicted", description.predicted.split()),)
    cfg.freeze()
    prepare_process(cfg)
    return cfg


def packed_classes(path: str | Path) -> ClassSplit:
    """Classes of a packed model, those that were added to it included.

    Raises:
        MissingFileError, CheckpointError: see ``open_packed``.
    """
    description = read_description(path)
    added = description.entries.get("label_space")
    split = description.predicted.split()
    if not isinstance(added, dict) or len(added["names"]) == split.num_classes:
        return split
    names, is_thing, dataset_ids, unseen = (
        tuple(added[k]) for k in ("names", "is_thing", "dataset_ids", "unseen_names")
    )
    colors = tuple((red, green, blue) for red, green, blue in added["colors"])
    return PackedClasses(names, is_thing, dataset_ids, unseen, colors).split()


def portable_configuration(cfg: CfgNode) -> str:
    """YAML of a configuration whose keys of data and files have their defaults."""
    own, defaults = cfg.clone(), load_config("")
    own.defrost()
    for name in (*_OF_THE_TRAINING, *_named_places(own)):
        *above, last = name.split(".")
        node, default = own, defaults
        for key in above:
            node, default = node[key], default[key]
        node[last] = default[last]
    return own.dump()


def last_results(folder: Path) -> dict[str, float | None]:
    """Numbers of the last evaluation of a training, such as ``{"voc_val/sem_seg/mIoU": 61.2}``; {} without one.

    Args:
        folder: OUTPUT_DIR of the training.
    """
    try:
        content = json.loads((folder / "inference" / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # there was no evaluation, or another program's file lies there
    flat = _flat(content)
    return {
        name: value for name, value in flat if name.count("/") == 2 and (value is None or type(value) in (int, float))
    }


def _flat(content: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(content, dict):
        yield above, content
        return
    for key, value in content.items():
        yield from _flat(value, f"{above}/{key}" if above else key)


def _named_places(node: CfgNode, above: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _named_places(value, f"{above}{key}.")
        elif key in _PLACES and isinstance(value, str):
            yield above + key


def _register(path: str | Path, part: str, split: ClassSplit) -> str:
    """Register a label space that has no images; equal ones of several files share a name."""
    name = f"packed_{zlib.crc32(repr(split).encode()):08x}_{part}"

    def no_images() -> list[DatasetDict]:
        raise DataError(f"{path} is a model and has no images; name data sets in DATASETS to train or evaluate")

    register_data_set(name, no_images, split, "packed", unseen_only=False, files={})
    return name
