# SPDX-License-Identifier: Apache-2.0
"""Process groups under torchrun (gloo or NCCL), restarts, and wrapping a model for data parallel training.

Detectron2's ``launch`` serves ``--num-gpus N``. Its v0.6 refuses several CPU processes, and neither version knows
torchrun, so a process that torchrun started joins its group here.
"""

import inspect
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from padding.data.files import write_text
from padding.errors import ConfigError, DataError, DeviceError

AGENT_FILE = ".torchrun_agent"
GROUP_TIMEOUT = timedelta(minutes=30)


def launched_by_torchrun() -> bool:
    """Tell whether torchrun (or another launcher that speaks ``env://``) started this process."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


@contextmanager
def torchrun_process_group(device: str) -> Iterator[None]:
    """Join the group that torchrun's environment variables describe.

    Args:
        device: ``MODEL.DEVICE``; "cuda" takes NCCL and GPU number LOCAL_RANK, anything else gloo.

    Raises:
        DeviceError: if torchrun started more processes on this machine than it has GPUs.
    """
    local_rank = int(os.environ["LOCAL_RANK"])
    use_cuda = device.startswith("cuda")
    if use_cuda:
        if local_rank >= torch.cuda.device_count():
            raise DeviceError(
                f"torchrun started process {local_rank} on a machine with {torch.cuda.device_count()} GPU(s); lower "
                "--nproc-per-node, or add MODEL.DEVICE cpu"
            )
        torch.cuda.set_device(local_rank)
    if int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    _join_group("nccl" if use_cuda else "gloo")
    _create_local_group()
    yield
    # Not in a `finally`: after an exception the other ranks may be gone, and torchrun ends the process anyway.
    comm._LOCAL_PROCESS_GROUP = None
    dist.destroy_process_group()


def _join_group(backend: str) -> None:
    store, rank, world_size = next(dist.rendezvous("env://", timeout=GROUP_TIMEOUT))
    # torchrun's store outlives a failed attempt, addresses of dead processes included: each attempt needs its own keys.
    attempt = f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}_of_{world_size}"
    dist.init_process_group(
        backend=backend,
        store=dist.PrefixStore(attempt, store),
        rank=rank,
        world_size=world_size,
        timeout=GROUP_TIMEOUT,
    )


def _create_local_group() -> None:
    """Give Detectron2's ``comm`` the group of this machine, which only its own launcher sets in v0.6."""
    machine_of_rank = [0] * dist.get_world_size()
    dist.all_gather_object(machine_of_rank, int(os.environ.get("GROUP_RANK", 0)))
    mine = machine_of_rank[dist.get_rank()]
    for machine in sorted(set(machine_of_rank)):
        ranks = [rank for rank, place in enumerate(machine_of_rank) if place == machine]
        # Creating a group is collective: every rank creates those of all machines, and keeps its own.
        group = dist.new_group(ranks)
        if machine == mine:
            comm._LOCAL_PROCESS_GROUP = group


def _agent_identity() -> str:
    """Name the torchrun agent that started this process; restarts of the workers keep it."""
    parent = os.getppid()
    stat = Path(f"/proc/{parent}/stat")
    # Field 22 is the start time: process ids are reused. Fields are counted after the name, which may hold spaces.
    started = stat.read_text().rpartition(")")[2].split()[19] if stat.is_file() else ""
    return f"{socket.gethostname()}:{parent}:{started}"


def restarted_by_torchrun(output_dir: str | Path, *, leave_mark: bool = True) -> bool:
    """Tell whether torchrun restarted this training after a failure, and leave a mark for the next start.

    torchrun counts restarts after a failure, but not those after a change of the set of machines; the mark in
    ``output_dir`` recognises these by their agent. Collective: every rank gets the answer of rank 0.

    Args:
        output_dir: OUTPUT_DIR.
        leave_mark: False to look only.
    """
    if not launched_by_torchrun():
        return False
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if comm.is_main_process():
        mark = Path(output_dir) / AGENT_FILE
        identity = _agent_identity()
        restarted = restarted or (mark.is_file() and mark.read_text() == identity)
        if leave_mark:
            write_text(mark, identity)
    if restarted and leave_mark:
        logging.getLogger(__name__).info("torchrun restarted this training: it resumes from its last checkpoint")
    return comm.all_gather(restarted)[0]


def micro_batch_size(images_per_step: int, accumulate_steps: int, world_size: int) -> int:
    """Number of images in one forward pass of one process.

    Raises:
        ConfigError: if the images of a step cannot be split evenly.
    """
    parts = accumulate_steps * world_size
    if accumulate_steps < 1 or images_per_step < parts or images_per_step % parts:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH = {images_per_step} images per optimiser step cannot be split evenly into "
            f"SOLVER.ACCUMULATE_STEPS = {accumulate_steps} parts on {world_size} process(es); it must be a multiple "
            f"of {max(parts, 1)}"
        )
    return images_per_step // parts


def check_equal_on_ranks(what: str, value: str) -> None:
    """Refuse to train on ranks that do not agree. Collective.

    Args:
        what: named in the message.
        value: of this rank.

    Raises:
        DataError: the value differs between the ranks; all of them raise.
    """
    values = comm.all_gather((socket.gethostname(), value))
    different = [rank for rank, (_, other) in enumerate(values) if other != values[0][1]]
    if different:
        rank = different[0]
        raise DataError(
            f"{what} differ between the processes: rank {rank} on {values[rank][0]} has {values[rank][1]}, rank 0 on "
            f"{values[0][0]} has {values[0][1]}. Bring the same files to every machine"
        )


def distribute(model: nn.Module, *, find_unused_parameters: bool) -> nn.Module:
    """Wrap a model in DistributedDataParallel when there is more than one process.

    Args:
        model: on its final device.
        find_unused_parameters: True if a step leaves some trainable parameters without gradient.
    """
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    # Buffers are equal everywhere or, as running statistics, each rank's own. torch 2.15 renamed the option.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {buffers: False}
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=find_unused_parameters,
        **options,
    )


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel, or the model itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model
