# SPDX-License-Identifier: Apache-2.0
"""Class weights and the focal factor: by hand, against torch, and in the class loss of mask classification."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from padding.errors import ConfigError
from padding.modeling.class_balance import ClassBalance, build_class_balance
from padding.modeling.criterion import MaskCriterion, classification_loss
from padding.modeling.matcher import HungarianMatcher

VOID = 255


@pytest.fixture
def scores() -> tuple[torch.Tensor, torch.Tensor]:
    """(B, K, H, W) logits, and labels with void."""
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (2, 5, 7))
    labels[0, :2] = VOID
    return torch.randn(2, 3, 5, 7, dtype=torch.float64).float().requires_grad_(), labels


def test_weights_alone_are_torchs_weighted_mean(scores: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = scores
    balance = ClassBalance(3)
    balance.set_weights(torch.tensor([0.5, 1.0, 4.0]))
    expected = F.cross_entropy(logits, labels, weight=torch.tensor([0.5, 1.0, 4.0]), ignore_index=VOID)
    torch.testing.assert_close(balance.cross_entropy(logits, labels, ignore_label=VOID), expected)


def test_focal_factor_by_hand() -> None:
    """A label with p = 1/2 at gamma 2: a quarter of log 2; its mean is over all pixels, as without the factor."""
    logits = torch.tensor([[[0.0, 9.0], [0.0, -9.0]]])  # (1, 2, 2): p = 1/2, and p next to 1
    labels = torch.zeros(1, 2, dtype=torch.int64)
    costs, weights = ClassBalance(2, gamma=2.0).costs(logits, labels, ignore_label=VOID)
    assert costs[0, 0].item() == pytest.approx(math.log(2) / 4)
    assert costs[0, 1].item() < 1e-12
    assert weights.tolist() == [[1.0, 1.0]]


def test_sure_pixels_have_a_finite_gradient_and_void_has_none(scores: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = scores
    with torch.no_grad():
        logits[:, :, 3] = -200.0
        logits[0, 0, 3], labels[0, 3] = 200.0, 0
    for gamma in (0.5, 2.0):
        (gradient,) = torch.autograd.grad(
            ClassBalance(3, gamma).cross_entropy(logits, labels, ignore_label=VOID), logits
        )
        assert bool(gradient.isfinite().all())
        assert not gradient[0, :, :2].any()
        assert gradient[1].any()
    nothing = torch.full_like(labels, VOID)
    loss = ClassBalance(3, 2.0).cross_entropy(logits, nothing, ignore_label=VOID)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, logits)[0].any()


def criterion(balance: ClassBalance | None) -> MaskCriterion:
    weights = {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    matcher = HungarianMatcher(2.0, 5.0, 5.0, num_points=16)
    return MaskCriterion(3, matcher, weights, 0.1, 16, 3.0, 0.0, balance)


def predictions() -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    torch.manual_seed(1)
    outputs = {"pred_logits": torch.randn(2, 5, 4), "pred_masks": torch.randn(2, 5, 8, 8)}
    targets = [{"labels": torch.tensor([0, 2]), "masks": torch.rand(2, 16, 16) > 0.5} for _ in range(2)]
    return outputs, targets


def test_class_loss_of_queries() -> None:
    """No-object keeps its own weight; with neutral settings the loss is the plain one."""
    outputs, targets = predictions()
    plain = criterion(None)(outputs, targets, image_seeds=[1, 2])
    neutral = criterion(ClassBalance(3))(outputs, targets, image_seeds=[1, 2])
    torch.testing.assert_close(neutral, plain)
    # Labels given, so that no match can differ: weights of the classes times those of the criterion.
    balance = ClassBalance(3)
    balance.set_weights(torch.tensor([0.5, 1.0, 4.0]))
    weighted, weight = criterion(balance), torch.tensor([0.5, 1.0, 4.0, 0.1])
    labels = torch.tensor([[0, 3, 2, 3, 1], [3, 3, 3, 0, 2]])
    weight_sums, _ = weighted._normalisers(labels[None], 4)
    assert weight_sums.item() == pytest.approx(weight[labels].sum().item())
    expected = classification_loss(outputs["pred_logits"], labels, weight, weight[labels].sum())
    torch.testing.assert_close(weighted._class_loss(outputs["pred_logits"], labels, weight_sums[0]), expected)
    assert "class_balance.weights" not in weighted.state_dict()
    focal = criterion(ClassBalance(3, gamma=2.0))
    plain_loss = classification_loss(outputs["pred_logits"], labels, focal.empty_weight, 1.0)
    assert 0 < focal._class_loss(outputs["pred_logits"], labels, torch.tensor(1.0)) < plain_loss


def test_it_is_built_from_the_configuration(tiny_cfg: CfgNode) -> None:
    assert build_class_balance(tiny_cfg, 4) is None
    assert build_model(tiny_cfg).criterion.class_balance is None
    tiny_cfg.MODEL.CLASS_BALANCE.FOCAL_GAMMA = 2.0
    assert build_model(tiny_cfg).criterion.class_balance.gamma == 2.0
    tiny_cfg.MODEL.CLASS_BALANCE.FOCAL_GAMMA = -1.0
    with pytest.raises(ConfigError, match=r"FOCAL_GAMMA is -1\.0; expected 0"):
        build_class_balance(tiny_cfg, 4)
    tiny_cfg.MODEL.CLASS_BALANCE.WEIGHTS = "sqrt"
    with pytest.raises(ConfigError, match=r"WEIGHTS is 'sqrt'; expected one of none, inverse_log"):
        build_class_balance(tiny_cfg, 4)


@pytest.mark.parametrize("weights", [torch.ones(2), torch.tensor([1.0, 0.0, 2.0])])
def test_weights_that_fit_no_class_are_refused(weights: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected 3 positive class weights"):
        ClassBalance(3).set_weights(weights)
