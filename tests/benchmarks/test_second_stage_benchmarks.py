# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of generator and feature bank run at a small size; their last line is what they promise."""

import json
from pathlib import Path

import pytest

from benchmarks import feature_bank, generator
from padding.data.catalog import register_all


def test_generator_forms_agree(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--conditions", "5", "--primitives", "7", "--channels", "16", "--heads", "4", "--ffn-channels", "24"]
    generator.main([*sizes, "--repeats", "1"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["conditions"], result["primitives"], result["channels"]) == (5, 7, 16)
    assert result["ratio"] > 0
    assert 0 <= result["max_difference"] < 1e-5
    assert 0 <= result["max_gradient_difference"] < 1e-4


def test_feature_bank_prints_both_ratios(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = feature_bank.measure

    def without_the_large_one(config: str, *args: object, **kwargs: int) -> dict[str, float]:
        return real("shapes_zsp", *args, **kwargs)

    monkeypatch.setattr(feature_bank, "measure", without_the_large_one)
    monkeypatch.setattr(feature_bank, "BANK_ITERATIONS", 2)
    sizes = ["--size", "64", "--batch", "2", "--tiny-batch", "2", "--iterations", "1", "--tiny-iterations", "2"]
    feature_bank.main(sizes)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["size"], result["batch"], result["tiny_batch"]) == (64, 2, 2)
    for key in (
        "ratio_repeated_run",
        "ratio_first_run",
        "bound_first_run",
        "seconds_without",
        "seconds_with",
        "build_seconds_per_image",
    ):
        assert result[key] > 0
        assert result[f"{key}_tiny"] > 0


def test_a_first_run_is_bound_by_the_forwards_of_its_bank() -> None:
    """20,000 iterations of 12 images are 5.3 passes over 45,617 images, of which two views are written."""
    free = feature_bank.first_run("coco_zsp", batch=12, without=12.0, with_bank=0.0, build=1.0)
    assert free["ratio_first_run"] == free["bound_first_run"] == 2.63
    paid = feature_bank.first_run("coco_zsp", batch=6, without=12.0, with_bank=3.0, build=1.0)
    assert paid["ratio_first_run"] == round(480_000 / (2 * 45_617 + 120_000), 2)


def test_large_segmentor_is_the_published_one(tmp_path: Path) -> None:
    cfg = feature_bank.configure("coco_zsp", tmp_path, ("SOLVER.IMS_PER_BATCH", 2))
    node = cfg.MODEL
    assert (node.RESNETS.DEPTH, node.MASK_FORMER.NUM_OBJECT_QUERIES, node.MASK_FORMER.DEC_LAYERS) == (50, 100, 10)
    assert node.PADING.GENERATOR.NUM_PRIMITIVES == 400
    assert not cfg.SOLVER.AMP.ENABLED


@pytest.fixture(autouse=True)
def _registered_again() -> None:
    """The benchmark registers data in a folder that is gone afterwards."""
    yield
    register_all()
