# SPDX-License-Identifier: Apache-2.0
"""Memory and operations of a training step, from the shapes of its tensors: no GPU, no data and no weights are needed.

The step is the trainer's own at its full size, on tensors without values (``dry_run``). Two iterations run, so that the
second one has the optimiser's state beside its activations. What a library uses inside of one operation is not seen.
"""

from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from padding.engine.complexity import build_on_meta
from padding.engine.dry_run import LiveMemory, Waits, bytes_of, dry, to_fake
from padding.engine.registry import TRAINER_REGISTRY
from padding.engine.trainer import Trainer

_SELECTED = 0.1  # share of the rows that a mask without values selects


@dataclass(frozen=True)
class StepEstimate:
    """One iteration of one process; sizes in bytes.

    Attributes:
        weights: parameters and buffers.
        gradients: of all trained parameters.
        optimizer: state of all optimisers.
        peak: the most that is alive at once.
        trained: parameters with a gradient, a number.
        operations: additions and multiplications of convolutions, matrix products and attention, forward and backward.
    """

    weights: int
    gradients: int
    optimizer: int
    peak: int
    trained: int
    operations: float

    @property
    def activations(self) -> int:
        """What is left of the peak: activations, samples, temporary tensors."""
        return max(self.peak - self.weights - self.gradients - self.optimizer, 0)


def for_one_process(cfg: CfgNode, num_processes: int, *, device: str = "cuda") -> CfgNode:
    """The configuration of one of several processes, on the CPU and without weights.

    Args:
        cfg: of the training.
        num_processes: that share the images of a step.
        device: whose formulations are planned, ``cuda`` or ``cpu``.

    Raises:
        ConfigError: if the images of a step cannot be split evenly.
    """
    own = cfg.clone()
    own.defrost()
    own.MODEL.DEVICE, own.MODEL.WEIGHTS = "cpu", ""
    if device == "cuda":
        own.MODEL.SEM_SEG_HEAD.DEFORMABLE_ATTENTION = "grid_sample"
    TRAINER_REGISTRY.get(own.TRAINER).take_share(own, num_processes)
    own.freeze()
    return own


def rehearse(cfg: CfgNode, image_size: tuple[int, int]) -> tuple[Trainer, StepEstimate]:
    """Run two steps without values.

    Args:
        cfg: of one process, see ``for_one_process``; its data sets are registered, their files not read.
        image_size: (h, w) of the photographs.

    Returns:
        The trainer, whose schedules are those of the training, and what a step takes.
    """
    memory = LiveMemory()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with TRAINER_REGISTRY.get(cfg.TRAINER).stand_in_files(cfg) as own:
        model = build_on_meta(own)
        to_fake(model, mode, "cpu")
        trainer: Trainer = TRAINER_REGISTRY.get(own.TRAINER).for_rehearsal(own, model, image_size)
        counter = FlopCounterMode(display=False)
        with dry(Waits(mode, "cpu", share=_SELECTED), memory):
            memory.note([*model.parameters(), *model.buffers()])
            trainer.rehearse()
            memory.reset_peak()
            with counter:
                trainer.rehearse()
    return trainer, _estimate(trainer, model, memory.peak, float(counter.get_total_flops()))


def _estimate(trainer: Any, model: nn.Module, peak: int, operations: float) -> StepEstimate:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    states = [
        value
        for optimizer in trainer.optimizers.values()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    return StepEstimate(
        weights=bytes_of([*model.parameters(), *model.buffers()]),
        gradients=sum(parameter.numel() * parameter.element_size() for parameter in trained),
        optimizer=bytes_of(states),
        peak=peak,
        trained=sum(parameter.numel() for parameter in trained),
        operations=operations,
    )


def measured_peak(cfg: CfgNode, image_size: tuple[int, int]) -> int:
    """The same step computed on the CPU: bytes that torch's allocator has handed out at most, parameters included.

    Args:
        cfg: see ``rehearse``.
        image_size: see ``rehearse``.
    """
    from detectron2.modeling import build_model
    from torch.profiler import ProfilerActivity, profile

    with TRAINER_REGISTRY.get(cfg.TRAINER).stand_in_files(cfg) as own:
        model = build_model(own)
        trainer: Trainer = TRAINER_REGISTRY.get(own.TRAINER).for_rehearsal(own, model, image_size)
        trainer.rehearse()
        before = _estimate(trainer, model, 0, 0.0)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            trainer.rehearse()
    now = peak = 0
    assert record.profiler is not None
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return before.weights + before.optimizer + peak
