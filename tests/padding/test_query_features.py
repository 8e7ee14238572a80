# SPDX-License-Identifier: Apache-2.0
"""What lies under each query's mask: means, scales, gradients none, and PADing on top of it from bank to evaluation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model

from padding.bank.identity import relevant_configuration
from padding.checkpoint import load_padding_weights
from padding.engine import TRAINER_REGISTRY
from padding.meta_arch import PADing
from padding.modeling.maskformer import MaskFormer
from padding.query_features import pool_under_masks
from tests.tiny_padding import FEATURE_WIDTH, make_sample, register_tiny_data, tiny_padding_cfg

POOLED = ("MODEL.PADING.POOLED_FEATURES", ("res4", "res5"))
WIDTH = FEATURE_WIDTH + 8 + 8  # of the tiny segmentor's queries, res4 and res5

pytestmark = pytest.mark.usefixtures("restored_catalogs")


def test_mean_of_the_cells_under_a_mask() -> None:
    features = torch.arange(2 * 5 * 2 * 4, dtype=torch.float32).view(2, 5, 2, 4) ** 2
    masks = torch.full((2, 3, 4, 8), -50.0)
    masks[0, 0, :2, :2] = 50.0  # the first cell of a map of half the size
    masks[1, 1, :, 6:] = 50.0  # the last column
    pooled = pool_under_masks([features], masks)
    assert pooled.shape == (2, 3, 5)
    for found, cells in ((pooled[0, 0], features[0, :, 0, 0]), (pooled[1, 1], features[1, :, :, 3].mean(dim=1))):
        torch.testing.assert_close(found, torch.nn.functional.layer_norm(cells, (5,)))


def test_empty_masks_and_several_levels_give_finite_numbers() -> None:
    levels = [torch.randn(1, 6, 4, 4), 1e4 * torch.randn(1, 9, 2, 2)]
    pooled = pool_under_masks(levels, torch.full((1, 2, 8, 8), -200.0))
    assert pooled.shape == (1, 2, 15)
    assert pooled.isfinite().all()
    pooled = pool_under_masks(levels, torch.randn(1, 2, 8, 8))
    assert pooled[..., 6:].var(dim=-1, unbiased=False) == pytest.approx(1, rel=1e-3)


def built(tmp_path: Path, *opts: Any) -> PADing:
    register_tiny_data(tmp_path)
    model = build_model(tiny_padding_cfg(tmp_path, tmp_path / "run", *opts))
    assert isinstance(model, PADing)
    return model


def test_features_are_the_papers_by_default(tmp_path: Path) -> None:
    model = built(tmp_path).eval()
    images = model.preprocess([make_sample([0, 1])])
    ours, plain = model.predict_queries(images), MaskFormer.predict_queries(model, images)
    assert torch.equal(ours["pred_embeddings"], plain["pred_embeddings"])
    assert model.new_fc.in_features == FEATURE_WIDTH


def test_queries_carry_the_backbone_beside_them(tmp_path: Path) -> None:
    model = built(tmp_path, *POOLED)
    assert model.new_fc.in_features == WIDTH
    batch = model.extract([make_sample([0, 1])])
    assert batch.embeddings.shape[1] == WIDTH
    assert model.synthesise(model.unseen_ids).shape[1] == WIDTH
    losses = model(batch)
    assert all(loss.isfinite() for loss in losses.values())


def test_classifier_starts_as_the_segmentor(tmp_path: Path) -> None:
    """Its new columns are zero: before training, seen logits are those of the segmentor's own class head."""
    model = built(tmp_path, *POOLED)
    segmentor = {name: torch.randn_like(value) for name, value in model.state_dict().items() if "sem_seg_head" in name}
    segmentor |= {name: value for name, value in model.state_dict().items() if name.startswith("backbone")}
    torch.save({"model": segmentor}, tmp_path / "segmentor.pth")
    load_padding_weights(model, str(tmp_path / "segmentor.pth"), complete=False)
    model.eval()
    outputs = model.predict_queries(model.preprocess([make_sample([0, 1])]))
    narrow = outputs["pred_logits"][..., :-1].float()
    torch.testing.assert_close(model.classify(outputs["pred_embeddings"])[..., list(model.class_ids)], narrow)


@pytest.mark.parametrize("method", ["generative", "projection"])
def test_training_from_a_bank_and_evaluation(tmp_path: Path, method: str) -> None:
    register_tiny_data(tmp_path)
    options = ["MODEL.PADING.FEATURE_BANK.ENABLED", True, "MODEL.PADING.METHOD", method, "SOLVER.MAX_ITER", 2]
    cfg = tiny_padding_cfg(tmp_path, tmp_path / "run", *POOLED, *options)
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER)(cfg)
    trainer.resume_or_load(resume=False)
    assert "panoptic_seg" in trainer.train()


def test_a_bank_of_other_features_is_another_bank(tmp_path: Path) -> None:
    register_tiny_data(tmp_path)
    one, other = (relevant_configuration(tiny_padding_cfg(tmp_path, tmp_path, *opts)) for opts in ((), POOLED))
    assert one != other


def test_unknown_map_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"POOLED_FEATURES names \['res9'\]; the backbone has res2, res3, res4, res5"):
        built(tmp_path, "MODEL.PADING.POOLED_FEATURES", ("res4", "res9"))


def test_control_has_random_vectors_of_the_tables_width(tmp_path: Path) -> None:
    key = "MODEL.PADING.EMBEDDINGS.RANDOM_SEED"
    plain, one, two, again = (built(tmp_path, key, seed).class_embeddings for seed in (-1, 5, 6, 5))
    assert plain.shape == one.shape
    assert torch.equal(one, again)
    for other in (plain, two):
        assert not torch.allclose(one, other)
    torch.testing.assert_close(one.norm(dim=1), torch.ones(len(one)))
