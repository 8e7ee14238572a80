# SPDX-License-Identifier: Apache-2.0
"""What the documents name exists: files, modules, configurations, make targets."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("*/README.md"),
        *ROOT.glob("tests/*/README.md"),
        *ROOT.glob("docs/**/*.md"),
    ]
    if not path.relative_to(ROOT).parts[0].startswith((".", "output"))
)
TOP = "padding|tcc|psi|salseg|configs|datasets|tests|benchmarks|requirements|docs"
PATHS = re.compile(rf"(?<![\w/<$])((?:{TOP})/[\w./*-]+|(?:train_net|demo)\.py)")
# Made by the commands beside the mention, or by the user.
GENERATED = re.compile(r"^datasets/(?:shapes|coco|embeddings/clip)|^configs/ablations/<|\*$")


def text_of(document: Path) -> str:
    return document.read_text()


def exists(name: str) -> bool:
    name = name.rstrip(".,:;)")
    return any(ROOT.glob(name)) if "*" in name else (ROOT / name).exists()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_exist(document: Path) -> None:
    names = {match.rstrip(".,:;)") for match in PATHS.findall(text_of(document))}
    missing = sorted(name for name in names if not GENERATED.search(name) and not exists(name))
    assert not missing, f"{document.relative_to(ROOT)} names what is not there: {missing}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", text_of(document))
    missing = [link for link in links if not (document.parent / link).exists()]
    assert not missing, f"{document.relative_to(ROOT)} links to what is not there: {missing}"


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test"} <= targets
    missing = [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)]
    assert not missing, f"README.md names make targets that do not exist: {missing}"


def test_every_configuration_is_listed() -> None:
    listed = (ROOT / "configs/README.md").read_text()
    missing = [path.name for path in sorted((ROOT / "configs").glob("*.yaml")) if path.name not in listed]
    assert not missing, f"configs/README.md does not mention {missing}"


def test_benchmarks_are_documented() -> None:
    documents = "".join(text_of(document) for document in DOCUMENTS)
    modules = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__")
    missing = [module for module in modules if f"benchmarks.{module}" not in documents]
    assert not missing, f"no document names {missing}"


def test_sections_that_the_site_takes_from_readmes_exist() -> None:
    hook = runpy.run_path(str(ROOT / "docs/readmes.py"))
    pages = sorted((ROOT / "docs").rglob("*.md"))
    marks = [mark for page in pages for mark in hook["_MARK"].findall(page.read_text())]
    assert len(marks) > 4
    for name, heading in marks:
        assert len(hook["section"](name, heading)) > 100
    with pytest.raises(KeyError, match=r"padding/README\.md has no section 'Nothing'"):
        hook["section"]("padding/README.md", "Nothing")


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "open_packed" in (tmp_path / "site/api.html").read_text()
