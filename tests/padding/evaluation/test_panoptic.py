# SPDX-License-Identifier: Apache-2.0
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from panopticapi.utils import rgb2id
from PIL import Image

from padding.data.class_split import ClassSplit
from padding.data.files import save_panoptic_png
from padding.data.mappers import PanopticMapper
from padding.data.readers import read_panoptic_ids
from padding.data.sets.coco_photographs import photograph_files, samples_dir
from padding.errors import DataError, MissingFileError
from padding.evaluation.panoptic import PanopticEvaluator
from tests.panoptic_reference import official_results

Dataset = Callable[..., tuple[str, list[dict[str, Any]]]]


@pytest.fixture
def scenes(
    random_scene: Callable[..., Any], as_prediction: Callable[..., Any]
) -> tuple[list[Any], list[dict[str, Any]]]:
    """Eight scenes and imperfect predictions of them."""
    rng = np.random.default_rng(5)
    truth = [random_scene(rng) for _ in range(8)]
    outputs = []
    for id_map, segments in truth:
        pred_map, pred = as_prediction(id_map, segments, rng)
        pred = [s for s in pred if (pred_map == s["id"]).any()]
        outputs.append({"panoptic_seg": (torch.from_numpy(pred_map).int(), pred)})
    return truth, outputs


def test_png_holds_what_panopticapi_reads(tmp_path: Path) -> None:
    id_map = np.random.default_rng(0).integers(0, 2**24, (7, 9))
    save_panoptic_png(id_map, tmp_path / "x.png")
    np.testing.assert_array_equal(rgb2id(np.array(Image.open(tmp_path / "x.png"))), id_map)
    np.testing.assert_array_equal(read_panoptic_ids(tmp_path / "x.png"), id_map)


def test_rgba_png_reads_like_rgb(tmp_path: Path) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_panoptic_ids(tmp_path / "x.png"), rgb2id(rgba[..., :3]))


def test_ground_truth_as_prediction_is_perfect(panoptic_dataset: Dataset, random_scene: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng, crowds=0) for _ in range(5)]
    name, records = panoptic_dataset(scenes)
    evaluator = PanopticEvaluator(name)
    evaluator.process(records, [{"panoptic_seg": (torch.from_numpy(m).int(), s)} for m, s in scenes])
    results = evaluator.evaluate()["panoptic_seg"]
    quantities = [f"{n}{g}" for n in ("PQ", "SQ", "RQ") for g in ("", "_seen", "_unseen", "_hm", "_things", "_stuff")]
    assert [results[key] for key in quantities] == [100.0] * len(quantities)
    assert (results["num_classes"], results["num_classes_seen"], results["num_classes_unseen"]) == (5, 3, 2)
    assert results["num_images"] == 5


@pytest.mark.reference
def test_official_count_equals_ours(panoptic_dataset: Dataset, scenes: Any, tmp_path: Path) -> None:
    truth, outputs = scenes
    name, records = panoptic_dataset(truth)
    evaluator = PanopticEvaluator(name)
    evaluator.process(records[:3], outputs[:3])
    evaluator.process(records[3:], outputs[3:])
    results = evaluator.evaluate()["panoptic_seg"]
    official = official_results(evaluator.truth, records, outputs, tmp_path / "predictions")
    assert results == pytest.approx({**official, "num_images": len(records)}, rel=1e-12)
    assert 0 < results["PQ_unseen"] < 100


def test_groups_follow_the_per_class_table(panoptic_dataset: Dataset, scenes: Any, tmp_path: Path) -> None:
    truth, outputs = scenes
    name, records = panoptic_dataset(truth)
    evaluator = PanopticEvaluator(name, tmp_path / "out")
    evaluator.process(records, outputs)
    results = evaluator.evaluate()["panoptic_seg"]
    report = json.loads((tmp_path / "out" / "panoptic_seg_per_class.json").read_text())
    pq = {line["name"]: line["PQ"] for line in report["per_class"]}
    assert results["PQ_unseen"] == pytest.approx((pq["zebra"] + pq["sea"]) / 2)
    assert results["PQ_seen"] == pytest.approx((pq["cat"] + pq["dog"] + pq["road"]) / 3)
    assert results["PQ_stuff"] == pytest.approx((pq["road"] + pq["sea"]) / 2)
    markdown = (tmp_path / "out" / "panoptic_seg_per_class.md").read_text()
    assert f"| {results['PQ_hm']:.2f} |" in markdown.replace("  ", " ").replace("  ", " ")


def test_absent_class_is_left_out(panoptic_dataset: Dataset, tmp_path: Path) -> None:
    id_map = np.repeat([[4, 9]], 4, axis=0)
    scene = (id_map, [{"id": 4, "category_id": 0, "iscrowd": 0}, {"id": 9, "category_id": 4, "iscrowd": 0}])
    name, records = panoptic_dataset([scene])
    evaluator = PanopticEvaluator(name, tmp_path / "out")
    evaluator.process(records, [{"panoptic_seg": (torch.from_numpy(id_map), scene[1])}])
    results = evaluator.evaluate()["panoptic_seg"]
    assert results["PQ"] == results["PQ_unseen"] == 100.0
    assert (results["num_classes_seen"], results["num_classes_unseen"]) == (1, 1)
    report = json.loads((tmp_path / "out" / "panoptic_seg_per_class.json").read_text())
    assert report["absent_classes"] == ["dog", "zebra", "road"]


def test_two_ranks_equal_one(panoptic_dataset: Dataset, scenes: Any, two_ranks: Callable[..., None]) -> None:
    truth, outputs = scenes
    name, records = panoptic_dataset(truth)
    whole, main, other = (PanopticEvaluator(name) for _ in range(3))
    whole.process(records, outputs)
    expected = whole.evaluate()["panoptic_seg"]
    main.process(records[:3], outputs[:3])
    other.process(records[3:], outputs[3:])
    two_ranks(None, copy.deepcopy(other._quality))
    assert main.evaluate()["panoptic_seg"] == pytest.approx(expected)


@pytest.mark.usefixtures("second_rank")
def test_other_ranks_return_none(panoptic_dataset: Dataset, scenes: Any) -> None:
    truth, _ = scenes
    assert PanopticEvaluator(panoptic_dataset(truth)[0]).evaluate() is None


def test_reset_forgets(panoptic_dataset: Dataset, scenes: Any) -> None:
    truth, outputs = scenes
    name, records = panoptic_dataset(truth)
    evaluator = PanopticEvaluator(name)
    evaluator.process(records, outputs)
    first = evaluator.evaluate()
    evaluator.reset()
    evaluator.process(records, outputs)
    assert evaluator.evaluate() == first


def test_errors_name_image_and_cure(panoptic_dataset: Dataset, scenes: Any, tmp_path: Path) -> None:
    truth, outputs = scenes
    name, records = panoptic_dataset(truth)
    evaluator = PanopticEvaluator(name)
    small = {"panoptic_seg": (torch.zeros((2, 2), dtype=torch.int32), [])}
    with pytest.raises(ValueError, match=r"1\.jpg \(image 1\): prediction has shape \(2, 2\)"):
        evaluator.process(records[:1], [small])
    with pytest.raises(ValueError, match="PANOPTIC_ON"):
        evaluator.process(records[:1], [{"sem_seg": None}])
    with pytest.raises(ValueError, match="no annotation of image 77"):
        evaluator.process([{**records[0], "image_id": 77}], outputs[:1])
    (tmp_path / "panoptic" / "2.png").unlink()
    with pytest.raises(MissingFileError, match=r"2\.png: no such file"):
        evaluator.process(records[1:2], outputs[1:2])
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / "panoptic" / "3.png")
    with pytest.raises(ValueError, match=r"3\.png: segment ids are stored as 8-bit RGB.*mode L"):
        evaluator.process(records[2:3], outputs[2:3])


@pytest.mark.parametrize("factor", [0, 0.5, 3, -1])
def test_areas_of_the_json_are_counted_and_compared(
    panoptic_dataset: Dataset, random_scene: Callable[..., Any], factor: float, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng, crowds=0) for _ in range(3)]
    wrong = [(m, [{**s, "area": s["area"] * factor + 0.25} for s in segments]) for m, segments in scenes]
    name, records = panoptic_dataset(wrong)
    evaluator = PanopticEvaluator(name)
    evaluator.process(records, [{"panoptic_seg": (torch.from_numpy(m).int(), s)} for m, s in scenes])
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == 100.0
    first = scenes[0][1][0]
    assert f"segment {first['id']} of 1.png has the area {first['area'] * factor + 0.25:g}" in caplog.text
    assert f"its pixels are {first['area']}" in caplog.text
    total = sum(len(segments) for _, segments in scenes)
    assert f"{total} segments read by this process have another 'area' than pixels" in caplog.text


def palette(ids: np.ndarray) -> Image.Image:
    image = Image.fromarray((ids % 7).astype(np.uint8), mode="P")
    image.putpalette(list(range(21)))
    return image


BROKEN = {
    "grey": (lambda ids: Image.fromarray(ids.astype(np.uint8)), "8-bit RGB, but this is an image of mode L"),
    "palette": (palette, "8-bit RGB, but this is an image of mode P"),
    "16 bits": (lambda ids: Image.fromarray(ids.astype(np.uint16)), "8-bit RGB, but this is an image of mode I;16"),
    "black": (lambda ids: Image.new("RGB", ids.shape[::-1]), "no pixel of the segments"),
    "another": (lambda ids: Image.new("RGB", ids.shape[::-1], (1, 2, 3)), "no pixel of the segments"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_training_and_evaluation_refuse_the_same_png(
    panoptic_dataset: Dataset, random_scene: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    ids, segments = random_scene(np.random.default_rng(0))
    name, records = panoptic_dataset([(ids, segments)])
    draw, message = BROKEN[kind]
    path = tmp_path / "panoptic" / "1.png"
    draw(ids).save(path)
    with pytest.raises(DataError, match=rf"1\.png: .*{message}"):
        PanopticEvaluator(name).truth.read(1)
    entry = {**records[0], "pan_seg_file_name": str(path), "segments_info": segments}
    with pytest.raises(DataError, match=rf"1\.png: .*{message}"):
        PanopticMapper(is_train=True, plan=None).read_labels(entry, ids.shape)


@pytest.mark.parametrize(
    ("change", "in_file", "in_entry"),
    [
        (lambda s: s.append({**s[0], "id": 5}), "5", r"no pixel of the segments \[5\]"),
        (lambda s: s.append({**s[0]}), "more than once", "more than once"),
        (lambda s: s[0].update(id=0), "lists segment ids from 0", "lists segment ids from 0"),
        (lambda s: s.pop(), "which the panoptic JSON does not list", "which the panoptic JSON does not list"),
    ],
)
def test_training_and_evaluation_refuse_the_same_list_of_segments(
    panoptic_dataset: Dataset,
    random_scene: Callable[..., Any],
    change: Any,
    in_file: str,
    in_entry: str,
    tmp_path: Path,
) -> None:
    ids, segments = random_scene(np.random.default_rng(0))
    changed = [dict(segment) for segment in segments]
    change(changed)
    name, records = panoptic_dataset([(ids, segments)])
    content = json.loads((tmp_path / "panoptic.json").read_text())
    change(content["annotations"][0]["segments_info"])
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"panoptic(\.json|/1\.png).*{in_file}"):
        PanopticEvaluator(name).truth.read(1)
    entry = {**records[0], "pan_seg_file_name": str(tmp_path / "panoptic" / "1.png"), "segments_info": changed}
    with pytest.raises(DataError, match=rf"1\.png: .*{in_entry}"):
        PanopticMapper(is_train=True, plan=None).read_labels(entry, ids.shape)


def test_broken_json_is_named(panoptic_dataset: Dataset, scenes: Any, tmp_path: Path) -> None:
    name, _ = panoptic_dataset(scenes[0])
    text = (tmp_path / "panoptic.json").read_text()
    (tmp_path / "panoptic.json").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"panoptic\.json: not valid JSON"):
        PanopticEvaluator(name)
    (tmp_path / "panoptic.json").write_text(text.replace('"category_id": 11', '"category_id": 99'))
    with pytest.raises(DataError, match=r"panoptic\.json: segment \d+ of image \d\.png has the unknown category id 99"):
        PanopticEvaluator(name)
    # The file knows the category, the data set does not.
    (tmp_path / "panoptic.json").write_text(
        text.replace('"category_id": 11', '"category_id": 99').replace('"id": 11,', '"id": 99,')
    )
    truth = PanopticEvaluator(name).truth
    with pytest.raises(ValueError, match=r"image \d, segment \d+: category_id 99"):
        [truth.read(image_id) for image_id in truth.image_ids]


def test_real_coco_ground_truth_scores_100(register: Callable[..., str]) -> None:
    """Ground truth of the shipped photographs fed back as prediction."""
    files = photograph_files(samples_dir(), "val")
    categories = json.loads(files["panoptic_json"].read_text())["categories"]
    name = register("real_panoptic", [], class_split=ClassSplit.from_categories(categories, ()), **files)
    evaluator = PanopticEvaluator(name)
    for image_id in evaluator.truth.image_ids:
        gt_map, gt = evaluator.truth.read(image_id)
        record = {"file_name": f"{image_id}.jpg", "image_id": image_id}
        # A crowd fed back would be an unmatched prediction on its own crowd region, which is forgiven.
        evaluator.process([record], [{"panoptic_seg": (torch.from_numpy(gt_map.astype(np.int32)), gt)}])
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == 100.0
