# SPDX-License-Identifier: Apache-2.0
"""Strips of both tasks and the curves of their weights: what the pictures show, and the numbers behind them."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from padding.data.catalog import register_all
from padding.data.class_split import ClassSplit, class_split_of
from padding.data.sets.saliency import register_derived_saliency
from padding.engine import TRAINER_REGISTRY
from salseg.figures import draw_strips
from salseg.inspection import Inspected, PredictionInspection, image_miou, saliency_mae
from salseg.plots import main
from salseg.training_log import read_courses
from tests.tiny_salseg import tiny_salseg_cfg
from tests.tiny_segmentor import write_dozen_shapes

VOID = 255
SEMANTIC, SALIENCY = "shapes_val_sem_seg_coarse", "shapes_val_saliency"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen images, and a tiny model with random weights."""
    folder = write_dozen_shapes(tmp_path_factory.mktemp("data"))
    register_all(folder)
    cfg = tiny_salseg_cfg()
    (folder / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    torch.save({"model": TRAINER_REGISTRY.get(cfg.TRAINER).build_model(cfg).state_dict()}, folder / "model.pth")
    return folder


@pytest.fixture(autouse=True)
def _root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))


def picture(path: Path) -> np.ndarray:
    found = cv2.imread(str(path))
    assert found is not None
    return found


def strip(root: Path, output: Path, *words: str) -> np.ndarray:
    files = ["--config-file", str(root / "config.yaml"), "--weights", str(root / "model.pth")]
    return picture(main(["strip", *files, *words, "--output", str(output)]))


def inspect(root: Path, *opts: str, **chosen: Any) -> list[Inspected]:
    inspection = PredictionInspection.open(root / "config.yaml", str(root / "model.pth"), opts, **chosen)
    images = list(inspection)
    assert len(images) == len(inspection)
    return images


def test_strip(root: Path, tmp_path: Path) -> None:
    both = strip(root, tmp_path / "new" / "both.png", "--images", "2")
    assert not list((tmp_path / "new").glob(".*"))
    # Five pictures a row; without saliency sets the last is left out, without the branch the last two and the scale.
    assert both.shape[1] > 5 * 230
    one_set = ["--ids", "000000000001", "--opts", "DATASETS.TEST", f"('{SEMANTIC}',)"]
    four = strip(root, tmp_path / "four.png", *one_set)
    assert four.shape[1] < both.shape[1] - 200
    assert four.shape[0] < both.shape[0] - 200
    three = strip(root, tmp_path / "three.png", *one_set, "MODEL.SALSEG.TEST.SALIENCY", "False")
    assert three.shape[1] < four.shape[1] - 200


def test_truths_are_those_of_the_sets(root: Path) -> None:
    key = "000000000001"
    plain, camouflaged = inspect(root, ids=[key])
    assert (plain.key, camouflaged.key) == (key, key)
    assert (plain.image != camouflaged.image).any()
    assert plain.true_saliency is None
    assert camouflaged.true_labels is None
    assert np.isnan([plain.mae, camouflaged.miou]).all()
    assert plain.true_labels is not None
    labels = cv2.imread(str(root / f"shapes/sem_seg_coarse/val/{key}.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(plain.true_labels, labels)
    assert camouflaged.true_saliency is not None
    grey = cv2.imread(str(root / f"shapes/saliency/val/{key}.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(camouflaged.true_saliency[0], grey > 128)
    assert camouflaged.true_saliency[1].all()
    for image in (plain, camouflaged):
        assert image.saliency is not None
        assert image.labels.shape == image.saliency.shape == image.image.shape[:2]
    wrong = np.abs(camouflaged.saliency - (grey > 128))  # type: ignore[operator]
    assert camouflaged.mae == pytest.approx(wrong.mean(), rel=1e-5)
    assert 0 <= plain.miou < 50


@pytest.mark.usefixtures("restored_catalogs")
def test_a_file_of_both_kinds_of_sets_is_one_image_with_both_truths(root: Path) -> None:
    register_derived_saliency("shapes_derived", dense=SEMANTIC, salient=("red", "striped"))
    images = inspect(root, "DATASETS.TEST", f"('shapes_derived', '{SEMANTIC}')")
    assert len({image.key for image in images}) == len(images) > 1
    for image in images:
        assert image.true_labels is not None
        assert image.true_saliency is not None
        salient, known = image.true_saliency
        np.testing.assert_array_equal(known, image.true_labels != VOID)
        ids = [class_split_of(SEMANTIC).names.index(name) for name in ("red", "striped")]
        np.testing.assert_array_equal(salient, np.isin(image.true_labels, ids))
        assert not np.isnan([image.mae, image.miou]).any()


def test_scores_of_one_image_by_hand() -> None:
    truth = np.array([[0, 0, 1, VOID]])
    # Class 0: 1 of 2 pixels, and nothing else; class 1: its pixel and a false alarm; class 2 is in no truth.
    assert image_miou(np.array([[0, 1, 1, 2]]), truth, 3) == pytest.approx(100 * (1 / 2 + 1 / 2) / 2)
    assert np.isnan(image_miou(truth, np.full((1, 4), VOID), 3))
    saliency = np.array([[0.2, 0.9, 0.5]], np.float32)
    salient = np.array([[False, True, True]])
    assert saliency_mae(saliency, salient, np.array([[True, True, False]])) == pytest.approx(0.15)
    assert np.isnan(saliency_mae(saliency, salient, np.zeros((1, 3), bool)))


def test_colors_of_a_strip(tmp_path: Path) -> None:
    colors = ((255, 0, 0), (0, 0, 255))
    split = ClassSplit(names=("red", "blue"), is_thing=(False, False), dataset_ids=(0, 1), colors=colors)
    image = Inspected(
        key="x",
        image=np.full((20, 20, 3), (0, 255, 0), np.uint8),
        labels=np.zeros((20, 20), np.uint8),
        num_classes=2,
        true_labels=np.where(np.arange(20)[:, None] < 10, 1, VOID).repeat(20, 1),
        saliency=np.ones((20, 20), np.float32),
        true_saliency=(np.zeros((20, 20), bool), (np.arange(20) < 15)[:, None].repeat(20, 1)),
    )
    draw_strips(tmp_path / "x.png", [image], split)
    drawn = picture(tmp_path / "x.png")[..., ::-1]
    inferno = {0: (0, 0, 4), 1: (252, 255, 164)}  # ends of matplotlib's table
    named = {"image": (0, 255, 0), "red": colors[0], "blue": colors[1], "grey": (128, 128, 128)}
    shares = {
        name: (np.abs(drawn.astype(int) - color) <= 1).all(axis=2).sum() for name, color in {**named, **inferno}.items()
    }
    one = shares["image"]
    assert shares["red"] == pytest.approx(one, rel=0.1)  # and a legend entry
    assert shares["blue"] == pytest.approx(one / 2, rel=0.2)  # the rest is void
    assert shares[0] == pytest.approx(one * 3 / 4, rel=0.1)
    assert shares["grey"] == pytest.approx(one / 4, rel=0.1)  # unknown
    assert shares[1] == pytest.approx(one, rel=0.1)


def test_wrong_choices_are_named(root: Path) -> None:
    with pytest.raises(ValueError, match="no test image is called nobody; the first ones are 0000"):
        inspect(root, ids=["nobody"])
    with pytest.raises(ValueError, match="expected semantic and saliency sets, at least one semantic set"):
        inspect(root, "DATASETS.TEST", f"('{SALIENCY}',)")
    with pytest.raises(TypeError, match="configures TCC; this command looks at SalSeg alone"):
        PredictionInspection.open(root / "config.yaml", str(root / "model.pth"), ["MODEL.META_ARCHITECTURE", "TCC"])


def write_log(folder: Path, weights: list[float], *, first: int = 19) -> None:
    folder.mkdir(parents=True)
    lines: list[dict[str, float]] = [
        {"iteration": first + 20 * i, "salseg/seg": 1.0 + i, "salseg/saliency": 0.5, "salseg/weight_seg": weight}
        | {"salseg/weight_saliency": 2 * weight}
        for i, weight in enumerate(weights)
    ]
    lines.append({"iteration": 1200, "sem_seg/mIoU": 50.0})
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_weights_over_the_training(tmp_path: Path) -> None:
    write_log(tmp_path / "rows" / "learned" / "seed_0", [1.0, 2.0])
    write_log(tmp_path / "rows" / "learned" / "seed_1", [1.0, 4.0])
    write_log(tmp_path / "rows" / "uniform" / "seed_0", [0.5, 0.5, 0.5])
    evaluation = tmp_path / "rows" / "uniform" / "seed_0" / "inference"
    evaluation.mkdir()
    (evaluation / "metrics.json").write_text(json.dumps({"sem_seg": {"mIoU": 50.0}}, indent=1))
    alone = tmp_path / "alone"
    write_log(alone, [0.3])
    output = tmp_path / "new" / "weights.png"
    main(["weights", "--results", str(tmp_path / "rows"), f"one={alone}", "--output", str(output)])
    assert picture(output).shape[1] > 800
    learned, uniform, one = json.loads(output.with_suffix(".json").read_text())
    assert [(t["name"], t["runs"]) for t in (learned, uniform, one)] == [("learned", 2), ("uniform", 1), ("one", 1)]
    assert learned["weights"]["seg"] == {"iterations": [19, 39], "mean": [1.0, 3.0], "spread": [0.0, 1.0]}
    assert learned["weights"]["saliency"]["mean"] == [2.0, 6.0]
    assert learned["losses"]["seg"] == {"iterations": [19, 39], "mean": [1.0, 2.0], "spread": [0.0, 0.0]}
    assert uniform["losses"]["saliency"]["mean"] == [0.5, 0.5, 0.5]
    assert one["weights"]["seg"]["iterations"] == [19]


def test_a_task_alone_has_one_course_and_the_last_of_repeated_lines_counts(tmp_path: Path) -> None:
    lines = [{"iteration": i, "salseg/seg": loss, "salseg/weight_seg": 1.0} for i, loss in ((19, 3.0), (39, 2.0))]
    lines.append({"iteration": 39, "salseg/seg": 1.5, "salseg/weight_seg": 1.0})  # resumed
    run = tmp_path / "seed_0"
    run.mkdir()
    (run / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (training,) = read_courses(run, "alone")
    assert (training.name, list(training.weights), list(training.losses)) == ("alone", ["seg"], ["seg"])
    assert training.losses["seg"].mean == (3.0, 1.5)
    main(["weights", "--results", str(run), "--output", str(tmp_path / "x.png")])
    assert json.loads((tmp_path / "x.json").read_text())[0]["name"] == "seed_0"


def test_folders_without_a_usable_log_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no metrics\.json of a SalSeg training below it"):
        read_courses(tmp_path)
    write_log(tmp_path / "run", [1.0])
    with (tmp_path / "run" / "metrics.json").open("a") as file:
        file.write('{"iteration": 59, "salse')
    with pytest.raises(ValueError, match=r"metrics\.json, line 3: .*the log is damaged"):
        read_courses(tmp_path)
