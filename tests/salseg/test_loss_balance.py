# SPDX-License-Identifier: Apache-2.0
"""Floor, running means, sums over pixels and the likelihood itself, against slow loops; what they do to Eq. 8."""

import math
import random

import pytest
import torch

from salseg.loss_balance import RunningMeans, TaskBalance, raised
from salseg.losses import TaskLoss, join, saliency_loss, segmentation_loss
from salseg.task_weighting import TASKS, TaskWeighting

CPU = torch.device("cpu")


def task_loss(mean: float, present: float = 1.0, share: float = 1.0) -> TaskLoss:
    return TaskLoss(torch.tensor(mean), torch.tensor(present), torch.tensor(share))


def constant(seg: float = 0.8, saliency: float = 0.1) -> dict[str, TaskLoss]:
    return {"seg": task_loss(seg), "saliency": task_loss(saliency)}


def settled(weighting: TaskWeighting, seg: float = 0.8, saliency: float = 0.1) -> dict[str, float]:
    """Weights after training on constant losses."""
    optimizer = torch.optim.SGD(weighting.parameters(), lr=0.4)
    for _ in range(150):
        optimizer.zero_grad()
        sum(weighting(constant(seg, saliency)).values()).backward()
        optimizer.step()
    return weighting.weights


def slow_raised(weights: list[float], floor: list[float]) -> list[float]:
    """Two weights: the one below its share of the sum gets it, the other the rest."""
    total = sum(weights)
    for i in (0, 1):
        if weights[i] < floor[i] * total:
            found = [0.0, 0.0]
            found[i], found[1 - i] = floor[i] * total, (1 - floor[i]) * total
            return found
    return weights


def test_raised_weights_have_their_share_and_keep_their_sum() -> None:
    generator = random.Random(0)
    for _ in range(200):
        weights = [math.exp(generator.uniform(-4, 4)) for _ in TASKS]
        first = generator.choice([0.0, 1.0, generator.random()])
        floor = [first, generator.random() * (1 - first)]
        tensors = {t: torch.tensor(w, requires_grad=True) for t, w in zip(TASKS, weights, strict=True)}
        found = raised(tensors, dict(zip(TASKS, floor, strict=True)))
        assert [found[t].item() for t in TASKS] == pytest.approx(slow_raised(weights, floor), rel=1e-5, abs=1e-6)
        (3 * found["seg"] + 5 * found["saliency"]).backward()
        assert [t.grad.item() for t in tensors.values() if t.grad is not None] == [3, 5]  # as if it were not raised
    nothing = raised({t: torch.tensor(0.0) for t in TASKS}, {"seg": 0.5, "saliency": 0.5})
    assert [w.item() for w in nothing.values()] == [0, 0]


def test_floor_holds_while_log_variances_follow_their_own_losses() -> None:
    weighting = TaskWeighting("uncertainty", balance=TaskBalance(floor=(0.75, 0.0)))
    weights = settled(weighting)
    s = {task: value.item() for task, value in weighting.log_variances.items()}
    assert s == pytest.approx({"seg": math.log(1.6), "saliency": math.log(0.2)}, abs=1e-3)
    total = 1 / 1.6 + 1 / 0.2
    assert weights == pytest.approx({"seg": 0.75 * total, "saliency": 0.25 * total}, rel=2e-3)
    # A task without images in this step has its weight in the sum all the same.
    alone = weighting({"seg": task_loss(0.8)})["loss_seg"].item()
    assert alone == pytest.approx(0.8 * weights["seg"], rel=1e-5)
    assert TaskWeighting("seg_only", balance=TaskBalance(floor=(0.0, 0.9))).weights == {"seg": 1.0}


def test_running_mean_is_the_exponentially_weighted_one() -> None:
    means = RunningMeans(TASKS, 0.9)
    assert {task: value.item() for task, value in means.values.items()} == {"seg": 1, "saliency": 1}
    seen: list[tuple[float, bool]] = []
    for step in range(12):
        loss, here = 0.3 + 0.1 * (step * 7 % 5), step % 3 != 1
        seen.append((loss, here))
        update = {"seg": task_loss(loss, present=float(here))}
        means.update(update if step % 2 or here else {})  # without a pixel, or not there at all
        known = [value for value, there in seen if there]
        weights = [0.9**age for age in reversed(range(len(known)))]
        expected = sum(w * value for w, value in zip(weights, known, strict=True)) / sum(weights)
        assert means.values["seg"].item() == pytest.approx(expected, rel=1e-5)
        assert means.values["saliency"].item() == 1
    means.update({"saliency": task_loss(0.0)})
    assert 1 / means.values["saliency"].item() < math.inf


def test_uniform_over_running_means_is_the_optimum_of_the_learned_weights() -> None:
    """And learning on top of them ends at the same weights: sigma undoes every division."""
    optimum = {"seg": 1 / 1.6, "saliency": 1 / 0.2}
    divided = TaskBalance(running_mean=0.9)
    uniform = TaskWeighting("uniform", balance=divided)
    terms = uniform(constant())
    assert {name: term.item() for name, term in terms.items()} == pytest.approx({"loss_seg": 0.5, "loss_saliency": 0.5})
    assert uniform.weights == pytest.approx(optimum)
    assert settled(TaskWeighting("uncertainty")) == pytest.approx(optimum, rel=2e-3)
    assert settled(TaskWeighting("uncertainty", balance=divided)) == pytest.approx(optimum, rel=2e-3)


def test_running_mean_is_a_constant_for_the_gradient() -> None:
    loss = torch.tensor(0.25, requires_grad=True)
    weighting = TaskWeighting("fixed", weights=(0.8, 0.2), balance=TaskBalance(running_mean=0.9))
    weighting(constant(0.75, 0.5))
    weighting({"seg": TaskLoss(loss, torch.tensor(1.0), torch.tensor(1.0))})["loss_seg"].backward()
    assert loss.grad is not None
    assert loss.grad.item() == pytest.approx(0.8 / ((0.9 * 0.75 + 0.25) / 1.9), rel=1e-5)


def some_pixels() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Class logits (1, 3, 4, 5) and labels, half of them void; saliency logits (1, 1, 4, 5), soft labels, known."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (1, 4, 5), generator=generator)
    labels[:, 2:] = 255
    classes, maps = (torch.randn(1, k, 4, 5, generator=generator) for k in (3, 1))
    return classes, labels, maps, torch.rand(1, 1, 4, 5, generator=generator), torch.ones(1, 4, 5, dtype=torch.bool)


def test_pixel_sums_are_the_likelihood_of_all_pixels() -> None:
    classes, labels, maps, target, known = some_pixels()
    class_weights = torch.tensor([1.0, 4.0, 20.0])
    parts = {
        "seg": [segmentation_loss(classes, labels, class_weights)],
        "saliency": [saliency_loss(maps, target, known)],
    }
    weighting = TaskWeighting("uncertainty", balance=TaskBalance(pixel_sums=True))
    sigma = {"seg": 1.3, "saliency": 0.6}
    for task, s in weighting.log_variances.items():
        s.data.fill_(2 * math.log(sigma[task]))
    found = sum(weighting(join(parts, TASKS, CPU)).values())

    total, pixels = 0.0, [0.0, 0.0]
    for y, x in (labels[0] != 255).nonzero().tolist():
        c = int(labels[0, y, x])
        cost = -classes[0, :, y, x].log_softmax(0)[c].item()
        total += class_weights[c].item() * (cost / sigma["seg"] ** 2 + math.log(sigma["seg"]))
        pixels[0] += class_weights[c].item()
    for y, x in known[0].nonzero().tolist():
        p, t = torch.sigmoid(maps[0, 0, y, x]).item(), target[0, 0, y, x].item()
        cost = -t * math.log(p) - (1 - t) * math.log(1 - p)
        total += cost / sigma["saliency"] ** 2 + math.log(sigma["saliency"])
        pixels[1] += 1
    assert pixels[0] != pixels[1]
    assert found.item() == pytest.approx(total / (sum(pixels) / 2), rel=1e-5)  # up to the constant


def test_likelihood_is_the_cross_entropy_of_divided_logits() -> None:
    classes, labels, maps, target, known = some_pixels()
    weighting = TaskWeighting("likelihood")
    assert weighting.weights == {"seg": 1, "saliency": 1}
    assert not weighting.log_variances
    assert TaskWeighting("uncertainty").sharpness("seg") is None
    for sigma in (1.0, 1.4):
        for s in weighting.log_temperatures.values():
            s.data.fill_(2 * math.log(sigma))
        sharp = weighting.sharpness("seg")
        assert sharp is not None
        parts = {
            "seg": [segmentation_loss(classes * sharp, labels)],
            "saliency": [saliency_loss(maps * sharp, target, known)],
        }
        terms = weighting(join(parts, TASKS, CPU))
        assert set(terms) == {"loss_seg", "loss_saliency"}
        costs = []
        for y, x in (labels[0] != 255).nonzero().tolist():
            logits = [value / sigma**2 for value in classes[0, :, y, x].tolist()]
            costs.append(math.log(sum(map(math.exp, logits))) - logits[int(labels[0, y, x])])
        assert terms["loss_seg"].item() == pytest.approx(sum(costs) / len(costs), rel=1e-5)
    # Eq. 8 approximates it near sigma = 1, where it is equal.
    plain = TaskWeighting("uncertainty")(join({"seg": [segmentation_loss(classes, labels)]}, TASKS, CPU))
    with torch.no_grad():
        weighting.log_temperatures["seg"].zero_()
        assert weighting.sharpness("seg") == 1
    exact = weighting(join({"seg": [segmentation_loss(classes, labels)]}, TASKS, CPU))
    assert sum(plain.values()).item() == sum(exact.values()).item()


def test_temperature_settles_where_the_labels_are_as_certain_as_the_logits_say() -> None:
    """At the true temperature, however small the loss is: its weight stays 1."""
    _, _, maps, _, known = some_pixels()
    for temperature in (0.25, 3.0):
        weighting = TaskWeighting("likelihood")
        optimizer = torch.optim.Adam(weighting.parameters(), lr=0.1)
        for _ in range(200):
            optimizer.zero_grad()
            sharp = weighting.sharpness("saliency")
            assert sharp is not None
            part = saliency_loss(maps * sharp, torch.sigmoid(maps / temperature), known)
            sum(weighting(join({"saliency": [part]}, TASKS, CPU)).values()).backward()
            optimizer.step()
        assert weighting.log_temperatures["saliency"].item() == pytest.approx(math.log(temperature), abs=0.02)
        assert weighting.weights["saliency"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"floor": (0.8, 0.3)}, r"BALANCE\.FLOOR is \(0\.8, 0\.3\); expected .*sum is at most 1"),
        ({"floor": (-0.1, 0.3)}, r"BALANCE\.FLOOR"),
        ({"floor": (0.1,)}, r"BALANCE\.FLOOR"),
        ({"running_mean": 1.0}, r"BALANCE\.RUNNING_MEAN is 1\.0; expected a decay in \[0, 1\)"),
    ],
)
def test_numbers_out_of_range_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskBalance(**options)  # type: ignore[arg-type]
