# SPDX-License-Identifier: Apache-2.0
"""Weights into a model: what may be missing at the start of a training, and what may not when evaluating."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from padding.errors import CheckpointError
from padding.modeling.weights.backbones import import_backbone
from padding.modeling.weights.checkpoint import State, read_checkpoint
from padding.modeling.weights.normalisation import warn_of_other_pixels
from padding.modeling.weights.renaming import NOT_NEEDED, normalise_keys
from padding.modeling.weights.report import BODY, CheckpointReport

PixelStatistics = tuple[Tensor | Sequence[float], Tensor | Sequence[float]]

# Their first dimension is the number of classes, which differs between data sets.
_CLASS_DEPENDENT = re.compile(r"(^|\.)(class_embed\.(weight|bias)|new_fc\.(weight|bias)|criterion\.empty_weight)$")
_HEAD = "sem_seg_head."
# Constants that are rebuilt from the configuration; published files do not always hold them.
_REBUILT = ("criterion.",)


def load_weights(model: nn.Module, path: str, *, complete: bool) -> CheckpointReport:
    """Load a weight file into a model and log what was matched, renamed and skipped; see ``load_state``.

    Args:
        model: changed in place; not wrapped.
        path: local .pth, .pkl or .safetensors file.
        complete: True to evaluate, False at the start of a training.
    """
    return load_state(model, read_checkpoint(path), path, complete=complete)


def load_state(model: nn.Module, state: Mapping[str, Tensor], path: str, *, complete: bool) -> CheckpointReport:
    """Load what a weight file holds into a model and log what was matched, renamed and skipped.

    Args:
        model: changed in place; not wrapped. Its attribute ``training_only``, if there is one, names prefixes of
            parameters that no prediction depends on.
        state: name to tensor, as ``read_checkpoint`` returns it.
        path: where it comes from, for messages.
        complete: True to evaluate, when every parameter must come from the file; False at the start of a training,
            when the head may be absent as a whole and class rows may differ in number.

    Returns:
        The report.

    Raises:
        CheckpointError: if the file does not fit; with ``complete`` also if any parameter would stay untrained.
    """
    report = load_into(model, state)
    logging.getLogger(__name__).info("Weights from %s:\n%s", path, report)
    optional = (*_REBUILT, *getattr(model, "training_only", ()))
    untrained = [name for name in report.untrained if not name.startswith(optional)]
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
    state = read_checkpoint(path)
    if rest & set(normalise_keys(state)[0]):
        return load_state(model, state, path, complete=False)
    report = _load_backbone(backbone, state, path, key="MODEL.BACKBONE", pixels=_pixels_of(model))
    logging.getLogger(__name__).info("Weights of the backbone from %s:\n%s", path, report)
    return report


def load_backbone_weights(
    backbone: nn.Module, path: str | Path, *, key: str, pixels: PixelStatistics | None = None
) -> CheckpointReport:
    """Load a file into a backbone, in place.

    Args:
        backbone: any of ours.
        path: local file that ``read_checkpoint`` reads.
        key: that names the backbone in the configuration, for messages.
        pixels: mean and standard deviation of its images; a warning says if published weights expect others.

    Returns:
        What was used, renamed, left out, and what the file does not have; names start with ``backbone.``.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it cannot be read, or does not hold the whole backbone; the backbone is then unchanged.
    """
    return _load_backbone(backbone, read_checkpoint(path), path, key=key, pixels=pixels)


def _pixels_of(model: nn.Module) -> PixelStatistics | None:
    mean, std = getattr(model, "pixel_mean", None), getattr(model, "pixel_std", None)
    return None if mean is None or std is None else (mean, std)


def _load_backbone(
    backbone: nn.Module, state: State, path: str | Path, *, key: str, pixels: PixelStatistics | None
) -> CheckpointReport:
    imported = import_backbone(state, backbone.state_dict().keys())
    try:
        report = load_into(
            nn.ModuleDict({"backbone": backbone}),
            {f"backbone.{name}": tensor for name, tensor in imported.state.items()},
            allow_missing=("backbone.output_norms.",),  # only the dense network has them
        )
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} has the names of a {imported.layout} and does not fit this backbone. Compare {key} with the "
            f"file's network and its depth.\n{error}"
        ) from error
    report.renamed = {old: f"backbone.{new}" for old, new in imported.renamed.items()}
    report.skipped |= imported.skipped
    if pixels is not None:
        warn_of_other_pixels(backbone, *pixels, path=path, layout=imported.layout)
    return report


def load_into(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    allow_missing: Sequence[str] = (),
) -> CheckpointReport:
    """Copy weights into a network, in place, and say what was done.

    Names are normalised first. Tensors whose size follows the number of classes are skipped when their shape differs. A
    file whose only network weights are a backbone's leaves the head at its initial values.

    Args:
        model: the network, not wrapped.
        state: name to tensor, as ``read_checkpoint`` returns it.
        allow_missing: prefixes of network names that the file need not have, or may have in another shape.

    Returns:
        The report.

    Raises:
        CheckpointError: if backbone or head fit only in part, or nothing fits; the network is then unchanged.
    """
    state, renamed = normalise_keys(state)
    own = model.state_dict()
    state, prefixed = _add_backbone_prefix(state, own)
    renamed |= prefixed
    report = CheckpointReport()
    wrong_shape = []
    for name, tensor in state.items():
        if name in own and tensor.shape == own[name].shape:
            report.matched.append(name)
        elif name in own:
            shapes = f"{_shape(tensor)} in the file, {_shape(own[name])} in the network"
            report.skipped[name] = f"shape {shapes}"
            if not _CLASS_DEPENDENT.search(name):
                wrong_shape.append(name)
        elif NOT_NEEDED.search(name):
            report.skipped[name] = "not needed"
        else:
            report.unexpected.append(name)
    report.missing = [name for name in own if name not in state and not NOT_NEEDED.search(name)]
    report.renamed = {old: new for old, new in renamed.items() if new in own}

    if _is_backbone_only(state):
        allow_missing = (*allow_missing, _HEAD)
    unfit = _unfit([*report.missing, *wrong_shape], allow_missing) + _unfit(report.unexpected)
    if unfit or not report.matched:
        raise CheckpointError(_explain_misfit(report, unfit))
    model.load_state_dict({name: state[name] for name in report.matched}, strict=False)
    return report


def _add_backbone_prefix(state: State, model_keys: Iterable[str]) -> tuple[State, dict[str, str]]:
    """Files of a bare backbone (ImageNet weights) name its parameters without ``backbone.``."""
    known = set(model_keys)
    if any(name in known for name in state) or not any("backbone." + name in known for name in state):
        return state, {}
    renames = {name: "backbone." + name for name in state}
    return {renames[name]: tensor for name, tensor in state.items()}, renames


def _is_backbone_only(state: Mapping[str, Tensor]) -> bool:
    return not any(name.startswith(_HEAD) for name in state) and any(name.startswith("backbone.") for name in state)


def _unfit(names: Sequence[str], allowed: Sequence[str] = ()) -> list[str]:
    return [
        name
        for name in names
        if name.startswith(BODY) and not name.startswith(tuple(allowed)) and not _CLASS_DEPENDENT.search(name)
    ]


def _explain_misfit(report: CheckpointReport, unfit: Sequence[str]) -> str:
    if not report.matched:
        cause = "no tensor of the file fits the network; this is another network's file"
    else:
        cause = (
            f"{len(unfit)} tensors of backbone or head do not fit, first '{unfit[0]}'; the file belongs to another "
            "backbone, head or number of layers (compare MODEL.BACKBONE, MODEL.RESNETS, MODEL.MASK_FORMER and "
            "MODEL.SEM_SEG_HEAD)"
        )
    return f"weights do not fit: {cause}. To load in part, allow these prefixes explicitly.\n{report}"


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "scalar"
