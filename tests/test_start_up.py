# SPDX-License-Identifier: Apache-2.0
"""Nothing heavy is imported before it is needed: what a module loads, read from ``sys.modules`` without a clock."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Needed by some models, figures or conversions only.
SPECIAL = ("timm", "gensim", "open_clip", "sklearn", "skimage", "scipy", "matplotlib", "faster_coco_eval")
# What looks at a configuration, a model or an augmentation needs torch; the rest of the data's modules work on files.
WITH_TORCH = (
    "augmentation",
    "class_frequency",
    "config",
    "instances",
    "mappers",
    "saliency.mapper",
    "saliency.stream",
    "semi_stream",
    "streams",
)


def loaded_by(modules: list[str], watched: tuple[str, ...]) -> dict[str, list[str]]:
    """Module -> those watched that are loaded after its import, for the first modules that load one."""
    code = f"""
import importlib, sys
for module in {modules!r}:
    importlib.import_module(module)
    found = [name for name in {watched!r} if name in sys.modules]
    if found:
        print(module, *found)
        break
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    return {words[0]: words[1:] for words in map(str.split, done.stdout.splitlines())}


def test_modules_that_work_on_files_load_neither_torch_nor_detectron2() -> None:
    data = ROOT / "padding/data"
    names = sorted(".".join(path.relative_to(data).with_suffix("").parts) for path in data.rglob("[!_]*.py"))
    assert set(WITH_TORCH) <= set(names)
    light = [f"padding.data.{name}" for name in names if name not in WITH_TORCH]
    packages = ["padding", "padding.engine", "padding.modeling", "padding.evaluation"]
    assert loaded_by([*packages, *light], (*SPECIAL, "torch", "detectron2")) == {}


def test_models_and_training_loop_load_nothing_that_only_some_need() -> None:
    modules = ["padding.meta_arch", "padding.trainer", "padding.engine.predictor"]
    assert loaded_by([*modules, "padding.evaluation.build", "padding.modeling.timm_backbone"], SPECIAL) == {}
