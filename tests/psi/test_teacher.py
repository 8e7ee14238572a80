# SPDX-License-Identifier: Apache-2.0
"""Whose scores grow the labels, on which view, and when the diffused labels begin to count."""

import copy
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from padding.data.catalog import register_all
from psi import losses
from psi.meta_arch import PSI
from tests.tiny_psi import build, random_samples, run, scribbles_of, supervision_of

TEACHER = ("TEACHER.DECAY", 0.9)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    register_all()


def strong_samples() -> list[dict[str, Any]]:
    """Samples whose strong view is another picture altogether."""
    samples = random_samples()
    generator = torch.Generator().manual_seed(9)
    for sample in samples:
        sample["image_strong"] = torch.randint(0, 256, sample["image"].shape, generator=generator, dtype=torch.uint8)
    return samples


def perturbed(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))


def test_defaults_have_no_average_and_one_view() -> None:
    model = build()
    assert model.average is None
    assert model.label_network is model.network
    assert not model.teacher.has_own_pass


def test_an_average_is_there_only_where_somebody_asks_it() -> None:
    assert build(*TEACHER).average is not None
    assert build(*TEACHER, "SLD.STEPS", 0).average is None
    assert build(*TEACHER, "SLD.STEPS", 0, "TEACHER.EVALUATE", True).average is not None


def test_labels_grow_on_the_scores_of_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """What supervises is what a model grows whose own network has the weights of the average."""
    samples = random_samples()
    model = build(*TEACHER, "TEACHER.BATCH_NORM", "batch_no_update")
    assert model.average is not None
    own = supervision_of(monkeypatch, build(), samples)
    torch.manual_seed(3)
    perturbed(model.average)
    found = supervision_of(monkeypatch, model, samples)
    assert not torch.equal(found.labels, own.labels)
    other = build()
    other.network.load_state_dict(model.average.state_dict())
    assert torch.equal(found.labels, supervision_of(monkeypatch, other, samples).labels)


def test_an_average_equal_to_the_network_changes_nothing_and_gets_no_gradient() -> None:
    samples = random_samples()
    plain = run(build(), samples)
    model = build(*TEACHER, "TEACHER.BATCH_NORM", "batch_no_update")
    assert model.average is not None
    model.reset_average()
    found = run(model, samples)
    for name, loss in plain.items():
        torch.testing.assert_close(found[name], loss)
    sum(found.values()).backward()
    assert all(p.grad is not None for p in model.network.parameters())
    assert all(p.grad is None and not p.requires_grad for p in model.average.parameters())


@pytest.mark.parametrize("policy", ["running", "batch_no_update", "batch"])
def test_batch_norms_of_the_pass(policy: str) -> None:
    model = build(*TEACHER, "TEACHER.BATCH_NORM", policy)
    assert model.average is not None
    before = [buffer.clone() for buffer in model.average.buffers()]
    run(model, random_samples())
    moved = any(not torch.equal(a, b) for a, b in zip(before, model.average.buffers(), strict=True))
    assert moved == (policy == "batch")


@pytest.mark.parametrize(("warm_up", "kept"), [(True, 0.75), (False, 0.9)])
def test_the_average_moves_towards_the_network(warm_up: bool, kept: float) -> None:
    model = build(*TEACHER, "TEACHER.WARM_UP", warm_up)
    assert model.average is not None
    before = copy.deepcopy(model.average)
    perturbed(model.network)
    with EventStorage(3):  # 1 - 1 / (3 + 1)
        model.update_average()
    networks = (model.average, before, model.network)
    for found, old, new in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(found, kept * old + (1 - kept) * new)
    model.reset_average()
    for found, new in zip(model.average.parameters(), model.network.parameters(), strict=True):
        assert torch.equal(found, new)


def test_predictions_are_the_networks_unless_asked() -> None:
    sample = [{"image": torch.randint(0, 256, (3, 32, 40), dtype=torch.uint8)}]
    scores: list[Tensor] = []
    for evaluate in (False, True):
        model = build(*TEACHER, "TEACHER.EVALUATE", evaluate).eval()
        assert model.average is not None
        torch.manual_seed(3)
        perturbed(model.average)
        with torch.no_grad():
            scores.append(model(sample)[0]["sem_seg"])
    with torch.no_grad():
        own = build().eval()(sample)[0]["sem_seg"]
    assert torch.equal(scores[0], own)
    assert not torch.equal(scores[1], own)


# Weak to strong -------------------------------------------------------------------------------------------------------


def weak_to_strong(*opts: Any) -> PSI:
    return build("WEAK_TO_STRONG", True, "INPUT.STRONG_VIEW", True, *opts)


def test_losses_are_those_of_the_strong_view() -> None:
    samples = strong_samples()
    found = run(weak_to_strong("SLD.STEPS", 0), samples)
    swapped = run(build("SLD.STEPS", 0), [{**sample, "image": sample["image_strong"]} for sample in samples])
    for name, loss in swapped.items():
        torch.testing.assert_close(found[name], loss)


@pytest.mark.parametrize("teacher", [(), TEACHER], ids=["network", "average"])
def test_labels_grow_on_the_weak_view(teacher: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    samples = strong_samples()
    model = weak_to_strong(*teacher, "TEACHER.BATCH_NORM", "batch_no_update")
    model.reset_average()
    found = supervision_of(monkeypatch, model, samples)
    expected = supervision_of(monkeypatch, build(), samples)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.labels[found.scribbles], scribbles_of(samples)[0][found.scribbles])


def test_colors_are_those_of_the_weak_view(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = strong_samples()
    affinity = ("SLD.AFFINITY.MODE", "gate", "TEACHER.BATCH_NORM", "batch_no_update")
    found = supervision_of(monkeypatch, weak_to_strong(*affinity), samples)
    assert torch.equal(found.labels, supervision_of(monkeypatch, build(*affinity), samples).labels)
    assert (found.labels != supervision_of(monkeypatch, build(), samples).labels).any()


def test_a_sample_without_a_strong_view_is_named() -> None:
    with pytest.raises(ValueError, match="no 'image_strong'"):
        run(weak_to_strong(), random_samples())


# The ramp -------------------------------------------------------------------------------------------------------------


def test_diffused_labels_grow_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ramp begins where the labels do."""
    seen: list[float] = []
    original = losses.segmentation_loss

    def spy(*given: Any, **options: Any) -> Tensor:
        seen.append(options["diffused_weight"])
        return original(*given, **options)

    monkeypatch.setattr(losses, "segmentation_loss", spy)
    ramp = ("LOSS.DIFFUSED_RAMP.TYPE", "linear", "LOSS.DIFFUSED_RAMP.ITERS", 10)
    model = build(*ramp, "LOSS.DIFFUSED_WEIGHT", 0.5, "SLD.START_ITER", 4)
    for iteration in (3, 4, 6, 14, 50):
        run(model, random_samples(), iteration=iteration)
    assert seen == pytest.approx([0.0, 0.0, 0.1, 0.5, 0.5])


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("TEACHER.DECAY", 1.0), "TEACHER.DECAY is 1.0"),
        (("TEACHER.BATCH_NORM", "eval"), "TEACHER.BATCH_NORM is 'eval'"),
        (("TEACHER.EVALUATE", True), "TEACHER.EVALUATE needs a moving average"),
        (("WEAK_TO_STRONG", True), "INPUT.STRONG_VIEW True"),
        (("LOSS.DIFFUSED_RAMP.TYPE", "cosine"), "DIFFUSED_RAMP.TYPE is 'cosine'"),
        (("SLD.AFFINITY.MODE", "soft"), "AFFINITY.MODE is 'soft'"),
        (("DECODER.INIT", "zero"), "INIT of the head is 'zero'"),
    ],
)
def test_choices_that_do_not_exist_are_named(opts: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(*opts)
