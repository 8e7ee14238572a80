# SPDX-License-Identifier: Apache-2.0
"""The models that the page offers: each opened once, used by one request at a time."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from padding.engine.commands import load_config, register_data
from padding.engine.predictor import Predictor
from padding.errors import ConfigError
from padding.meta_arch import PADing


class PageModel:
    """A model by the name under which it is chosen.

    Attributes:
        name: unique on the page.
    """

    def __init__(self, name: str, opened: Callable[[], Predictor]) -> None:
        """Open it.

        Args:
            name: unique on the page.
            opened: opens the model as it was trained; called again by ``reset``.
        """
        self.name = name
        self._opened = opened
        self._predictor = opened()
        self._num_trained = len(self._predictor.class_names)
        self._lock = threading.RLock()

    @contextmanager
    def in_use(self) -> Iterator[Predictor]:
        """The model, for this thread alone: what one request sets must not meet another's image."""
        with self._lock:
            yield self._predictor

    def reset(self) -> None:
        """Make the model what it was before classes were added."""
        with self._lock:
            self._predictor = self._opened()

    @property
    def is_zero_shot(self) -> bool:
        """Whether it can learn classes from their names, and has a bias of seen classes."""
        model = self._predictor.model
        return isinstance(model, PADing) and model.method != "supervised"

    @property
    def grows_labels(self) -> bool:
        """Whether labels grow from strokes."""
        return self._predictor.grows_labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of all classes, added ones included."""
        return self._predictor.class_names

    @property
    def added_names(self) -> tuple[str, ...]:
        """Classes that were added on the page."""
        return self.class_names[self._num_trained :]

    @property
    def seen_bias(self) -> float:
        """MODEL.PADING.TEST.SEEN_BIAS of its configuration."""
        return float(self._predictor.cfg.MODEL.PADING.TEST.SEEN_BIAS)


def open_models(
    files: Sequence[str | Path], config_file: str | Path = "", opts: Sequence[str] = ()
) -> Mapping[str, PageModel]:
    """Open what the command line names.

    Args:
        files: packed models.
        config_file: a configuration whose MODEL.WEIGHTS is one more model; "": none.
        opts: KEY, VALUE, ... of all of them.

    Returns:
        Models by their names: stems of files, with a number where two are equal.

    Raises:
        ConfigError: nothing is named.
        MissingFileError, CheckpointError: a file is no model.
    """
    found: dict[str, PageModel] = {}

    def add(stem: str, opened: Callable[[], Predictor]) -> None:
        name, number = stem, 1
        while name in found:
            number += 1
            name = f"{stem} ({number})"
        found[name] = PageModel(name, opened)

    for file in files:
        add(Path(file).stem, lambda file=file: Predictor.from_file(file, opts))  # type: ignore[misc]
    if config_file:
        cfg = load_config(config_file, opts)
        register_data(cfg)
        add(Path(config_file).stem, lambda: Predictor(cfg))
    if not found:
        raise ConfigError("no model is named; give --model FILE or --config-file FILE, or leave both out to train some")
    return found
