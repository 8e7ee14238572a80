# SPDX-License-Identifier: Apache-2.0
"""Keep parts of any model as they are by a rule on the names of their parameters (MODEL.FREEZE)."""

from __future__ import annotations

import difflib
import fnmatch
import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from padding.errors import ConfigError

logger = logging.getLogger(__name__)


def freeze_parameters(model: nn.Module, patterns: Sequence[str]) -> None:
    """Switch off the training of every parameter that a pattern fits.

    A batch norm all of whose parameters are kept also keeps its statistics, in training too; names stay as they are, so
    that every weight file fits.

    Args:
        model: changed in place.
        patterns: with ``*`` (dots included), ``?`` and ``[...]``, such as "backbone.stem.*"; one that begins with "!"
            takes parameters out of those before it. (): nothing is changed.

    Raises:
        ConfigError: a pattern fits no parameter, or nothing is left to train.
    """
    if not patterns:
        return
    names = [name for name, _ in model.named_parameters()]
    kept: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(names, pattern.removeprefix("!"))
        if not found:
            near = difflib.get_close_matches(pattern.strip("!*").rstrip("."), names, n=3, cutoff=0.0)
            raise ConfigError(
                f"MODEL.FREEZE: no parameter fits '{pattern}'; names are such as {', '.join(near)}, and * stands for "
                "any part of a name"
            )
        kept = kept - set(found) if pattern.startswith("!") else kept | set(found)
    parameters = dict(model.named_parameters())
    for name in kept:
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError(f"MODEL.FREEZE {tuple(patterns)} leaves nothing to train; take parts out by '!pattern'")
    norms = [module for module in model.modules() if _is_kept_norm(module)]
    for module in norms:
        module.register_forward_pre_hook(_with_kept_statistics)
    logger.info("MODEL.FREEZE: %d of %d parameters are kept, %d batch norms", len(kept), len(names), len(norms))


def _is_kept_norm(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    tracks = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    return tracks and bool(own) and not any(parameter.requires_grad for parameter in own)


def _with_kept_statistics(module: nn.Module, _: Any) -> None:
    """Called before each forward pass: ``model.train()`` reaches every module, and this one stays as it is."""
    module.training = False
