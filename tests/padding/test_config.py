# SPDX-License-Identifier: Apache-2.0
"""Defaults are the preset "ours"; the presets "paper" and "official" change what they must, and train."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

import padding
from padding.engine import load_cfg
from padding.engine.optimizer import solver_node
from padding.feature_bank import FeatureBatch
from tests.tiny_padding import FEATURE_WIDTH

MakeCfg = Callable[..., CfgNode]
BASE = Path(__file__).parents[2] / "configs" / "_base_"

# From padding.md, section 2: key below MODEL.PADING -> (ours, paper, official).
PRESETS = {
    "LOSS_WEIGHT.STRUCTURE": (0.002, 0.002, 0.0001),
    "LOSS_WEIGHT.ALIGN": (1.0, 1.0, 1.0),
    "LOSS_WEIGHT.RELATION": (0.2, 1.0, 0.2),
    "LOSS_WEIGHT.UNRELATED": (0.5, 1.0, 0.5),
    "LOSS_WEIGHT.RECONSTRUCTION": (0.5, 1.0, 0.5),
    "LOSS_WEIGHT.CONSISTENCY": (0.001, 0.0, 0.001),
    "MMD.SIGMAS": ((2.0, 5.0, 10.0, 20.0, 40.0, 80.0), (2.0, 5.0, 10.0, 20.0, 40.0, 60.0), (2, 5, 10, 20, 40, 80)),
    "MMD.BANDWIDTH": ("median", "sigma", "variance"),
    "MMD.SQRT": (True, False, True),
    "MMD.UNBIASED": (False, False, False),
    "GENERATOR.NAME": ("primitive_transformer", "primitive_paper", "primitive_transformer"),
    "GENERATOR.PRIMITIVE_SELF_ATTENTION": (False, True, False),
    "GENERATOR.NOISE_STD": (1.0, 1.0, 1.0),
    "GENERATOR.NUM_LAYERS": (3, 3, 3),
    "GENERATOR.NUM_PRIMITIVES": (400, 400, 400),
    "GENERATOR.DROPOUT": (0.1, 0.1, 0.1),
    "ALIGN.REDUCTION": ("row_mean", "row_mean", "numel"),
    "ALIGN.DIRECTION": ("semantic_to_visual", "visual_to_semantic", "semantic_to_visual"),
    "ALIGN.TARGET": ("raw", "raw", "projected"),
    "ALIGN.DETACH": (True, True, False),
    "ALIGN.TEMPERATURE": (0.1, 0.1, 0.1),
    "ALIGN.USE_REAL_SEEN": (True, True, False),
    "DISENTANGLE.ARCH": ("ours", "ours", "official"),
    "DISENTANGLE.RELATION": ("dot", "dot", "relation_net"),
    "DISENTANGLE.RELATION_AMONG_ALL": (True, True, False),
    "DISENTANGLE.UNRELATED": ("moment", "moment", "official"),
    "SCHEDULE": ("interleaved", "sequential", "interleaved"),
    "CLASSIFIER.INIT": ("pretrained", "pretrained", "pretrained"),
    "CLASSIFIER.UNSEEN_WEIGHT": (5.0, 1.0, 5.0),
    "CLASSIFIER.NO_OBJECT_WEIGHT": (0.1, 0.1, 0.1),
    "CLASSIFIER.CLASSES_PER_ITER": (5, 5, 5),
    "CLASSIFIER.NUM_PER_CLASS": (1, 1, 1),
    "EMBEDDINGS.L2_NORMALIZE": (True, True, True),
}


def value_at(node: CfgNode, key: str) -> object:
    for word in key.split("."):
        node = node[word]
    return node


@pytest.fixture(params=["ours", "paper", "official"])
def preset(request: pytest.FixtureRequest) -> str:
    return request.param


def preset_file(preset: str) -> str:
    return "" if preset == "ours" else str(BASE / f"padding_{preset}.yaml")


def test_presets_hold_what_the_comparison_of_paper_and_code_says(preset: str) -> None:
    cfg = load_cfg(preset_file(preset), [], (padding.add_padding_config,))
    column = ("ours", "paper", "official").index(preset)
    for key, values in PRESETS.items():
        assert value_at(cfg.MODEL.PADING, key) == values[column], key
    assert (2e-4 if preset == "paper" else 5e-4) == solver_node(cfg, "generator").BASE_LR
    classifier = solver_node(cfg, "classifier")
    settings = (classifier.OPTIMIZER, classifier.BASE_LR, classifier.MOMENTUM, classifier.WEIGHT_DECAY)
    assert settings == ("SGD", 1e-3, 0.9, 5e-4)


def test_presets_train(preset: str, padding_cfg: MakeCfg) -> None:
    cfg = padding_cfg().clone()
    cfg.defrost()
    if preset != "ours":
        cfg.merge_from_file(preset_file(preset))
    model = build_model(cfg)
    labels = torch.tensor([0, 0, 1, 3, 5, 6])
    losses = model(FeatureBatch(torch.randn(6, FEATURE_WIDTH), labels, torch.ones(6)))
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert ("loss_consistency" in losses) == (preset != "paper")
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_solver_keys_not_given_are_shared(padding_cfg: MakeCfg) -> None:
    cfg = padding_cfg("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.POLY_LR_POWER", 0.5)
    for name in ("generator", "classifier"):
        node = solver_node(cfg, name)
        assert node.CLIP_GRADIENTS.ENABLED
        assert node.POLY_LR_POWER == 0.5
