# SPDX-License-Identifier: Apache-2.0
"""Weights into a model: what may be missing at the start of a training, and what may not when evaluating."""

import logging

from torch import nn

from padding.modeling.checkpoint import CheckpointError, CheckpointReport, load_into, read_checkpoint

__all__ = ["load_weights"]

# Constants that are rebuilt from the configuration; published files do not always hold them.
_REBUILT = ("criterion.",)


def load_weights(model: nn.Module, path: str, *, complete: bool) -> CheckpointReport:
    """Load a weight file into a model and log what was matched, renamed and skipped.

    Args:
        model: changed in place; not wrapped.
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
    untrained = [name for name in (*report.missing, *reshaped) if not name.startswith(_REBUILT)]
    if complete and untrained:
        raise CheckpointError(
            f"{path} leaves {len(untrained)} parameters of {type(model).__name__} untrained, first {untrained[0]!r}; "
            f"evaluation needs a checkpoint of this very configuration.\n{report}"
        )
    return report
