# SPDX-License-Identifier: Apache-2.0
"""The fixes for Detectron2 v0.6, and that they leave upstream main alone."""

import importlib
import importlib.machinery
import importlib.util
import os
import random
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from detectron2.engine import DefaultTrainer

from padding import compat


def test_names_that_v06_uses_exist_again() -> None:
    assert PIL.Image.LINEAR == PIL.Image.BILINEAR
    assert np.zeros(1, dtype=getattr(np, "int")).dtype == np.int64
    assert np.zeros(1, dtype=getattr(np, "float")).dtype == np.float64


def test_native_schedulers_count_as_schedulers_of_v06() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert isinstance(scheduler, torch.optim.lr_scheduler._LRScheduler)


def test_sampling_from_a_set_is_deterministic() -> None:
    rng = compat._SetSamplingRandom(3)
    assert rng.sample({5, 1, 9}, 2) == random.Random(3).sample([1, 5, 9], 2)


def test_missing_operator_says_what_is_missing() -> None:
    with pytest.raises(ImportError, match=r"detectron2\._C\.nms_rotated.*without its compiled operators"):
        _ = compat._MissingOps().nms_rotated


def test_trainer_state_holds_the_optimizer() -> None:
    class Inner:
        def state_dict(self) -> dict[str, int]:
            return {"momentum": 7}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.loaded = state

    trainer = DefaultTrainer.__new__(DefaultTrainer)
    trainer._hooks, trainer.iter, trainer._trainer = [], 3, Inner()
    state = trainer.state_dict()
    assert state["_trainer"] == {"momentum": 7}
    trainer.load_state_dict(state)
    assert trainer._trainer.loaded == {"momentum": 7}


def test_coco_evaluation_needs_no_compiled_operator() -> None:
    from detectron2.evaluation import coco_evaluation

    if compat.is_detectron2_v06():
        assert coco_evaluation.COCOeval_opt is coco_evaluation.COCOeval
    else:
        assert hasattr(coco_evaluation, "COCOeval")


def test_a_module_is_patched_once_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "patched_later.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])

    def double(module: Any) -> None:
        module.value *= 2

    compat.patch_module("patched_later", double)
    module: Any = importlib.import_module("patched_later")
    monkeypatch.delitem(sys.modules, "patched_later")
    assert module.value == 2
    assert type(module.__loader__) is type(module.__spec__.loader) is importlib.machinery.SourceFileLoader
    assert importlib.import_module("patched_later").__dict__["value"] == 2  # a second import finds the patch too
    compat.patch_module("patched_later", double)
    assert importlib.import_module("patched_later").__dict__["value"] == 4  # at once


def test_a_missing_module_stays_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    compat.patch_module("no_such_module_at_all", lambda module: None)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        importlib.import_module("no_such_module_at_all")


def test_modules_are_looked_up_without_importing_their_parents() -> None:
    assert compat._has_module("detectron2.utils.env")
    assert not compat._has_module("detectron2.utils.no_such_module")
    assert not compat._has_module("no_such_package.module")


def test_the_fixes_hold_where_torch_and_detectron2_were_imported_first() -> None:
    """The other order is that of this suite, whose conftest imports ``padding`` before Detectron2."""
    code = """
import torch, detectron2
assert not hasattr(detectron2, "_C")
from padding import compat
assert torch.optim.lr_scheduler._LRScheduler is torch.optim.lr_scheduler.LRScheduler
assert hasattr(detectron2, "_C") == (compat.is_detectron2_v06() and not compat._has_module("detectron2._C"))
"""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "ignore", "-c", code]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, check=True)


def test_sampling_of_v06_is_replaced() -> None:
    from detectron2.data import common

    assert (getattr(common.random, "Random", None) is compat._SetSamplingRandom) == compat.is_detectron2_v06()


def test_nothing_of_upstream_main_is_patched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("detectron2/__init__.py", "detectron2/utils/__init__.py", "detectron2/utils/develop.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "detectron2")
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    before = len(sys.meta_path)
    spec = importlib.util.spec_from_file_location("compat_on_main", compat.__file__)
    assert spec is not None
    assert spec.loader is not None
    on_main = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(on_main)
    assert not on_main.is_detectron2_v06()
    assert len(sys.meta_path) == before


def test_torch_before_2_8_reads_a_global_by_the_name_in_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, name in (("2.4.1+cpu", "_marked_safe_globals_list"), ("2.7.0", "_marked_safe_globals_set")):
        monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__=version))
        unpickler = types.SimpleNamespace(**{name: [(dict, "numpy.core.multiarray.thing"), random.Random]})
        compat._allow_named_globals(unpickler)
        allowed = unpickler._get_user_allowed_globals()
        assert allowed == {"numpy.core.multiarray.thing": dict, "random.Random": random.Random}
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__="2.14.1+cu130"))
    untouched = types.SimpleNamespace()
    compat._allow_named_globals(untouched)
    assert not vars(untouched)


def test_torch_2_4_gets_the_names_that_came_later() -> None:
    marked: list[Any] = [int]
    serialization = types.SimpleNamespace(
        get_safe_globals=lambda: marked, add_safe_globals=marked.extend, clear_safe_globals=marked.clear
    )
    compat._complete_serialization(serialization)
    with serialization.safe_globals([dict, list]):
        assert marked == [int, dict, list]
    assert marked == [int]
    compiler = types.SimpleNamespace(is_compiling=lambda: True)
    compat._complete_compiler(compiler)
    assert compiler.is_exporting()
    present = types.SimpleNamespace(is_exporting=len, is_compiling=min)
    compat._complete_compiler(present)
    assert present.is_exporting is len
