# SPDX-License-Identifier: Apache-2.0
"""Strips of growing labels and the curve of the budget: what the pictures show, and the numbers behind them."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from padding.data.catalog import register_all
from padding.data.prepare.scribbles import simulate_files, tasks_of_dataset
from padding.data.scribbles.folder import ScribbleFolder
from padding.data.scribbles.simulator import SimulatorConfig
from padding.data.sets.scribbles import SCRIBBLE_SETS, scribble_tags
from padding.engine import TRAINER_REGISTRY
from psi.budget import Run, budget_curves, read_runs
from psi.figures import draw_budget, thick_scribbles
from psi.plots import main
from tests.tiny_psi import tiny_psi_cfg, write_dozen_scribbled_shapes

VOID = 255
FULL, HALF = "shapes_train_scribble_coarse", "shapes_train_scribble_coarse_length_50"
DENSE = "shapes_train_sem_seg_coarse"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen images with scribbles and with half of them, and a tiny model with random weights."""
    folder = write_dozen_scribbled_shapes(tmp_path_factory.mktemp("data"))
    register_all(folder)
    one = SCRIBBLE_SETS[HALF]
    tasks, space = tasks_of_dataset(one.dense, scribble_tags(one.dense))
    simulate_files(tasks, space, SimulatorConfig(**one.simulator), ScribbleFolder(folder / one.folder))
    cfg = tiny_psi_cfg()
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": TRAINER_REGISTRY.get(cfg.TRAINER).build_model(cfg).state_dict()}, folder / "model.pth")
    return folder


@pytest.fixture(autouse=True)
def _root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))


def picture(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    assert image.std() > 5  # not an empty canvas
    return image


def run_folder(folder: Path, dataset: str, score: float, *, finished: bool = True, table: bool = False) -> None:
    """What a training leaves, as far as the curve reads it."""
    folder.mkdir(parents=True)
    cfg = tiny_psi_cfg("DATASETS.TRAIN", (dataset,), "SOLVER.MAX_ITER", 4)
    (folder / "config.yaml").write_text(cfg.dump())
    lines: list[dict[str, Any]] = [{"iteration": 1, "sem_seg/mIoU": 1.0}]
    if finished and not table:
        lines += [{"iteration": 3, "sem_seg/mIoU": score}]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if table:
        (folder / "row_result.json").write_text(json.dumps({"metrics": {"sem_seg": {"mIoU": score}}}))


def test_strip(root: Path, tmp_path: Path) -> None:
    arguments = ["strip", "--config-file", str(root / "config.yaml"), "--weights", str(root / "model.pth")]
    two = picture(main([*arguments, "--images", "2", "--output", str(tmp_path / "two.png")]))
    assert not list(tmp_path.glob(".*"))
    named = ["--ids", "000000000001", "--output", str(tmp_path / "new" / "one.png")]
    one = picture(main([*arguments, *named]))
    # Seven pictures a row: image, scribbles, two steps, prediction, truth, confidence.
    assert one.shape[1] == two.shape[1] > 7 * 200
    assert two.shape[0] > one.shape[0] + 200
    longer = ["--opts", "MODEL.PSI.SLD.STEPS", "3", "--output", str(tmp_path / "steps.png")]
    assert picture(main([*arguments, "--images", "1", *longer])).shape[1] > one.shape[1] + 200


def test_strip_without_truth_leaves_its_column_out(root: Path, tmp_path: Path) -> None:
    arguments = ["strip", "--config-file", str(root / "config.yaml"), "--weights", str(root / "model.pth")]
    with_truth = picture(main([*arguments, "--images", "1", "--output", str(tmp_path / "a.png")]))
    no_truth = ["--opts", "DATASETS.TRAIN", f"('{DENSE}',)", "INPUT.FORMAT", "BGR", "--output", str(tmp_path / "b.png")]
    assert picture(main([*arguments, "--images", "1", *no_truth])).shape[1] < with_truth.shape[1] - 200


def test_scribbles_become_thick_and_keep_their_pixels() -> None:
    scribbles = np.full((20, 20), VOID)
    scribbles[5, 3:9] = 0
    scribbles[7, 3:9] = 1
    thick = thick_scribbles(scribbles, 2, 4)
    drawn = scribbles != VOID
    np.testing.assert_array_equal(thick[drawn], scribbles[drawn])
    assert (thick[3:10, 5] != VOID).all()
    assert (thick == VOID).any()
    assert set(np.unique(thick)) == {0, 1, VOID}
    np.testing.assert_array_equal(thick_scribbles(scribbles, 2, 0), scribbles)


def test_budget_of_trainings(root: Path, tmp_path: Path) -> None:
    results = tmp_path / "runs"
    run_folder(results / "half" / "seed_0", HALF, 40.0)
    run_folder(results / "half" / "seed_1", HALF, 44.0, table=True)
    run_folder(results / "all", FULL, 50.0)
    run_folder(results / "going_on", FULL, 99.0, finished=False)
    run_folder(results / "dense", DENSE, 60.0)
    output = main(["budget", "--results", f"PSI={results}", "--output", str(tmp_path / "budget.png")])
    picture(output)
    (curve,) = json.loads((tmp_path / "budget.json").read_text())
    assert (curve["name"], curve["full"]) == ("PSI", 60.0)
    half, whole = curve["points"]
    statistics = [
        json.loads((root / SCRIBBLE_SETS[name].folder).with_suffix(".json").read_text())["statistics"]
        for name in (HALF, FULL)
    ]
    assert [half["labeled_pct"], whole["labeled_pct"]] == [s["coverage_pct"] for s in statistics]
    assert half["labeled_pct"] < whole["labeled_pct"]
    assert half == {"labeled_pct": half["labeled_pct"], "length": 0.5, "mean": 42.0, "spread": 2.0, "runs": 2}
    assert (whole["length"], whole["mean"], whole["spread"], whole["runs"]) == (1.0, 50.0, 0.0, 1)


def test_own_scribbles_are_found_by_their_folder(root: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("".join(f"class {i}\n" for i in range(17)))
    folders = {
        "IMAGES": root / "shapes/images/train",
        "LABELS": root / SCRIBBLE_SETS[HALF].folder,
        "CLASSES": tmp_path / "classes.txt",
    }
    keys = [word for key, path in folders.items() for word in (f"DATASETS.FOLDERS.{key}", str(path))]
    run_folder(tmp_path / "run", FULL, 30.0)
    cfg = tiny_psi_cfg("DATASETS.TRAIN", ("own_train",), "SOLVER.MAX_ITER", 4, *keys)
    (tmp_path / "run" / "config.yaml").write_text(cfg.dump())
    (run,) = read_runs(tmp_path / "run")
    assert (run.dataset, run.length, run.score) == ("own_train", 0.5, 30.0)


def test_unknown_budgets_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no finished training below it"):
        read_runs(tmp_path)
    run_folder(tmp_path / "run", "shapes_train_scribble_coarse_length_10", 30.0)
    with pytest.raises(FileNotFoundError, match=r"train\.json: not there, so it is unknown how much"):
        read_runs(tmp_path)
    with pytest.raises(ValueError, match="no training with scribbles"):
        draw_budget(tmp_path / "x.png", [budget_curves("full", [Run(tmp_path, DENSE, None, None, 60.0)])])


def test_curve_of_dots_and_one_without_length(tmp_path: Path) -> None:
    runs = [Run(tmp_path, "a", 0.1, 0.0, 20.0), Run(tmp_path, "b", 3.0, None, 30.0)]
    curves = [budget_curves("psi", runs), budget_curves("baseline", runs[:1])]
    assert [point.mean for point in curves[0].points] == [20.0, 30.0]
    draw_budget(tmp_path / "curve.png", curves)
    picture(tmp_path / "curve.png")
