# SPDX-License-Identifier: Apache-2.0
"""Rows of Tables 1 to 3; a table from one segmentor and one bank, finished and interrupted runs, what is printed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model

import padding
from padding.data.catalog import register_all
from padding.data.shapes.classes import ShapesConfig
from padding.data.shapes.write import write_shapes
from padding.engine import load_cfg
from padding.errors import ConfigError
from padding.study import ablation
from padding.study.ablation import CONTROL, METHODS_OF_TABLE_1, ROWS, main, rows_of_table
from padding.study.curve import GAMMAS
from padding.study.table_rows import AblationRuns, Row, read_row, spread_text, sweep_table

CONFIGS = Path(__file__).parents[3] / "configs"
SHAPES = str(CONFIGS / "shapes_zsp.yaml")
QUICK = ("SOLVER.MAX_ITER", "2", "MODEL.PADING.FEATURE_BANK.IMAGES_PER_BATCH", "4", "SOLVER.IMS_PER_BATCH", "4")


def cfg_of(config: str, *opts: str) -> Any:
    return load_cfg(config, opts, (padding.add_padding_config,))


@pytest.mark.parametrize(
    ("config", "numbers"),
    [("shapes_zsp", [25, 50, 75, 100, 125, 150, 175]), ("coco_zsp", [100, 200, 300, 400, 500, 600, 700])],
)
def test_table_3_varies_the_number_of_primitives(config: str, numbers: list[int]) -> None:
    path = str(CONFIGS / f"{config}.yaml")
    rows = rows_of_table("3", cfg_of(path))
    nodes = [cfg_of(path, *row.options).MODEL.PADING for row in rows]
    assert [node.GENERATOR.NUM_PRIMITIVES for node in nodes] == numbers
    assert not any(node.ALIGN.ENABLED or node.DISENTANGLE.ENABLED for node in nodes)
    name = config.split("_")[0]
    files = sorted((CONFIGS / "ablations" / "padding").glob(f"{name}_primitives_[0-9]*.yaml"))
    assert [cfg_of(str(file)).MODEL.PADING.GENERATOR.NUM_PRIMITIVES for file in files] == numbers


def test_rows_of_table_1_are_the_paper_s() -> None:
    rows = rows_of_table("1", cfg_of(SHAPES))
    labels = ["supervised", "projection", "GMMN", "P", "P & A", "PADing", "control: random vectors"]
    assert [row.label for row in rows] == labels
    assert [row.trained for row in rows] == [False, *[True] * 6]
    found = [cfg_of(SHAPES, *row.options).MODEL.PADING for row in rows]
    methods = [(n.METHOD, n.GENERATOR.NAME == "gmmn", n.ALIGN.ENABLED, n.DISENTANGLE.ENABLED) for n in found[2:]]
    assert methods == [
        ("generative", True, False, False),
        ("generative", False, False, False),
        ("generative", False, True, False),
        *[("generative", False, True, True)] * 2,
    ]
    assert [n.EMBEDDINGS.RANDOM_SEED for n in found] == [*[-1] * 6, 0]
    assert [n.METHOD for n in found[:2]] == ["supervised", "projection"]
    assert found[4].ALIGN.SPACE == "visual"


@pytest.mark.parametrize("main", ["shapes_zsp", "coco_zsp", "coco128_zss"])
@pytest.mark.parametrize("row", {**METHODS_OF_TABLE_1, **CONTROL})
def test_every_row_has_a_configuration_of_its_own(row: str, main: str) -> None:
    """The YAML equals the main configuration with the row's keys put behind it."""
    own = cfg_of(str(CONFIGS / "ablations" / "padding" / f"{main.split('_')[0]}_{row}.yaml"))
    options = read_row(ROWS / f"{row}.yaml", row).options
    bank = () if row == "supervised" else ("MODEL.PADING.FEATURE_BANK.PATH", f"output/{main}/feature_bank")
    expected = cfg_of(str(CONFIGS / f"{main}.yaml"), *options, *bank, "OUTPUT_DIR", own.OUTPUT_DIR)
    assert own == expected


def test_vectors_of_the_control_follow_the_seed_of_the_run(tmp_path: Path) -> None:
    """One draw of random vectors may be lucky: each seed has its own, and its training is a run of its own."""
    control, method = (read_row(ROWS / f"{name}.yaml", name) for name in ("control", "padding"))
    ablation = AblationRuns(SHAPES, (), tmp_path)
    seeds = [ablation.configure(control, seed).MODEL.PADING.EMBEDDINGS.RANDOM_SEED for seed in range(3)]
    assert seeds == [0, 1, 2]
    assert ablation.configure(method, 2).MODEL.PADING.EMBEDDINGS.RANDOM_SEED == -1


@pytest.fixture(scope="module")
def segmentor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small embedded data set and the weights of an untrained segmentor; the data set stays registered."""
    root = tmp_path_factory.mktemp("ablation")
    write_shapes(root, ShapesConfig(num_train=8, num_val=6))
    register_all(root)
    torch.manual_seed(0)
    model = build_model(cfg_of(str(CONFIGS / "shapes_zsp_pretrain.yaml")))
    torch.save({"model": model.state_dict()}, root / "segmentor.pth")
    return root / "segmentor.pth"


@pytest.fixture
def data_root(segmentor: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(segmentor.parent))
    gammas, summary = (-1000.0, 0.0, 1000.0), ablation.sweep_summary
    monkeypatch.setattr(ablation, "sweep_summary", lambda cfg, model, _=(), **kind: summary(cfg, model, gammas, **kind))
    return segmentor.parent


def arguments(table: int | str, output: Path, segmentor: Path, rows: str, seeds: int) -> list[str]:
    chosen = ["--table", str(table), "--seeds", str(seeds), "--rows", rows, "--output", str(output)]
    return ["--config-file", SHAPES, *chosen, "MODEL.WEIGHTS", str(segmentor), *QUICK]


def test_table_comes_from_one_bank_and_is_not_repeated(
    data_root: Path, segmentor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = arguments(1, tmp_path, segmentor, "supervised,padding", 2)
    content = main(call)
    printed = capsys.readouterr().out
    assert printed.count("$ python train_net.py") == 2
    assert content["markdown"] in printed
    assert content["markdown"].count("tuned on half A") == 2
    assert len(list(tmp_path.glob("feature_bank/shard_*"))) == 1
    folders = sorted(path.parent.name.rsplit("_", 1)[0] for path in tmp_path.glob("*/model_final.pth"))
    assert folders == ["padding_seed0", "padding_seed1"]
    assert list(tmp_path.glob("*/model_0*.pth")) == []
    stored = json.loads((tmp_path / "table1.json").read_text())
    assert {label: len(runs) for label, runs in stored["rows"].items()} == {"supervised": 1, "PADing": 2}
    assert {"mean", "spread"} == set(stored["summary"]["PADing"]["PQ seen at gamma 0"])
    assert stored["summary"]["supervised"]["PQ unseen at gamma 0"]["mean"] == 0
    assert (tmp_path / "table1.md").read_text().strip() == content["markdown"]

    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*") if path.suffix in (".pth", ".json")}
    again = main(call)
    assert "train_net.py" not in capsys.readouterr().out
    assert again["markdown"] == content["markdown"]
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_runs_follow_what_they_depend_on(data_root: Path, segmentor: Path, tmp_path: Path) -> None:
    row = Row("P", "primitives")
    ablation = AblationRuns(SHAPES, ("MODEL.WEIGHTS", str(segmentor), *QUICK), tmp_path)
    same = AblationRuns(
        SHAPES, (*ablation.options, "MODEL.PADING.TEST.SEEN_BIAS", "2.0", "SOLVER.LOG_PERIOD", "7"), tmp_path
    )
    other = AblationRuns(SHAPES, (*ablation.options, "SOLVER.GENERATOR.BASE_LR", "0.5"), tmp_path)
    folder = ablation._folder(row, 0)
    assert folder == same._folder(row, 0)
    assert folder not in (other._folder(row, 0), ablation._folder(row, 1))
    changed = tmp_path / "other.pth"
    changed.write_bytes(b"other weights")
    assert AblationRuns(SHAPES, ("MODEL.WEIGHTS", str(changed), *QUICK), tmp_path)._folder(row, 0) != folder


def test_interrupted_run_continues(
    data_root: Path, segmentor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("MODEL.WEIGHTS", str(segmentor), *QUICK, "SOLVER.CHECKPOINT_PERIOD", "1")
    ablation, row = AblationRuns(SHAPES, options, tmp_path), read_row(ROWS / "primitives.yaml", "P")
    from padding.trainer import GeneratorClassifierTrainer

    run_step = GeneratorClassifierTrainer.run_step
    steps: list[int] = []

    def stopping(trainer: GeneratorClassifierTrainer) -> None:
        if trainer.iter == 1 and len(steps) == 1:
            steps.append(-1)
            raise KeyboardInterrupt
        steps.append(trainer.iter)
        run_step(trainer)

    monkeypatch.setattr(GeneratorClassifierTrainer, "run_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        ablation.train(row, 0)
    weights = ablation.train(row, 0)
    assert steps == [0, -1, 1]
    assert Path(weights).is_file()
    assert ablation.train(row, 0) == weights
    assert steps == [0, -1, 1]


def test_table_2_scores_boxes_masks_and_labels(
    data_root: Path, segmentor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = main(arguments(2, tmp_path, segmentor, "P", 1))
    lines = content["markdown"].splitlines()
    for column in ("box AP50", "mask AP50", "mIoU"):
        assert all(f"{column} {group}" in lines[0] for group in ("seen", "unseen", "HM"))
    assert len(lines) == 2 + 2
    # The models of Table 1 are these.
    printed = capsys.readouterr().out
    assert printed.count("$ python train_net.py") == 1
    main(arguments(1, tmp_path, segmentor, "P", 1))
    assert "train_net.py" not in capsys.readouterr().out
    stored = json.loads((tmp_path / "table2.json").read_text())
    assert set(stored["summary"]["P"]) > {"gamma 0 mIoU unseen", "gamma 0 box AP50 HM", "sweep mask AP50 best_hm"}


@pytest.mark.parametrize(("data", "whole"), [("zsp", True), ("zss", True), ("zsi", False)])
def test_average_precision_is_swept_over_fewer_gammas(
    data_root: Path, data: str, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[tuple[float, ...]] = []
    monkeypatch.setattr(ablation, "sweep_summary", lambda _cfg, _model, gammas=GAMMAS: swept.append(gammas) or {})
    ablation.dataset_sweep(cfg_of(str(CONFIGS / f"shapes_{data}.yaml")), None)
    assert (swept[0] == GAMMAS) is whole
    assert set(swept[0]) <= set(GAMMAS)
    assert 0.0 in swept[0]
    assert (swept[0][0], swept[0][-1]) == (GAMMAS[0], GAMMAS[-1])  # the area needs both ends


def test_bank_and_images_are_compared_alike(
    data_root: Path, segmentor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of_table("bank", cfg_of(SHAPES))
    cfgs = [cfg_of(SHAPES, "MODEL.PADING.FEATURE_BANK.ENABLED", "True", *row.options) for row in rows]
    assert [cfg.MODEL.PADING.FEATURE_BANK.ENABLED for cfg in cfgs] == [True, False]
    assert {cfg.MODEL.PADING.FEATURE_BANK.IMAGES_PER_BATCH for cfg in cfgs} == {cfgs[0].SOLVER.IMS_PER_BATCH}
    assert {cfg.MODEL.PADING.MMD.GROUPING for cfg in cfgs} == {"per_class"}
    call = ["--config-file", SHAPES, "--table", "bank", "--seeds", "1", "--output", str(tmp_path)]
    content = main([*call, "MODEL.WEIGHTS", str(segmentor), "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "4"])
    assert capsys.readouterr().out.count("$ python train_net.py") == 2
    costs = [line.split("|") for line in content["markdown"].splitlines()[-2:]]
    assert [cells[1].strip() for cells in costs] == ["from the bank", "from images"]
    assert all(float(cells[2]) > 0 for cells in costs)


@pytest.mark.parametrize(("task", "suffix"), [("zsp", ""), ("zss", "_semantic"), ("zsi", "_instance")])
def test_presets_of_every_task(task: str, suffix: str, tmp_path: Path) -> None:
    """The rows are the configuration with a preset's file behind it."""
    path = str(CONFIGS / f"shapes_{task}.yaml")
    rows = rows_of_table("presets", cfg_of(path))
    assert [row.label for row in rows] == ["PADing", "paper, as printed", "released recipe"]
    for row, preset in zip(rows[1:], ("padding_paper", f"padding_official{suffix}"), strict=True):
        file = tmp_path / f"{preset}.yaml"
        file.write_text(f'_BASE_: ["{path}", "{CONFIGS / "_base_" / preset}.yaml"]\n')
        assert cfg_of(path, *row.options) == cfg_of(str(file))
    # A training from images, whatever the table says of the others.
    assert not cfg_of(
        path, "MODEL.PADING.FEATURE_BANK.ENABLED", "True", *rows[2].options
    ).MODEL.PADING.FEATURE_BANK.ENABLED


def test_missing_segmentor_of_the_embedded_data_is_trained(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[str, str]] = []
    monkeypatch.setattr(
        ablation, "run_once", lambda config, options, output: called.append((Path(config).stem, str(output)))
    )
    monkeypatch.chdir(tmp_path)
    ablation.prepare(cfg_of(SHAPES), SHAPES)
    assert called == [
        ("shapes_backbone", "output/shapes_backbone"),
        ("shapes_zsp_pretrain", "output/shapes_zsp_pretrain"),
    ]
    path = str(CONFIGS / "coco_zsp.yaml")
    with pytest.raises(ConfigError, match=r"coco_zsp_pretrain/model_final.pth does not exist; train it.*coco_zsp_pre"):
        ablation.prepare(cfg_of(path), path)
    with pytest.raises(ConfigError, match=r"nowhere.pth does not exist$"):
        ablation.prepare(cfg_of(SHAPES, "MODEL.WEIGHTS", "nowhere.pth"), SHAPES)


def test_missing_data_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    monkeypatch.setattr(ablation, "ShapesConfig", lambda: ShapesConfig(num_train=2, num_val=2))
    (tmp_path / "weights.pth").touch()
    ablation.prepare(cfg_of(SHAPES, "MODEL.WEIGHTS", str(tmp_path / "weights.pth")), SHAPES)
    assert (tmp_path / "data" / "shapes" / "manifest.json").is_file()


def test_unknown_rows_and_seeds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in ((["--rows", "gan"], "gan: known are supervised"), (["--seeds", "0"], "at least one seed")):
        with pytest.raises(SystemExit):
            main(["--config-file", SHAPES, "--table", "1", *words])
        assert message in capsys.readouterr().err


def test_numbers_are_means_with_spread() -> None:
    nan = float("nan")
    assert spread_text([1.0, 3.0]) == "2.0 ± 1.4"
    assert spread_text([2.0]) == "2.0"
    assert spread_text([nan, 1.0]) == "-"
    best = {"best_hm": 3.0, "best_hm_seen": 1.0, "best_hm_unseen": 2.0, "best_hm_gamma": 1.5}
    curve = [{"gamma": 0.0, "seen": 10.0, "unseen": 20.0, "hm": 13.3}]
    summary = {"AUSUC": 0.25, "curve": curve, **best}
    lines = sweep_table({"PADing": [{"PQ": summary, "SQ": summary}] * 2}).splitlines()
    assert len(lines) == 4
    assert lines[2].count("10.0 ± 0.0") == 2
    assert "25.0 ± 0.0" in lines[2]
    assert "tuned on half A: 1.5 ± 0.0" in lines[3]
