# SPDX-License-Identifier: Apache-2.0
"""From command line arguments to a frozen configuration, with errors that name the file, the key and its neighbour."""

import argparse
import difflib
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from padding.data.config import add_input_config
from padding.data.files import write_text
from padding.data.readers import read_text
from padding.data.roots import find_config
from padding.data.sample import IGNORE_LABEL
from padding.engine.config import REPLACED_KEYS, add_solver_config
from padding.errors import ConfigError, DataError, MissingFileError
from padding.modeling.config import add_mask2former_config

AddConfig = Callable[[CfgNode], None]
CONFIG_FILE = "config.yaml"
_LEAST = {
    "SOLVER.MAX_ITER": 0,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.BASE_LR": 0.0,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "SOLVER.LOG_PERIOD": 1,
    "SOLVER.ACCUMULATE_STEPS": 1,
    "DATALOADER.NUM_WORKERS": 0,
    "TEST.EVAL_PERIOD": 0,
    "TEST.EVALUATION_WORKERS": 0,
}
"""Smallest sensible value of some keys."""


def add_core_config(cfg: CfgNode) -> None:
    """Add the keys shared by all methods: input, Mask2Former core, solver."""
    add_input_config(cfg)
    add_mask2former_config(cfg)
    add_solver_config(cfg)


def load_cfg(config_file: str, opts: Sequence[str], add_config_fns: Sequence[AddConfig]) -> CfgNode:
    """Merge defaults, file and command line, and freeze. No side effects.

    Args:
        config_file: YAML with ``_BASE_``, or "" for the defaults; ``configs/...`` is found from any folder.
        opts: alternating keys and values.
        add_config_fns: one ``add_<method>_config`` per method.

    Raises:
        ConfigError: for a missing or unsafe file, an unknown key or a value of the wrong type.
    """
    cfg = _default_cfg(add_config_fns)
    if config_file:
        _merge_file(cfg, str(find_config(config_file)))
    return _finished(cfg, opts)


def load_cfg_text(text: str, opts: Sequence[str], add_config_fns: Sequence[AddConfig], *, place: str) -> CfgNode:
    """Like ``load_cfg``, for a configuration that is no file of its own: YAML without ``_BASE_``.

    Args:
        text: YAML.
        opts: alternating keys and values.
        add_config_fns: one ``add_<method>_config`` per method.
        place: where the text comes from, for messages.

    Raises:
        ConfigError: it is no plain YAML, an unknown key, or a value of the wrong type.
    """
    cfg = _default_cfg(add_config_fns)
    try:
        content = yaml.load(text, Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        raise ConfigError(f"{place}: its configuration is not plain YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{place}: its configuration holds no keys")
    _check_keys(content, cfg, place=place)
    try:
        cfg.merge_from_other_cfg(CfgNode(content))
    except (ValueError, KeyError, AssertionError) as error:
        raise ConfigError(f"{place}: {error}") from error
    return _finished(cfg, opts)


def _default_cfg(add_config_fns: Sequence[AddConfig]) -> CfgNode:
    cfg = get_cfg()
    add_core_config(cfg)
    for add_config in add_config_fns:
        add_config(cfg)
    return cfg


def _finished(cfg: CfgNode, opts: Sequence[str]) -> CfgNode:
    """Merge the command line, check, choose the device, freeze."""
    _merge_opts(cfg, opts)
    _check_values(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
        logging.getLogger(__name__).info("No GPU is visible: MODEL.DEVICE is set to cpu")
    cfg.freeze()
    return cfg


def setup_cfg(args: argparse.Namespace, add_config_fns: Sequence[AddConfig]) -> CfgNode:
    """Load the configuration and start the run; see ``start_run``.

    Args:
        args: of ``padding.engine.commands.training_parser``, or Detectron2's ``default_argument_parser``.
        add_config_fns: one ``add_<method>_config`` per method.

    Returns:
        The frozen configuration.
    """
    cfg = load_cfg(args.config_file, args.opts or [], add_config_fns)
    start_run(cfg, args, {function.__module__.split(".")[0] for function in add_config_fns})
    return cfg


def start_run(cfg: CfgNode, args: argparse.Namespace, packages: Iterable[str]) -> None:
    """Set up logging, seed all generators, and write OUTPUT_DIR/config.yaml where there is none.

    The file of an older training stays until ``Trainer.train`` knows that its checkpoint fits.

    Args:
        cfg: of the run.
        args: the command line; ``eval_only`` leaves cuDNN as it is.
        packages: whose messages are logged, beside the core's.
    """
    from detectron2.utils.collect_env import collect_env_info
    from detectron2.utils.env import seed_all_rng

    names = {"padding", *packages}
    _reset_loggers({"detectron2", "fvcore", *names})
    rank = comm.get_rank()
    for name in ("fvcore", "detectron2", *sorted(names)):
        setup_logger(output=cfg.OUTPUT_DIR, distributed_rank=rank, name=name)
    for name in names:
        logging.getLogger(name).propagate = True  # an application's own handlers see our messages too
    logger = logging.getLogger(__name__)
    logger.info("Rank of current process: %d. World size: %d", rank, comm.get_world_size())
    logger.info("Environment info:\n%s", collect_env_info())
    logger.info("Command line arguments: %s", args)
    logger.info("Running with full config:\n%s", cfg.dump())
    if comm.is_main_process() and not (Path(cfg.OUTPUT_DIR) / CONFIG_FILE).exists():
        write_configuration(cfg)
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def write_configuration(cfg: CfgNode) -> None:
    """Write OUTPUT_DIR/config.yaml."""
    write_text(Path(cfg.OUTPUT_DIR) / CONFIG_FILE, cfg.dump())


def _reset_loggers(names: set[str]) -> None:
    """Drop the handlers of an earlier call: one process may train several configurations, each with its own log."""
    for name in names:
        logging.getLogger(name).handlers.clear()
    # setup_logger remembers its arguments and would not add the handlers again.
    if hasattr(setup_logger, "cache_clear"):
        setup_logger.cache_clear()


def _merge_file(cfg: CfgNode, config_file: str) -> None:
    if not Path(config_file).is_file():
        raise ConfigError(f"configuration file {config_file} does not exist")
    # Keys are checked file by file, so that an error names the file and not only the last of the chain.
    chain = list(_file_chain(Path(config_file)))
    for path, content in chain:
        _check_keys(content, cfg, place=str(path))
    try:
        cfg.merge_from_file(config_file, allow_unsafe=False)
    except (ValueError, KeyError, AssertionError) as error:
        files = ", ".join(str(path) for path, _ in chain)
        raise ConfigError(f"{files}: {error}") from error


class _UniqueKeys(yaml.SafeLoader):
    """Plain YAML in which no key stands twice: the second one would drop the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See the base class; a repeated key is a ``ConstructorError`` with both lines."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                first = node.value[keys.index(key)][0].start_mark.line + 1
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"{key} stands twice, first in line {first}; join the two",
                    node.value[place][0].start_mark,
                )
        return super().construct_mapping(node, deep)


def _file_chain(path: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield a YAML file and everything it is based on, as (path, content without ``_BASE_``)."""
    if path.resolve() in above:
        raise ConfigError(f"{path} is based on itself: {' -> '.join(file.name for file in (*above, path))}")
    try:
        text = read_text(path)
    except MissingFileError as error:
        raise ConfigError(f"{path}, named by _BASE_, does not exist") from error
    except DataError as error:
        raise ConfigError(str(error)) from error
    try:
        content = yaml.load(text, Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        hint = " Python expressions are not executed; write the value out." if "!!python" in text else ""
        raise ConfigError(f"{path} is not plain YAML: {error}.{hint}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no keys; expected a YAML mapping such as 'MODEL: ...'")
    bases = content.pop("_BASE_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: _BASE_ is {bases}; expected a file or a list of files")
    yield path, content
    for base in bases:
        yield from _file_chain(path.parent / Path(base).expanduser(), (*above, path.resolve()))


def _check_values(cfg: CfgNode) -> None:
    """Refuse values that mean nothing; warn of one that nothing obeys.

    Raises:
        ConfigError: names the key and the cure.
    """
    for name, least in _LEAST.items():
        value = functools.reduce(lambda node, key: node[key], name.split("."), cfg)
        if value is None or value < least:
            raise ConfigError(f"{name} is {value}; expected {least} or more")
    ignored = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    if ignored != IGNORE_LABEL:
        logging.getLogger(__name__).warning(
            "MODEL.SEM_SEG_HEAD.IGNORE_VALUE %d has no effect: the value of void belongs to the data, %d or the "
            "ignore_label in the metadata of the data set; DATASETS.FOLDERS.VOID_VALUES names others",
            ignored,
            IGNORE_LABEL,
        )


def _check_keys(content: Mapping[str, Any], cfg: CfgNode, *, place: str, prefix: str = "") -> None:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if key not in cfg:
            raise _unknown_key(name, cfg, place=place, prefix=prefix)
        if isinstance(cfg[key], CfgNode):
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{place}: {name} is {value!r}, but it holds keys: {', '.join(list(cfg[key])[:5])} ..."
                )
            _check_keys(value, cfg[key], place=place, prefix=f"{name}.")
        elif value is None and cfg[key] is not None:
            raise ConfigError(f"{place}: {name} has no value; write one, or leave the key out")


def _unknown_key(name: str, node: CfgNode, *, place: str, prefix: str) -> ConfigError:
    if name in REPLACED_KEYS:
        return ConfigError(f"{place}: {name} is no key any more: {REPLACED_KEYS[name]}")
    last = name.removeprefix(prefix)
    close = difflib.get_close_matches(last, map(str, node), n=1, cutoff=0.5)
    if close:
        hint = f"did you mean {prefix}{close[0]}?"
    else:
        hint = f"known under {prefix.rstrip('.') or 'the top level'}: {', '.join(sorted(map(str, node)))}"
    return ConfigError(f"{place}: unknown key {name}; {hint}")


def _merge_opts(cfg: CfgNode, opts: Sequence[str]) -> None:
    if len(opts) % 2:
        raise ConfigError(f"command line: expected KEY VALUE pairs, got {len(opts)} words: {' '.join(opts)}")
    for name in opts[::2]:
        node, prefix = cfg, ""
        for part in name.split("."):
            if not isinstance(node, CfgNode) or part not in node:
                if isinstance(node, CfgNode):
                    raise _unknown_key(prefix + part, node, place="command line", prefix=prefix)
                raise ConfigError(f"command line: {prefix.rstrip('.')} is a value, it has no key {part}")
            node, prefix = node[part], f"{prefix}{part}."
    try:
        cfg.merge_from_list(list(opts))
    except (ValueError, KeyError, AssertionError) as error:
        raise ConfigError(f"command line: {error}") from error
