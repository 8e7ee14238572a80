# SPDX-License-Identifier: Apache-2.0
"""Train or evaluate any method of this project; the only place that lists the methods.

Examples:
  python train_net.py --config-file configs/shapes_zsp.yaml [--num-gpus N] [--resume] [--eval-only] KEY VALUE ...
  torchrun --nproc-per-node 2 train_net.py --config-file ... KEY VALUE ...     (CPU or GPU, one or several machines)
"""

import padding  # first: it applies the fixes that Detectron2 needs

# isort: split
import argparse
import logging
import sys
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm

import psi
import salseg
import tcc
from padding.data.catalog import register_all
from padding.data.folders import register_own_data
from padding.engine import TRAINER_REGISTRY, load_cfg, setup_cfg
from padding.engine.distributed import launched_by_torchrun, torchrun_process_group
from padding.errors import ConfigError

METHODS = (padding.add_padding_config, tcc.add_tcc_config, psi.add_psi_config, salseg.add_salseg_config)


def setup(args: argparse.Namespace) -> CfgNode:
    """Return the frozen configuration, with logging and random generators set up."""
    return setup_cfg(args, METHODS)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Train, resume or evaluate as the arguments say, in every process.

    Returns:
        Metrics on rank 0, {} elsewhere.
    """
    cfg = setup(args)
    register_all()
    register_own_data(cfg)
    trainer_class = TRAINER_REGISTRY.get(cfg.TRAINER)
    if args.eval_only:
        return evaluate_only(cfg, resume=args.resume)
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def evaluate_only(cfg: CfgNode, *, resume: bool) -> dict[str, Any]:
    """Evaluate MODEL.WEIGHTS or, with ``resume``, the last checkpoint of OUTPUT_DIR."""
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
    device = load_cfg(args.config_file, args.opts or [], METHODS).MODEL.DEVICE
    if launched_by_torchrun():
        with torchrun_process_group(device):
            main(args)
        return
    if args.num_gpus * args.num_machines > 1 and not torch.cuda.is_available():
        raise ConfigError(
            f"--num-gpus {args.num_gpus} --num-machines {args.num_machines}, but no GPU is visible. On CPUs run "
            f"'torchrun --nproc-per-node {args.num_gpus} train_net.py ...' without --num-gpus"
        )
    launch(
        main,
        num_gpus_per_machine=args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    try:
        start(default_argument_parser(epilog=__doc__).parse_args())
    except ConfigError as error:
        logging.getLogger(__name__).debug("configuration error", exc_info=True)
        sys.exit(f"error: {error}")
