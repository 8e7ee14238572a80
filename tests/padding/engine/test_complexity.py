# SPDX-License-Identifier: Apache-2.0
"""One command counts the models of every method: in the method's own way, or the parameters of each part."""

import pytest
import torch
from torch import nn

from padding.engine.complexity import main, millions, operations


def table(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    main(["--config-file", *words])
    return capsys.readouterr().out.strip().splitlines()


def test_methods_count_in_their_own_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        "GFLOP (64x96, 5 classes)"
        in table(capsys, "configs/shapes_tcc.yaml", "--size", "64", "96", "--num-classes", "5")[0]
    )
    assert "GMAC (96x64)" in table(capsys, "configs/shapes_salseg.yaml", "--size", "64", "96")[0]


def test_of_other_models_the_parts_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    header, _, *rows = table(capsys, "configs/shapes_psi.yaml")
    assert "M parameters" in header
    numbers = {name.strip(): float(number) for _, name, number, _ in (row.split("|") for row in rows)}
    assert list(numbers) == ["network", "threshold_net", "all"]
    assert numbers["all"] == pytest.approx(numbers["network"] + numbers["threshold_net"], abs=0.011)


def test_operations_of_a_product_and_the_mode() -> None:
    layer = nn.Linear(30, 50, bias=False).train()
    assert operations(layer, lambda: layer(torch.zeros(7, 30))) == 2 * 7 * 30 * 50
    assert layer.training
    assert millions(layer) == pytest.approx(1.5e-3)
