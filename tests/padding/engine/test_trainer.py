# SPDX-License-Identifier: Apache-2.0
"""The training loop: accumulation, exact resume after a kill, several processes, mixed precision, error messages."""

import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm

from padding.data.streams import TrainStream
from padding.engine.checkpointer import TrainingCheckpointer
from padding.engine.distributed import micro_batch_size, torchrun_process_group
from padding.engine.trainer import Trainer
from padding.errors import CheckpointError, DataError
from tests.toy_training import NUM_IMAGES, ToyMapper, ToyTrainer, free_port, losses_by_iteration, toy_cfg, train_toy

# A forked child has torch imported already; a spawned one would need seconds.
_FORK = multiprocessing.get_context("fork")
NO_DROPOUT = ("MODEL.TOY.DROPOUT", 0.0)


def parameters(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.module.named_parameters()}


def run_in_child(target: Callable[..., None], *args: Any) -> int | None:
    process = _FORK.Process(target=target, args=args)
    process.start()
    process.join()  # with a timeout it would also wait for the orphaned data worker, five seconds
    return process.exitcode


@pytest.mark.parametrize(("images", "steps", "processes", "expected"), [(16, 1, 1, 16), (16, 4, 2, 2), (3, 3, 1, 1)])
def test_micro_batch_size_splits_evenly(images: int, steps: int, processes: int, expected: int) -> None:
    assert micro_batch_size(images, steps, processes) == expected


@pytest.mark.parametrize(("images", "steps", "processes"), [(16, 3, 1), (4, 4, 2), (4, 0, 1)])
def test_uneven_split_is_an_error_that_names_the_keys(images: int, steps: int, processes: int) -> None:
    with pytest.raises(ValueError, match=rf"IMS_PER_BATCH = {images}.*ACCUMULATE_STEPS = {steps}.*{processes} process"):
        micro_batch_size(images, steps, processes)


def test_training_learns_and_writes_its_records(tmp_path: Path) -> None:
    trainer = train_toy(toy_cfg(tmp_path, *NO_DROPOUT, "SOLVER.MAX_ITER", 30, "SOLVER.CHECKPOINT_PERIOD", 20))
    losses = losses_by_iteration(tmp_path)
    assert sorted(losses) == list(range(30))
    assert losses[29][0] < 0.5 * losses[0][0]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["model_0000019.pth", "model_final.pth"]
    assert list(tmp_path.glob("events.out.tfevents.*"))
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert set(saved) == {"model", "trainer", "iteration"}
    assert saved["iteration"] == 29
    torch.testing.assert_close(saved["model"]["head.bias"], parameters(trainer)["head.bias"])


@pytest.mark.parametrize("steps", [2, 4])
def test_accumulation_equals_the_big_batch(tmp_path: Path, steps: int) -> None:
    whole = train_toy(toy_cfg(tmp_path / "whole", *NO_DROPOUT))
    parts = train_toy(toy_cfg(tmp_path / "parts", *NO_DROPOUT, "SOLVER.ACCUMULATE_STEPS", steps))
    assert parts.micro_batch_size == 4 // steps
    for name, value in parameters(whole).items():
        torch.testing.assert_close(parameters(parts)[name], value, rtol=1e-5, atol=1e-6)
    first, second = losses_by_iteration(tmp_path / "whole"), losses_by_iteration(tmp_path / "parts")
    for iteration, (loss, rate) in first.items():
        assert second[iteration] == pytest.approx((loss, rate), rel=1e-5)


class KillAt(HookBase):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_step(self) -> None:
        if self.trainer.iter == self.iteration:
            os.kill(os.getpid(), signal.SIGKILL)


class KilledTrainer(ToyTrainer):
    def build_hooks(self) -> list[HookBase]:
        return [*super().build_hooks(), KillAt(4)]


def train_and_be_killed(output: Path, opts: tuple[Any, ...]) -> None:
    torch.manual_seed(3)
    trainer = KilledTrainer(toy_cfg(output, *opts))
    trainer.train()


@pytest.mark.parametrize(
    "opts",
    [
        (),
        ("SOLVER.ACCUMULATE_STEPS", 2, "SOLVER.OPTIMIZER", "SGD", "DATALOADER.NUM_WORKERS", 1),
        ("SOLVER.AMP.ENABLED", True),
    ],
    ids=["plain", "accumulate-sgd-worker", "amp"],
)
def test_resume_after_a_kill_repeats_every_loss_exactly(tmp_path: Path, opts: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)  # as in the child: sums of another number of threads are not the same to the last bit
    straight = train_toy(toy_cfg(tmp_path / "straight", *opts))
    expected = losses_by_iteration(tmp_path / "straight")

    # Killed during iteration 4; the last checkpoint is of iteration 2.
    assert run_in_child(train_and_be_killed, tmp_path / "killed", opts) == -signal.SIGKILL
    assert (tmp_path / "killed" / "last_checkpoint").read_text() == "model_0000002.pth"
    torch.rand(17)  # whatever this process drew before must not matter
    resumed = train_toy(toy_cfg(tmp_path / "killed", *opts), resume=True)

    assert resumed.start_iter == 3
    assert losses_by_iteration(tmp_path / "killed") == expected
    for name, value in parameters(straight).items():
        assert torch.equal(parameters(resumed)[name], value), name


def test_resume_keeps_a_seed_that_was_drawn(tmp_path: Path) -> None:
    """With SEED -1 the order of the data is random, but the same before and after a resume."""
    cut = train_toy(toy_cfg(tmp_path, "SOLVER.MAX_ITER", 4))
    cut.seed = cut.seed + 1000
    cut._open_stream()
    cut.checkpointer.save("model_other_seed", iteration=3)
    resumed = ToyTrainer(toy_cfg(tmp_path, "SEED", -1))
    resumed.resume_or_load(resume=True)
    assert resumed.seed == cut.seed
    for ours, theirs in zip(resumed.next_batch(), cut.next_batch(), strict=True):
        assert torch.equal(ours["image"], theirs["image"])


def test_resume_of_a_finished_training_trains_nothing(tmp_path: Path) -> None:
    done = train_toy(toy_cfg(tmp_path))
    again = train_toy(toy_cfg(tmp_path), resume=True)
    assert again.start_iter == again.max_iter
    for name, value in parameters(done).items():
        assert torch.equal(parameters(again)[name], value)


def test_resume_can_go_beyond_the_old_end(tmp_path: Path) -> None:
    train_toy(toy_cfg(tmp_path))
    longer = train_toy(toy_cfg(tmp_path, "SOLVER.MAX_ITER", 12), resume=True)
    assert (longer.start_iter, longer.iter) == (8, 12)
    assert sorted(losses_by_iteration(tmp_path)) == list(range(12))


def test_without_resume_a_training_starts_anew(tmp_path: Path) -> None:
    train_toy(toy_cfg(tmp_path))
    anew = ToyTrainer(toy_cfg(tmp_path))
    anew.resume_or_load(resume=False)
    assert anew.start_iter == 0


def test_weights_start_a_training_without_its_state(tmp_path: Path) -> None:
    done = train_toy(toy_cfg(tmp_path / "first"))
    weights = str(tmp_path / "first" / "model_final.pth")
    fresh = ToyTrainer(toy_cfg(tmp_path / "second", "MODEL.WEIGHTS", weights))
    fresh.resume_or_load(resume=True)  # nothing to resume in the new folder
    assert fresh.start_iter == 0
    assert fresh.stream.position == 0
    assert not fresh.optimizers["main"].state
    for name, value in parameters(done).items():
        assert torch.equal(parameters(fresh)[name], value)


def test_damaged_checkpoint_is_named_with_a_cure(tmp_path: Path) -> None:
    train_toy(toy_cfg(tmp_path))
    damaged = tmp_path / "model_final.pth"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model_final\.pth \(1000 bytes\) cannot be read.*model_000000"):
        train_toy(toy_cfg(tmp_path), resume=True)


def test_non_finite_loss_stops_before_a_checkpoint(tmp_path: Path) -> None:
    class Diverging(ToyTrainer):
        def record(self, losses: dict[str, torch.Tensor]) -> None:
            super().record({"loss_colour": losses["loss_colour"] * (float("inf") if self.iter == 5 else 1.0)})

    trainer = Diverging(toy_cfg(tmp_path))
    with pytest.raises(FloatingPointError, match=r"iteration 5 on rank 0: \{'loss_colour': inf\}.*SOLVER.BASE_LR"):
        trainer.train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"


def test_mixed_precision_on_cpu_computes_in_bfloat16(tmp_path: Path) -> None:
    trainer = ToyTrainer(toy_cfg(tmp_path, "SOLVER.AMP.ENABLED", True))
    dtypes = []
    trainer.module.head.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    trainer.train()
    assert set(dtypes) == {torch.bfloat16}
    assert all(value.dtype == torch.float32 for value in parameters(trainer).values())


class TwoOptimizers(ToyTrainer):
    """As a method with two optimisers does it: each with its own node, schedule and scaler."""

    def build_optimizers(self, cfg: Any, model: torch.nn.Module) -> dict[str, torch.optim.Optimizer]:
        return {
            "main": torch.optim.AdamW(model.backbone.parameters(), lr=cfg.SOLVER.BASE_LR),
            "head": torch.optim.SGD(model.head.parameters(), lr=0.5, momentum=0.9),
        }

    def build_schedulers(self, cfg: Any) -> dict[str, Any]:
        return {
            name: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.9**t)
            for name, optimizer in self.optimizers.items()
        }

    def run_step(self) -> None:
        losses = self.model(self.next_batch())
        self.backward(sum(losses.values()))
        self.record(losses)
        for parameter in (p for group in self.optimizers["head"].param_groups for p in group["params"]):
            assert parameter.grad is not None
        torch.nn.utils.clip_grad_norm_(self.module.head.parameters(), 1.0)
        self.optimizers["head"].step()
        self.optimizers["head"].zero_grad()
        self.optimizer_step("main")


def test_every_optimizer_and_schedule_resumes(tmp_path: Path) -> None:
    def train(output: Path, end: int, resume: bool) -> TwoOptimizers:
        torch.manual_seed(3)
        trainer = TwoOptimizers(toy_cfg(output, "SOLVER.MAX_ITER", end))
        trainer.resume_or_load(resume=resume)
        trainer.train()
        return trainer

    straight = train(tmp_path / "straight", 6, False)
    train(tmp_path / "cut", 3, False)
    resumed = train(tmp_path / "cut", 6, True)
    assert resumed.optimizers["head"].param_groups[0]["lr"] == pytest.approx(0.5 * 0.9**6)
    for name, value in parameters(straight).items():
        assert torch.equal(parameters(resumed)[name], value), name
    with pytest.raises(CheckpointError, match=r"holds optimizers \['head', 'main'\], ToyTrainer has \['main'\]"):
        train_toy(toy_cfg(tmp_path / "cut"), resume=True)


# Several processes ------------------------------------------------------------------------------------------------


def set_rank(rank: int, port: int) -> None:
    """Set what torchrun sets for one of two processes."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)


def train_rank(rank: int, port: int, output: Path, opts: tuple[Any, ...], resume: bool) -> None:
    set_rank(rank, port)
    with torchrun_process_group("cpu"):
        assert dist.get_backend() == "gloo"
        train_toy(toy_cfg(output, *opts), resume=resume)


def run_two_processes(target: Callable[..., None], *args: Any) -> None:
    port = free_port()
    children = [_FORK.Process(target=target, args=(rank, port, *args)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]


def train_two_processes(output: Path, *opts: Any, resume: bool = False) -> None:
    run_two_processes(train_rank, output, opts, resume)


@pytest.mark.parametrize("steps", [1, 2])
def test_two_processes_equal_one_with_the_whole_batch(tmp_path: Path, steps: int) -> None:
    train_toy(toy_cfg(tmp_path / "one", *NO_DROPOUT))
    train_two_processes(tmp_path / "two", *NO_DROPOUT, "SOLVER.ACCUMULATE_STEPS", steps)

    one, two = (torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6)
    first, second = losses_by_iteration(tmp_path / "one"), losses_by_iteration(tmp_path / "two")
    for iteration, values in first.items():
        assert second[iteration] == pytest.approx(values, rel=1e-5)


def test_two_processes_resume_exactly(tmp_path: Path) -> None:
    """With dropout, which differs between the ranks: each rank's own random state is in the checkpoint."""
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    train_two_processes(straight)
    cut.mkdir()
    shutil.copy(straight / "model_0000002.pth", cut)
    (cut / "last_checkpoint").write_text("model_0000002.pth")
    train_two_processes(cut, resume=True)

    expected, actual = losses_by_iteration(straight), losses_by_iteration(cut)
    assert actual == {iteration: expected[iteration] for iteration in range(3, 8)}
    one, two = (torch.load(folder / "model_final.pth", weights_only=True)["model"] for folder in (straight, cut))
    for name, value in one.items():
        assert torch.equal(two[name], value), name


def read_without_shared_folder(rank: int, port: int, folder: Path) -> None:
    set_rank(rank, port)
    with torchrun_process_group("cpu"):
        name = "model_final.pth" if rank == 0 else "only_on_the_other_machine.pth"
        state = TrainingCheckpointer._read_on_every_rank(str(folder / name))
        assert state["iteration"] == 7
        if rank == 0:
            (folder / name).write_bytes(b"cut")
        with pytest.raises(CheckpointError, match=r"model_final\.pth \(3 bytes\) cannot be read"):
            TrainingCheckpointer._read_on_every_rank(str(folder / name))


def test_machines_without_a_shared_folder_resume_too(tmp_path: Path) -> None:
    """Rank 0 reads and sends; its error reaches every rank, so that none waits for ever."""
    train_toy(toy_cfg(tmp_path))
    run_two_processes(read_without_shared_folder, tmp_path)


class OtherData(ToyTrainer):
    """Rank 1 has one image of another size."""

    def build_stream(self, cfg: Any) -> TrainStream:
        entries = [{"image_id": i, "height": 8, "width": 8} for i in range(NUM_IMAGES)]
        if comm.get_rank() == 1:
            entries[3]["height"] = 9
        return TrainStream(entries, ToyMapper(), batch_size=2, seed=0)


def notice_other_data(rank: int, port: int, output: Path) -> None:
    set_rank(rank, port)
    with torchrun_process_group("cpu"):
        with pytest.raises(
            DataError, match=r"images and annotations of DATASETS\.TRAIN differ .*rank 1 on .*12 images"
        ):
            OtherData(toy_cfg(output))
        ToyTrainer(toy_cfg(output))


def test_ranks_with_other_data_are_noticed_by_all(tmp_path: Path) -> None:
    run_two_processes(notice_other_data, tmp_path)


class StoppedOnOneRank(ToyTrainer):
    """Rank 1 alone gets SIGTERM."""

    def run_step(self) -> None:
        if self.iter == 4 and comm.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        super().run_step()


def stop_on_one_rank(rank: int, port: int, output: Path) -> None:
    set_rank(rank, port)
    with torchrun_process_group("cpu"):
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        torch.manual_seed(3)
        trainer = StoppedOnOneRank(toy_cfg(output))
        with pytest.raises(SystemExit):
            trainer.train()


def test_all_ranks_end_with_the_one_that_is_told_to(tmp_path: Path) -> None:
    run_two_processes(stop_on_one_rank, tmp_path / "cut")
    assert (tmp_path / "cut" / "last_checkpoint").read_text() == "model_0000004.pth"
    train_two_processes(tmp_path / "cut", resume=True)
    train_two_processes(tmp_path / "whole")
    assert losses_by_iteration(tmp_path / "cut") == losses_by_iteration(tmp_path / "whole")
