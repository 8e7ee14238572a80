# SPDX-License-Identifier: Apache-2.0
"""What a training will take, before it is paid for: ``python -m padding.plan --config-file FILE [KEY VALUE ...]``.

Epochs, learning rates and their schedules, memory of one GPU, disk, and the share of the time that evaluations take,
for every method. The memory is that of the trainer's own step on tensors without values (``plan_memory``): no GPU, no
data and no weights are needed. What does not fit in ``--gpu-memory`` is tried again with the keys that save memory, one
after the other: activations computed again in the backward pass where the method can (TCC), images in parts, half
precision, smaller crops. "would fit" says what each leaves, rehearsed like the step itself.

Times are operations over ``--teraflops``, those that a GPU really does in a second (default: what a V100 did for the
authors of Mask2Former, 26 hours for the 140 350 iterations of coco_zsp_pretrain.yaml on eight): they say how parts
compare, not when a training ends.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from tabulate import tabulate

from padding.engine.commands import add_config_arguments, command_parser, open_config, parse, positive
from padding.engine.plan_memory import StepEstimate, for_one_process, rehearse
from padding.engine.stand_in import resized, training_size
from padding.engine.trainer import Trainer, training_entries
from padding.errors import MissingFileError, UserError, run_command

GIB = 2**30
# Of one process on a GPU, beside its tensors: context, cuDNN's workspaces, fragments of the allocator.
OVERHEAD = 1.0 * GIB
# Seconds of one CPU core for an image of 480 x 640 in the evaluators of Detectron2's data types.
EVALUATOR_SECONDS = {"instance": 0.17, "semantic": 0.11}


@dataclass(frozen=True)
class Request:
    """What is known beside the configuration.

    Attributes:
        num_gpus: processes.
        gpu_memory: GiB of one GPU; 0: not compared.
        image_size: (h, w) of the photographs.
        train_images: of DATASETS.TRAIN; 0: counted.
        test_images: of DATASETS.TEST; 0: counted.
        teraflops: 10^12 operations that a GPU does in a second.
        device: ``cuda`` or ``cpu``.
    """

    num_gpus: int
    gpu_memory: float
    image_size: tuple[int, int]
    train_images: int
    test_images: int
    teraflops: float
    device: str = "cuda"


def plan(cfg: CfgNode, request: Request) -> dict[str, Any]:
    """The whole plan as plain values.

    Args:
        cfg: with its data sets registered.
        request: see there.
    """
    trainer, step = rehearse(for_one_process(cfg, request.num_gpus, device=request.device), request.image_size)
    found: dict[str, Any] = {"length": _length(cfg, trainer, request), "rates": _rates(cfg, trainer)}
    found["memory"] = _memory(step, request)
    if request.gpu_memory and _total(step, request) > request.gpu_memory:
        sizes = _fitting(cfg, request, trainer.memory_savings())
        found["would fit"] = {words: round(size, 2) for words, size in sizes.items()}
    found["disk"] = _disk(cfg, step, trainer, request)
    found["time"] = _time(cfg, step, trainer, request)
    return found


def _images(cfg: CfgNode, request: Request) -> int | None:
    """Training images; None if the data are not there."""
    if request.train_images:
        return request.train_images
    try:
        return len(training_entries(cfg))
    except (MissingFileError, UserError):
        return None


def _length(cfg: CfgNode, trainer: Trainer, request: Request) -> dict[str, Any]:
    images, per_step, iterations = _images(cfg, request), trainer.images_of_step(cfg), cfg.SOLVER.MAX_ITER
    return {
        "iterations": iterations,
        "images a step": per_step,
        "images a forward pass": trainer.micro_batch_size,
        "training images": images,
        "epochs": None if images is None else round(iterations * per_step / images, 2),
    }


def _rates(cfg: CfgNode, trainer: Trainer) -> dict[str, dict[str, Any]]:
    """Of every optimiser: largest rate, and the iterations at which it is another, at most eight of them."""
    found = {}
    for name, schedule in trainer.schedulers.items():
        first, factor = getattr(schedule, "first", 0), getattr(schedule, "lr_lambdas")[0]  # noqa: B009  (a LambdaLR)
        length = getattr(schedule, "length", cfg.SOLVER.MAX_ITER)
        # Of one process, whose images are a part of the step's: the rate is scaled by the whole.
        scale = cfg.SOLVER.IMS_PER_BATCH / trainer.cfg.SOLVER.IMS_PER_BATCH if cfg.SOLVER.REFERENCE_BATCH else 1.0
        base = scale * max(group["initial_lr"] for group in schedule.optimizer.param_groups)
        rates = [base * factor(iteration) for iteration in range(length)]
        changes = [0, *(i for i in range(1, length) if rates[i] != rates[i - 1])]
        if len(changes) > 8:  # a curve
            changes = [round(part * (length - 1) / 7) for part in range(8)]
        found[name] = {"base": base, "schedule": {first + i: rates[i] for i in changes}}
    return found


def _memory(step: StepEstimate, request: Request) -> dict[str, float]:
    """GiB of one GPU by part."""
    buckets = step.gradients if request.num_gpus > 1 else 0
    parts = {
        "weights": step.weights,
        "gradients": step.gradients,
        "optimizer": step.optimizer,
        "activations": step.activations,
        "exchange of gradients": buckets,
        "context and workspaces": OVERHEAD if request.device == "cuda" else 0.0,
    }
    return {**{name: round(size / GIB, 2) for name, size in parts.items()}, "total": round(_total(step, request), 2)}


def _total(step: StepEstimate, request: Request) -> float:
    """GiB of one GPU."""
    exchange = step.gradients if request.num_gpus > 1 else 0
    return (step.peak + exchange + (OVERHEAD if request.device == "cuda" else 0.0)) / GIB


def _fitting(cfg: CfgNode, request: Request, of_method: Sequence[Any] = ()) -> dict[str, float]:
    """GiB with keys that save memory, up to the first that fits; KEY VALUE, ... of the method first."""
    tried: dict[str, float] = {}
    for words in _savings(cfg, request.num_gpus, of_method):
        own = cfg.clone()
        own.defrost()
        own.merge_from_list(list(words))
        own.freeze()
        _, step = rehearse(for_one_process(own, request.num_gpus, device=request.device), request.image_size)
        total = tried[" ".join(map(str, words))] = _total(step, request)
        if total <= request.gpu_memory:
            break
    return tried


def _savings(cfg: CfgNode, num_gpus: int, of_method: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """KEY VALUE pairs, those that leave the result alone first."""
    kept = tuple(of_method)
    found: list[tuple[Any, ...]] = [kept] if kept else []
    kinds = [number for number in (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.IMS_PER_BATCH_UNLABELED) if number]
    for factor in (2, 4, 8, 16):
        parts = cfg.SOLVER.ACCUMULATE_STEPS * factor
        if all(number % (parts * num_gpus) == 0 for number in kinds):
            found.append((*kept, "SOLVER.ACCUMULATE_STEPS", parts))
    whole = found[-1] if found else ()
    if not cfg.SOLVER.AMP.ENABLED:
        found.append((*whole, "SOLVER.AMP.ENABLED", True))
    if cfg.INPUT.DATASET_MAPPER_NAME.endswith("lsj"):
        sizes = [int(cfg.INPUT.IMAGE_SIZE * part) // 32 * 32 for part in (0.75, 0.5)]
        found += [(*whole, "INPUT.IMAGE_SIZE", size) for size in sizes]
    elif cfg.INPUT.CROP.ENABLED or cfg.INPUT.DATASET_MAPPER_NAME.startswith("semantic_"):
        for part in (0.75, 0.5):
            size = tuple(int(side * part) // 32 * 32 for side in cfg.INPUT.CROP.SIZE)
            if min(size) >= 32:
                found.append((*whole, "INPUT.CROP.SIZE", size))
    return found


def _disk(cfg: CfgNode, step: StepEstimate, trainer: Trainer, request: Request) -> dict[str, Any]:
    """GiB of what a training leaves."""
    solver = cfg.SOLVER
    count = solver.MAX_ITER // solver.CHECKPOINT_PERIOD
    complete = min(count, solver.COMPLETE_CHECKPOINTS) if solver.COMPLETE_CHECKPOINTS else count
    whole = step.weights + step.optimizer
    checkpoints = (complete + 1) * whole + (count - complete) * step.weights
    checkpoints += step.weights if cfg.TEST.BEST_METRIC else 0
    found: dict[str, Any] = {
        "one checkpoint": round(whole / GIB, 3),
        "checkpoints": round(checkpoints / GIB, 2),
        "number of checkpoints": count + 1,
    }
    per_image = trainer.stored_bytes_per_image()
    if per_image:
        images = _images(cfg, request)
        found["features or labels of the training images"] = (
            None if images is None else round(images * per_image / GIB, 2)
        )
    # Evaluators count in memory and write tables of a few kilobytes.
    found["predictions"] = 0.0
    return found


def _time(cfg: CfgNode, step: StepEstimate, trainer: Trainer, request: Request) -> dict[str, Any]:
    """Hours of training and of evaluation, and the share of the latter."""
    period, iterations = cfg.TEST.EVAL_PERIOD, cfg.SOLVER.MAX_ITER
    passes = math.ceil(iterations / period) if period else 1
    per_second = request.teraflops * 1e12
    images = _images(cfg, request) or 0
    once, per_step, forward = trainer.operations_of(step.operations, images)
    training = (once / request.num_gpus + iterations * per_step) / per_second
    found: dict[str, Any] = {"training hours": round(training / 3600, 2), "evaluations": passes}
    if not cfg.DATASETS.TEST:
        return {**found, "evaluations": 0}
    images = request.test_images or sum(_test_images(name) for name in cfg.DATASETS.TEST)
    if not images:
        return {**found, "evaluation hours": None}
    tasks = _tasks(cfg)
    train, test = (
        training_size(cfg, request.image_size),
        resized(request.image_size, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
    )
    forward = forward * test[0] * test[1] / (train[0] * train[1]) / per_second
    area = request.image_size[0] * request.image_size[1] / (480 * 640)
    seconds = forward + area * sum(EVALUATOR_SECONDS[task] for task in tasks)
    evaluation = passes * images * seconds / request.num_gpus
    return {
        **found,
        "images of an evaluation": images,
        "evaluation hours": round(evaluation / 3600, 2),
        "share of evaluation": round(evaluation / (evaluation + training), 3),
    }


def _tasks(cfg: CfgNode) -> list[str]:
    kinds = {MetadataCatalog.get(name).get("evaluator_type", "") for name in cfg.DATASETS.TEST}
    tasks = []
    if any("sem_seg" in kind for kind in kinds) or (
        "coco_panoptic_seg" in kinds and cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON
    ):
        tasks.append("semantic")
    if kinds & {"coco", "coco_instance"} or ("coco_panoptic_seg" in kinds and cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON):
        tasks.append("instance")
    return tasks


def _test_images(name: str) -> int:
    from detectron2.data import DatasetCatalog

    try:
        return len(DatasetCatalog.get(name))
    except (MissingFileError, UserError):
        return 0


def as_text(found: dict[str, Any]) -> str:
    """The plan as tables."""
    parts = []
    for title, content in found.items():
        if title == "rates":
            rows = [
                [f"{name} from iteration {iteration}", f"{rate:.3g}"]
                for name, entry in content.items()
                for iteration, rate in entry["schedule"].items()
            ]
        else:
            rows = [[name, "unknown: no data here" if value is None else value] for name, value in content.items()]
        unit = {"memory": "GiB of one GPU", "disk": "GiB", "would fit": "GiB of one GPU with these keys"}.get(title, "")
        parts.append(tabulate(rows, headers=[title, unit], tablefmt="github", disable_numparse=True))
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the plan; the last line is one JSON object."""
    parser = command_parser(__doc__)
    add_config_arguments(parser)
    parser.add_argument("--num-gpus", type=positive, default=1, metavar="N", help="processes, a GPU each")
    parser.add_argument("--gpu-memory", type=float, default=0.0, metavar="GIB", help="of one GPU")
    parser.add_argument(
        "--image-size", type=positive, nargs=2, default=[480, 640], metavar=("H", "W"), help="of photographs"
    )
    parser.add_argument("--train-images", type=positive, default=0, metavar="N", help="where the data are not there")
    parser.add_argument("--test-images", type=positive, default=0, metavar="N", help="likewise")
    parser.add_argument(
        "--teraflops", type=float, default=3.7, help="that a GPU does in a second (default: %(default)s)"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    args = parse(parser, arguments)
    cfg = open_config(args.config_file, args.opts)
    request = Request(
        num_gpus=args.num_gpus,
        gpu_memory=args.gpu_memory,
        image_size=(args.image_size[0], args.image_size[1]),
        train_images=args.train_images,
        test_images=args.test_images,
        teraflops=args.teraflops,
        device=args.device,
    )
    found = plan(cfg, request)
    print(as_text(found))  # noqa: T201  (the command's result)
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    sys.exit(run_command(main))
