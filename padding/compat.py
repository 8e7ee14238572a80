# SPDX-License-Identifier: Apache-2.0
"""Fixes that let Detectron2 v0.6 run on today's Python, numpy, Pillow and torch.

The first import of this package, and the only module that patches anything. Each fix names what needs it. On upstream
main, which has fixed these things itself, only three harmless aliases are set.
"""

import importlib.util
import random
import types
from typing import Any

import numpy as np
import PIL.Image
import torch

__all__ = ["is_detectron2_v06"]


class _MissingOps:
    """Stands for ``detectron2._C`` in an installation without compiled operators; any use of it raises."""

    def __getattr__(self, name: str) -> Any:
        raise ImportError(
            f"detectron2._C.{name}: this Detectron2 was installed without its compiled operators. Nothing in this "
            "project needs them; install Detectron2 from source if your own code does."
        )


class _SetSamplingRandom(random.Random):
    """Python 3.11 removed ``sample`` from sets, which v0.6's MapDataset uses when a mapper returns None."""

    def sample(self, population: Any, k: int, **kwargs: Any) -> list[Any]:
        if isinstance(population, set):
            population = sorted(population)
        return super().sample(population, k, **kwargs)


def is_detectron2_v06() -> bool:
    """Tell the release v0.6 from upstream main, which carries the same version number."""
    return importlib.util.find_spec("detectron2.utils.develop") is None


def _alias_removed_names() -> None:
    if not hasattr(PIL.Image, "LINEAR"):  # removed in Pillow 10; detectron2/data/transforms/transform.py
        PIL.Image.LINEAR = PIL.Image.BILINEAR  # type: ignore[attr-defined]
    # Removed in numpy 1.24; detectron2/evaluation/sem_seg_evaluation.py and data/build.py.
    for name, builtin in (("int", int), ("float", float), ("bool", bool)):
        if name not in vars(np):
            setattr(np, name, builtin)
    # torch 2 split LRScheduler from _LRScheduler: hooks.LRScheduler would not checkpoint torch's own schedulers.
    torch.optim.lr_scheduler._LRScheduler = torch.optim.lr_scheduler.LRScheduler  # type: ignore[assignment,misc]


def _stub_compiled_ops() -> None:
    if importlib.util.find_spec("detectron2._C") is None:
        import detectron2

        # An attribute, not an entry of sys.modules: collect_env's own import must still fail and report "not built".
        detectron2._C = _MissingOps()


def _patch_detectron2_v06() -> None:
    import detectron2
    import detectron2.data.common as data_common
    import detectron2.evaluation.coco_evaluation as coco_evaluation
    from detectron2.engine import DefaultTrainer

    data_common.random = types.SimpleNamespace(Random=_SetSamplingRandom)
    if isinstance(getattr(detectron2, "_C", None), _MissingOps):
        coco_evaluation.COCOeval_opt = coco_evaluation.COCOeval  # its default use_fast_impl=True needs _C

    def state_dict(self: Any) -> dict[str, Any]:
        # v0.6 forgets the optimizer and the gradient scaler (fixed upstream in ac6774fe).
        state = super(DefaultTrainer, self).state_dict()
        state["_trainer"] = self._trainer.state_dict()
        return state

    def load_state_dict(self: Any, state: dict[str, Any]) -> None:
        super(DefaultTrainer, self).load_state_dict(state)
        self._trainer.load_state_dict(state["_trainer"])

    DefaultTrainer.state_dict = state_dict
    DefaultTrainer.load_state_dict = load_state_dict


_alias_removed_names()
if is_detectron2_v06():
    _stub_compiled_ops()
    _patch_detectron2_v06()
