# SPDX-License-Identifier: Apache-2.0
"""Training of PSI: rates of its parts, the three loops, labels stored between rounds, exact resume."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from PIL import Image
from torch import nn

from padding.data.catalog import register_all
from padding.data.streams import load_training_entries
from padding.engine import TRAINER_REGISTRY
from psi.label_store import LabelStore
from psi.labeling import SupervisionReader, grow_labels
from psi.meta_arch import LabelsAtStep
from psi.trainer import ScribbleTrainer, round_at
from tests.tiny_psi import NO_BATCH_NORM, tiny_psi_cfg, write_dozen_scribbled_shapes

SLD = "MODEL.PSI.SLD."
ROUNDS = (SLD + "MODE", "rounds", "SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 3)
INNER_LOOP = (SLD + "MODE", "inner_loop")
NETWORK_LOSSES = ("loss_seg", "loss_smooth")


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_dozen_scribbled_shapes(tmp_path_factory.mktemp("data"))
    register_all(root)
    return root


def trainer(output: Path, *opts: Any) -> ScribbleTrainer:
    defaults = ("DATASETS.TEST", (), "SOLVER.BASE_LR", 0.01)
    torch.manual_seed(0)
    built = TRAINER_REGISTRY.get("ScribbleTrainer")(tiny_psi_cfg("OUTPUT_DIR", str(output), *defaults, *opts))
    assert isinstance(built, ScribbleTrainer)
    return built


def lines(output: Path) -> dict[int, dict[str, float]]:
    """What the log says of every iteration, time aside."""
    read = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return {
        line["iteration"]: {k: v for k, v in line.items() if "loss" in k or k.startswith(("psi/", "lr"))}
        for line in read
    }


def assert_equal_weights(one: nn.Module, other: nn.Module) -> None:
    for key, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def die_and_resume(output: Path, *opts: Any, after: int) -> ScribbleTrainer:
    """Train as if the process had died after some iterations, then go on to the end in a new one."""
    broken = trainer(output, *opts)
    broken.max_iter = after
    torch.manual_seed(5)
    broken.train()
    (output / "model_final.pth").unlink()  # of an end that never came
    period = broken.cfg.SOLVER.CHECKPOINT_PERIOD
    (output / "last_checkpoint").write_text(f"model_{after // period * period - 1:07d}.pth")
    resumed = trainer(output, *opts)
    resumed.resume_or_load(resume=True)
    resumed.train()
    return resumed


# Optimiser ------------------------------------------------------------------------------------------------------------


def test_every_parameter_has_the_rate_and_the_decay_of_its_part(tmp_path: Path) -> None:
    rates = ("SOLVER.BASE_LR", 0.01, "SOLVER.BACKBONE_MULTIPLIER", 0.2, "SOLVER.THRESHOLD.BASE_LR", 0.3)
    decays = ("SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.WEIGHT_DECAY_NORM", 0.05, "SOLVER.THRESHOLD.WEIGHT_DECAY", 0.2)
    reference = ("SOLVER.REFERENCE_BATCH", 8)  # the batch is 4, so half the rate; g is no matter of the batch
    built = trainer(tmp_path, *rates, *decays, *reference)
    groups = built.optimizers["main"].param_groups
    found = {id(p): (group["initial_lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    norms = {id(p) for m in built.module.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    expected = {"network.backbone": 0.001, "network.head": 0.005, "threshold_net.layers": 0.3}
    for name, parameter in built.module.named_parameters():
        lr, decay = found.pop(id(parameter))
        part = ".".join(name.split(".")[:2])
        assert lr == pytest.approx(expected[part]), name
        assert decay == (0.2 if part.startswith("threshold") else 0.05 if id(parameter) in norms else 0.1), name
    assert not found


def test_without_a_step_there_is_no_threshold_to_train(tmp_path: Path) -> None:
    for mode in ("online", "inner_loop", "rounds"):
        built = trainer(tmp_path / mode, SLD + "STEPS", 0, SLD + "MODE", mode, "SOLVER.MAX_ITER", 1)
        rates = {group["initial_lr"] for group in built.optimizers["main"].param_groups}
        assert sorted(rates) == pytest.approx([0.001, 0.01])
        built.train()
        assert set(lines(tmp_path / mode)[0]) >= set(NETWORK_LOSSES)
        assert not (tmp_path / mode / "labels").exists()


def test_other_models_are_refused(tmp_path: Path) -> None:
    built = trainer(tmp_path)
    with pytest.raises(TypeError, match="trains PSI, not Linear"):
        built.build_optimizers(built.cfg, nn.Linear(2, 2))


def test_the_mapper_gives_scribbles_and_what_is_image(tmp_path: Path) -> None:
    for sample in trainer(tmp_path).next_batch():
        drawn = sample["sem_seg"] != 255
        assert 4 <= drawn.sum() < 0.3 * drawn.numel()
        assert not (drawn & ~sample["valid"]).any()
        assert "diffused" not in sample


@pytest.mark.parametrize(
    "opts",
    [
        (),
        ("SOLVER.AMP.ENABLED", True, "SOLVER.ACCUMULATE_STEPS", 2, "MODEL.PSI.DECODER.ASPP_DROPOUT", 0.5),
        (*INNER_LOOP, SLD + "START_ITER", 1, "SOLVER.OPTIMIZER", "SGD", "SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR"),
        ("MODEL.PSI.TEACHER.DECAY", 0.9, "MODEL.PSI.WEAK_TO_STRONG", True, "INPUT.STRONG_VIEW", True),
    ],
    ids=["online", "online-amp-accumulation", "inner-loop", "average-weak-to-strong"],
)
def test_resume_continues_exactly(opts: tuple[Any, ...], tmp_path: Path) -> None:
    straight = trainer(tmp_path / "straight", *opts)
    torch.manual_seed(5)  # dropout draws from the global state
    straight.train()
    resumed = die_and_resume(tmp_path / "broken", *opts, after=3)
    assert resumed.start_iter == 2
    assert lines(tmp_path / "broken") == lines(tmp_path / "straight")
    assert_equal_weights(straight.module, resumed.module)


@pytest.mark.parametrize("mode", ["online", "inner_loop"])
def test_the_average_moves_once_per_optimizer_step(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts where the network does, after the loading of initial weights."""
    opts = ("MODEL.PSI.TEACHER.DECAY", 0.9, SLD + "MODE", mode, "SOLVER.MAX_ITER", 1)
    built = trainer(tmp_path, *opts)
    assert built.network.average is not None
    with torch.no_grad():
        next(built.network.network.parameters()).add_(1.0)  # as weights from a file would
    built.resume_or_load(resume=False)
    assert_equal_weights(built.network.network, built.network.average)
    moves: list[int] = []
    original = built.network.update_average
    monkeypatch.setattr(built.network, "update_average", lambda: (moves.append(built.iter), original()))
    built.train()
    assert len(moves) == (3 if mode == "inner_loop" else 1)
    trained = {id(p) for group in built.optimizers["main"].param_groups for p in group["params"]}
    assert not trained & {id(p) for p in built.network.average.parameters()}


# Inner loop -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2])
def test_inner_loop_equals_a_loop_written_out(accumulate: int, tmp_path: Path) -> None:
    """T + 1 optimiser steps on the same images; every part of the batch carries labels of its own."""
    opts = (*INNER_LOOP, "SOLVER.MAX_ITER", 1, "SOLVER.ACCUMULATE_STEPS", accumulate)
    built, other = trainer(tmp_path / "a", *opts), trainer(tmp_path / "b", *opts)
    assert_equal_weights(built.module, other.module)
    optimizer, model = other.optimizers["main"], other.network.train()
    batches = [other.next_batch() for _ in range(accumulate)]
    labels = [LabelsAtStep()] * accumulate
    regions, totals = [], []
    with EventStorage(0):
        for _ in range(3):
            optimizer.zero_grad()
            for index, batch in enumerate(batches):
                found, labels[index] = model(batch, labels[index])
                (sum(found.values()) / accumulate).backward()
                totals.append(sum(loss.item() for loss in found.values()))
            optimizer.step()
            regions.append(sum(int(one.grid.region.sum()) for one in labels if one.grid is not None))
    assert regions[0] <= regions[1] == regions[2]
    steps: list[object] = []
    built.optimizers["main"].register_step_post_hook(lambda *given: steps.append(given))
    built.train()
    assert len(steps) == 3
    assert_equal_weights(built.module, other.module)
    assert lines(tmp_path / "a")[0]["total_loss"] == pytest.approx(sum(totals) / len(totals), rel=1e-5)


def test_two_parts_of_equal_images_train_as_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means over labeled pixels are those of the whole batch only if all parts hold as many of them."""
    entries = load_training_entries(("shapes_train_scribble_coarse",), filter_empty=False)
    monkeypatch.setattr("padding.engine.trainer.load_training_entries", lambda *_, **__: entries[:1])
    fixed = ("INPUT.RANDOM_FLIP", "none", "INPUT.ROTATION", 0.0, "INPUT.SCALE_FACTORS", (1.0,))
    for mode in ("online", "inner_loop"):
        opts = (*NO_BATCH_NORM, *fixed, SLD + "MODE", mode, "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 0.1)
        whole = trainer(tmp_path / mode / "a", *opts)
        parts = trainer(tmp_path / mode / "b", *opts, "SOLVER.ACCUMULATE_STEPS", 2)
        for built in (whole, parts):
            built.train()
        expected, found = lines(tmp_path / mode / "a"), lines(tmp_path / mode / "b")
        for iteration, terms in expected.items():
            assert found[iteration] == pytest.approx(terms, rel=1e-3), (mode, iteration)
        assert expected[3]["loss_seg"] < expected[0]["loss_seg"]


# Rounds ---------------------------------------------------------------------------------------------------------------


def test_rounds_are_equal_parts_of_the_schedule() -> None:
    for steps in range(5):
        for max_iter in range(steps + 1, 30):
            rounds = [round_at(i, max_iter=max_iter, steps=steps) for i in range(max_iter)]
            assert rounds == sorted(rounds)
            sizes = [rounds.count(t) for t in range(steps + 1)]
            assert max(sizes) - min(sizes) <= 1
            assert sum(sizes) == max_iter
    assert [round_at(i, max_iter=2, steps=3) for i in range(2)] == [0, 2]


def stored(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def assert_equal_rounds(one: Path, other: Path, rounds: tuple[int, ...] = (1, 2)) -> None:
    for number in rounds:
        first, second = (stored(folder / "labels" / f"round_{number}") for folder in (one, other))
        assert len(first) == 24
        assert first.keys() == second.keys()
        assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Path, ScribbleTrainer]:
    """A training in three rounds of two iterations, without a break."""
    output = tmp_path_factory.mktemp("straight")
    built = trainer(output, *ROUNDS)
    torch.manual_seed(5)
    built.train()
    return output, built


def test_every_round_is_stored_and_has_more_labels(straight: tuple[Path, ScribbleTrainer]) -> None:
    output, built = straight
    assert built.labeled_rounds == [1, 2]
    store = LabelStore(output / "labels", num_classes=17)
    assert store.rounds() == [1, 2]
    assert [store.manifest(t)["details"]["iteration"] for t in (1, 2)] == [2, 4]
    entries = load_training_entries(built.cfg.DATASETS.TRAIN, filter_empty=False)
    labeled = []
    for entry in entries:
        _, scribbles = SupervisionReader(built.cfg)(entry)
        drawn = scribbles != 255
        states = [store.read(t, entry["image_id"]) for t in (1, 2)]
        for state in states:
            assert torch.equal(state.scribbles[0], drawn)
            assert torch.equal(state.labels[0][drawn], scribbles[drawn])
        grown = [(state.labels != 255).sum().item() for state in states]
        labeled.append([drawn.sum().item(), *grown])
        # No label is lost from round to round.
        assert ((states[1].labels != 255) | (states[0].labels == 255)).all()
    scribbled, first, second = np.sum(labeled, axis=0)
    assert scribbled < first < second


def test_labels_of_a_round_are_grown_from_those_of_the_round_before(tmp_path: Path) -> None:
    """By hand: y_1 of the scribbles with the first radius, y_2 of y_1 with the second, by the network of their time."""
    built = trainer(tmp_path, *ROUNDS)
    store = built.store
    assert store is not None
    reader = SupervisionReader(built.cfg)
    entry = load_training_entries(built.cfg.DATASETS.TRAIN, filter_empty=False)[3]
    sample, scribbles = reader(entry)
    with EventStorage(0):
        built.iter = 0
        built.enter_round(1)
        by_hand = grow_labels(built.network, sample, scribbles, steps=[0]).states[-1]
        assert torch.equal(store.read(1, entry["image_id"]).labels, by_hand.labels)
        with torch.no_grad():
            for parameter in built.network.parameters():
                parameter.mul_(1.1)
        built.enter_round(2)
    before = store.read(1, entry["image_id"])
    by_hand = grow_labels(built.network, sample, scribbles, stored=before, steps=[1]).states[-1]
    assert torch.equal(store.read(2, entry["image_id"]).labels, by_hand.labels)
    torch.testing.assert_close(store.read(2, entry["image_id"]).weights, by_hand.weights, rtol=0, atol=1 / 255)
    assert built.network.training  # labeling left the mode of the network alone


def test_a_round_goes_on_at_the_same_place_with_other_labels(tmp_path: Path) -> None:
    one, other = trainer(tmp_path / "a", *ROUNDS), trainer(tmp_path / "b", *ROUNDS)
    one.iter = 2
    for built in (one, other):
        built.next_batch()
    state = torch.random.get_rng_state()
    one.enter_round(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    for _ in range(4):  # beyond the first pass over twelve images
        with_labels, without = one.next_batch(), other.next_batch()
        for sample, plain in zip(with_labels, without, strict=True):
            assert sample["file_name"] == plain["file_name"]
            assert torch.equal(sample["image"], plain["image"])
            assert torch.equal(sample["sem_seg"], plain["sem_seg"])
            assert "diffused" not in plain
            drawn = sample["sem_seg"] != 255
            assert (sample["diffused"][drawn] == sample["sem_seg"][drawn]).float().mean() > 0.7
            assert (sample["diffused"] != 255).sum() > drawn.sum()


def test_rounds_supervise_with_the_labels_of_their_round(straight: tuple[Path, ScribbleTrainer]) -> None:
    output, _ = straight
    found = lines(output)
    assert found[0]["psi/coverage"] < found[2]["psi/coverage"]
    assert found[1]["psi/coverage"] < found[4]["psi/coverage"]
    # In the last round nothing grows any more.
    assert all("loss_diffusion" in found[i] for i in range(4))
    assert all(found[i]["loss_scribble_recall"] == 0 for i in (4, 5))


@pytest.mark.parametrize(("period", "after"), [(3, 4), (3, 5)], ids=["in-round-1", "in-round-2"])
def test_resume_in_the_middle_of_a_round_is_exact(
    period: int, after: int, straight: tuple[Path, ScribbleTrainer], tmp_path: Path
) -> None:
    """The checkpoint lies after iteration 2, in round 1; the process died in round 1, or in round 2 with its labels."""
    output, expected = straight
    resumed = die_and_resume(tmp_path, *ROUNDS, after=after)
    assert resumed.start_iter == period
    assert resumed.labeled_rounds == [1, 2]
    assert lines(tmp_path) == lines(output)
    assert_equal_weights(expected.module, resumed.module)
    assert_equal_rounds(output, tmp_path)


def test_interruption_while_labels_are_written_is_repaired(
    straight: tuple[Path, ScribbleTrainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, expected = straight
    broken = trainer(tmp_path, *ROUNDS, "SOLVER.CHECKPOINT_PERIOD", 2)
    write, calls = LabelStore.write, 0

    def dying(self: LabelStore, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 17:  # five images into round 2
            raise KeyboardInterrupt
        write(self, *args)

    torch.manual_seed(5)
    with monkeypatch.context() as patch:
        patch.setattr(LabelStore, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            broken.train()
    assert broken.store is not None
    assert broken.store.rounds() == [1]
    left = tmp_path / "labels" / "round_2.partial"
    assert len(stored(left)) == 10
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(left / "stale_labels.png")
    resumed = trainer(tmp_path, *ROUNDS, "SOLVER.CHECKPOINT_PERIOD", 2)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 4
    resumed.train()
    assert_equal_rounds(output, tmp_path)
    assert_equal_weights(expected.module, resumed.module)
    assert not left.exists()


def test_labels_of_another_training_are_not_used(straight: tuple[Path, ScribbleTrainer], tmp_path: Path) -> None:
    """A fresh start in a folder with complete rounds makes its own."""
    output, expected = straight
    folder = (SLD + "ROUNDS.FOLDER", str(tmp_path / "labels"))
    stale = trainer(tmp_path / "other", *ROUNDS, *folder, "SEED", 77, "SOLVER.BASE_LR", 0.1)
    stale.train()
    assert not (tmp_path / "other" / "labels").exists()
    with pytest.raises(AssertionError):
        assert_equal_rounds(output, tmp_path)
    fresh = trainer(tmp_path / "fresh", *ROUNDS, *folder)
    torch.manual_seed(5)
    fresh.train()
    assert_equal_rounds(output, tmp_path)
    assert_equal_weights(expected.module, fresh.module)


def test_rounds_that_no_checkpoint_needs_are_deleted_if_asked_for(
    straight: tuple[Path, ScribbleTrainer], tmp_path: Path
) -> None:
    """Round 1 is needed until a checkpoint of round 2 is written; a training that died in between resumes exactly."""
    output, expected = straight
    opts = (*ROUNDS, SLD + "ROUNDS.KEEP", False)
    broken = trainer(tmp_path, *opts)
    original = broken.run_step

    def dying() -> None:
        if broken.iter == 5:
            raise KeyboardInterrupt
        original()

    broken.run_step = dying  # type: ignore[method-assign]
    torch.manual_seed(5)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    assert broken.store is not None
    assert broken.store.rounds() == [1, 2]  # the last checkpoint, of iteration 2, is of round 1
    resumed = trainer(tmp_path, *opts)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3
    resumed.train()
    assert broken.store.rounds() == [2]
    assert_equal_rounds(output, tmp_path, rounds=(2,))
    assert_equal_weights(expected.module, resumed.module)


def test_a_schedule_too_short_for_all_rounds_grows_the_labels_between(tmp_path: Path) -> None:
    built = trainer(tmp_path, *ROUNDS, "SOLVER.MAX_ITER", 2, SLD + "STEPS", 3)
    built.train()
    assert built.labeled_rounds == [1, 2]
    assert built.round == 2


def test_two_images_of_one_id_are_refused_before_the_first_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = load_training_entries(("shapes_train_scribble_coarse",), filter_empty=False)
    monkeypatch.setattr("psi.trainer.training_entries", lambda *_, **__: [*entries, *entries])
    trainer(tmp_path, *ROUNDS)  # an image may be listed twice
    other = {**entries[0], "file_name": "elsewhere/1.png"}
    monkeypatch.setattr("psi.trainer.training_entries", lambda *_, **__: [*entries, other])
    with pytest.raises(ValueError, match=r"two images of the id .* elsewhere/1.png"):
        trainer(tmp_path, *ROUNDS)
    trainer(tmp_path, SLD + "MODE", "online")


def test_resume_without_the_labels_says_what_is_missing(tmp_path: Path) -> None:
    broken = trainer(tmp_path, *ROUNDS)
    broken.max_iter = 3
    broken.train()
    assert broken.store is not None
    broken.store.forget_before(9)
    resumed = trainer(tmp_path, *ROUNDS)
    resumed.resume_or_load(resume=True)
    with pytest.raises(FileNotFoundError, match=r"round_1.*complete rounds.*without --resume"):
        resumed.train()


def test_training_starts_from_weights_of_the_backbone_alone(tmp_path: Path) -> None:
    source = trainer(tmp_path / "source")
    state = {name: torch.full_like(value, 2) for name, value in source.network.network.backbone.state_dict().items()}
    torch.save(state, tmp_path / "imagenet.pth")
    started = trainer(tmp_path / "started", "MODEL.WEIGHTS", str(tmp_path / "imagenet.pth"))
    started.resume_or_load(resume=False)
    assert all((value == 2).all() for value in started.network.network.backbone.state_dict().values())
    assert_equal_weights(source.network.network.head, started.network.network.head)
