# SPDX-License-Identifier: Apache-2.0
"""Tests of the losses: formulas, normalisers over processes, deep supervision, batches without any target."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from padding.modeling import criterion as criterion_module
from padding.modeling.criterion import MaskCriterion, classification_loss, mask_bce_loss, mask_dice_loss
from padding.modeling.matcher import HungarianMatcher
from padding.modeling.transformer_decoder import MaskProduct, mask_logits

WEIGHTS = {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}


def make_criterion(**changes: Any) -> MaskCriterion:
    arguments: dict[str, Any] = {
        "num_classes": 3,
        "matcher": HungarianMatcher(2.0, 5.0, 5.0, num_points=50),
        "weight_dict": WEIGHTS,
        "no_object_weight": 0.1,
        "num_points": 40,
        "oversample_ratio": 3.0,
        "importance_sample_ratio": 0.75,
    }
    return MaskCriterion(**(arguments | changes))


def make_outputs(batch: int = 2, num_aux: int = 1, *, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def prediction() -> dict[str, Any]:
        return {
            "pred_logits": torch.randn(batch, 6, 4, generator=generator).requires_grad_(),
            "pred_masks": torch.randn(batch, 6, 8, 8, generator=generator).requires_grad_(),
        }

    return prediction() | {"aux_outputs": [prediction() for _ in range(num_aux)]}


def make_targets(*counts: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "labels": torch.randint(0, 3, (count,), generator=generator),
            "masks": torch.rand(count, 16, 16, generator=generator) > 0.5,
        }
        for count in counts
    ]


def part(outputs: dict[str, Any], images: slice) -> dict[str, Any]:
    """The predictions of some images of a batch."""
    one = {key: outputs[key][images] for key in ("pred_logits", "pred_masks")}
    return one | {"aux_outputs": [part(aux | {"aux_outputs": []}, images) for aux in outputs["aux_outputs"]]}


def test_classification_loss_is_torchs_weighted_mean() -> None:
    logits, labels, weight = torch.randn(2, 5, 4), torch.randint(0, 4, (2, 5)), torch.tensor([1.0, 1.0, 1.0, 0.1])
    expected = F.cross_entropy(logits.view(10, 4), labels.view(10), weight=weight)
    torch.testing.assert_close(classification_loss(logits, labels, weight, weight[labels].sum()), expected)


def test_mask_losses_by_hand() -> None:
    # Two points: probabilities 1/2 and 4/5 against 1 and 0: overlap 1/2, sizes 1.3 and 1.
    logits, targets = torch.tensor([[0.0, 4.0]]), torch.tensor([[1.0, 0.0]])
    logits[0, 1] = torch.tensor(4.0).log()
    torch.testing.assert_close(
        mask_bce_loss(logits, targets, 1.0), (torch.tensor(2.0).log() + torch.tensor(5.0).log()) / 2
    )
    torch.testing.assert_close(mask_dice_loss(logits, targets, 1.0), torch.tensor(1 - 2 / 3.3))
    torch.testing.assert_close(mask_dice_loss(logits, targets, 2.0), torch.tensor((1 - 2 / 3.3) / 2))


def test_losses_are_the_weighted_terms_of_the_matching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constant masks read at inner points: query 1 (logit 2) is matched by its class to a mask that fills the image."""
    monkeypatch.setattr(criterion_module, "uncertain_points", lambda rows, counts, **_: torch.full((1, 40, 2), 0.5))
    logits = torch.zeros(1, 2, 4)
    logits[0, 1, 2] = 6.0
    masks = torch.tensor([-1.0, 2.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    target = {"labels": torch.tensor([2]), "masks": torch.ones(1, 8, 8, dtype=torch.bool)}
    criterion = make_criterion(matcher=HungarianMatcher(1, 0, 0, 5))
    losses = criterion({"pred_logits": logits, "pred_masks": masks}, [target])
    p = torch.tensor(2.0).sigmoid()
    expected = {
        "loss_ce": 2 * F.cross_entropy(logits[0], torch.tensor([3, 2]), weight=torch.tensor([1.0, 1.0, 1.0, 0.1])),
        "loss_mask": -5 * p.log(),
        "loss_dice": 5 * (1 - (80 * p + 1) / (40 * p + 41)),
    }
    torch.testing.assert_close(losses, expected)


def test_perfect_prediction_costs_almost_nothing() -> None:
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[0, :8], masks[1, 8:] = True, True
    logits = torch.full((1, 2, 4), -20.0)
    logits[0, 0, 1] = logits[0, 1, 2] = 20.0
    outputs = {"pred_logits": logits, "pred_masks": (masks.float() * 80 - 40)[None]}
    target = {"labels": torch.tensor([1, 2]), "masks": masks}
    criterion = make_criterion(importance_sample_ratio=0.0, matcher=HungarianMatcher(1, 0, 0, 5))
    losses = criterion(outputs, [target])
    assert float(losses["loss_ce"]) < 1e-6
    assert float(losses["loss_dice"]) < 0.5
    worse = outputs | {"pred_masks": outputs["pred_masks"].flip(2)}
    assert float(criterion(worse, [target])["loss_dice"]) > 3


def test_every_prediction_is_supervised_and_gradients_are_finite() -> None:
    outputs = make_outputs(num_aux=2)
    losses = make_criterion()(outputs, make_targets(3, 0))
    assert set(losses) == {name + suffix for name in WEIGHTS for suffix in ("", "_0", "_1")}
    sum(losses.values()).backward()
    for prediction in (outputs, *outputs["aux_outputs"]):
        for key in ("pred_logits", "pred_masks"):
            assert prediction[key].grad.isfinite().all()
            assert prediction[key].grad.abs().sum() > 0


def test_batch_without_targets_is_finite_and_reaches_everything() -> None:
    outputs = make_outputs()
    losses = make_criterion()(outputs, make_targets(0, 0))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["loss_mask"].item() == losses["loss_dice"].item() == 0
    assert losses["loss_ce"].item() > 0
    for prediction in (outputs, *outputs["aux_outputs"]):
        assert torch.equal(prediction["pred_masks"].grad, torch.zeros(2, 6, 8, 8))


@pytest.mark.parametrize("counts", [(3, 0), (0, 0), (9, 2)])
def test_products_of_matched_queries_give_the_losses_and_gradients_of_all(counts: tuple[int, int]) -> None:
    """One batch with masks of all queries, and with those that are multiplied out where they are read."""
    vectors = [torch.randn(2, 6, 5).requires_grad_() for _ in range(2)]
    features = torch.randn(2, 5, 8, 8).requires_grad_()
    results = []
    for as_products in (False, True):
        maps = features.unbind()
        masks = [MaskProduct(one, maps) if as_products else mask_logits(one, features) for one in vectors]
        outputs = make_outputs(num_aux=1)
        for prediction, own in zip((outputs, *outputs["aux_outputs"]), masks, strict=True):
            prediction["pred_masks"] = own
        losses = make_criterion()(outputs, make_targets(*counts), image_seeds=[1, 2])
        results.append((losses, torch.autograd.grad(sum(losses.values()), [*vectors, features])))
    torch.testing.assert_close(results[1], results[0])
    assert (results[0][1][-1].abs().sum() > 0) == (sum(counts) > 0)


def test_products_are_computed_in_the_precision_of_the_network() -> None:
    vectors, features = torch.randn(1, 6, 5, requires_grad=True), torch.randn(1, 5, 8, 8, requires_grad=True)
    outputs = make_outputs(1, num_aux=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs["pred_masks"] = MaskProduct(vectors.bfloat16(), features.unbind())
        assert outputs["pred_masks"][0].dtype == torch.bfloat16
        losses = make_criterion()(outputs, make_targets(3))
    assert losses["loss_mask"].dtype == torch.float32
    losses["loss_mask"].backward()
    assert features.grad.abs().sum() > 0


def test_more_targets_than_queries() -> None:
    losses = make_criterion()(make_outputs(batch=1), make_targets(9))
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_image_seeds_make_losses_repeatable() -> None:
    outputs, targets = make_outputs(), make_targets(2, 3)
    first, second = (make_criterion()(outputs, targets, image_seeds=[4, 5]) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    other = make_criterion()(outputs, targets, image_seeds=[6, 7])
    assert not torch.equal(first["loss_mask"], other["loss_mask"])


@pytest.mark.parametrize("counts", [(2, 3), (4, 0), (0, 0), (1, 0)])
def test_two_halves_average_to_the_whole(monkeypatch: pytest.MonkeyPatch, counts: tuple[int, int]) -> None:
    """What DistributedDataParallel computes from two halves is the gradient of the undivided batch."""
    outputs, targets, seeds = make_outputs(), make_targets(*counts), [21, 22]
    whole = make_criterion()(outputs, targets, image_seeds=seeds)

    sums: list[torch.Tensor] = []
    monkeypatch.setattr(criterion_module, "mean_over_processes", lambda local: sums.append(local) or local)
    for i in range(2):
        make_criterion()(part(outputs, slice(i, i + 1)), targets[i : i + 1], image_seeds=seeds[i : i + 1])
    mean = (sums[0] + sums[1]) / 2
    monkeypatch.setattr(criterion_module, "mean_over_processes", lambda local: mean)
    monkeypatch.setattr(criterion_module, "world_size", lambda: 2)
    halves = [
        make_criterion()(part(outputs, slice(i, i + 1)), targets[i : i + 1], image_seeds=seeds[i : i + 1])
        for i in range(2)
    ]
    for name, loss in whole.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, loss)


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    outputs, targets = make_outputs(), make_targets(2, 3)
    mine = slice(rank, rank + 1)
    losses = make_criterion()(part(outputs, mine), targets[mine], image_seeds=[21 + rank])
    total = torch.stack(list(losses.values()))
    dist.all_reduce(total)
    if rank == 0:
        torch.save(total.detach() / 2, Path(folder) / "mean.pt")
    dist.destroy_process_group()


def test_two_processes_average_to_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    processes = mp.start_processes(_worker, args=(str(tmp_path),), nprocs=2, start_method="fork", join=False)
    deadline = time.monotonic() + 60
    while not processes.join(timeout=5):  # True once both have ended; raises what they raised
        assert time.monotonic() < deadline
    losses = make_criterion()(make_outputs(), make_targets(2, 3), image_seeds=[21, 22])
    torch.testing.assert_close(torch.load(tmp_path / "mean.pt"), torch.stack(list(losses.values())).detach())


def test_empty_weight_is_the_published_buffer() -> None:
    state = make_criterion().state_dict()
    assert list(state) == ["empty_weight"]
    torch.testing.assert_close(state["empty_weight"], torch.tensor([1.0, 1.0, 1.0, 0.1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_dict": {"loss_ce": 1.0}}, "weight_dict has the terms"),
        ({"weight_dict": WEIGHTS | {"loss_iou": 1.0}}, "loss_iou"),
        ({"oversample_ratio": 0.5}, "oversample_ratio 0.5 must be >= 1"),
        ({"importance_sample_ratio": 1.5}, "importance_sample_ratio 1.5"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_criterion(**changes)
