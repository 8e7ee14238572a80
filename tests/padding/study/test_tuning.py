# SPDX-License-Identifier: Apache-2.0
"""Equal tuning: every row gets as many settings, halves stay apart, nothing is repeated, the segmentor runs once."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model

import padding
from padding.data.catalog import register_all
from padding.data.files import write_json
from padding.data.shapes.classes import ShapesConfig
from padding.data.shapes.write import write_shapes
from padding.data.streams import build_eval_loader
from padding.engine import load_cfg
from padding.evaluation.panoptic import PanopticGroundTruth
from padding.evaluation.semantic import SemanticGroundTruth
from padding.modeling.maskformer import MaskFormer
from padding.study import half_measures, tuning
from padding.study.ablation import rows_of_table
from padding.study.curve import GAMMAS, half_of_images, seen_unseen_curve
from padding.study.half_measures import (
    SEMANTIC_GAMMAS,
    THRESHOLDS,
    TUNING_GAMMAS,
    PanopticHalves,
    SemanticHalves,
    half_measures_of,
)
from padding.study.seen_bias import QueryPrediction, Sizes, postprocess_with_bias, raw_predictions
from padding.study.table_rows import with_nan
from padding.study.task_sweeps import MaskGrid, sweep_masks
from padding.study.tuning import Choice, choose, main, settings_of, to_markdown
from tests.panoptic_reference import sweep_panoptic

CONFIGS = Path(__file__).parents[3] / "configs"
SHAPES = str(CONFIGS / "shapes_zsp.yaml")
QUICK = ("SOLVER.MAX_ITER", "2", "MODEL.PADING.FEATURE_BANK.IMAGES_PER_BATCH", "4", "SOLVER.IMS_PER_BATCH", "4")


def cfg_of(config: str, *opts: str) -> Any:
    return load_cfg(config, opts, (padding.add_padding_config,))


@pytest.fixture(scope="module")
def segmentors(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two untrained segmentors over a small embedded data set, which stays registered."""
    root = tmp_path_factory.mktemp("tuning")
    write_shapes(root, ShapesConfig(num_train=8, num_val=8))
    register_all(root)
    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = build_model(cfg_of(str(CONFIGS / "shapes_zsp_pretrain.yaml")))
        paths.append(str(root / f"segmentor_{seed}.pth"))
        torch.save({"model": model.state_dict()}, paths[-1])
    return paths


@pytest.fixture
def data_root(segmentors: list[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    root = Path(segmentors[0]).parent
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    return root


def test_every_row_has_as_many_settings() -> None:
    rows = [row for row in rows_of_table("1", cfg_of(SHAPES)) if row.trained]
    assert len({len(settings_of(row)) for row in rows}) == 1
    for row in rows:
        nodes = [cfg_of(SHAPES, *row.options, *options).MODEL.PADING for options in settings_of(row)]
        found = [(n.CLASSIFIER.UNSEEN_WEIGHT, n.CLASSIFIER.NUM_PER_CLASS, n.PROJECTION.TEMPERATURE) for n in nodes]
        assert len(set(found)) == len(found)  # each one differs from the others


def test_supervised_row_cannot_be_tuned() -> None:
    supervised = rows_of_table("1", cfg_of(SHAPES))[0]
    with pytest.raises(ValueError, match="not trained"):
        settings_of(supervised)


def test_best_point_of_all_settings_is_chosen() -> None:
    def point(hm: float, threshold: float = 0.5) -> dict[str, float]:
        return {"threshold": threshold, "gamma": 1.0, "seen": 1.0, "unseen": 1.0, "hm": hm}

    results = {
        ("K", "1"): {"points": [point(float("nan")), point(30.0)]},
        ("K", "2"): {"points": [point(20.0), point(40.0, 0.1)]},
        ("K", "3"): {"points": [point(40.0, 0.7)]},
    }
    assert choose(results) == Choice(("K", "2"), 0.1, 1.0, 40.0)


def knowing_model(cfg: Any, truth: PanopticGroundTruth) -> MaskFormer:
    """A segmentor whose queries are the true segments, noisily named; run it over all images in their order."""
    num_classes, waiting = truth.groups.num_classes, itertools.cycle(truth.image_ids)

    def predict_queries(_images: Any) -> dict[str, torch.Tensor]:
        image_id = next(waiting)
        id_map, segments = truth.read(image_id)
        noise = torch.Generator().manual_seed(int(image_id))
        logits = torch.randn(1, len(segments), num_classes + 1, generator=noise)
        masks = torch.stack([torch.from_numpy(id_map == segment["id"]) for segment in segments])
        for query, segment in enumerate(segments):
            logits[0, query, segment["category_id"]] += 4.0
        return {"pred_logits": logits, "pred_masks": masks[None].float() * 8 - 4}

    model = build_model(cfg).eval()
    model.predict_queries = predict_queries
    model.class_logits = lambda outputs: outputs["pred_logits"]
    return model


def test_halves_are_measured_as_by_hand(data_root: Path) -> None:
    """The cached, joint measurement equals running each image and setting through the ordinary post-processing."""
    cfg = cfg_of(SHAPES, "MODEL.WEIGHTS", "")
    truth = PanopticGroundTruth.of_dataset(cfg.DATASETS.TEST[0])
    measures, model = PanopticHalves(), knowing_model(cfg, truth)
    raw = list(raw_predictions(model, build_eval_loader(cfg, cfg.DATASETS.TEST[0])))
    points = measures.on_half_a(cfg, model)["points"]
    assert [(p["threshold"], p["gamma"]) for p in points] == [(t, g) for t in THRESHOLDS for g in TUNING_GAMMAS]
    assert 10 < max(point["seen"] for point in points) < 100
    seen_ids, threshold = truth.groups.seen_ids, model.inference.object_mask_threshold
    of_a = [entry for entry in raw if half_of_images(truth.image_ids)[entry["image_id"]] == 0]
    sweep = sweep_panoptic(of_a, lambda g: postprocess_with_bias(model, seen_ids, g), truth, TUNING_GAMMAS)
    by_hand = seen_unseen_curve(TUNING_GAMMAS, sweep.scores("a"), truth.groups)
    assert [p["seen"] for p in points if p["threshold"] == threshold] == list(by_hand.seen)
    report = measures.on_half_b(cfg, model)
    sweep = sweep_panoptic(raw, lambda g: postprocess_with_bias(model, seen_ids, g), truth, GAMMAS)
    curve = seen_unseen_curve(GAMMAS, sweep.scores("b"), truth.groups)
    assert report["seen"] == curve.seen[GAMMAS.index(report["gamma"])]
    assert report["unseen"] == curve.unseen[GAMMAS.index(report["gamma"])]


def test_table_of_two_segmentors_is_not_repeated(
    data_root: Path, segmentors: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(tuning, "_PROJECTION", tuning._PROJECTION[:2])
    passes: list[str] = []
    run: Callable[..., Any] = half_measures.segmentor_outputs
    monkeypatch.setattr(half_measures, "segmentor_outputs", lambda *given: passes.append("run") or run(*given))
    chosen = ["--rows", "projection", "--seeds", "2", "--output", str(tmp_path)]
    call = ["--config-file", SHAPES, "--segmentors", *segmentors, *chosen, "--", *QUICK]
    content = main(call)
    # Two settings with seed 0 on the first segmentor, of which one is used again; 2 segmentors x 2 seeds in all.
    assert capsys.readouterr().out.count("$ python train_net.py") == 2 + 3
    assert len(passes) == len(segmentors)  # not one for each of the 6 measurements
    stored = json.loads((tmp_path / "tuning.json").read_text())
    assert list(stored["chosen"]) == ["projection"]
    found = [(run["segmentor"], run["seed"]) for run in stored["runs"]["projection"]]
    assert found == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert (tmp_path / "tuning.md").read_text().strip() == content["markdown"]
    again = main(call)
    assert "train_net.py" not in capsys.readouterr().out
    assert again["markdown"] == content["markdown"]
    assert len(passes) == len(segmentors)


def named_segments(truth: SemanticGroundTruth, *, half: int) -> Iterator[QueryPrediction]:
    """Queries that are the true segments; those of unseen classes look more like class 0, by 2."""
    for image_id in truth.image_ids:
        if half_of_images(truth.image_ids)[image_id] != half:
            continue
        labels = torch.from_numpy(truth.read(image_id).astype("int64"))
        classes = [label for label in labels.unique().tolist() if label != truth.ignore_label]
        logits = torch.zeros(len(classes), truth.groups.num_classes + 1)
        for query, class_id in enumerate(classes):
            seen = class_id in truth.groups.seen_ids
            logits[query, class_id] = 40.0 if seen else 20.0
            logits[query, 0] += 0.0 if seen else 22.0
        size = (labels.shape[0], labels.shape[1])
        masks = torch.stack([(labels == class_id).float() * 40 - 20 for class_id in classes])
        sizes: Sizes = {"padded_size": size, "image_size": size, "output_size": size}
        yield QueryPrediction(image_id, logits, masks, sizes)


@pytest.mark.usefixtures("restored_catalogs")
def test_labels_of_photographs_are_tuned_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean IoU of the shipped photographs: half B is reported on all pixels at the gamma that is best on half A."""
    register_all(tmp_path)
    dataset = "coco_samples_val_sem_seg_zss"
    measures = half_measures_of(dataset)
    assert isinstance(measures, SemanticHalves)
    cfg: Any = SimpleNamespace(DATASETS=SimpleNamespace(TEST=(dataset,)))
    truth: SemanticGroundTruth = measures.truth_of(cfg)
    model: Any = None
    monkeypatch.setattr(measures, "predictions", lambda *_, half: named_segments(truth, half=half))
    points = measures.on_half_a(cfg, model)["points"]
    assert [point["gamma"] for point in points] == list(SEMANTIC_GAMMAS)
    write_json(tmp_path / "points.json", {"points": points})
    read = with_nan(json.loads((tmp_path / "points.json").read_text()))
    assert choose({(): read}).threshold is None, "a number would be taken for an object-mask threshold"
    report = measures.on_half_b(cfg, model)
    assert report["gamma"] == 3.0  # unseen queries lack 2 in their logits; of equal gammas the smallest
    half_b = named_segments(truth, half=1)
    grids = ((raw.image_id, raw.class_logits, MaskGrid.of(raw, truth.read(raw.image_id), 1)) for raw in half_b)
    exact = sweep_masks(grids, truth, (3.0,)).scores("b")
    curve = seen_unseen_curve((3.0,), exact, truth.groups, "iou")
    assert (report["seen"], report["unseen"]) == (curve.seen[0], curve.unseen[0])
    assert report["unseen"] > 90
    assert report["hm_at_gamma_0"] == 0.0


def test_another_grid_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = tuning._grid_digest()
    monkeypatch.setattr(tuning, "THRESHOLDS", (0.5,))
    assert tuning._grid_digest() != before


def test_markdown_shows_each_segmentor_and_the_choice() -> None:
    runs = [
        {"segmentor": s, "seed": 0, "AUSUC": 0.2 + 0.02 * s, "hm": 40.0 + s, "seen": 50.0, "unseen": 30.0,
         "hm_at_gamma_0": float("nan")}
        for s in range(2)
    ]  # fmt: skip
    table = to_markdown({"P": runs}, {"P": Choice(("A", "5.0", "B", "4"), 0.3, 1.0, 41.0)})
    line = [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]
    assert line[0] == "P"
    assert line[1:3] == ["21.0 ± 1.4", "40.5 ± 0.7"]
    assert line[5] == "-"
    assert line[6:] == ["20.0; 40.0", "22.0; 41.0", "5.0, 4; threshold 0.3"]


def test_gamma_alone_trains_each_row_as_it_is_configured(
    data_root: Path, segmentors: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--rows", "supervised,projection", "--seeds", "1", "--gamma-only", "--output", str(tmp_path)]
    content = main(["--config-file", SHAPES, "--segmentors", segmentors[0], *chosen, "--", *QUICK])
    assert capsys.readouterr().out.count("$ python train_net.py") == 1
    assert [choice["options"] for choice in content["chosen"].values()] == [(), ()]
    assert [len(runs) for runs in content["runs"].values()] == [1, 1]
    assert content["runs"]["supervised"][0]["unseen"] == 0.0


def test_wrong_arguments_are_named(capsys: pytest.CaptureFixture[str], data_root: Path, segmentors: list[str]) -> None:
    call = ["--config-file", SHAPES, "--segmentors", *segmentors]
    for wrong, message in (
        (["--seeds", "0"], "at least one seed"),
        (["--rows", "gmn"], "known are supervised, projection, gmmn"),
    ):
        with pytest.raises(SystemExit):
            main([*call, *wrong])
        assert message in capsys.readouterr().err
