# SPDX-License-Identifier: Apache-2.0
"""Dice, cross entropies and distillation against slow references, published numbers, and their laws."""

import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from tcc.class_features import ConsistencyOptions, PixelLabels, feature_consistency
from tcc.losses import (
    confident,
    cross_entropy,
    dice_loss,
    divergence,
    hard_divergence,
    mean_over_pixels,
    ohem_cross_entropy,
    zero_of,
)

K = 5


@pytest.fixture
def logits() -> Tensor:
    return (2 * torch.randn(3, K, 6, 7)).requires_grad_()


@pytest.fixture
def peer() -> Tensor:
    return (2 * torch.randn(3, K, 6, 7)).requires_grad_()


@pytest.fixture
def labels() -> Tensor:
    """Class 4 is absent, class 3 in one image only; a block is void, the last image wholly."""
    labels = torch.randint(0, 3, (3, 6, 7))
    labels[1, 2, 3] = 3
    labels[0, :2, :3] = 255
    labels[2] = 255
    return labels


@pytest.fixture
def valid() -> Tensor:
    valid = torch.rand(3, 6, 7) < 0.7
    valid[2] = False
    return valid


# Dice, Eq. 10 ---------------------------------------------------------------------------------------------------------


def slow_dice(logits: Tensor, labels: Tensor, classes: str, smooth: float, power: int) -> Tensor:
    """Pixel lists and one class at a time, sums over everything given, in float64."""
    known = labels != 255
    probability = logits.double().softmax(dim=1).movedim(1, -1)[known]  # (pixels, K)
    truth = labels[known]
    parts = []
    for c in range(logits.shape[1]):
        inside = truth == c
        if classes == "all" or inside.any():
            size = (probability[:, c] ** power).sum() + inside.sum()
            parts.append(1 - (2 * probability[inside, c].sum() + smooth) / (size + smooth))
    return torch.stack(parts).mean()


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("smooth", [1e-5, 1.0])
@pytest.mark.parametrize("classes", ["present", "all"])
def test_dice_equals_the_slow_form(logits: Tensor, labels: Tensor, classes: Any, smooth: float, power: int) -> None:
    chosen = {"classes": classes, "smooth": smooth, "power": power}
    found, expected = dice_loss(logits, labels, **chosen), slow_dice(logits, labels, **chosen)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-9)
    assert (gradients[0].movedim(1, -1)[labels == 255] == 0).all()


@pytest.mark.parametrize("classes", ["present", "all"])
def test_dice_per_image_is_the_mean_over_images_with_labels(logits: Tensor, labels: Tensor, classes: Any) -> None:
    expected = [slow_dice(logits[i : i + 1], labels[i : i + 1], classes, 1.0, 2).item() for i in range(2)]
    found = dice_loss(logits, labels, classes=classes, over_batch=False)
    assert found.item() == pytest.approx(sum(expected) / 2, rel=1e-6)


def four_of_21_classes() -> tuple[Tensor, Tensor]:
    """A crop of 512 x 512 with four classes, nearly perfectly predicted (0.9975 for the true class)."""
    labels = torch.arange(4).repeat_interleave(128)[None, :, None].expand(1, 512, 512)
    return 9.0 * F.one_hot(labels, 21).permute(0, 3, 1, 2).float(), labels


@pytest.mark.parametrize(
    ("classes", "smooth", "expected"), [("all", 1e-5, 0.81), ("all", 1.0, 0.003), ("present", 1.0, 0.000)]
)
def test_absent_classes_are_a_floor_of_dice(classes: Any, smooth: float, expected: float) -> None:
    """Golden values of 17/21, 0.003 and 0 from the comparison of conventions that the default was chosen by."""
    logits, labels = four_of_21_classes()
    found = dice_loss(logits, labels, classes=classes, smooth=smooth).item()
    assert found == pytest.approx(expected, abs=0.5 * 10 ** -(3 if expected < 0.1 else 2))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("over_batch", [True, False])
def test_a_perfect_prediction_has_no_dice_loss(over_batch: bool, power: Any) -> None:
    labels = torch.randint(0, 2, (2, 8, 8))
    labels[0, 0] = 255
    logits = 200.0 * F.one_hot(labels.clamp_max(K - 1), K).permute(0, 3, 1, 2).float()
    assert dice_loss(logits, labels, over_batch=over_batch, power=power).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(-logits, labels, over_batch=over_batch, power=power) > 0.9


def test_void_pixels_change_nothing(logits: Tensor, labels: Tensor) -> None:
    expected = dice_loss(logits, labels), cross_entropy(logits, labels)
    changed = torch.where((labels == 255)[:, None], torch.full_like(logits, 50.0), logits)
    changed[:, K - 1] += 30.0 * (labels == 255)
    assert (dice_loss(changed, labels), cross_entropy(changed, labels)) == expected


def test_dice_refuses_what_it_does_not_know(logits: Tensor, labels: Tensor) -> None:
    for wrong in ({"classes": "some"}, {"power": 3}, {"sync": True, "over_batch": False}):
        with pytest.raises(ValueError, match=r"MODEL\.TCC\.SUP\.DICE"):
            dice_loss(logits, labels, **wrong)


# Cross entropies ------------------------------------------------------------------------------------------------------


def test_cross_entropy_is_torchs(logits: Tensor, labels: Tensor) -> None:
    expected = F.cross_entropy(logits, labels, ignore_index=255)
    torch.testing.assert_close(cross_entropy(logits, labels), expected)


def slow_ohem(logits: Tensor, labels: Tensor, threshold: float, min_kept: int) -> float:
    losses = []
    for image, label in zip(logits.detach().double().log_softmax(dim=1), labels, strict=True):
        losses += [-float(image[label[y, x], y, x]) for y, x in (label != 255).nonzero().tolist()]
    losses.sort(reverse=True)
    hard = sum(math.exp(-loss) <= threshold for loss in losses)
    kept = losses[: max(hard, min_kept)]
    return sum(kept) / len(kept)


@pytest.mark.parametrize("threshold", [1e-4, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("min_kept", [1, 20, 1000])
def test_ohem_keeps_the_hard_pixels(logits: Tensor, labels: Tensor, threshold: float, min_kept: int) -> None:
    found = ohem_cross_entropy(logits, labels, threshold=threshold, min_kept=min_kept)
    assert found.item() == pytest.approx(slow_ohem(logits, labels, threshold, min_kept), rel=1e-5)


def test_ohem_without_a_hard_pixel_is_zero_unless_some_must_be_kept() -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    easy = torch.zeros(1, K, 4, 4)
    easy[:, 0] = 20.0
    easy.requires_grad_()
    loss = ohem_cross_entropy(easy, labels, min_kept=0)
    assert loss == 0
    assert not torch.autograd.grad(loss, easy)[0].any()
    with pytest.raises(ValueError, match=r"OHEM\.THRESHOLD is 0"):
        ohem_cross_entropy(easy, labels, threshold=0, min_kept=1)


# Distillation, Eq. 8 --------------------------------------------------------------------------------------------------


def slow_divergence(logits: Tensor, peer: Tensor, valid: Tensor, tau: float) -> Tensor:
    """Mean over valid pixels of KL(softmax(peer) || softmax(logits)), over images with one; pixel by pixel."""
    images = []
    for student, target, known in zip(logits.double(), peer.double(), valid, strict=True):
        pixels = []
        for y, x in known.nonzero().tolist():
            t, p = (torch.softmax(part[:, y, x] / tau, dim=0) for part in (target, student))
            pixels.append(tau**2 * sum(t[c] * (t[c] / p[c]).log() for c in range(len(t))))
        if pixels:
            images.append(torch.stack(pixels).mean())
    return torch.stack(images).mean()


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
def test_divergence_equals_the_slow_form(logits: Tensor, peer: Tensor, valid: Tensor, tau: float) -> None:
    found = divergence(logits, peer, valid=valid, temperature=tau, detach=False)
    expected = slow_divergence(logits, peer, valid, tau)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = [torch.autograd.grad(loss, (logits, peer)) for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
    fixed = torch.autograd.grad(divergence(logits, peer, valid=valid, temperature=tau), logits)[0]
    torch.testing.assert_close(fixed, gradients[0][0])


def test_divergence_is_zero_for_equal_scores_and_positive_otherwise(logits: Tensor, peer: Tensor) -> None:
    everywhere = torch.ones(3, 6, 7, dtype=torch.bool)
    shifted = logits.detach() + torch.randn(3, 1, 6, 7)  # the softmax is the same
    assert divergence(logits, shifted, valid=everywhere).item() == pytest.approx(0, abs=1e-6)
    assert divergence(logits, peer, valid=everywhere) > 0.1


@pytest.mark.parametrize("loss", [divergence, hard_divergence])
def test_the_target_gets_no_gradient(loss: Callable[..., Tensor], logits: Tensor, peer: Tensor, valid: Tensor) -> None:
    own, others = torch.autograd.grad(loss(logits, peer, valid=valid), (logits, peer), allow_unused=True)
    assert own.any()
    assert others is None
    assert not own.movedim(1, -1)[~valid].any()


def test_both_directions_without_detaching_are_jeffreys_divergence(logits: Tensor, peer: Tensor, valid: Tensor) -> None:
    both = sum(divergence(*pair, valid=valid, detach=False) for pair in ((logits, peer), (peer, logits)))
    p, q = (part.detach().double().softmax(dim=1) for part in (logits, peer))
    jeffreys = ((p - q) * (p / q).log()).sum(dim=1)
    expected = torch.stack([row[known].mean() for row, known in zip(jeffreys, valid, strict=True) if known.any()])
    assert both.item() == pytest.approx(expected.mean().item(), rel=1e-5)
    gradients = torch.autograd.grad(both, (logits, peer))
    assert all(g.any() for g in gradients)


def test_the_mean_does_not_depend_on_classes_or_padding(logits: Tensor, peer: Tensor, valid: Tensor) -> None:
    """The trap of kl_div: "mean" is K times smaller, "batchmean" the number of pixels times larger."""
    everywhere = torch.ones(3, 6, 7, dtype=torch.bool)
    expected = divergence(logits, peer, valid=everywhere).item()
    log_p, log_t = logits.log_softmax(dim=1), peer.log_softmax(dim=1)
    torchs = {how: F.kl_div(log_p, log_t, reduction=how, log_target=True).item() for how in ("sum", "batchmean")}
    assert expected == pytest.approx(torchs["sum"] / (3 * 42), rel=1e-5)
    assert expected == pytest.approx(torchs["batchmean"] / 42, rel=1e-5)
    element = divergence(logits, peer, valid=everywhere, reduction="element").item()
    assert element == pytest.approx(expected / K, rel=1e-6)
    more = [torch.cat([part, torch.full((3, 4, 6, 7), -80.0)], dim=1) for part in (logits, peer)]
    assert divergence(more[0], more[1], valid=everywhere).item() == pytest.approx(expected, rel=1e-6)
    padded = [F.pad(part, (0, 9, 0, 4), value=3.0) for part in (logits, peer)]
    inside = F.pad(valid, (0, 9, 0, 4))
    for loss in (divergence, hard_divergence):
        torch.testing.assert_close(loss(padded[0], padded[1], valid=inside), loss(logits, peer, valid=valid))


def test_hard_mode_is_cross_pseudo_supervision(logits: Tensor, peer: Tensor) -> None:
    everywhere = torch.ones(3, 6, 7, dtype=torch.bool)
    expected = F.cross_entropy(logits, peer.argmax(dim=1))
    torch.testing.assert_close(hard_divergence(logits, peer, valid=everywhere), expected)


@pytest.mark.parametrize("loss", [divergence, hard_divergence])
def test_unconfident_targets_are_left_out(
    loss: Callable[..., Tensor], logits: Tensor, peer: Tensor, valid: Tensor
) -> None:
    sure = peer.detach().softmax(dim=1).max(dim=1).values >= 0.8
    assert torch.equal(confident(peer, 0.8), sure)
    assert 0 < (valid & sure).sum() < valid.sum()
    found = loss(logits, peer, valid=valid, conf_threshold=0.8)
    torch.testing.assert_close(found, loss(logits, peer, valid=valid & sure))


@pytest.mark.parametrize("loss", [divergence, hard_divergence])
def test_unconfident_pixels_count_in_the_mean_over_all_valid_ones(
    loss: Callable[..., Tensor], logits: Tensor, peer: Tensor, valid: Tensor
) -> None:
    means = []
    for own, others, known in zip(logits.tolist(), peer.tolist(), valid.tolist(), strict=True):
        total, count = 0.0, 0
        for y, x in itertools.product(range(6), range(7)):
            if not known[y][x]:
                continue
            count += 1
            p, t = (torch.tensor([plane[y][x] for plane in part]).double().softmax(dim=0) for part in (own, others))
            if t.max() >= 0.8:
                kl = sum(float(b * (b / a).log()) for a, b in zip(p, t, strict=True))
                total += kl if loss is divergence else -float(p[t.argmax()].log())
        means += [total / count] if count else []
    found = loss(logits, peer, valid=valid, conf_threshold=0.8, normalize_by="valid")
    assert found.item() == pytest.approx(sum(means) / len(means), rel=1e-5)
    kept = loss(logits, peer, valid=valid, conf_threshold=0.8)
    assert 0 < found < kept
    gradient = torch.autograd.grad(found, logits)[0]
    assert not gradient.movedim(1, -1)[~(valid & confident(peer, 0.8))].any()
    torch.testing.assert_close(loss(logits, peer, valid=valid, normalize_by="valid"), loss(logits, peer, valid=valid))


def test_one_kept_pixel_of_a_hundred_weighs_a_hundredth() -> None:
    """Worked by hand: a cross entropy of log 2 at the only confident pixel."""
    logits, target = torch.zeros(1, 2, 10, 10), torch.zeros(1, 2, 10, 10)
    target[0, 1, 3, 4] = 9.0
    options: dict[str, Any] = {"valid": torch.ones(1, 10, 10, dtype=torch.bool), "conf_threshold": 0.95}
    kept = hard_divergence(logits, target, **options)
    assert kept.item() == pytest.approx(math.log(2), rel=1e-6)
    assert hard_divergence(logits, target, **options, normalize_by="valid").item() == pytest.approx(kept.item() / 100)


def test_divergence_refuses_what_it_does_not_know(logits: Tensor, peer: Tensor, valid: Tensor) -> None:
    for wrong in ({"temperature": 0.0}, {"reduction": "mean"}):
        with pytest.raises(ValueError, match=r"MODEL\.TCC\.CCD"):
            divergence(logits, peer, valid=valid, **wrong)


# Nothing to learn from, mixed precision -------------------------------------------------------------------------------

ALL: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "dice": lambda logits, peer, labels, valid: dice_loss(logits, labels),
    "dice_all": lambda logits, peer, labels, valid: dice_loss(logits, labels, classes="all", over_batch=False),
    "ce": lambda logits, peer, labels, valid: cross_entropy(logits, labels),
    "ohem": lambda logits, peer, labels, valid: ohem_cross_entropy(logits, labels, min_kept=5),
    "soft": lambda logits, peer, labels, valid: divergence(logits, peer, valid=valid),
    "hard": lambda logits, peer, labels, valid: hard_divergence(logits, peer, valid=valid),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", list(ALL))
def test_without_a_pixel_the_loss_is_a_zero_with_zero_gradients(name: str, dtype: torch.dtype) -> None:
    """The sum of these logits is infinite in float16, and infinity times 0 is not 0."""
    logits, peer = (torch.full((2, K, 32, 32), 6e4, dtype=dtype, requires_grad=True) for _ in range(2))
    labels = torch.full((2, 32, 32), 255)
    loss = ALL[name](logits, peer, labels, labels != 255)
    assert loss.item() == 0
    assert loss.dtype == torch.float32
    assert (torch.autograd.grad(loss, logits)[0] == 0).all()


@pytest.mark.parametrize("name", list(ALL))
def test_losses_are_computed_in_float32_under_autocast(
    name: str, logits: Tensor, peer: Tensor, labels: Tensor, valid: Tensor
) -> None:
    expected = ALL[name](logits, peer, labels, valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ALL[name](logits, peer, labels, valid)
    assert torch.equal(found, expected)
    halves = logits.detach().half().requires_grad_(), peer.detach().half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = ALL[name](*halves, labels, valid)
    torch.testing.assert_close(half, ALL[name](halves[0].float(), halves[1].float(), labels, valid))
    gradient = torch.autograd.grad(half * 1024, halves[0])[0]
    assert gradient.dtype == torch.float16
    assert torch.isfinite(gradient).all()


def test_large_logits_stay_finite() -> None:
    logits, peer = torch.full((1, K, 2, 2), -3e4), torch.full((1, K, 2, 2), -3e4)
    logits[:, 0], peer[:, 1] = 3e4, 3e4
    logits.requires_grad_()
    labels = torch.ones(1, 2, 2, dtype=torch.int64)
    for name, loss in ALL.items():
        value = loss(logits, peer, labels, labels == 1)
        assert torch.isfinite(value), name
        assert torch.isfinite(torch.autograd.grad(value, logits)[0]).all(), name


def test_mean_over_pixels_replaces_what_is_invalid() -> None:
    values = torch.tensor([[1.0, 3.0, float("inf")], [float("nan"), 5.0, 7.0], [float("nan")] * 3], requires_grad=True)
    valid = torch.tensor([[True, True, False], [False, True, False], [False] * 3])
    found = mean_over_pixels(values, valid)
    assert found == (2 + 5) / 2
    expected = torch.tensor([[0.25, 0.25, 0], [0, 0.5, 0], [0, 0, 0]])
    torch.testing.assert_close(torch.autograd.grad(found, values)[0], expected)


def test_zero_is_connected_whatever_the_sum() -> None:
    large = torch.full((4, 100), 6e4, dtype=torch.float16, requires_grad=True)
    assert zero_of(large) == 0
    assert not torch.autograd.grad(zero_of(large), large)[0].any()


# Several processes ----------------------------------------------------------------------------------------------------


def shared_losses(logits: Tensor, labels: Tensor, features: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """The losses that may look beyond their process; everything comes in one image per process."""
    valid = labels != 255
    pixels = PixelLabels(torch.where(valid, labels, 0), valid), PixelLabels(labels.flip(-1).clamp_max(3), valid)
    found = {"dice": dice_loss(logits, labels, sync=True)}
    for detach in (False, True):
        options = ConsistencyOptions(
            stride=1, prototype_scope="batch_sync", detach_prototype=detach, min_pixels=3, label_source="own"
        )
        found[f"cfcd_{detach}"] = feature_consistency(features, pixels, K, options)[0]
    return found


def shared_inputs() -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Two images; class 2 occurs in the second one only, class 4 in neither."""
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(0, 2, (2, 6, 7), generator=generator)
    labels[1, 2:4] = 2
    labels[:, 5] = 255
    logits, first, second = (torch.randn(2, width, 6, 7, generator=generator) for width in (K, 8, 3))
    return logits.requires_grad_(), labels, (first.requires_grad_(), second.requires_grad_())


def gradients_of(loss: Tensor, leaves: tuple[Tensor, ...]) -> list[Tensor]:
    found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]


def _one_image(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    logits, labels, features = shared_inputs()
    found = shared_losses(logits[rank : rank + 1], labels[rank : rank + 1], tuple(f[rank : rank + 1] for f in features))
    leaves = (logits, *features)
    result = {name: (loss.detach(), gradients_of(loss, leaves)) for name, loss in found.items()}
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one_with_both_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Losses and gradients, both averaged over the processes as DistributedDataParallel does."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    processes = mp.start_processes(_one_image, args=(str(tmp_path),), nprocs=2, start_method="fork", join=False)
    deadline = time.monotonic() + 60
    while not processes.join(timeout=5):  # True once both have ended; raises what they raised
        assert time.monotonic() < deadline
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    logits, labels, features = shared_inputs()
    for name, loss in shared_losses(logits, labels, features).items():
        values, gradients = zip(*(rank[name] for rank in ranks), strict=True)
        assert sum(values).item() / 2 == pytest.approx(loss.item(), rel=1e-6)
        means = [sum(parts) / 2 for parts in zip(*gradients, strict=True)]
        expected = gradients_of(loss, (logits, *features))
        assert any(g.any() for g in expected)
        torch.testing.assert_close(means, expected, rtol=1e-5, atol=1e-8)
