# SPDX-License-Identifier: Apache-2.0
"""One command and one JSON object for whoever has a GPU: ``make test-gpu``, under ten minutes.

Every method takes one step with the same weights on the CPU and on the GPU, in float32, bfloat16 and float16, and
predicts one image on both; the published sizes run a few steps, whose peak memory stands beside that which
``padding.plan`` foresees, with the time of an iteration (sizes that this GPU cannot hold are left out, and said); with
two GPUs two processes exchange gradients by NCCL. Without a GPU nothing is checked: the exit code is 3 and ``"status"``
is ``"no GPU"``.

Losses may differ by ``TOLERANCES`` relative to those of the CPU in float32: a GPU sums in another order. TF32 is off,
and so is what is drawn on the device (dropout, noise). float16 has a scaler, bfloat16 needs none.

    python -m benchmarks.gpu_check [--device cuda] [--steps 3] [--skip-published]
"""

import argparse
import gc
import json
import math
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from padding.engine.commands import load_config, register_data
from padding.engine.plan_memory import for_one_process, rehearse
from padding.engine.registry import TRAINER_REGISTRY
from padding.errors import run_command
from padding.modeling.postprocessing import InferenceOptions

CONFIGS = Path(__file__).parents[1] / "configs"
NO_GPU = 3
METHODS = (
    *("smoke/shapes_backbone", "smoke/shapes_zsp_pretrain", "smoke/shapes_zsp", "smoke/shapes_zss"),
    *("smoke/shapes_tcc", "smoke/shapes_psi", "smoke/shapes_salseg"),
)
NO_PREDICTIONS = "smoke/shapes_backbone"  # it trains a backbone
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}
PUBLISHED = ("coco_zsp_pretrain", "coco_zsp", "coco_zss_pretrain", "voc_tcc_s", "voc_psi", "voc_salseg")
GPUS = 8  # among which the published batches are shared, as far as they can be
IMAGE_SIZE = (64, 96)
PHOTOGRAPH = (480, 640)
OVERHEAD = 1.0  # GiB of a GPU beside the tensors of a process, as in padding.plan


def configuration(name: str) -> CfgNode:
    """A file of ``configs`` with its data sets registered."""
    cfg = load_config(CONFIGS / f"{name}.yaml", [])
    register_data(cfg)
    return cfg


def processes_of(cfg: CfgNode) -> int:
    """Largest divisor of ``GPUS`` that shares all kinds of images evenly."""
    solver = cfg.SOLVER
    return math.gcd(GPUS, solver.IMS_PER_BATCH, solver.IMS_PER_BATCH_UNLABELED, solver.IMS_PER_BATCH_SALIENCY)


def losses_of_step(cfg: CfgNode, device: str, dtype: torch.dtype, state: dict[str, Any] | None) -> tuple[dict, dict]:
    """Losses of one step on a device, and the weights that it began with.

    Args:
        cfg: of one process.
        device: ``cpu`` or ``cuda``.
        dtype: of autocast; float32: none.
        state: weights to begin with; None: random ones.
    """
    own = _on_device(cfg, device)
    trainer_class = TRAINER_REGISTRY.get(own.TRAINER)
    with trainer_class.stand_in_files(own) as complete:
        torch.manual_seed(0)
        model = build_model(complete)
        if state is not None:
            model.load_state_dict(state)
        _switch_off_draws(model)
        before = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        trainer = trainer_class.for_rehearsal(complete, model, IMAGE_SIZE)
        scaled = dtype == torch.float16
        trainer.scalers = {name: torch.amp.GradScaler(device, enabled=scaled) for name in trainer.optimizers}
        enabled = dtype != torch.float32
        trainer.autocast = lambda: torch.autocast(device, dtype=dtype, enabled=enabled)
        torch.manual_seed(1)
        trainer.run_step()
        found = {name: float(value) for name, value in trainer._step_losses.items()}
    if any(not parameter.isfinite().all() for parameter in model.parameters()):
        raise FloatingPointError("a parameter is not finite after the step")
    return found, before


def _on_device(cfg: CfgNode, device: str) -> CfgNode:
    """The configuration on a device, without what another device would draw or round differently."""
    own = cfg.clone()
    own.defrost()
    own.MODEL.DEVICE, own.SOLVER.AMP.ENABLED = device, False
    own.MODEL.MASK_FORMER.SEED_POINTS_BY_IMAGE = True
    own.MODEL.SEM_SEG_HEAD.DEFORMABLE_ATTENTION = "auto"
    own.MODEL.PADING.GENERATOR.NOISE_STD = 0.0
    return own


@torch.no_grad()
def scores_of_image(cfg: CfgNode, device: str, state: dict[str, Any]) -> dict[str, Tensor]:
    """Scores of all pixels, on the CPU; segments and instances are computed on the device, too, where there are any.

    Args:
        cfg: of one process.
        device: ``cpu`` or ``cuda``.
        state: weights.
    """
    own = _on_device(cfg, device)
    with TRAINER_REGISTRY.get(own.TRAINER).stand_in_files(own) as complete:
        model: Any = build_model(complete).eval()
    model.load_state_dict(state)
    options = getattr(model, "inference", None)
    if isinstance(options, InferenceOptions):
        model.inference = replace(options, semantic_on=True, panoptic_on=True, instance_on=True)
    noise = torch.randint(0, 256, (3, *IMAGE_SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    size = {"height": IMAGE_SIZE[0], "width": IMAGE_SIZE[1]}
    [prediction] = model([{"image": noise, "file_name": "noise.png", "image_id": 0, **size}])
    kinds = [name for name in prediction if name.startswith(("sem_seg", "saliency"))]
    return {name: prediction[name].float().cpu() for name in kinds}


def compare_predictions(cfg: CfgNode, device: str, state: dict[str, Any]) -> dict[str, Any]:
    """Largest difference of a score from that of the CPU, relative to the largest score."""
    expected, found = (scores_of_image(cfg, kind, state) for kind in ("cpu", device))
    worst = max(float((found[name] - scores).abs().max() / scores.abs().max()) for name, scores in expected.items())
    return {"difference": round(worst, 6), "passed": worst <= TOLERANCES["float32"]}


def _switch_off_draws(model: nn.Module) -> None:
    """What is drawn on a device is another number on another one."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
        elif hasattr(module, "drop_prob"):
            setattr(module, "drop_prob", 0.0)  # noqa: B010  (timm's, which mypy does not know)


def compare_devices(name: str, device: str) -> dict[str, Any]:
    """Largest relative difference of a loss from that of the CPU in float32, for each type, and of predictions."""
    cfg = for_one_process(configuration(name), 1, device="cpu")
    expected, state = losses_of_step(cfg, "cpu", torch.float32, None)
    found: dict[str, Any] = {}
    for kind, tolerance in TOLERANCES.items():
        losses, _ = losses_of_step(cfg, device, getattr(torch, kind), state)
        worst = max(abs(losses[key] - value) / max(abs(value), 1e-3) for key, value in expected.items())
        found[kind] = {"difference": round(worst, 6), "passed": worst <= tolerance}
    if name != NO_PREDICTIONS:
        found["prediction"] = compare_predictions(cfg, device, state)
    return found


def measure_published(name: str, device: str, steps: int) -> dict[str, Any]:
    """Peak memory against the plan, and seconds of an iteration, at the published size of one of several processes."""
    cfg = configuration(name)
    own = for_one_process(cfg, processes_of(cfg))
    _, step = rehearse(own, PHOTOGRAPH)
    foreseen = {"images": own.SOLVER.IMS_PER_BATCH, "foreseen GiB": round(step.peak / 2**30, 3)}
    if device == "cuda":
        there = torch.cuda.get_device_properties(0).total_memory / 2**30
        if step.peak / 2**30 + OVERHEAD > there:
            return {**foreseen, "skipped": f"this GPU has {there:.1f} GiB"}
    _free(device)
    real = own.clone()
    real.defrost()
    real.MODEL.DEVICE = device
    real.MODEL.SEM_SEG_HEAD.DEFORMABLE_ATTENTION = "auto"
    trainer_class = TRAINER_REGISTRY.get(real.TRAINER)
    with trainer_class.stand_in_files(real) as complete:
        trainer = trainer_class.for_rehearsal(complete, build_model(complete), PHOTOGRAPH)
        trainer.rehearse()
        _synchronize(device)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        for _ in range(steps):
            trainer.rehearse()
        _synchronize(device)
        seconds = (time.perf_counter() - start) / steps
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return {
        **foreseen,
        "measured GiB": round(peak / 2**30, 3),
        "ratio": round(step.peak / peak, 3) if peak else None,
        "seconds an iteration": round(seconds, 4),
        "teraflops": round(step.operations / seconds / 1e12, 2),
    }


def _free(device: str) -> None:
    """Give back what an earlier check left: trainers hold themselves in circles."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _exchange(rank: int, meeting: str, backend: str, results: Any) -> None:
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=2)
    device = f"cuda:{rank}" if backend == "nccl" else "cpu"
    if backend == "nccl":
        torch.cuda.set_device(rank)
    torch.manual_seed(0)
    layer = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4).to(device))
    layer(torch.full((2, 4), rank + 1.0, device=device)).sum().backward()
    gradient = layer.module.weight.grad
    assert gradient is not None
    results[rank] = float(gradient[0, 0])
    dist.destroy_process_group()


def two_processes(backend: str) -> dict[str, Any]:
    """Gradients of two processes are averaged: 2 rows of ones and 2 of twos make 3."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(_exchange, args=(str(Path(folder) / "meeting"), backend, results), nprocs=2)
        found = dict(results)
    return {"gradients": [found[0], found[1]], "passed": found[0] == found[1] == 3.0}


def _attempt(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result, or the error: one failure must not hide the others."""
    try:
        return check()
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:500], "passed": False}


def _failed(found: Any) -> bool:
    if isinstance(found, dict):
        return found.get("passed") is False or any(_failed(entry) for entry in found.values())
    return False


def main(argv: Sequence[str] | None = None) -> int:
    """Check, print one JSON object; 0 if all is well, 1 for a failure, 3 without a GPU."""
    parser = argparse.ArgumentParser(description="correctness, half precision, memory and time on a GPU")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try this program itself")
    parser.add_argument("--steps", type=int, default=3, help="timed, of each published size")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--skip-published", action="store_true")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU that torch can use: nothing was checked.", file=sys.stderr)
        print(json.dumps({"status": "no GPU", "torch": torch.__version__}))
        return NO_GPU
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    result: dict[str, Any] = {"torch": torch.__version__, "device": args.device}
    if args.device == "cuda":
        result["device"] = torch.cuda.get_device_name()
    result["methods"] = {name: _attempt(partial(compare_devices, name, args.device)) for name in args.methods}
    if not args.skip_published:
        result["published"] = {
            name: _attempt(partial(measure_published, name, args.device, args.steps)) for name in PUBLISHED
        }
    if args.device == "cuda" and torch.cuda.device_count() > 1:
        result["two processes"] = _attempt(partial(two_processes, "nccl"))
    failed = _failed(result)
    print(json.dumps({"status": "failed" if failed else "passed", **result}))
    return int(failed)


if __name__ == "__main__":
    sys.exit(run_command(main))
