# SPDX-License-Identifier: Apache-2.0
"""What MODEL.PSI.SLD and MODEL.PSI.LOSS say about a training step, checked."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from detectron2.config import CfgNode

from padding.errors import ConfigError, check_choice
from padding.modeling.class_balance import ClassBalance, build_class_balance
from padding.modeling.label_space import learned_split
from padding.modeling.ramp_up import build_ramp_up
from padding.modeling.teacher import BATCH_NORM_POLICIES, BatchNormPolicy
from psi.label_diffusion import DiffusionOptions
from psi.losses import CHOICES, check_loss_choice

MODES = ("online", "inner_loop", "rounds")


@dataclass(frozen=True)
class GrowthOptions:
    """When labels grow, and how.

    Attributes:
        diffusion: of one step and of all; the number of its radii is T.
        mode: "online", "inner_loop" or "rounds".
        start_iter: no label grows in earlier iterations; not read in "rounds".
        stride: input pixels per cell of the grid on which labels grow.

    Raises:
        ConfigError: names the key.
    """

    diffusion: DiffusionOptions
    mode: str = "online"
    start_iter: int = 0
    stride: int = 4

    def __post_init__(self) -> None:
        check_choice("MODEL.PSI.SLD.MODE", self.mode, MODES)

    @property
    def steps(self) -> int:
        """T."""
        return len(self.diffusion.radii)

    def diffusion_at(self, step: int) -> DiffusionOptions:
        """Of one training step: all T diffusions in "online", else the one from y_t, none for t = T."""
        radii = self.diffusion.radii
        return self.diffusion if self.mode == "online" else replace(self.diffusion, radii=radii[step : step + 1])

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "GrowthOptions":
        """Read MODEL.PSI.SLD."""
        node = cfg.MODEL.PSI.SLD
        if node.STRIDE < 1:
            raise ConfigError(f"MODEL.PSI.SLD.STRIDE is {node.STRIDE}; expected input pixels per cell, >= 1")
        start = node.START_ITER if node.START_ITER >= 0 else cfg.SOLVER.MAX_ITER // 10
        return cls(DiffusionOptions.from_config(cfg), mode=node.MODE, start_iter=start, stride=node.STRIDE)


@dataclass(frozen=True)
class TeacherOptions:
    """Whose scores grow the labels, and on which view.

    Attributes:
        decay: of the network's moving average, whose scores they are, in [0, 1); 0: the network's own.
        warm_up: the decay begins at 0, see ``padding.modeling.teacher.warmed_up``.
        batch_norm: of the pass that makes the scores, where it is one of its own.
        evaluate: predictions are the average's.
        weak_to_strong: the network is trained on "image_strong".

    Raises:
        ConfigError: names the key.
    """

    decay: float = 0.0
    warm_up: bool = True
    batch_norm: BatchNormPolicy = "running"
    evaluate: bool = False
    weak_to_strong: bool = False

    def __post_init__(self) -> None:
        check_choice("MODEL.PSI.TEACHER.BATCH_NORM", self.batch_norm, BATCH_NORM_POLICIES)
        if not 0 <= self.decay < 1:
            raise ConfigError(f"MODEL.PSI.TEACHER.DECAY is {self.decay}; expected a share that is kept, in [0, 1)")
        if self.evaluate and self.decay == 0:
            raise ConfigError("MODEL.PSI.TEACHER.EVALUATE needs a moving average: set MODEL.PSI.TEACHER.DECAY above 0")

    @property
    def has_own_pass(self) -> bool:
        """Whether scores come from another forward than the one that is trained."""
        return self.decay > 0 or self.weak_to_strong

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "TeacherOptions":
        """Read MODEL.PSI.TEACHER and WEAK_TO_STRONG.

        Raises:
            ConfigError: if samples bring no strong view to train on.
        """
        node = cfg.MODEL.PSI
        if node.WEAK_TO_STRONG and not (cfg.INPUT.STRONG_VIEW and cfg.INPUT.STRONG_VIEWS > 0):
            raise ConfigError(
                "MODEL.PSI.WEAK_TO_STRONG trains on strong views, which INPUT.STRONG_VIEW True and INPUT.STRONG_VIEWS, "
                "at least 1, make; set them too"
            )
        return cls(
            decay=node.TEACHER.DECAY,
            warm_up=node.TEACHER.WARM_UP,
            batch_norm=node.TEACHER.BATCH_NORM,
            evaluate=node.TEACHER.EVALUATE,
            weak_to_strong=node.WEAK_TO_STRONG,
        )


@dataclass(frozen=True)
class LossOptions:
    """Weights and choices of the losses; see ``psi.losses`` for the latter.

    Attributes:
        region_norm, diffused_weight: of ``segmentation_loss``.
        diffused_ramp: factor on the latter, of the iterations since labels began to grow.
        smooth_weight: [lambda_1] on ``smoothness``; 0 leaves it out.
        smooth_on, smooth_reduction: of it.
        smooth_stride: input pixels per cell of the prediction it is computed on.
        diffusion_weight: [lambda_2] on the second term of L_sld.
        diffusion_region: of it.
        balance: class weights and focal factor of ``segmentation_loss``; the model owns it.

    Raises:
        ConfigError: names the key.
    """

    region_norm: str = "separate"
    diffused_weight: float = 1.0
    diffused_ramp: Callable[[int], float] = lambda _: 1.0
    smooth_weight: float = 100.0
    smooth_on: str = "probability"
    smooth_reduction: str = "mean"
    smooth_stride: int = 1
    diffusion_weight: float = 1.0
    diffusion_region: str = "selected"
    balance: ClassBalance | None = None

    def __post_init__(self) -> None:
        # Here, because labels may start to grow long after the first step.
        for key in CHOICES:
            check_loss_choice(key, getattr(self, key.lower()))
        if self.smooth_stride < 1:
            raise ConfigError(
                f"MODEL.PSI.LOSS.SMOOTH_STRIDE is {self.smooth_stride}; expected input pixels per cell, >= 1"
            )
        if min(self.diffused_weight, self.smooth_weight, self.diffusion_weight) < 0:
            raise ConfigError("MODEL.PSI.LOSS: DIFFUSED_WEIGHT, SMOOTH_WEIGHT and DIFFUSION_WEIGHT are not negative")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "LossOptions":
        """Read MODEL.PSI.LOSS and MODEL.CLASS_BALANCE."""
        node = cfg.MODEL.PSI.LOSS
        ramp = build_ramp_up(node.DIFFUSED_RAMP, max_iter=cfg.SOLVER.MAX_ITER, key="MODEL.PSI.LOSS.DIFFUSED_RAMP")
        return cls(
            region_norm=node.REGION_NORM,
            diffused_weight=node.DIFFUSED_WEIGHT,
            diffused_ramp=ramp,
            smooth_weight=node.SMOOTH_WEIGHT,
            smooth_on=node.SMOOTH_ON,
            smooth_reduction=node.SMOOTH_REDUCTION,
            smooth_stride=node.SMOOTH_STRIDE,
            diffusion_weight=node.DIFFUSION_WEIGHT,
            diffusion_region=node.DIFFUSION_REGION,
            balance=build_class_balance(cfg, learned_split(cfg).num_classes),
        )
