# SPDX-License-Identifier: Apache-2.0
"""The preset of literal readings: complete, in line with the table of differences, and it trains."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from padding.data.catalog import register_all
from padding.engine import add_core_config
from padding.engine.commands import load_config
from psi import add_psi_config
from tests.tiny_psi import random_samples, tiny_psi_cfg

ROOT = Path(__file__).parents[2]
PRESET = ROOT / "configs" / "_base_" / "psi_literal.yaml"


def leaves(node: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, key))
        else:
            yield ".".join((*path, key)), value


@pytest.fixture(scope="module")
def preset() -> dict[str, Any]:
    return dict(leaves(yaml.safe_load(PRESET.read_text())))


def literal_column() -> dict[str, str]:
    """Key below MODEL.PSI -> value, of the entries "`KEY value`" in the last column of the table of differences."""
    table = re.findall(r"^\| \d+ \|.*\| ([^|]*) \|$", (ROOT / "psi" / "README.md").read_text(), flags=re.MULTILINE)
    entries = re.findall(r"literal:? ((?:`[A-Z_.]+ [^`]+`(?:, )?)+)", "\n".join(table))
    return dict(entry.split(" ", 1) for cell in entries for entry in re.findall(r"`([^`]+)`", cell))


def test_every_literal_form_of_the_table_is_in_the_preset(preset: dict[str, Any]) -> None:
    column = literal_column()
    assert len(column) >= 12
    for key, value in column.items():
        assert str(preset[f"MODEL.PSI.{key}"]) == value, key


def test_every_deviation_of_the_preset_is_in_the_table(preset: dict[str, Any]) -> None:
    cfg = get_cfg()
    add_core_config(cfg)
    add_psi_config(cfg)
    column = literal_column()
    for name, value in preset.items():
        node: Any = cfg
        for part in name.split("."):
            node = node[part]
        if name.startswith("MODEL.PSI.") and node != value:
            assert name.removeprefix("MODEL.PSI.") in column, name


def test_the_published_recipe_is_the_preset() -> None:
    cfg = load_config(ROOT / "configs" / "voc_psi_paper.yaml", [])
    again = cfg.clone()
    again.defrost()
    again.merge_from_file(str(PRESET))
    assert again.dump() == cfg.dump()
    passes = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH / 10582
    assert passes == pytest.approx(200, rel=1e-4)


def test_it_trains(preset: dict[str, Any]) -> None:
    register_all()
    words = [word for name, value in preset.items() if name.startswith("MODEL.PSI") for word in (name, value)]
    torch.manual_seed(0)
    model = build_model(tiny_psi_cfg(*words)).train()
    with EventStorage(0):
        found = model(random_samples())
    assert all(torch.isfinite(loss) for loss in found.values()), found
    sum(found.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
