# SPDX-License-Identifier: Apache-2.0
"""The report on pseudo labels: its numbers against counts by hand, its command line, what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from padding.data.catalog import register_all
from padding.engine import TRAINER_REGISTRY
from padding.errors import DataError
from tcc.label_report import PseudoLabelInspection, PseudoLabelReport, PseudoLabels, main
from tests.tiny_segmentor import write_dozen_shapes
from tests.tiny_tcc import tiny_tcc_cfg


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Command line arguments of a tiny cohort with random weights; 8 of a dozen images are unlabeled."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        register_all(write_dozen_shapes(folder))
        cfg = tiny_tcc_cfg("DATASETS.SPLIT", "shapes/4_of_12", "DATASETS.TEST", ())
        (folder / "config.yaml").write_text(cfg.dump())
        for seed in (1, 2):
            torch.manual_seed(seed)
            model = TRAINER_REGISTRY.get(cfg.TRAINER).build_model(cfg)
            torch.save({"model": model.state_dict()}, folder / f"{seed}.pth")
    return ["--config-file", str(folder / "config.yaml"), "--weights", str(folder / "1.pth"), str(folder / "2.pth")]


@pytest.fixture(autouse=True)
def _root(trained: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(Path(trained[1]).parent))


def test_counts_against_a_slow_count() -> None:
    rng = np.random.default_rng(0)
    thresholds, names = (0.0, 0.5, 0.9), ("a", "b", "c")
    images = [
        PseudoLabels(rng.integers(0, 3, (6, 7)), rng.random((6, 7)), np.where(rng.random((6, 7)) < 0.1, 255, truth))
        for truth in rng.integers(0, 3, (4, 6, 7))
    ]
    report = PseudoLabelReport(names, thresholds)
    for image in images:
        report.add(image)
    pixels = [
        pixel
        for image in images
        for pixel in zip(image.labels.flat, image.confidence.flat, image.truth.flat, strict=True)
        if pixel[2] != 255
    ]
    for row in report.threshold_rows():
        kept = [pixel for pixel in pixels if pixel[1] >= row["threshold"]]
        assert row["coverage"] == pytest.approx(100 * len(kept) / len(pixels))
        assert row["accuracy"] == pytest.approx(100 * sum(p[0] == p[2] for p in kept) / len(kept))
    for k, row in enumerate(report.class_rows(0.5)):
        kept = [pixel for pixel in pixels if pixel[1] >= 0.5]
        right = sum(p[0] == p[2] == k for p in kept)
        labeled, true = sum(p[0] == k for p in kept), sum(p[2] == k for p in pixels)
        assert row["share"] == pytest.approx(100 * labeled / len(kept))
        assert (row["precision"], row["recall"]) == pytest.approx((100 * right / labeled, 100 * right / true))
        assert row["true_share"] == pytest.approx(100 * true / len(pixels))


def test_labels_are_those_of_an_evaluation_and_no_labeled_image_counts(trained: list[str]) -> None:
    inspection = PseudoLabelInspection.open(trained[1], trained[3])
    assert len(inspection) == 8
    for image in inspection:
        assert image.labels.shape == image.truth.shape == (64, 64)
        assert (image.confidence >= 1 / 17 - 1e-6).all()


def test_command_prints_every_checkpoint(
    trained: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "report.json"
    main([*trained, "--images", "3", "--student", "cnn", "--output", str(output)])
    printed = capsys.readouterr().out
    content = json.loads(printed.splitlines()[-1])
    assert content == json.loads(output.read_text())
    assert list(content) == trained[3:]
    for report in content.values():
        assert report["images"] == 3
        assert report["thresholds"][0]["coverage"] == 100
        assert sum(row["true_share"] for row in report["classes"]) == pytest.approx(100)
    assert "confident precision" in printed


def test_images_without_any_truth_are_refused(trained: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def without_labels(cfg: object) -> tuple[list[object], list[dict[str, str]]]:
        return [], [{"file_name": "a.png"}]

    monkeypatch.setattr("tcc.label_report.load_semi_supervised_entries", without_labels)
    with pytest.raises(DataError, match="of 1 unlabeled images none has a label map"):
        PseudoLabelInspection.open(trained[1], trained[3])
