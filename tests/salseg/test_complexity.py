# SPDX-License-Identifier: Apache-2.0
"""Parameters and operations of the published networks, and of a small one by hand."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from padding.data.catalog import register_all
from padding.engine import complexity
from padding.engine.commands import load_config
from salseg.complexity import COUNTING, main, model_complexity, row_of
from salseg.meta_arch import SalSeg

PUBLISHED_CONFIG = "configs/cityscapes_salseg.yaml"


@pytest.fixture(autouse=True)
def _class_names(restored_catalogs: None, tmp_path: Path) -> None:
    register_all(tmp_path)


def build_on_meta(config_file: str, opts: Sequence[str] = ()) -> SalSeg:
    model = complexity.build_on_meta(load_config(config_file, opts))
    assert isinstance(model, SalSeg)
    return model


# Origin: Table 1 prints 59.34 M, 177.78 GMACs and 46.81 M, 152.13; its counter adds norms, here convolutions count.
# The branch: decoder and 1x1 convolution of 19 maps.
@pytest.mark.parametrize(("dsc", "millions", "gmacs"), [(False, 59.344, 177.2), (True, 46.816, 151.6)])
def test_published_networks(dsc: bool, millions: float, gmacs: float) -> None:
    found = model_complexity(build_on_meta(PUBLISHED_CONFIG, ["MODEL.SALSEG.ASPP.DSC", str(dsc)]), (512, 1024))
    assert found.millions == pytest.approx(millions, rel=1e-3)
    assert found.gmacs == pytest.approx(gmacs, rel=1e-3)
    assert found.branch_millions == pytest.approx(1.31, abs=0.01)
    assert found.branch_gmacs == pytest.approx(42.8, abs=0.1)


def test_densenet_has_the_published_stride_and_maps() -> None:
    model = build_on_meta("configs/ablations/salseg/cityscapes_densenet_uniform.yaml")
    shapes = {name: (spec.channels, spec.stride) for name, spec in model.backbone.output_shape().items()}
    assert shapes == {"res2": (256, 4), "res5": (1664, 16)}


def test_shared_decoder_costs_one_convolution() -> None:
    options = ["MODEL.SALSEG.SALIENCY.SHARE_DECODER", "True"]
    found = model_complexity(build_on_meta("configs/shapes_salseg.yaml", options), (64, 96))
    assert found.branch_millions * 1e6 == pytest.approx(64 * 17 + 17)
    assert found.branch_gmacs * 1e9 == pytest.approx(64 * 17 * 2 * 3)  # 64 channels at stride 32


def test_counting_leaves_the_model_as_it_is() -> None:
    model = build_on_meta("configs/shapes_salseg.yaml").train()
    assert model_complexity(model, (64, 96)).branch_gmacs > 0
    assert model.training
    assert model.predict_saliency


def test_command_prints_published_numbers_beside_ours(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--config-file", "configs/shapes_salseg.yaml", "--size", "64", "96"])
    header, _, row = capsys.readouterr().out.strip().splitlines()
    assert "GMAC (96x64)" in header
    assert row.startswith("| configs/shapes_salseg.yaml | 0.")
    rows = {"DSC-ASPP": row_of(build_on_meta("configs/shapes_salseg.yaml"), (512, 1024))}
    table = COUNTING.table(rows, (512, 1024), 0, published=True)
    assert "(46.81)" in table
    assert "(152.13)" in table
