# SPDX-License-Identifier: Apache-2.0
"""Optimisers, parameter groups by rule, gradient clipping and learning rate schedules in closed form.

Rules and schedules are those of Mask2Former (R50 recipe) and DeepLab's poly schedule. Every function reads a node with
the names of Detectron2's SOLVER, so that a method with two optimisers gives each its own sub-node.
"""

import logging
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from padding.errors import ConfigError

_NORM_TYPES = (
    nn.modules.batchnorm._NormBase,  # every BatchNorm and InstanceNorm
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)
# Position tables of Swin and ViT are bare parameters, recognised by name.
_POSITION_TABLES = ("relative_position_bias_table", "absolute_pos_embed")
# Layer scales of ConvNeXt are factors per channel, like the weights of a norm.
_LAYER_SCALES = ("gamma",)
_FUSED_ON = ("cpu", "cuda")


def solver_node(cfg: CfgNode, name: str = "main") -> CfgNode:
    """Return the solver settings of one of a method's optimisers.

    Args:
        cfg: the full configuration.
        name: "main" for SOLVER itself; otherwise SOLVER.<NAME>, whose missing keys are taken from SOLVER.

    Raises:
        KeyError: if SOLVER has no such sub-node.
    """
    if name == "main":
        return cfg.SOLVER
    key = name.upper()
    if key not in cfg.SOLVER:
        known = [k for k, v in cfg.SOLVER.items() if isinstance(v, CfgNode)]
        raise KeyError(f"SOLVER.{key} does not exist; an optimiser named {name!r} needs it (sub-nodes: {known})")
    return _overlay(cfg.SOLVER, cfg.SOLVER[key])


def _overlay(base: CfgNode, changes: CfgNode) -> CfgNode:
    node = base.clone()
    node.defrost()
    for key, value in changes.items():
        nested = isinstance(value, CfgNode) and isinstance(node.get(key), CfgNode)
        node[key] = _overlay(node[key], value) if nested else value
    node.freeze()
    return node


def parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    weight_decay_norm: float | None = None,
    weight_decay_embed: float | None = None,
    weight_decay_bias: float | None = None,
    backbone_multiplier: float = 1.0,
    bias_lr_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Sort a model's trainable parameters into as few groups as the rules allow.

    Args:
        model: its frozen parameters are left out; shared ones appear once.
        base_lr: rate of everything outside a module named "backbone".
        weight_decay: decay where no other rule applies.
        weight_decay_norm: decay of norm layers and layer scales, None for ``weight_decay``.
        weight_decay_embed: decay of nn.Embedding and of position tables, None for ``weight_decay``.
        weight_decay_bias: decay of parameters named "bias" outside norm layers, None for ``weight_decay``.
        backbone_multiplier: factor on the rate below a module named "backbone".
        bias_lr_factor: factor on the rate of parameters named "bias".

    Returns:
        Groups with ``params``, ``lr`` and ``weight_decay``, in the order in which their first parameter occurs.
    """

    def decay_of(module: nn.Module, parameter_name: str) -> float:
        is_norm = isinstance(module, _NORM_TYPES) or type(module).__name__.endswith("LayerNorm")
        if is_norm or parameter_name in _LAYER_SCALES:
            special = weight_decay_norm
        elif isinstance(module, nn.Embedding) or parameter_name in _POSITION_TABLES:
            special = weight_decay_embed
        else:
            special = weight_decay_bias if parameter_name == "bias" else None
        return weight_decay if special is None else special

    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for module_name, module, parameter_name, parameter in _trainable_parameters(model):
        lr = base_lr * (backbone_multiplier if "backbone" in module_name.split(".") else 1.0)
        lr *= bias_lr_factor if parameter_name == "bias" else 1.0
        # Parameters of equal rate and decay share a group, which the optimiser updates together.
        groups.setdefault((lr, decay_of(module, parameter_name)), []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def groups_of_parts(node: CfgNode, parts: Iterable[tuple[nn.Module, float]]) -> list[dict[str, Any]]:
    """Parameter groups of some parts of a model, each with a rate of its own; the rules on decay are those of all.

    Args:
        node: SOLVER or a sub-node (see ``solver_node``).
        parts: disjoint modules with their rates.

    Returns:
        Groups as ``parameter_groups`` makes them, part after part.
    """
    return [
        group
        for part, rate in parts
        for group in parameter_groups(
            part,
            base_lr=rate,
            weight_decay=node.WEIGHT_DECAY,
            weight_decay_norm=node.WEIGHT_DECAY_NORM,
            weight_decay_embed=node.WEIGHT_DECAY_EMBED,
            weight_decay_bias=node.WEIGHT_DECAY_BIAS,
            bias_lr_factor=node.BIAS_LR_FACTOR,
        )
    ]


def _trainable_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    # A module in two places is trained once.
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield module_name, module, parameter_name, parameter


def make_optimizer(node: CfgNode, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Build the optimiser that ``node.OPTIMIZER`` names over ready parameter groups.

    Args:
        node: SOLVER or a sub-node (see ``solver_node``).
        groups: from ``parameter_groups``.

    Raises:
        ConfigError: for an unknown name, or if nothing is trainable.
    """
    if not groups:
        raise ConfigError("no trainable parameter for this optimiser: every parameter of its modules is frozen")
    name = node.OPTIMIZER.upper()
    # One pass over each parameter in place of a dozen: a third of the time on a CPU.
    fused = all(parameter.device.type in _FUSED_ON for group in groups for parameter in group["params"])
    if name == "ADAMW":
        return torch.optim.AdamW(groups, lr=node.BASE_LR, weight_decay=node.WEIGHT_DECAY, fused=fused)
    if name == "ADAM":
        return torch.optim.Adam(groups, lr=node.BASE_LR, weight_decay=node.WEIGHT_DECAY, fused=fused)
    if name == "SGD":
        return torch.optim.SGD(
            groups, lr=node.BASE_LR, momentum=node.MOMENTUM, nesterov=node.NESTEROV, weight_decay=node.WEIGHT_DECAY
        )
    raise ConfigError(f'SOLVER.OPTIMIZER is {node.OPTIMIZER!r}; known are "ADAMW", "ADAM" and "SGD"')


def base_learning_rate(node: CfgNode) -> float:
    """Base rate of an optimiser, scaled from the batch it is stated for to the batch that is used; the log says so.

    BASE_LR * IMS_PER_BATCH / REFERENCE_BATCH (Goyal et al., 1706.02677, Sec. 2.1): 0.02 for 16 images is 0.01 for 8.

    Args:
        node: SOLVER or a sub-node (see ``solver_node``); REFERENCE_BATCH 0 leaves BASE_LR as it is.

    Raises:
        ConfigError: for a negative REFERENCE_BATCH.
    """
    reference, images = node.REFERENCE_BATCH, node.IMS_PER_BATCH
    if reference < 0:
        raise ConfigError(f"SOLVER.REFERENCE_BATCH is {reference}; expected a number of images, or 0 not to scale")
    if reference == 0:
        return node.BASE_LR
    # From the batch that the rate is stated for: the mean gradient of more images is less noisy (linear scaling).
    rate = node.BASE_LR * images / reference
    logging.getLogger(__name__).info(
        "Learning rate %g: SOLVER.BASE_LR %g is stated for %d images a step, SOLVER.IMS_PER_BATCH is %d",
        rate,
        node.BASE_LR,
        reference,
        images,
    )
    return rate


def build_optimizer(cfg: CfgNode, model: nn.Module, *, name: str = "main") -> torch.optim.Optimizer:
    """Build one optimiser over all trainable parameters of a model.

    Args:
        cfg: the full configuration.
        model: the model, or the part of it that this optimiser trains.
        name: "main", or a sub-node of SOLVER in lower case.
    """
    node = solver_node(cfg, name)
    groups = parameter_groups(
        model,
        base_lr=base_learning_rate(node),
        weight_decay=node.WEIGHT_DECAY,
        weight_decay_norm=node.WEIGHT_DECAY_NORM,
        weight_decay_embed=node.WEIGHT_DECAY_EMBED,
        weight_decay_bias=node.WEIGHT_DECAY_BIAS,
        backbone_multiplier=node.BACKBONE_MULTIPLIER,
        bias_lr_factor=node.BIAS_LR_FACTOR,
    )
    return make_optimizer(node, groups)


def clip_full_model_(parameters: Iterable[nn.Parameter], max_norm: float, norm_type: float = 2.0) -> torch.Tensor:
    """Scale all gradients in place so that their joint norm is at most ``max_norm``; return the norm before."""
    return nn.utils.clip_grad_norm_(list(parameters), max_norm, norm_type=norm_type)


def clip_gradients_(parameters: Iterable[nn.Parameter], node: CfgNode) -> None:
    """Clip gradients in place as ``SOLVER.CLIP_GRADIENTS`` says.

    Args:
        parameters: those of one optimiser, gradients already unscaled.
        node: CLIP_GRADIENTS; CLIP_TYPE "full_model", or Detectron2's "norm" and "value" per parameter.

    Raises:
        ConfigError: for an unknown CLIP_TYPE.
    """
    if not node.ENABLED:
        return
    if node.CLIP_TYPE == "full_model":
        # All gradients by one factor: their direction stays.
        clip_full_model_(parameters, node.CLIP_VALUE, node.NORM_TYPE)
    elif node.CLIP_TYPE == "norm":
        for parameter in parameters:
            nn.utils.clip_grad_norm_(parameter, node.CLIP_VALUE, norm_type=node.NORM_TYPE)
    elif node.CLIP_TYPE == "value":
        nn.utils.clip_grad_value_(list(parameters), node.CLIP_VALUE)
    else:
        raise ConfigError(
            f'SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {node.CLIP_TYPE!r}; known are "full_model", "norm" and "value"'
        )


def lr_multiplier(node: CfgNode, *, max_iter: int | None = None) -> Callable[[int], float]:
    """Return the factor on the base rate as a function of the iteration: warm-up times decay.

    With t the iteration, T the last one, W = WARMUP_ITERS and f = WARMUP_FACTOR:
      warm-up   linear f + (1 - f) t/W, constant f, for t < W; then 1
      decay     "WarmupMultiStepLR" GAMMA^(number of STEPS <= t), "WarmupCosineLR" (1 + cos(pi t/T)) / 2,
                "WarmupPolyLR" max((1 - t/T)^POLY_LR_POWER, POLY_LR_CONSTANT_ENDING), "constant" 1

    Args:
        node: SOLVER or a sub-node (see ``solver_node``).
        max_iter: T; None for ``node.MAX_ITER``.

    Raises:
        ValueError: for an unknown LR_SCHEDULER_NAME or WARMUP_METHOD, or unsorted STEPS.
    """
    last = node.MAX_ITER if max_iter is None else max_iter
    warmup, decay = _warmup(node), _decay(node, max(last, 1))
    # Past the last iteration the decay stands still.
    return lambda iteration: warmup(iteration) * decay(min(iteration, last))


def _warmup(node: CfgNode) -> Callable[[int], float]:
    factor, length, method = node.WARMUP_FACTOR, node.WARMUP_ITERS, node.WARMUP_METHOD
    if method not in ("linear", "constant"):
        raise ConfigError(f'SOLVER.WARMUP_METHOD is {method!r}; known are "linear" and "constant"')

    def at(iteration: int) -> float:
        if iteration >= length:
            return 1.0
        return factor + (1.0 - factor) * iteration / length if method == "linear" else factor

    return at


def _decay(node: CfgNode, last: int) -> Callable[[int], float]:
    name = node.LR_SCHEDULER_NAME
    if name == "WarmupMultiStepLR":
        steps = list(node.STEPS)
        if steps != sorted(steps):
            raise ConfigError(f"SOLVER.STEPS must increase, got {tuple(steps)}")
        return lambda iteration: node.GAMMA ** bisect_right(steps, iteration)
    if name == "WarmupCosineLR":
        return lambda iteration: 0.5 * (1.0 + math.cos(math.pi * iteration / last))
    if name == "WarmupPolyLR":
        return lambda iteration: max((1.0 - iteration / last) ** node.POLY_LR_POWER, node.POLY_LR_CONSTANT_ENDING)
    if name == "constant":
        return lambda _: 1.0
    raise ConfigError(
        f'SOLVER.LR_SCHEDULER_NAME is {name!r}; known are "WarmupMultiStepLR", "WarmupCosineLR", "WarmupPolyLR" and '
        '"constant"'
    )


def build_lr_scheduler(node: CfgNode, optimizer: torch.optim.Optimizer, *, max_iter: int | None = None) -> LambdaLR:
    """Build the schedule of one optimiser; step it once per iteration.

    Args:
        node: SOLVER or a sub-node (see ``solver_node``).
        optimizer: its groups' rates are the base rates.
        max_iter: end of the schedule; None for ``node.MAX_ITER``.
    """
    return LambdaLR(optimizer, lr_multiplier(node, max_iter=max_iter))
