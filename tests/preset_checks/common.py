# SPDX-License-Identifier: Apache-2.0
"""What the checks of single keys share: a tiny PADing, a batch of features, and the list of checks by key."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from padding.bank.feature_bank import FeatureBatch
from padding.meta_arch import PADing
from tests.tiny_padding import FEATURE_WIDTH

PREFIX = "MODEL.PADING."
# Kernel widths of the released code and of the paper.
ZS3, PRINTED = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0), (2.0, 5.0, 10.0, 20.0, 40.0, 60.0)
K, SEEN, UNSEEN = 6, [0, 1, 3, 5], [2, 4]
QUIET = (
    *(PREFIX + "GENERATOR.NOISE_STD", 0.0, PREFIX + "GENERATOR.DROPOUT", 0.0),
    *(PREFIX + "DISENTANGLE.DROPOUT", 0.0),
)
BuildModel = Callable[..., PADing]
MakeCfg = Callable[..., CfgNode]

# Key -> check of what it changes; filled by the modules beside this one.
BEHAVIOURS: dict[str, Callable[[BuildModel, MakeCfg, Path], None]] = {}


def behaviour(*keys: str) -> Callable[[Callable], Callable]:
    def register(function: Callable) -> Callable:
        BEHAVIOURS.update(dict.fromkeys(keys, function))
        return function

    return register


def features() -> FeatureBatch:
    """Six matched rows of seen classes and two unmatched ones."""
    labels = torch.tensor([0, 0, 1, 3, 5, 3, K, K])
    embeddings = torch.randn(8, FEATURE_WIDTH, generator=torch.Generator().manual_seed(0))
    return FeatureBatch(embeddings, labels, torch.ones(8))


def seeded(build: BuildModel, *opts: Any) -> PADing:
    torch.manual_seed(0)
    return build(*QUIET, *(PREFIX + o if isinstance(o, str) and i % 2 == 0 else o for i, o in enumerate(opts)))


def generator_losses(build: BuildModel, *opts: Any, batch: FeatureBatch | None = None) -> dict[str, torch.Tensor]:
    model = seeded(build, *opts)
    torch.manual_seed(1)
    return model(features() if batch is None else batch, step="generator")
