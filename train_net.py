# SPDX-License-Identifier: Apache-2.0
"""Train or evaluate any method of this project.

Examples:
  python train_net.py --config-file configs/shapes_zsp.yaml [--num-gpus N] [--resume] [--eval-only] KEY VALUE ...
  torchrun --nproc-per-node 2 train_net.py --config-file ... KEY VALUE ...     (CPU or GPU, one or several machines)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from padding.engine.commands import METHODS, load_config, parse, register_data, training_parser
from padding.errors import ConfigError, run_command

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    return parse(training_parser(__doc__), arguments)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Train, resume or evaluate as the arguments say, in every process.

    Returns:
        Metrics on rank 0, {} elsewhere.
    """
    import logging

    from padding.engine.output_folder import claimed_folder
    from padding.engine.setup import start_run

    saving = ["TEST.SAVE_PREDICTIONS", "True"] if getattr(args, "save", False) else []
    cfg = load_config(args.config_file, [*(args.opts or []), *saving])
    with claimed_folder(cfg, resume=args.resume, trains=not args.eval_only) as note:
        start_run(cfg, args, METHODS)
        if note:
            logging.getLogger("padding").warning(note)
        register_data(cfg)
        return (evaluate_only if args.eval_only else train)(cfg, resume=args.resume)


def train(cfg: CfgNode, *, resume: bool) -> dict[str, Any]:
    """Look over the data, train, or go on from OUTPUT_DIR's last checkpoint with ``resume``."""
    from padding.data.registration import listed_once
    from padding.engine.start_check import check_run, try_evaluation
    from padding.engine.trainer import TRAINER_REGISTRY

    with listed_once():
        if cfg.DATASETS.CHECK_AT_START:
            check_run(cfg)
        trainer = TRAINER_REGISTRY.get(cfg.TRAINER)(cfg)
        trainer.resume_or_load(resume=resume)
        if cfg.DATASETS.CHECK_AT_START:
            try_evaluation(cfg, trainer.module)
    return trainer.train()


def evaluate_only(cfg: CfgNode, *, resume: bool) -> dict[str, Any]:
    """Evaluate MODEL.WEIGHTS or, with ``resume``, the last checkpoint of OUTPUT_DIR."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.evaluation import verify_results
    from detectron2.utils import comm

    from padding.engine.trainer import TRAINER_REGISTRY

    trainer_class = TRAINER_REGISTRY.get(cfg.TRAINER)
    model = trainer_class.build_model(cfg)
    checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    path = checkpointer.get_checkpoint_file() if resume and checkpointer.has_checkpoint() else cfg.MODEL.WEIGHTS
    if not path:
        raise ConfigError(
            f"nothing to evaluate: set MODEL.WEIGHTS, or pass --resume for the last checkpoint in {cfg.OUTPUT_DIR}"
        )
    trainer_class.load_weights(model, path, complete=True)
    results = trainer_class.test(cfg, model)
    if cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
        verify_results(cfg, results)
    return results


def start(args: argparse.Namespace) -> None:
    """Start as many processes as the command line or torchrun asks for."""
    import torch
    from detectron2.engine import launch

    from padding.engine.distributed import launched_by_torchrun, torchrun_process_group
    from padding.engine.termination import passed_on_to_children

    device = load_config(args.config_file, args.opts or []).MODEL.DEVICE
    if launched_by_torchrun():
        with torchrun_process_group(device):
            main(args)
        return
    if args.num_gpus * args.num_machines > 1 and not torch.cuda.is_available():
        raise ConfigError(
            f"--num-gpus {args.num_gpus} --num-machines {args.num_machines}, but no GPU is visible. On CPUs run "
            f"'torchrun --nproc-per-node {args.num_gpus} train_net.py ...' without --num-gpus"
        )
    several = args.num_gpus * args.num_machines > 1
    try:
        with passed_on_to_children() if several else nullcontext():
            launch(
                _in_a_process if several else main,
                num_gpus_per_machine=args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
    except torch.multiprocessing.ProcessExitedException as error:  # has said why itself
        code = error.exit_code
        raise SystemExit(
            code if code >= 0 else 128 - code
        ) from error  # below 0: the signal it died of, as a shell says it


def _in_a_process(args: argparse.Namespace) -> None:
    """Run in one of several processes, where an error of the user is one line too."""
    status = run_command(lambda _: main(args), [])
    if status:
        sys.exit(status)


if __name__ == "__main__":
    sys.exit(run_command(lambda words: start(parse_arguments(words))))
