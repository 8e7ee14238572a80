# SPDX-License-Identifier: Apache-2.0
"""Keys of the two optimisers; what the presets hold and change stands in test_presets.py."""

from collections.abc import Callable

from detectron2.config import CfgNode

from padding.engine.optimizer import solver_node

MakeCfg = Callable[..., CfgNode]


def test_solver_keys_not_given_are_shared(padding_cfg: MakeCfg) -> None:
    cfg = padding_cfg("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.POLY_LR_POWER", 0.5)
    for name in ("generator", "classifier"):
        node = solver_node(cfg, name)
        assert node.CLIP_GRADIENTS.ENABLED
        assert node.POLY_LR_POWER == 0.5
