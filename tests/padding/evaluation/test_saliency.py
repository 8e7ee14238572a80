# SPDX-License-Identifier: Apache-2.0
import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from detectron2.config import CfgNode
from PIL import Image

from padding.evaluation.build import build_evaluator
from padding.evaluation.saliency import SaliencyEvaluator, saliency_at_size
from padding.evaluation.saliency_metrics import SaliencyTotals, image_scores, min_max_normalized

Dataset = tuple[str, list[dict[str, Any]], list[np.ndarray]]
SIZES = ((24, 32), (20, 30), (24, 32), (17, 40))


def write_maps(folder: Path) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Grey PNGs with soft borders; returns dicts and what is salient in them."""
    rng = np.random.default_rng(0)
    records, truths = [], []
    for index, size in enumerate(SIZES):
        grey = rng.integers(0, 129, size, dtype=np.uint8)
        grey[4 : 10 + index, 5:15] = rng.integers(129, 256, (6 + index, 10))
        Image.fromarray(grey).save(folder / f"{index}.png")
        records.append({"file_name": f"{index}.jpg", "saliency_file_name": str(folder / f"{index}.png")})
        truths.append(grey > 128)
    return records, truths


@pytest.fixture
def dataset(tmp_path: Path, register: Callable[..., str]) -> Dataset:
    records, truths = write_maps(tmp_path)
    return register("tiny_saliency", records, evaluator_type="saliency"), records, truths


def predictions_of(truths: list[np.ndarray]) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        {"saliency": 0.1 + 0.3 * torch.from_numpy(t).float() + 0.3 * torch.rand(t.shape, generator=generator)}
        for t in truths
    ]


def test_perfect_and_inverted_predictions(dataset: Dataset) -> None:
    name, records, truths = dataset
    for inverted in (False, True):
        evaluator = SaliencyEvaluator(name)
        evaluator.process(records, [{"saliency": torch.from_numpy(t ^ inverted).float()} for t in truths])
        results = evaluator.evaluate()["saliency"]
        assert results["MAE"] == results["MAE_normalized"] == float(inverted)
        for key in ("adaptive_F", "S", "adaptive_E"):
            assert results[key] == pytest.approx(100.0 * (not inverted), abs=1e-9)
        # An inverted map has its best F where everything is predicted.
        assert results["max_F"] == pytest.approx(100.0) if not inverted else results["max_F"] < 40


def test_results_are_means_over_images_with_and_without_stretching(dataset: Dataset) -> None:
    name, records, truths = dataset
    outputs = predictions_of(truths)
    evaluator = SaliencyEvaluator(name)
    for record, output in zip(records, outputs, strict=True):  # in batches of one
        evaluator.process([record], [output])
    results = evaluator.evaluate()["saliency"]
    for suffix, stretch in (("", lambda values: values), ("_normalized", min_max_normalized)):
        expected = SaliencyTotals()
        for output, truth in zip(outputs, truths, strict=True):
            expected += SaliencyTotals.of_image(image_scores(stretch(output["saliency"].numpy()), truth))
        for key, value in expected.results().items():
            assert results[f"{key}{suffix}"] == pytest.approx(value, rel=1e-9)
    assert results["max_F"] == pytest.approx(results["max_F_normalized"], abs=5)  # stretching keeps the order
    assert results["MAE"] > results["MAE_normalized"]
    assert (results["num_images"], results["num_images_without_object"]) == (4, 0)
    evaluator.reset()
    assert evaluator.evaluate()["saliency"]["num_images"] == 0


def test_predictions_of_another_size_are_resized(dataset: Dataset) -> None:
    name, records, truths = dataset
    half = [{"saliency": torch.from_numpy(t[::2, ::2]).half()[None]} for t in truths]
    evaluator = SaliencyEvaluator(name)
    evaluator.process(records, half)
    assert 0 < evaluator.evaluate()["saliency"]["MAE"] < 0.1
    ramp = torch.tensor([[0.0, 1.0]])
    np.testing.assert_allclose(saliency_at_size(ramp, (1, 4)), [[0.0, 0.25, 0.75, 1.0]])
    np.testing.assert_array_equal(saliency_at_size(ramp, (1, 2)), ramp.numpy())


def test_derived_saliency_leaves_void_out(tmp_path: Path, register: Callable[..., str], caplog: Any) -> None:
    """Classes 1 and 2 are salient; a third of the image is void, where the prediction is wrong, and one image all."""
    labels = np.zeros((6, 9), dtype=np.uint8)
    labels[:, 3:5], labels[:, 5], labels[:, 6:] = 1, 2, 255
    records = []
    for index, content in enumerate((labels, np.full((6, 9), 255, np.uint8))):
        Image.fromarray(content).save(tmp_path / f"{index}.png")
        files = {"file_name": f"{index}.jpg", "sem_seg_file_name": str(tmp_path / f"{index}.png")}
        records.append({**files, "salient_classes": (1, 2)})
    evaluator = SaliencyEvaluator(register("derived", records))
    prediction = torch.from_numpy((labels == 1) | (labels == 2)).float()
    prediction[:, 6:] = torch.rand(6, 3)
    with caplog.at_level(logging.WARNING):
        evaluator.process(records, [{"saliency": prediction}] * 2)
    assert "1.jpg: no pixel is labeled" in caplog.text
    results = evaluator.evaluate()["saliency"]
    assert results["num_images"] == 1
    for key, value in {"MAE": 0.0, "adaptive_F": 100.0, "S": 100.0, "max_E": 100.0}.items():
        assert results[key] == pytest.approx(value, abs=1e-9)
        assert results[f"{key}_normalized"] == pytest.approx(value, abs=1e-9)


def test_two_ranks_equal_one(dataset: Dataset, two_ranks: Callable[..., None]) -> None:
    name, records, truths = dataset
    outputs = predictions_of(truths)
    whole, main, other = (SaliencyEvaluator(name) for _ in range(3))
    whole.process(records, outputs)
    main.process(records[:1], outputs[:1])
    other.process(records[1:], outputs[1:])
    expected = whole.evaluate()["saliency"]
    two_ranks(None, other.totals)
    assert main.evaluate()["saliency"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("second_rank")
def test_other_ranks_return_none_and_write_nothing(dataset: Dataset, tmp_path: Path) -> None:
    assert SaliencyEvaluator(dataset[0], tmp_path / "out").evaluate() is None
    assert not (tmp_path / "out").exists()


def _evaluate_share(rank: int, name: str, records: list[dict[str, Any]], outputs: list[Any], folder: str) -> None:
    """Body of a process: every second image, gathered by Detectron2's own communication."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    evaluator = SaliencyEvaluator(name, Path(folder, "out"))
    evaluator.process(records[rank::2], outputs[rank::2])
    results = evaluator.evaluate()
    assert (results is None) == (rank == 1)
    torch.distributed.destroy_process_group()


def test_two_processes_gather(dataset: Dataset, tmp_path: Path) -> None:
    name, records, truths = dataset
    outputs = predictions_of(truths)
    whole = SaliencyEvaluator(name)
    whole.process(records, outputs)
    # A forked child has torch imported and the data set registered already.
    mp.start_processes(_evaluate_share, args=(name, records, outputs, str(tmp_path)), nprocs=2, start_method="fork")
    written = json.loads((tmp_path / "out" / "saliency.json").read_text())["results"]
    assert written == pytest.approx(whole.evaluate()["saliency"])


def test_files_hold_results_and_curves(dataset: Dataset, tmp_path: Path) -> None:
    name, records, truths = dataset
    evaluator = SaliencyEvaluator(name, tmp_path / "out")
    evaluator.process(records, predictions_of(truths))
    results = evaluator.evaluate()["saliency"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"saliency.json", "pr_curve.csv", "pr_curve.png"}
    content = json.loads((tmp_path / "out" / "saliency.json").read_text())
    assert content["results"] == pytest.approx(results)
    with (tmp_path / "out" / "pr_curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["threshold"]) for row in rows] == list(range(256))
    assert (float(rows[0]["recall"]), float(rows[0]["recall_normalized"])) == (1.0, 1.0)
    assert 100 * max(float(row["F_normalized"]) for row in rows) == pytest.approx(results["max_F_normalized"], abs=1e-3)
    picture = np.asarray(Image.open(tmp_path / "out" / "pr_curve.png").convert("RGB"))
    assert picture.shape[0] > 300
    assert picture.std() > 5  # not blank


def test_nothing_to_report_is_written_as_null(dataset: Dataset, tmp_path: Path) -> None:
    SaliencyEvaluator(dataset[0], tmp_path / "out").evaluate()
    assert json.loads((tmp_path / "out" / "saliency.json").read_text())["results"]["max_F"] is None


def test_type_of_the_data_set_chooses_the_evaluator(dataset: Dataset, tmp_path: Path) -> None:
    cfg = CfgNode({"OUTPUT_DIR": str(tmp_path), "TEST": {"EVALUATION_WORKERS": 0}})
    evaluator = build_evaluator(cfg, dataset[0])
    assert isinstance(evaluator, SaliencyEvaluator)
    evaluator.evaluate()
    assert (tmp_path / "inference" / "tiny_saliency" / "saliency.json").is_file()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"sem_seg": None}, r"0\.jpg: the prediction has only \['sem_seg'\].*MODEL\.SALSEG\.TEST\.SALIENCY to True"),
        ({"saliency": torch.full((24, 32), 3.0)}, r"0\.jpg: saliency must lie in \[0, 1\].*logits"),
        ({"saliency": torch.zeros(2, 24, 32)}, r"0\.jpg: saliency is .*shape \(2, 24, 32\); expected floats"),
        ({"saliency": torch.zeros(24, 32, dtype=torch.int64)}, r"0\.jpg: saliency is torch\.int64"),
    ],
)
def test_errors_name_file_and_cure(dataset: Dataset, output: dict[str, Any], message: str) -> None:
    name, records, _ = dataset
    with pytest.raises(ValueError, match=message):
        SaliencyEvaluator(name).process(records[:1], [output])


def test_image_of_another_set_is_an_error(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="not an image of data set 'tiny_saliency'"):
        SaliencyEvaluator(dataset[0]).process([{"file_name": "stranger.jpg"}], [{"saliency": torch.zeros(2, 2)}])
