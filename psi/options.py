# SPDX-License-Identifier: Apache-2.0
"""What MODEL.PSI.SLD and MODEL.PSI.LOSS say about a training step, checked."""

from dataclasses import dataclass, replace

from detectron2.config import CfgNode

from padding.errors import ConfigError, check_choice
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
class LossOptions:
    """Weights and choices of the losses; see ``psi.losses`` for the latter.

    Attributes:
        region_norm, diffused_weight: of ``segmentation_loss``.
        smooth_weight: [lambda_1] on ``smoothness``; 0 leaves it out.
        smooth_on, smooth_reduction: of it.
        smooth_stride: input pixels per cell of the prediction it is computed on.
        diffusion_weight: [lambda_2] on the second term of L_sld.
        diffusion_region: of it.

    Raises:
        ConfigError: names the key.
    """

    region_norm: str = "separate"
    diffused_weight: float = 1.0
    smooth_weight: float = 100.0
    smooth_on: str = "probability"
    smooth_reduction: str = "mean"
    smooth_stride: int = 1
    diffusion_weight: float = 1.0
    diffusion_region: str = "selected"

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
    def from_node(cls, node: CfgNode) -> "LossOptions":
        """Read MODEL.PSI.LOSS."""
        return cls(
            region_norm=node.REGION_NORM,
            diffused_weight=node.DIFFUSED_WEIGHT,
            smooth_weight=node.SMOOTH_WEIGHT,
            smooth_on=node.SMOOTH_ON,
            smooth_reduction=node.SMOOTH_REDUCTION,
            smooth_stride=node.SMOOTH_STRIDE,
            diffusion_weight=node.DIFFUSION_WEIGHT,
            diffusion_region=node.DIFFUSION_REGION,
        )
