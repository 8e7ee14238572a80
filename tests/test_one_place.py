# SPDX-License-Identifier: Apache-2.0
"""One thing has one name and one place: no public function or class of the core is defined twice.

The core is what ``tests/test_import_rules.py`` calls shared, and PADing's own modules, which may import all of it.
"""

import ast
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METHODS = ("tcc", "psi", "salseg")
# Every command line has these; nobody imports them but its tests and its entry point.
ALLOWED = {"main", "parse_arguments"}


def public_names(source: str) -> list[str]:
    """Functions and classes at the top level of a module."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node.name for node in ast.parse(source).body if isinstance(node, kinds) and not node.name.startswith("_")]


def places(sources: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Name -> files that define it."""
    found: dict[str, list[str]] = defaultdict(list)
    for file, source in sources:
        for name in public_names(source):
            found[name].append(file)
    return found


def modules(folder: str) -> list[tuple[str, str]]:
    return [(str(path.relative_to(ROOT)), path.read_text()) for path in sorted((ROOT / folder).rglob("*.py"))]


def repeated(found: dict[str, list[str]]) -> list[str]:
    return [f"{name}: {', '.join(files)}" for name, files in found.items() if len(files) > 1 and name not in ALLOWED]


def test_core_defines_every_name_once() -> None:
    found = repeated(places(modules("padding")))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("method", METHODS)
def test_methods_do_not_define_names_of_the_core(method: str) -> None:
    found = repeated(places([*modules("padding"), *modules(method)]))
    assert not found, "\n".join(found)


def test_repetitions_are_found() -> None:
    twice = [("a.py", "def read(): ...\ndef main(): ..."), ("b.py", "class read: ...\ndef main(): ...\ndef _x(): ...")]
    assert repeated(places(twice)) == ["read: a.py, b.py"]
    assert repeated(places([("a.py", "class A:\n def f(self): ..."), ("b.py", "def f(): ...\nx = 1")])) == []
