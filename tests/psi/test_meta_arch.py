# SPDX-License-Identifier: Apache-2.0
"""PSI as a model: the contract of all methods, what supervises a step, who learns from which loss, every switch."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import Tensor

from padding.data.catalog import register_all
from padding.modeling.batching import normalize_image
from psi import losses
from psi.grid import cells_to_pixels, supervision_on_grid, valid_cells
from psi.meta_arch import PSI, LabelsAtStep
from tests.meta_arch_contract import MetaArchContract
from tests.tiny_psi import build, random_samples, run, scribbles_of, supervision_of, tiny_psi_cfg

VOID = 255
THRESHOLD = "threshold_net."


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    register_all()


def full_logits(model: PSI, samples: list[dict[str, Any]]) -> Tensor:
    images = torch.stack([normalize_image(sample["image"], model.pixel_mean, model.pixel_std) for sample in samples])
    logits = copy.deepcopy(model).network(images, torch.stack([sample["valid"] for sample in samples]))
    return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


class TestContract(MetaArchContract):
    @pytest.fixture
    def cfg(self) -> CfgNode:
        return tiny_psi_cfg()

    @pytest.fixture
    def train_batch(self) -> list[dict[str, Any]]:
        return random_samples()


@pytest.mark.parametrize("opts", [("SLD.STEPS", 0), ("SLD.START_ITER", 4)], ids=["no-steps", "before-start"])
def test_scribbles_alone_are_partial_cross_entropy_and_smoothness(opts: tuple[Any, ...]) -> None:
    model = build(*opts, "LOSS.SMOOTH_WEIGHT", 7.0)
    samples = random_samples()
    scribbles, valid = scribbles_of(samples)
    logits = full_logits(model, samples)
    found = run(model, samples, iteration=3)
    drawn = scribbles != VOID
    expected = F.cross_entropy(logits.movedim(1, -1)[drawn], scribbles[drawn])
    torch.testing.assert_close(found["loss_seg"], expected)
    torch.testing.assert_close(found["loss_smooth"], 7.0 * losses.smoothness(logits, valid))
    if opts[0] == "SLD.STEPS":
        assert model.threshold_net is None
        assert set(found) == {"loss_seg", "loss_smooth"}
    else:
        assert set(found) == {"loss_seg", "loss_smooth", "loss_scribble_recall"}
        assert found["loss_scribble_recall"].item() == 0.0
        assert run(model, samples, iteration=4)["loss_scribble_recall"] > 0


def test_start_is_a_tenth_of_the_schedule_unless_given() -> None:
    assert build("SLD.START_ITER", -1, "SOLVER.MAX_ITER", 250).growth.start_iter == 25
    assert build("SLD.START_ITER", 0, "SOLVER.MAX_ITER", 250).growth.start_iter == 0


def test_each_network_learns_from_its_own_losses() -> None:
    """One backward of the sum is the alternation: each part has the gradient of its own loss, and no other."""
    model, samples = build("LOSS.SMOOTH_WEIGHT", 2.0), random_samples()
    assert model.threshold_net is not None
    torch.nn.init.normal_(list(model.threshold_net.parameters())[-2], std=0.5)  # the start has gradients there alone
    kinds = {
        "network": ("loss_seg", "loss_smooth"),
        "threshold_net": ("loss_scribble_recall", "loss_diffusion"),
        "both": ("loss_seg", "loss_smooth", "loss_scribble_recall", "loss_diffusion"),
    }
    gradients: dict[str, dict[str, Tensor | None]] = {}
    for kind, names in kinds.items():
        trained = copy.deepcopy(model)
        found = run(trained, samples)
        assert set(found) == set(kinds["both"])
        sum(found[name] for name in names).backward()  # type: ignore[union-attr]
        gradients[kind] = {name: p.grad for name, p in trained.named_parameters()}
    for name, gradient in gradients["both"].items():
        own, other = ("threshold_net", "network") if name.startswith(THRESHOLD) else ("network", "threshold_net")
        assert gradients[other][name] is None, name
        assert gradient is not None, name
        assert torch.equal(gradient, gradients[own][name]), name  # type: ignore[arg-type]
    for part in ("network.backbone", "network.head", "threshold_net"):
        assert any(g.abs().max() > 0 for n, g in gradients["both"].items() if n.startswith(part) and g is not None)


@pytest.mark.parametrize("target", ["hard", "soft"])
@pytest.mark.parametrize("scope", ["window", "global"])
def test_scribbles_are_never_overwritten_and_padding_never_labeled(
    target: str, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("SLD.GATE_ARGMAX", False, "SLD.KEEP_DIFFUSED", False, "SLD.STEPS", 3)
    model, samples = build(*options, "SLD.TARGET", target, "SLD.SCOPE", scope), random_samples(3)
    scribbles, valid = scribbles_of(samples)
    drawn = scribbles != VOID
    assert (torch.stack([s["sem_seg"] for s in samples]) != VOID)[~valid].any()  # a trap: drawn in the padding
    seen = supervision_of(monkeypatch, model, samples)
    assert torch.equal(seen.scribbles, drawn)
    assert torch.equal(seen.labels[drawn], scribbles[drawn])
    assert (seen.weights[drawn] == 1).all()
    assert (seen.labels[~valid] == VOID).all()
    assert not seen.weights[~valid].any()
    diffused = (seen.labels != VOID) & ~drawn
    assert diffused.sum() > drawn.sum()
    assert (seen.weights[diffused] > 0).all()
    # Next to a scribble the cell is sure; farther off nothing is.
    touched = cells_to_pixels(valid_cells(drawn, stride=4), size=(64, 64), stride=4)
    assert (seen.weights[diffused & ~touched] < 1).all()
    # Diffusion knows no class that was not drawn in the image.
    for labels, own in zip(seen.labels, scribbles, strict=True):
        assert set(labels.unique().tolist()) <= set(own.unique().tolist())


def test_batches_are_padded_on_the_right_and_below_without_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [*random_samples(1, size=(50, 71)), *random_samples(1, size=(64, 40), seed=1)]
    del samples[1]["valid"]  # then all of the image is valid, and nothing else
    seen = supervision_of(monkeypatch, build(), samples)
    assert seen.labels.shape == (2, 64, 72)
    assert (seen.labels[0, 50:] == VOID).all()
    assert (seen.labels[0, :, 62:] == VOID).all()
    assert (seen.labels[1, :, 40:] == VOID).all()
    assert (seen.labels[1, :, 31:40] != VOID).any()


def test_coverage_grows_with_the_steps() -> None:
    samples, logged = random_samples(), []
    for steps in range(4):
        model = build("SLD.STEPS", steps, "SLD.GATE_ARGMAX", False)
        with EventStorage(3) as storage:
            model(samples)
            logged.append(storage.latest()["psi/coverage"][0])
            assert ("psi/threshold" in storage.latest()) == (steps > 0)
    scribbles, valid = scribbles_of(samples)
    assert logged[0] == pytest.approx(((scribbles != VOID).sum() / valid.sum()).item())
    assert logged == sorted(logged)
    assert logged[0] < logged[1] < logged[3] <= 1


def test_log_shows_what_cannot_be_seen_in_the_losses() -> None:
    with EventStorage(3) as storage:
        build()(random_samples())
        logged = {name: value[0] for name, value in storage.latest().items()}
    assert set(logged) == {f"psi/{name}" for name in ("coverage", "threshold", "self_weight", "entropy")}
    assert 0 < logged["psi/threshold"] < 1
    assert 0 < logged["psi/self_weight"] < 1


# The three modes ------------------------------------------------------------------------------------------------------


def after(model: PSI, samples: list[dict[str, Any]], labels: LabelsAtStep, *, iteration: int = 3) -> LabelsAtStep:
    """What comes out of a training step."""
    with EventStorage(iteration):
        _, grown = model(samples, labels)
    assert grown.step == labels.step + (grown.grid is not None)
    return grown


def test_labels_come_out_where_labels_went_in() -> None:
    model, samples = build("SLD.MODE", "inner_loop"), random_samples()
    with EventStorage(3):
        alone = copy.deepcopy(model)(samples)
        found, grown = model(samples, LabelsAtStep())
    assert {name: loss.item() for name, loss in found.items()} == {name: loss.item() for name, loss in alone.items()}
    assert grown.step == 1


def test_inner_loop_carries_labels_from_pass_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = build("SLD.MODE", "inner_loop", "SLD.GATE_ARGMAX", False), random_samples()
    scribbles, valid = scribbles_of(samples)
    drawn = scribbles != VOID
    first = supervision_of(monkeypatch, model, samples, step=0)
    assert torch.equal(first.labels, scribbles)  # y_0: nothing has grown yet
    one = after(model, samples, LabelsAtStep())
    y1 = one.grid
    assert y1 is not None
    second = supervision_of(monkeypatch, model, samples, step=1, grid=y1)
    expected = cells_to_pixels(y1.labels, size=(64, 64), stride=4).masked_fill(~valid, VOID).where(~drawn, scribbles)
    assert torch.equal(second.labels, expected)
    y2 = after(model, samples, one).grid
    assert y2 is not None
    assert (y2.region | ~y1.region).all()
    assert y2.region.sum() > y1.region.sum() > y1.scribbles.sum()
    # After the last pass nothing grows, and g has nothing to learn from.
    last = run(model, samples, step=2, grid=y2)
    assert after(model, samples, LabelsAtStep(2, y2)).grid is y2
    assert "loss_diffusion" not in last
    assert last["loss_scribble_recall"].item() == 0
    assert last["loss_scribble_recall"].requires_grad


def test_inner_loop_with_frozen_scores_is_online(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the network stood still, T passes would grow what one online step does."""
    samples = random_samples()
    online = supervision_of(monkeypatch, build(), samples)
    model, labels = build("SLD.MODE", "inner_loop"), LabelsAtStep()
    for _ in range(2):
        labels = after(copy.deepcopy(model), samples, labels)
    last = supervision_of(monkeypatch, model, samples, step=2, grid=labels.grid)
    assert torch.equal(last.labels, online.labels)
    assert torch.equal(last.weights, online.weights)


def test_inner_loop_waits_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = build("SLD.MODE", "inner_loop", "SLD.START_ITER", 5), random_samples()
    assert torch.equal(supervision_of(monkeypatch, model, samples, iteration=4).labels, scribbles_of(samples)[0])
    assert after(model, samples, LabelsAtStep(), iteration=4).grid is None
    assert after(model, samples, LabelsAtStep(), iteration=5).grid is not None


def stored_samples() -> list[dict[str, Any]]:
    """Samples with labels of an earlier round: a block of another class, over scribbles, void and padding."""
    samples = random_samples()
    for sample in samples:
        sample["diffused"] = torch.full((64, 64), VOID)
        sample["diffused_weight"] = torch.zeros(64, 64)
        other = int(sample["sem_seg"][sample["sem_seg"] != VOID].min())
        sample["diffused"][8:40, 12:] = other
        sample["diffused_weight"][8:40, 12:] = 0.25
        # as the mapper leaves it
        sample["diffused"][~sample["valid"]], sample["diffused_weight"][~sample["valid"]] = VOID, 0.0
        sample["sem_seg"][~sample["valid"]] = VOID
    return samples


def test_rounds_read_the_labels_that_samples_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = stored_samples()
    scribbles, _ = scribbles_of(samples)
    stored, weights = (torch.stack([s[key] for s in samples]) for key in ("diffused", "diffused_weight"))
    drawn = scribbles != VOID
    model = build("SLD.MODE", "rounds")
    seen = supervision_of(monkeypatch, model, samples, step=1)
    assert torch.equal(seen.labels, torch.where(drawn, scribbles, stored))
    assert torch.equal(seen.weights, weights.masked_fill(drawn, 1.0))
    assert torch.equal(seen.scribbles, drawn)
    # The other modes do not look at them.
    other = build("SLD.STEPS", 0)
    assert torch.equal(supervision_of(monkeypatch, other, samples).labels, scribbles)


def test_rounds_without_stored_labels_take_the_scribbles_at_any_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = random_samples()
    model = build("SLD.MODE", "rounds", "SLD.START_ITER", 100)
    seen = supervision_of(monkeypatch, model, samples, iteration=0)
    assert torch.equal(seen.labels, scribbles_of(samples)[0])
    # g learns from the first round on: the labels of the second will depend on it.
    assert run(model, samples, iteration=0)["loss_diffusion"] > 0
    assert "loss_diffusion" not in run(model, samples, step=2)


def test_rounds_teach_the_threshold_with_the_radius_and_the_labels_of_their_own_step() -> None:
    model, samples = build("SLD.MODE", "rounds", "SLD.GROWTH", "list", "SLD.RADII", (4, 24)), stored_samples()
    assert model.growth.diffusion.radii == (1, 6)
    found = []
    for step, stored in ((0, False), (1, False), (1, True)):
        given = samples if stored else random_samples()
        found.append(run(copy.deepcopy(model), given, step=step)["loss_scribble_recall"].item())
    assert len(set(found)) == 3


# Switches -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2, 4, 6])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_smoothness_at_another_resolution(stride: int, reduction: str) -> None:
    options = ("LOSS.SMOOTH_STRIDE", stride, "LOSS.SMOOTH_REDUCTION", reduction, "SLD.STEPS", 0)
    model, samples = build(*options), random_samples()
    images = torch.stack([normalize_image(sample["image"], model.pixel_mean, model.pixel_std) for sample in samples])
    _, valid = scribbles_of(samples)
    logits = copy.deepcopy(model).network(images, valid)
    size = -(-64 // stride)
    maps = F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=False)
    expected = losses.smoothness(maps, valid_cells(valid, stride=stride), reduction=reduction)
    torch.testing.assert_close(run(model, samples)["loss_smooth"], expected)


def test_literal_smoothness_has_no_gradient_and_weight_zero_leaves_it_out() -> None:
    found = run(build("LOSS.SMOOTH_ON", "argmax"), random_samples())["loss_smooth"]
    assert found > 0
    assert run(build("LOSS.SMOOTH_WEIGHT", 0.0), random_samples()).keys().isdisjoint({"loss_smooth"})
    model = build("LOSS.SMOOTH_ON", "argmax")
    run(model, random_samples())["loss_smooth"].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


# Keys that change the losses of the network, or of the threshold.
CHANGES: list[tuple[tuple[Any, ...], set[str]]] = [
    (("LOSS.REGION_NORM", "joint"), {"loss_seg"}),
    (("LOSS.DIFFUSED_WEIGHT", 0.3), {"loss_seg"}),
    (("LOSS.SMOOTH_WEIGHT", 3.0), {"loss_smooth"}),
    (("LOSS.DIFFUSION_WEIGHT", 0.5), {"loss_diffusion"}),
    (("LOSS.DIFFUSION_REGION", "all"), {"loss_diffusion"}),
    (("SLD.SHARPNESS", 5.0), {"loss_seg", "loss_scribble_recall", "loss_diffusion"}),
    (("SLD.BINARIZER", "rescaled"), {"loss_scribble_recall", "loss_diffusion"}),
    (("SLD.BINARIZER", "sigmoid"), {"loss_scribble_recall", "loss_diffusion"}),
    (("SLD.GATE_ARGMAX", False), {"loss_seg", "loss_scribble_recall", "loss_diffusion"}),
    (("SLD.SCOPE", "global", "SLD.GATE_ARGMAX", False), {"loss_seg"}),
    (("SLD.KEEP_DIFFUSED", False, "SLD.GATE_ARGMAX", False), set()),
    (("SLD.TARGET", "soft", "SLD.GATE_ARGMAX", False), {"loss_seg"}),
    (("SLD.RADIUS", 12), {"loss_seg", "loss_scribble_recall", "loss_diffusion"}),
    (("SLD.GROWTH", "geometric", "SLD.STEPS", 3), {"loss_seg"}),
    (("SLD.STRIDE", 8), {"loss_seg", "loss_scribble_recall", "loss_diffusion"}),
    (("SLD.STRIDE", 2), {"loss_seg", "loss_scribble_recall", "loss_diffusion"}),
    (("SLD.THRESHOLD_NET.BOUND", 0.5), set()),
    (("SLD.THRESHOLD_NET.HIDDEN", (4,)), set()),
    (("CPP.SCALE", "learned"), set()),
    (("DECODER.PRE_REDUCE", True, "DECODER.HIGH_LEVEL", "res5"), {"loss_seg"}),
    (("DECODER.INIT", "kaiming"), {"loss_seg"}),
    (("SLD.AFFINITY.MODE", "gate"), {"loss_seg"}),
    (("SLD.AFFINITY.MODE", "factor"), {"loss_seg", "loss_diffusion"}),
    (("SLD.AFFINITY.MODE", "factor", "SLD.AFFINITY.SIGMA", 0.5), {"loss_seg", "loss_diffusion"}),
    (("SLD.AFFINITY.MODE", "gate", "SLD.AFFINITY.MIN", 0.9), {"loss_seg"}),
    (("LOSS.DIFFUSED_RAMP.TYPE", "gaussian", "LOSS.DIFFUSED_RAMP.ITERS", 100), {"loss_seg"}),
    (("AGGREGATION", "none"), {"loss_seg"}),
    (("AGGREGATION", "up"), {"loss_seg"}),
    (("AGGREGATION", "sf"), {"loss_seg"}),
]


def name_of(parameter: tuple[Any, ...] | set[str]) -> str:
    """The same in every process: sets have no order."""
    words = sorted(parameter) if isinstance(parameter, set) else parameter
    return "-".join(map(str, words)) or "none"


@pytest.fixture(scope="module")
def plain_losses() -> dict[str, float]:
    return {name: loss.item() for name, loss in run(build(), random_samples()).items()}


@pytest.mark.parametrize(("opts", "changed"), CHANGES, ids=name_of)
def test_every_switch_trains_all_parameters_and_changes_its_losses(
    opts: tuple[Any, ...], changed: set[str], plain_losses: dict[str, float]
) -> None:
    model = build(*opts)
    found = run(model, random_samples())
    assert all(torch.isfinite(loss) for loss in found.values()), found
    sum(found.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    for name in changed:
        assert found[name].item() != pytest.approx(plain_losses[name], rel=1e-4), name
    if opts[0].startswith("LOSS."):  # these keys leave the labels alone
        for name in found.keys() - changed:
            assert found[name].item() == pytest.approx(plain_losses[name]), name


def test_soft_targets_ask_for_every_class_that_selects_a_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("SLD.GATE_ARGMAX", False, "SLD.TARGET")
    soft = supervision_of(monkeypatch, build(*options, "soft"), random_samples())
    hard = supervision_of(monkeypatch, build(*options, "hard"), random_samples())
    assert hard.targets is None
    assert soft.targets is not None
    several = (soft.targets > 0).sum(dim=1) > 1
    assert several.any()
    assert not several[soft.scribbles].any()


@pytest.mark.parametrize("mode", ["online", "inner_loop", "rounds"])
def test_mixed_precision_is_finite_and_growth_stays_in_float32(mode: str) -> None:
    model, samples = build("SLD.MODE", mode), random_samples()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(model, samples)
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in found.values()), found
    sum(found.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grid = after(model, samples, LabelsAtStep()).grid
    assert grid is not None
    assert grid.targets.dtype == torch.float32


def test_scores_on_the_grid_are_those_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the stride of the logits nothing is resized, so labels grow from what the network says."""
    model, samples = build("SLD.STEPS", 1), random_samples()
    images = torch.stack([normalize_image(sample["image"], model.pixel_mean, model.pixel_std) for sample in samples])
    raw = torch.stack([sample["sem_seg"] for sample in samples])
    _, valid = scribbles_of(samples)
    scores = copy.deepcopy(model).network(images, valid).detach().softmax(dim=1)
    start, cells = supervision_on_grid(raw, valid, num_classes=17, stride=4)
    seen = supervision_of(monkeypatch, model, samples)
    on_grid = seen.labels[:, ::4, ::4]
    diffused = (on_grid != VOID) & ~start.region & ~seen.scribbles[:, ::4, ::4]
    assert diffused.any()
    assert cells[diffused].all()
    # The gate: what enters is what the network ranks first.
    assert torch.equal(on_grid[diffused], scores.argmax(dim=1)[diffused])


def test_prediction_is_a_distribution_and_reads_no_scribble() -> None:
    model = build().eval()
    sample = {"image": torch.randint(0, 256, (3, 50, 71), dtype=torch.uint8), "height": 100, "width": 142}
    with torch.no_grad():
        scores = model([sample])[0]["sem_seg"]
        again = model([{**sample, "sem_seg": torch.zeros(50, 71, dtype=torch.int64)}])[0]["sem_seg"]
    assert scores.shape == (17, 100, 142)
    torch.testing.assert_close(scores.sum(dim=0), torch.ones(100, 142))
    assert torch.equal(scores, again)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("SLD.MODE", "offline"), "MODE is 'offline'; expected one of online, inner_loop, rounds"),
        (("SLD.STRIDE", 0), "STRIDE is 0"),
        (("LOSS.SMOOTH_STRIDE", 0), "SMOOTH_STRIDE is 0"),
        (("LOSS.SMOOTH_WEIGHT", -1.0), "not negative"),
        (("LOSS.REGION_NORM", "all"), "REGION_NORM is 'all'"),
        (("LOSS.SMOOTH_ON", "labels"), "SMOOTH_ON is 'labels'"),
        (("LOSS.SMOOTH_REDUCTION", "max"), "SMOOTH_REDUCTION is 'max'"),
        (("LOSS.DIFFUSION_REGION", "scribbles"), "DIFFUSION_REGION is 'scribbles'"),
        (("SLD.GROWTH", "list"), "RADII has 0 entries"),
        (("SLD.THRESHOLD_NET.BOUND", 0.0), "BOUND is 0"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_choices_that_do_not_exist_are_named_before_training(opts: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(*opts)


@pytest.mark.slow
def test_network_learns_images_from_their_scribbles() -> None:
    """A line in each block says the class of all of it; labels grow from 5 % of the pixels to half of them."""
    model = build("LOSS.SMOOTH_WEIGHT", 0.1, "SLD.RADIUS", 8, "SLD.START_ITER", 50)
    samples = random_samples(4, num_classes=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    coverage, scribble_loss = [], []
    for iteration in range(101):
        optimizer.zero_grad()
        with EventStorage(iteration) as storage:
            found = model(samples)
            coverage.append(storage.latest()["psi/coverage"][0])
        scribble_loss.append(found["loss_seg"].item())
        sum(found.values()).backward()
        optimizer.step()
    assert coverage[0] == coverage[49] < 0.1
    assert coverage[100] > 0.5
    assert scribble_loss[49] < 0.5 * scribble_loss[0]
    with torch.no_grad():
        predictions = model.eval()(samples)
    right = torch.stack([p["sem_seg"].argmax(dim=0) == s["truth"] for p, s in zip(predictions, samples, strict=True)])
    valid = torch.stack([sample["valid"] for sample in samples])
    assert right[valid].float().mean() > 0.7
