# SPDX-License-Identifier: Apache-2.0
"""The example configurations of a user's own data run from the first step to the scores, on a few generated images."""

import contextlib
import io
import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.evaluation import pq_compute
from PIL import Image

import train_net
from padding.engine.commands import training_parser
from padding.engine.doctor import main as doctor
from tests.tiny_own import nothing_left, write_own_data

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.MAX_ITER", "2"]
SMALL += ["TEST.EVAL_PERIOD", "0", "SOLVER.WARMUP_ITERS", "0"]
FROM_NOTHING = ["MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "96"]
CROPS = ["INPUT.CROP.SIZE", "(64, 64)", "INPUT.SCALE_FACTORS", "(0.75, 1.25)"]


def trained(config: str, *opts: str) -> dict:
    words = ["--config-file", str(CONFIGS / f"{config}.yaml"), *SMALL, *opts]
    return train_net.main(train_net.parse(training_parser(None), words))


def evaluated_and_saved(config: str, weights: str, *opts: str) -> list[float]:
    """PQ of ``train_net.py --eval-only --save``, and that of what it saved by panopticapi, as fractions."""
    words = ["--config-file", str(CONFIGS / f"{config}.yaml"), "--eval-only", "--save", *SMALL, *opts]
    args = train_net.parse(training_parser(None), [*words, "MODEL.WEIGHTS", weights])
    results = train_net.main(args)["panoptic_seg"]
    folder = Path("output") / config / "inference" / "own_val" / "predictions"
    truth = json.loads(Path("my/panoptic.json").read_text())
    kept = {image["id"] for image in json.loads((folder / "panoptic.json").read_text())["images"]}
    truth["images"] = [image for image in truth["images"] if image["id"] in kept]
    truth["annotations"] = [entry for entry in truth["annotations"] if entry["image_id"] in kept]
    predicted = {c["name"]: c["id"] for c in json.loads((folder / "panoptic.json").read_text())["categories"]}
    assert predicted == {c["name"]: c["id"] for c in truth["categories"]}
    Path("truth.json").write_text(json.dumps(truth))
    with contextlib.redirect_stdout(io.StringIO()):
        scores = pq_compute("truth.json", str(folder / "panoptic.json"), "my/panoptic", str(folder / "panoptic"))
    return [results["PQ"] / 100, scores["All"]["pq"]]


@pytest.fixture(autouse=True)
def _own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """The user stands in a folder that holds ``my``."""
    write_own_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    with nothing_left():
        yield


def test_both_stages_of_zero_shot_panoptic_data_stand_in_one_file() -> None:
    mask = [*FROM_NOTHING, "INPUT.CROP.SIZE", "(64, 64)", "INPUT.SIZE_DIVISIBILITY", "64", "SOLVER.IMS_PER_BATCH", "2"]
    first = trained("own_zsp_pretrain", *mask)
    assert first["panoptic_seg"]["num_images"] == first["sem_seg"]["num_images"] == 2
    assert first["panoptic_seg"]["PQ_unseen"] == 0
    saved_scores = evaluated_and_saved("own_zsp_pretrain", "output/own_zsp_pretrain/model_final.pth", *mask[2:])
    assert saved_scores == pytest.approx([first["panoptic_seg"]["PQ"] / 100] * 2)
    # Weights come from the first stage by the path that the file names; vectors lie with the data.
    second = trained("own_zsp", *mask[2:], "MODEL.PADING.EMBEDDINGS.PATH", "my/vectors.npz")
    assert {"PQ_seen", "PQ_unseen", "PQ_hm"} <= second["panoptic_seg"].keys()
    assert second["panoptic_seg"]["num_classes_unseen"] == 2


def test_objects_are_learned_and_evaluated() -> None:
    mask = [*FROM_NOTHING, "INPUT.CROP.SIZE", "(64, 64)", "INPUT.SIZE_DIVISIBILITY", "64", "SOLVER.IMS_PER_BATCH", "2"]
    results = trained("own_instances", *mask)
    assert results["segm"]["num_images"] == 2
    assert Path("output/own_instances/model_best.pth").is_file()


def test_few_labels_and_unlabeled_images() -> None:
    opts = ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.IMS_PER_BATCH_UNLABELED", "1", *CROPS, *FROM_NOTHING[2:]]
    results = trained("own_tcc", *opts, "MODEL.TCC.CNN.WEIGHTS", "")
    assert results["sem_seg"]["num_images"] == 2


def test_scribbles_train_and_dense_labels_score(tmp_path: Path) -> None:
    for number in range(1, 7):  # nobody drew on the first image, and scribbles of the last two are not looked at
        if number in (1, 5, 6):
            (tmp_path / "my" / "scribbles" / f"{number:012d}.png").unlink()
        elif number < 5:
            (tmp_path / "my" / "labels" / f"{number:012d}.png").unlink()
    results = trained("own_psi", *FROM_NOTHING, *CROPS, "SOLVER.IMS_PER_BATCH", "2")
    assert results["sem_seg"]["num_images"] == 2
    assert [entry["image_id"][-1] for entry in DatasetCatalog.get("own_train")] == ["2", "3", "4"]
    assert MetadataCatalog.get("own_train").dense_set == "own_train_dense"


def test_classes_and_saliency() -> None:
    opts = ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.IMS_PER_BATCH_SALIENCY", "2", "INPUT.SALIENCY.SIZE", "(64, 64)"]
    results = trained("own_salseg", *FROM_NOTHING, *CROPS, *opts)
    assert results["own_val_saliency"]["saliency"]["num_images"] == results["own_val"]["sem_seg"]["num_images"] == 2


@pytest.mark.parametrize("config", ["own_zsp_pretrain", "own_instances", "own_tcc", "own_psi", "own_salseg"])
def test_the_doctor_knows_every_kind(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = doctor(["--config-file", str(CONFIGS / f"{config}.yaml"), "MODEL.DEVICE", "cpu"])
    shown = capsys.readouterr().out
    assert status == 0, shown
    assert "0 errors" in shown


def test_a_set_whose_key_is_missing_is_named_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config-file", str(CONFIGS / "own_salseg.yaml"), "MODEL.DEVICE", "cpu", "DATASETS.FOLDERS.SALIENCY", ""]
    assert doctor(words) == 1
    shown = capsys.readouterr().out
    assert "own_train_saliency (DATASETS.TRAIN_SALIENCY): is not registered; set DATASETS.FOLDERS.SALIENCY" in shown
    assert doctor([*words[:4], "DATASETS.TRAIN", "('shapes_train_sem_seg',)"]) == 1
    assert "is not registered; names like it are shapes_train_sem_seg" in capsys.readouterr().out


def test_the_doctor_finds_masks_of_zero_and_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path / "my" / "saliency").iterdir():
        Image.open(path).point(lambda value: value // 255).save(path)
    assert doctor(["--config-file", str(CONFIGS / "own_salseg.yaml"), "MODEL.DEVICE", "cpu"]) == 1
    assert "hold 0 and 1, not 0 and 255" in capsys.readouterr().out
