# SPDX-License-Identifier: Apache-2.0
"""Fixes that let Detectron2 v0.6 run on today's Python, numpy, Pillow and torch, and this project on torch from 2.4 on.

The first import of this package, and the only module that patches anything. Each fix names what needs it. On upstream
main, which has fixed these things itself, only three harmless aliases are set; today's torch gets nothing more. A
module of torch or Detectron2 is patched when it has been imported, by whomever, or at once if it already is; nothing
of either is imported here.
"""

import importlib.util
import random
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

import numpy as np
import PIL.Image

Patch = Callable[[Any], None]


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


class _PatchingFinder(MetaPathFinder):
    """Lets the other finders look for a module that waits for a patch."""

    def __init__(self, name: str, patch: Patch) -> None:
        self.name, self.patch = name, patch

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        following = sys.meta_path[sys.meta_path.index(self) + 1 :]
        specs = (finder.find_spec(fullname, path, target) for finder in following)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _PatchingLoader(spec.loader, self.patch)
        return spec


class _PatchingLoader(Loader):
    """Executes a module with its own loader, which the module keeps, and patches it."""

    def __init__(self, loader: Loader, patch: Patch) -> None:
        self.loader, self.patch = loader, patch

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.patch(module)


def patch_module(name: str, patch: Patch) -> None:
    """Have a module patched as soon as its import ends, at once if it has been imported.

    Args:
        name: in full, such as ``detectron2.data.common``.
        patch: changes the module that it is given.
    """
    if name in sys.modules:
        patch(sys.modules[name])
    else:
        sys.meta_path.insert(0, _PatchingFinder(name, patch))


def _has_module(name: str) -> bool:
    """``find_spec`` that imports no parent: that of a submodule would load torch."""
    spec, path = None, None
    for depth in range(name.count(".") + 1):
        part = ".".join(name.split(".")[: depth + 1])
        spec = importlib.util.find_spec(part) if path is None else PathFinder.find_spec(part, path)
        if spec is None:
            return False
        path = list(spec.submodule_search_locations or ())
    return True


def is_detectron2_v06() -> bool:
    """Tell the release v0.6 from upstream main, which carries the same version number."""
    return not _has_module("detectron2.utils.develop")


def _alias_removed_names() -> None:
    if not hasattr(PIL.Image, "LINEAR"):  # removed in Pillow 10; detectron2/data/transforms/transform.py
        PIL.Image.LINEAR = PIL.Image.BILINEAR  # type: ignore[attr-defined]
    # Removed in numpy 1.24; detectron2/evaluation/sem_seg_evaluation.py and data/build.py.
    for name, builtin in (("int", int), ("float", float), ("bool", bool)):
        if name not in vars(np):
            setattr(np, name, builtin)


def _alias_scheduler(lr_scheduler: Any) -> None:
    # torch 2 split LRScheduler from _LRScheduler: hooks.LRScheduler would not checkpoint torch's own schedulers.
    lr_scheduler._LRScheduler = lr_scheduler.LRScheduler


def _complete_compiler(compiler: Any) -> None:
    # Since torch 2.7; psi/pattern_propagation.py. An export sets the older flag as well.
    if not hasattr(compiler, "is_exporting"):
        compiler.is_exporting = compiler.is_compiling


def _complete_serialization(serialization: Any) -> None:
    # Since torch 2.5; padding/modeling/weights/checkpoint.py.
    if hasattr(serialization, "safe_globals"):
        return

    @contextmanager
    def safe_globals(entries: list[Any]) -> Iterator[None]:
        before = list(serialization.get_safe_globals())
        serialization.add_safe_globals(entries)
        try:
            yield
        finally:
            serialization.clear_safe_globals()
            serialization.add_safe_globals(before)

    serialization.safe_globals = safe_globals


def _allow_named_globals(unpickler: Any) -> None:
    # Before torch 2.8 (2.4 for certain) an entry was an object alone, not (object, its name in the file) as those of
    # padding/modeling/weights/pickles.py, which stand in for numpy's.
    if _release(sys.modules["torch"]) >= (2, 8):
        return

    def allowed() -> dict[str, Any]:
        names = ("_marked_safe_globals_list", "_marked_safe_globals_set")  # torch 2.4, and since
        entries = [entry for name in names for entry in getattr(unpickler, name, ())]
        pairs = (entry if isinstance(entry, tuple) else (entry, _full_name(entry)) for entry in entries)
        return {name: found for found, name in pairs}

    unpickler._get_user_allowed_globals = allowed


def _release(module: Any) -> tuple[int, ...]:
    """Major and minor number of a version such as 2.4.1+cpu."""
    return tuple(int(part) for part in module.__version__.split(".")[:2])


def _full_name(found: Any) -> str:
    return f"{found.__module__}.{found.__name__}"


def _stub_compiled_ops(detectron2: Any) -> None:
    # An attribute, not an entry of sys.modules: collect_env's own import must still fail and report "not built".
    detectron2._C = _MissingOps()


def _sample_from_sets(data_common: Any) -> None:
    data_common.random = types.SimpleNamespace(Random=_SetSamplingRandom)


def _use_plain_coco_eval(coco_evaluation: Any) -> None:
    coco_evaluation.COCOeval_opt = coco_evaluation.COCOeval  # its default use_fast_impl=True needs _C


def _complete_trainer_state(defaults: Any) -> None:
    trainer_class = defaults.DefaultTrainer

    def state_dict(self: Any) -> dict[str, Any]:
        # v0.6 forgets the optimizer and the gradient scaler (fixed upstream in ac6774fe).
        state = super(trainer_class, self).state_dict()
        state["_trainer"] = self._trainer.state_dict()
        return state

    def load_state_dict(self: Any, state: dict[str, Any]) -> None:
        super(trainer_class, self).load_state_dict(state)
        self._trainer.load_state_dict(state["_trainer"])

    trainer_class.state_dict = state_dict
    trainer_class.load_state_dict = load_state_dict


def _patch_detectron2_v06() -> None:
    if not _has_module("detectron2._C"):
        patch_module("detectron2", _stub_compiled_ops)
        patch_module("detectron2.evaluation.coco_evaluation", _use_plain_coco_eval)
    patch_module("detectron2.data.common", _sample_from_sets)
    patch_module("detectron2.engine.defaults", _complete_trainer_state)


_alias_removed_names()
patch_module("torch.optim.lr_scheduler", _alias_scheduler)
patch_module("torch.compiler", _complete_compiler)
patch_module("torch.serialization", _complete_serialization)
patch_module("torch._weights_only_unpickler", _allow_named_globals)
if is_detectron2_v06():
    _patch_detectron2_v06()
