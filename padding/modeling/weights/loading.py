# SPDX-License-Identifier: Apache-2.0
"""Weights into a model: what may be missing at the start of a training, and what may not when evaluating."""

import logging

from torch import nn

from padding.errors import CheckpointError
from padding.modeling.weights.backbones import load_backbone_weights
from padding.modeling.weights.checkpoint import CheckpointReport, load_into, normalise_keys, read_checkpoint

__all__ = ["load_initial_weights", "load_weights"]

# Constants that are rebuilt from the configuration; published files do not always hold them.
_REBUILT = ("criterion.",)


def load_weights(model: nn.Module, path: str, *, complete: bool) -> CheckpointReport:
    """Load a weight file into a model and log what was matched, renamed and skipped.

    Args:
        model: changed in place; not wrapped. Its attribute ``training_only``, if there is one, names prefixes of
            parameters that no prediction depends on.
        path: local .pth, .pkl or .safetensors file.
        complete: True to evaluate, when every parameter must come from the file; False at the start of a training,
            when the head may be absent as a whole and class rows may differ in number.

    Returns:
        The report.

    Raises:
        CheckpointError: if the file does not fit; with ``complete`` also if any parameter would stay untrained.
    """
    report = load_into(model, read_checkpoint(path))
    logging.getLogger(__name__).info("Weights from %s:\n%s", path, report)
    reshaped = [name for name, why in report.skipped.items() if why.startswith("shape")]
    optional = (*_REBUILT, *getattr(model, "training_only", ()))
    untrained = [name for name in (*report.missing, *reshaped) if not name.startswith(optional)]
    if complete and untrained:
        raise CheckpointError(
            f"{path} leaves {len(untrained)} parameters of {type(model).__name__} untrained, first {untrained[0]!r}; "
            f"evaluation needs a checkpoint of this very configuration.\n{report}"
        )
    return report


def load_initial_weights(model: nn.Module, backbone: nn.Module, path: str) -> CheckpointReport:
    """Start a training from a checkpoint of the whole model or from ImageNet weights of its backbone.

    Args:
        model: changed in place; not wrapped.
        backbone: the part of it that ImageNet weights are for.
        path: local file; of a backbone in any layout of ``padding.modeling.weights.backbones``.

    Returns:
        The report.

    Raises:
        CheckpointError: if the file fits neither.
    """
    inside = {id(value) for value in backbone.state_dict(keep_vars=True).values()}
    rest = {name for name, value in model.state_dict(keep_vars=True).items() if id(value) not in inside}
    names, _ = normalise_keys(read_checkpoint(path))
    if rest & set(names):
        return load_weights(model, path, complete=False)
    report = load_backbone_weights(backbone, path, key="MODEL.BACKBONE")
    logging.getLogger(__name__).info("Weights of the backbone from %s:\n%s", path, report)
    return report
