# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: folders of `padding/` share, files are private to their method, methods never meet.

The rules are data below; a violation prints the offending line and the rule.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METHODS = ("tcc", "psi", "salseg")
SHARED = ("padding.data", "padding.evaluation", "padding.modeling", "padding.engine")
CORE = ("padding.compat", "padding.errors", "padding.packages")

# Layer -> first-party modules it may import. A name also allows everything below it.
ALLOWED: dict[str, tuple[str, ...]] = {
    "padding.compat": (),
    "padding.errors": (),
    "padding.packages": (),
    "padding.data": ("padding.data",),
    "padding.data.doctor": ("padding.engine.doctor",),  # a command by the name under which it is looked for
    "padding.evaluation": ("padding.data", "padding.evaluation"),
    "padding.modeling": (
        "padding.modeling",
        "padding.data.best_class",
        "padding.data.class_split",
        "padding.data.damage",
        "padding.data.sample",
    ),
    "padding.engine": SHARED,
    "padding": ("padding",),
    **{method: (*SHARED, method) for method in METHODS},
    "datasets": ("padding.data",),
    "benchmarks": ("padding", *METHODS, "train_net", "benchmarks"),
    "train_net": (*SHARED, "padding#root", *(f"{method}#root" for method in METHODS)),
    "demo": (*SHARED, "padding#root", *(f"{method}#root" for method in METHODS), "train_net"),
}
FIRST_PARTY = ("padding", *METHODS, "datasets", "benchmarks", "train_net", "demo", "tests")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    for layer in (*CORE, "padding.data.doctor", *SHARED):
        if module == layer or module.startswith(layer + "."):
            return layer
    return module.split(".")[0]


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "." * node.level + (node.module or "")
            elif node.module:
                yield node.lineno, node.module


def is_allowed(layer: str, target: str) -> bool:
    if target in CORE or (target == "padding" and layer in (*METHODS, "datasets")):
        return True
    for rule in ALLOWED[layer]:
        if rule.endswith("#root"):
            if target == rule.removesuffix("#root"):
                return True
        elif target == rule or target.startswith(rule + "."):
            return True
    return False


def violations(path: Path, source: str) -> list[str]:
    layer = layer_of(module_name(path))
    found = []
    for line, target in imported_modules(ast.parse(source)):
        where = f"{path.relative_to(ROOT)}:{line} imports {target}"
        if target.startswith("."):
            found.append(f"{where}: relative imports hide the layer; write the full name")
        elif target.split(".")[0] in FIRST_PARTY and not is_allowed(layer, target):
            found.append(f"{where}: {layer} may import only {', '.join(ALLOWED[layer]) or 'nothing of ours'}")
    return found


def sources() -> list[Path]:
    folders = [ROOT / name for name in ("padding", *METHODS, "datasets", "benchmarks")]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    return sorted([*files, ROOT / "train_net.py", ROOT / "demo.py"])


def test_imports_keep_to_the_layers() -> None:
    found = [line for path in sources() if path.exists() for line in violations(path, path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("file", "source", "count"),
    [
        ("tcc/losses.py", "from padding.losses import mmd", 1),
        ("tcc/losses.py", "import psi", 1),
        ("tcc/losses.py", "from padding.modeling.batching import batch_images", 0),
        ("padding/data/mappers.py", "from padding.engine.trainer import Trainer", 1),
        ("padding/modeling/head.py", "from padding.meta_arch import PADing", 1),
        ("padding/modeling/head.py", "import padding.compat", 0),
        ("padding/meta_arch.py", "from padding.modeling.maskformer import MaskFormer", 0),
        ("padding/meta_arch.py", "from .losses import mmd", 1),
        ("train_net.py", "from padding.generator import PrimitiveGenerator", 1),
        ("train_net.py", "from padding import add_padding_config", 0),
    ],
)
def test_rules_catch_what_they_should(file: str, source: str, count: int) -> None:
    assert len(violations(ROOT / file, source)) == count


def test_compat_is_the_first_import_of_padding() -> None:
    tree = ast.parse((ROOT / "padding/__init__.py").read_text())
    first = next(imported_modules(tree))[1]
    assert first == "padding.compat"


def test_benchmarks_begin_with_the_fixes() -> None:
    names = [name for _, name in imported_modules(ast.parse((ROOT / "benchmarks/__init__.py").read_text()))]
    assert "padding" in names
    assert not any(name.startswith("detectron2") for name in names)


@pytest.mark.parametrize("method", METHODS)
def test_every_other_method_starts_with_the_fixes(method: str) -> None:
    init = ROOT / method / "__init__.py"
    tree = ast.parse(init.read_text())
    assert next(imported_modules(tree))[1] == "padding"
