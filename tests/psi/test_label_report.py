# SPDX-License-Identifier: Apache-2.0
"""The report on grown labels: its numbers against counts by hand, its command line, what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from padding.data.readers import read_label_map
from padding.engine import TRAINER_REGISTRY
from psi.inspection import DenseReader, LabelInspection
from psi.label_report import LabelCounts, LabelReport, main, measure
from psi.meta_arch import PSI
from tests.tiny_psi import tiny_psi_cfg, write_dozen_scribbled_shapes

VOID = 255


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Command line arguments of a tiny model with random weights; a dozen images are registered."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        write_dozen_scribbled_shapes(folder)
        cfg = tiny_psi_cfg()
        (folder / "config.yaml").write_text(cfg.dump())
        torch.manual_seed(1)
        torch.save({"model": TRAINER_REGISTRY.get(cfg.TRAINER).build_model(cfg).state_dict()}, folder / "model.pth")
    return ["--config-file", str(folder / "config.yaml"), "--weights", str(folder / "model.pth")]


@pytest.fixture(autouse=True)
def _root(trained: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(Path(trained[1]).parent))


def inspection(trained: list[str], *opts: str, number: int = 0) -> LabelInspection:
    return LabelInspection.open(trained[1], trained[3], opts, number=number)


def test_truth_is_the_dense_label_map_of_the_same_image(trained: list[str]) -> None:
    read = DenseReader(inspection(trained).cfg)
    for image in inspection(trained):
        dense = Path(image.sample["sem_seg_file_name"].replace("scribble_coarse", "sem_seg_coarse"))
        assert dense.stem == image.key
        assert image.truth is not None
        np.testing.assert_array_equal(image.truth.numpy(), read_label_map(dense))
        drawn = image.scribbles != VOID
        assert bool(drawn.any())
        assert torch.equal(image.scribbles[drawn], image.truth[drawn])
    assert read({"file_name": "elsewhere.png", "height": 64, "width": 64}) is None


def test_report_against_counts_by_hand(trained: list[str]) -> None:
    images = list(inspection(trained, number=3))
    assert len({image.key for image in images}) == 3
    report = measure(images, [str(i) for i in range(17)])
    rows = report.step_rows()
    assert [row["step"] for row in rows] == [0, 1, 2]
    for step, row in enumerate(rows):
        states = [image.labels.states[step] for image in images]
        labels = torch.cat([state.labels[0] for state in states]).numpy()
        drawn = torch.cat([state.scribbles[0] for state in states]).numpy()
        truth = torch.cat([image.truth for image in images if image.truth is not None]).numpy()
        labeled, right = labels != VOID, labels == truth
        grown = labeled & ~drawn
        assert row["coverage"] == pytest.approx(100 * labeled.mean())
        assert row["accuracy"] == pytest.approx(100 * right[labeled].mean())
        if step == 0:
            assert row["accuracy"] == 100
            assert np.isnan([row["diffused_accuracy"], row["mean_threshold"]]).all()
            continue
        assert row["diffused_accuracy"] == pytest.approx(100 * right[grown].mean())
        thresholds = [
            float(value)
            for image in images
            for value, label in zip(
                image.labels.steps[step - 1].threshold[0], image.labels.steps[step - 1].before.classes[0], strict=True
            )
            if label >= 0
        ]
        assert row["mean_threshold"] == pytest.approx(np.mean(thresholds), rel=1e-5)
    predictions = torch.cat([image.labels.scores.argmax(dim=0) for image in images]).numpy()
    assert report.network_accuracy == pytest.approx((predictions == truth).mean())
    for label, row in enumerate(report.class_rows()):
        own = truth == label
        if not own.any():
            assert np.isnan(row["covered"])
            continue
        assert row["covered"] == pytest.approx(100 * labeled[own].mean())
        assert row["correct"] == pytest.approx(100 * right[own].mean())
        assert row["drawn"] == pytest.approx(100 * drawn[own].mean())
        if (labels == label).any():
            assert row["precision"] == pytest.approx(100 * own[labels == label].mean())


def test_void_of_the_truth_counts_for_nothing(trained: list[str]) -> None:
    image = next(iter(inspection(trained, number=1)))
    assert image.truth is not None
    image.truth[:] = VOID
    report = measure([image], [str(i) for i in range(17)])
    assert np.isnan([report.network_accuracy, *(row["accuracy"] for row in report.step_rows())]).all()
    assert report.step_rows()[-1]["coverage"] > 0
    assert all(np.isnan(row["covered"]) for row in report.class_rows())


def test_empty_counts_have_no_mean() -> None:
    assert np.isnan(LabelCounts.empty(3).mean_threshold)
    assert LabelReport(("a",)).images == 0


def test_command_line(trained: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = main([*trained, "--images", "2", "--output", str(tmp_path / "report.json")])
    assert report.images == 2
    *table, last = capsys.readouterr().out.strip().splitlines()
    assert table[0].split("|")[1].strip() == "t"
    assert "diffused" in table[0]
    printed = json.loads(last)
    written = json.loads((tmp_path / "report.json").read_text())
    assert len(written.pop("classes")) == 17
    assert printed == written
    assert printed["data"] == ["shapes_train_scribble_coarse"]
    assert printed["images"] == 2
    assert [row["step"] for row in printed["steps"]] == [0, 1, 2]
    assert printed["steps"][0]["diffused_accuracy"] is None
    main([*trained, "--images", "1", "--per-class"])
    out = capsys.readouterr().out
    assert "precision %" in out
    assert len(json.loads(out.strip().splitlines()[-1])["classes"]) == 17


def test_all_images_without_a_number(trained: list[str]) -> None:
    found = inspection(trained)
    entries = DatasetCatalog.get("shapes_train_scribble_coarse")
    assert len(found) == len(entries) == len({image.key for image in found})


def test_refuses_labels_that_do_not_grow(trained: list[str], tmp_path: Path) -> None:
    cfg = tiny_psi_cfg("MODEL.PSI.SLD.STEPS", 0)
    torch.save(TRAINER_REGISTRY.get(cfg.TRAINER).build_model(cfg).state_dict(), tmp_path / "plain.pth")
    with pytest.raises(ValueError, match=r"MODEL\.PSI\.SLD\.STEPS is 0"):
        main([*trained[:2], "--weights", str(tmp_path / "plain.pth"), "--opts", "MODEL.PSI.SLD.STEPS", "0"])


def test_refuses_data_without_dense_labels(trained: list[str]) -> None:
    with pytest.raises(ValueError, match="no dense labels are known for shapes_train_sem_seg_coarse"):
        main([*trained, "--opts", "DATASETS.TRAIN", "('shapes_train_sem_seg_coarse',)"])
    assert MetadataCatalog.get("shapes_train_scribble_coarse").dense_set == "shapes_train_sem_seg_coarse"


def test_refuses_another_method(trained: list[str]) -> None:
    with pytest.raises(TypeError, match="configures MaskFormer"):
        main([*trained, "--opts", "MODEL.META_ARCHITECTURE", "MaskFormer"])


def test_refuses_unknown_images(trained: list[str]) -> None:
    cfg = inspection(trained).cfg
    model = LabelInspection.load(cfg)
    assert isinstance(model, PSI)
    with pytest.raises(ValueError, match="no training image is called nobody"):
        LabelInspection(cfg, model, ids=["nobody"])
    assert [image.key for image in LabelInspection(cfg, model, ids=["000000000002", "000000000001"])] == [
        "000000000002",
        "000000000001",
    ]
