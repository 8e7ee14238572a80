# SPDX-License-Identifier: Apache-2.0
"""demo.py on images, folders, patterns and videos, and its error messages."""

import copy
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import demo
from padding.data.catalog import register_all
from padding.data.photographs import read_photograph
from padding.data.readers import read_label_map
from padding.engine import Predictor
from padding.engine.commands import load_config
from padding.engine.saliency_picture import GAP_PX
from tests.tiny_segmentor import write_config, write_untrained_weights


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Configuration file and weights of an untrained segmentor."""
    folder = tmp_path_factory.mktemp("model")
    register_all()
    file, weights = write_config(folder), folder / "model.pth"
    write_untrained_weights(load_config(file, []), weights)
    return str(file), str(weights)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (40, 56)), ("b.JPG", (56, 40)), ("deep/a.png", (32, 32))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def add_saliency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model predict that ten columns are salient."""
    predict = Predictor.predict

    def with_saliency(self: Predictor, images: list[np.ndarray], *, batch_size: int = 8) -> list[dict[str, Any]]:
        predictions = predict(self, images, batch_size=batch_size)
        for image, prediction in zip(images, predictions, strict=True):
            prediction["saliency"] = torch.zeros(image.shape[:2])
            prediction["saliency"][:, 20:30] = 0.8
        return predictions

    monkeypatch.setattr(Predictor, "predict", with_saliency)


def run(model: tuple[str, str], output: Path, *words: str) -> list[Path]:
    file, weights = model
    return demo.main(["--config-file", file, "--output", str(output), *words, "--opts", "MODEL.WEIGHTS", weights])


def test_folder_gives_one_overlay_per_image(model: tuple[str, str], pictures: Path, tmp_path: Path) -> None:
    written = run(model, tmp_path / "out", "--input", str(pictures))
    assert [path.name for path in written] == ["a.png", "b.png"]
    assert Image.open(written[0]).size == (56, 40)
    assert Image.open(written[1]).size == (40, 56)


def test_pattern_and_file_together_keep_equal_names_apart(
    model: tuple[str, str], pictures: Path, tmp_path: Path
) -> None:
    written = run(model, tmp_path / "out", "--input", str(pictures / "a.png"), str(pictures / "**" / "*.png"))
    assert [path.name for path in written] == ["a.png", "a_2.png"]  # deep/a.png; a.png itself only once
    assert all(path.is_file() for path in written)


def test_output_never_overwrites_its_input(model: tuple[str, str], pictures: Path) -> None:
    before = (pictures / "a.png").read_bytes()
    (written,) = run(model, pictures, "--input", str(pictures / "a.png"))
    assert written.name == "a_2.png"
    assert (pictures / "a.png").read_bytes() == before


def test_video_keeps_size_and_length(model: tuple[str, str], tmp_path: Path) -> None:
    source = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write videos")
    for shade in (30, 120, 220):
        writer.write(np.full((48, 64, 3), shade, dtype=np.uint8))
    writer.release()
    (written,) = run(model, tmp_path / "out", "--input", str(source))
    assert written.name == "clip.mp4"
    rate, _, frames = demo.video_frames(written)
    shapes = [frame.shape for frame in frames]
    assert shapes == [(48, 64, 3)] * 3
    assert rate == pytest.approx(10.0)


def test_saliency_is_shown_beside_the_segments(
    model: tuple[str, str], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_saliency(monkeypatch)
    monkeypatch.setattr(Predictor, "draw", lambda self, image, prediction, confidence: 255 - image)
    (written,) = run(model, tmp_path / "out", "--input", str(pictures / "a.png"))
    picture = np.asarray(Image.open(written)).astype(int)
    width = 56
    assert picture.shape == (40, 2 * width + GAP_PX, 3)
    np.testing.assert_array_equal(picture[:, :width], 255 - read_photograph(pictures / "a.png").astype(int))
    heat = picture[:, width + GAP_PX :].mean(axis=(0, 2))
    assert heat[20:30].min() > heat[:20].max()


def test_confidence_reaches_the_model(model: tuple[str, str]) -> None:
    file, _ = model
    words = ["--config-file", file, "--input", "x", "--output", "y"]
    cfg = demo.demo_cfg(demo.parse_arguments([*words, "--confidence", "0.7"]))
    assert cfg.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD == 0.7
    with pytest.raises(demo.DemoError, match=r"must lie between 0 and 1, got 7\.0"):
        demo.demo_cfg(demo.parse_arguments([*words, "--confidence", "7"]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.png", r"no image or video found for --input .*nowhere\.png; expected .*\.jpg"),
        ("*.gif", r"no image or video found for --input .*\*\.gif"),
        ("empty", "no image or video found for --input .*empty"),
        ("pictures/notes.txt", r"notes\.txt is neither image nor video; expected"),
    ],
)
def test_nothing_found_is_named(pictures: Path, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(demo.DemoError, match=message):
        demo.find_inputs([str(tmp_path / name)])


def test_unreadable_image_and_video_are_named(model: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(demo.DemoError, match=r"1 of 1 inputs were left out: .*broken\.png: cannot be decoded"):
        run(model, tmp_path / "out", "--input", str(tmp_path / "broken.png"))
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    with pytest.raises(demo.UnreadableError, match=r"broken\.mp4 cannot be opened as a video"):
        demo.video_frames(tmp_path / "broken.mp4")


def test_a_folder_goes_on_after_a_broken_file(model: tuple[str, str], pictures: Path, tmp_path: Path) -> None:
    (pictures / "b_broken.png").write_bytes((pictures / "a.png").read_bytes()[:80])
    (pictures / "c_broken.tif").write_bytes(b"no TIFF")
    intact = sorted(path for path in demo.find_inputs([str(pictures)]) if "broken" not in path.name)
    with pytest.raises(demo.DemoError, match=rf"2 of {len(intact) + 2} inputs.*b_broken\.png.*c_broken\.tif"):
        run(model, tmp_path / "out", "--input", str(pictures))
    assert len(list((tmp_path / "out").glob("*.png"))) == len(intact)


def test_list_of_classes_restricts_the_model(
    model: tuple[str, str], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restricted = []
    monkeypatch.setattr(
        demo.Demo, "run", lambda self, inputs: restricted.append(self._predictor.model.active_ids) or []
    )
    run(model, tmp_path / "out", "--input", str(pictures), "--classes", " red star,grey plain ,")
    run(model, tmp_path / "out", "--input", str(pictures))
    names = list(Predictor(load_config(model[0], ["MODEL.WEIGHTS", model[1]])).class_names)
    assert restricted == [tuple(sorted((names.index("red star"), names.index("grey plain")))), None]


@pytest.mark.parametrize(
    ("listed", "message"),
    [("red sta,lake", r"--classes: .*'red sta' \(nearest: 'red star'\)"), (" , ", "--classes names no class")],
)
def test_unknown_classes_are_named_with_the_nearest(
    model: tuple[str, str], pictures: Path, tmp_path: Path, listed: str, message: str
) -> None:
    with pytest.raises(demo.DemoError, match=message):
        run(model, tmp_path / "out", "--input", str(pictures), "--classes", listed)


def test_weights_have_a_short_option(model: tuple[str, str], pictures: Path, tmp_path: Path) -> None:
    file, weights = model
    words = ["--config-file", file, "--output", str(tmp_path / "out"), "--input", str(pictures / "a.png")]
    (written,) = demo.main([*words, "--weights", weights])
    assert written.is_file()


def test_label_maps_are_index_images_with_the_names_beside_them(
    model: tuple[str, str], pictures: Path, tmp_path: Path
) -> None:
    file, weights = model
    written = run(model, tmp_path / "out", "--input", str(pictures), "--label-maps")
    predictor = Predictor(load_config(file, ["MODEL.WEIGHTS", weights]))
    for source, overlay in zip(("a.png", "b.JPG"), written, strict=True):
        labels = read_label_map(tmp_path / "out" / "label_maps" / overlay.name)
        expected = predictor(read_photograph(pictures / source))["sem_seg"].max(dim=0).indices
        np.testing.assert_array_equal(labels, expected.numpy())
    lines = (tmp_path / "out" / "label_maps" / "classes.txt").read_text().splitlines()
    assert lines == [f"{index} {name}" for index, name in enumerate(predictor.class_names)] + ["255 unlabeled"]
    run(model, tmp_path / "plain", "--input", str(pictures))
    assert not (tmp_path / "plain" / "label_maps").exists()


def test_label_maps_of_models_without_labels_are_an_error(
    model: tuple[str, str], pictures: Path, tmp_path: Path
) -> None:
    words = ["--config-file", model[0], "--output", str(tmp_path / "out"), "--input", str(pictures), "--label-maps"]
    panoptic = ["--opts", "MODEL.WEIGHTS", model[1], "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", "False"]
    with pytest.raises(demo.DemoError, match=r"--label-maps: .*predicts \['panoptic_seg'\]"):
        demo.main([*words, *panoptic])


def clip(path: Path, *, num_frames: int = 3) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write videos")
    for number in range(num_frames):
        writer.write(np.full((48, 64, 3), 60 * number, dtype=np.uint8))
    writer.release()
    return path


def num_frames(path: Path) -> int:
    return sum(1 for _ in demo.video_frames(path)[2])


def test_a_camera_is_drawn_until_it_is_enough_or_ctrl_c(
    model: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The camera with the number 0 is a file here; what was drawn is a whole video in either case."""
    source, capture = clip(tmp_path / "clip.avi", num_frames=5), cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda name: capture(str(source) if name == 0 else name))
    (written,) = run(model, tmp_path / "out", "--input", "0", "--max-frames", "2")
    assert (written.name, num_frames(written)) == ("camera_0.mp4", 2)
    predict, seen = Predictor.predict, []

    def interrupted(self: Predictor, images: list[np.ndarray], **options: Any) -> list[dict[str, Any]]:
        seen.append(len(images))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return predict(self, images, **options)

    monkeypatch.setattr(Predictor, "predict", interrupted)
    (written,) = run(model, tmp_path / "out", "--input", "0", "--batch", "3")
    assert (num_frames(written), seen) == (3, [1, 1, 1, 1])
    assert [path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".mp4"] == ["camera_0.mp4"]
    seen.clear()
    assert run(model, tmp_path / "saved", "--input", "0", "--save", "--no-pictures") == []
    content = json.loads((tmp_path / "saved" / "panoptic.json").read_text())
    assert [image["id"] for image in content["images"]] == [f"camera_0/{i:06d}" for i in range(3)]
    with pytest.raises(demo.UnreadableError, match="camera 7 cannot be opened"):
        demo.video_frames("7")


def test_an_interrupted_video_leaves_the_older_one(
    model: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = clip(tmp_path / "clip.avi")
    (written,) = run(model, tmp_path / "out", "--input", str(source), "--batch", "2")
    before = written.read_bytes()

    def fails(self: Predictor, images: list[np.ndarray], **options: Any) -> list[dict[str, Any]]:
        raise RuntimeError("no memory")

    monkeypatch.setattr(Predictor, "predict", fails)
    with pytest.raises(RuntimeError, match="no memory"):
        run(model, tmp_path / "out", "--input", str(source))
    assert written.read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip.mp4", "demo.json"]


def read_saved(folder: Path) -> dict[str, bytes]:
    """All that was saved, but for the record of what is done and overlays, whose colours Detectron2 draws by lot."""
    files = [*folder.glob("*.json"), *folder.glob("*.txt"), *folder.glob("*/*.png")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != "demo.json"}


def many_pictures(folder: Path, count: int = 9) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(count):
        size = (40, 56) if number % 3 else (56, 40)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{number:012d}.png")
    return folder


def test_batches_workers_and_shares_save_what_one_process_saves(
    model: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_saliency(monkeypatch)
    source = many_pictures(tmp_path / "many")
    words = ["--input", str(source), "--save", "--no-pictures"]
    assert run(model, tmp_path / "one", *words) == []
    expected = read_saved(tmp_path / "one")
    assert {"panoptic.json", "panoptic/000000000003.png", "sem_seg/000000000003.png"} <= expected.keys()
    assert {"classes.txt", "saliency/000000000003.png"} <= expected.keys()
    run(model, tmp_path / "workers", *words, "--batch", "4", "--num-workers", "1")
    assert read_saved(tmp_path / "workers").keys() == expected.keys()
    for rank in ("1", "0"):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        run(model, tmp_path / "shared", *words)
        assert (tmp_path / "shared" / "panoptic.json").exists() == (rank == "0")  # who finishes last joins
    assert read_saved(tmp_path / "shared") == expected
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ValueError, match="RANK is 2 and WORLD_SIZE 2"):
        run(model, tmp_path / "shared", *words)


def test_a_stopped_run_goes_on_where_it_stopped(
    model: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = many_pictures(tmp_path / "many", 5)
    words = ["--input", str(source), "--save", "panoptic", "sem_seg"]
    run(model, tmp_path / "whole", *words)
    predict, seen = Predictor.predict, []

    def stops(self: Predictor, images: list[np.ndarray], **options: Any) -> list[dict[str, Any]]:
        seen.extend(images)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return predict(self, images, **options)

    monkeypatch.setattr(Predictor, "predict", stops)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / "out", *words)
    assert not (tmp_path / "out" / "panoptic.json").exists()
    with pytest.raises(FileExistsError, match=r"holds predictions already; --resume adds"):
        run(model, tmp_path / "out", *words)
    with pytest.raises(
        demo.DemoError, match="was written with other configuration and confidence; choose another --output"
    ):
        run(model, tmp_path / "out", *words, "--resume", "--confidence", "0.6")
    written = run(model, tmp_path / "out", *words, "--resume")
    assert len(seen) == 3 + 3  # two of five were done
    assert len(written) == 3
    assert read_saved(tmp_path / "out") == read_saved(tmp_path / "whole")
    assert run(model, tmp_path / "out", *words, "--resume") == []
    assert len(seen) == 6


@pytest.mark.parametrize("flags", [(), ("--no-pictures",)])
def test_frames_of_a_video_are_saved_as_images_are(
    model: tuple[str, str], tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """Beside an image of the same name, which is none of the video's frames."""
    source = tmp_path / "source"
    source.mkdir()
    clip(source / "a.avi")
    frames = list(demo.video_frames(source / "a.avi")[2])
    Image.fromarray(frames[1]).save(source / "a.png")
    out = tmp_path / "out"
    words = ["--input", str(source), "--save", "--label-maps", "--batch", "2", *flags]
    run(model, out, *words)
    assert (out / "a.mp4").is_file() == (not flags)
    content = json.loads((out / "panoptic.json").read_text())
    assert [image["id"] for image in content["images"]] == ["a/000000", "a/000001", "a/000002", "a"]
    assert [one["file_name"] for one in content["annotations"]] == [f"{i['id']}.png" for i in content["images"]]
    for kind in ("panoptic", "sem_seg"):
        assert (out / kind / "a" / "000001.png").read_bytes() == (out / kind / "a.png").read_bytes()
    np.testing.assert_array_equal(
        read_label_map(out / "label_maps" / "a" / "000001.png"), read_label_map(out / "sem_seg" / "a" / "000001.png")
    )
    before = (out / "panoptic.json").read_bytes()
    assert run(model, out, *words, "--resume") == []
    assert (out / "panoptic.json").read_bytes() == before


def test_a_video_that_cannot_be_read_is_left_out_of_what_is_saved(model: tuple[str, str], tmp_path: Path) -> None:
    source = many_pictures(tmp_path / "many", 2)
    (source / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(demo.DemoError, match="1 of 3 inputs were left out"):
        run(model, tmp_path / "out", "--input", str(source), "--save", "--no-pictures")
    content = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [image["id"] for image in content["images"]] == [0, 1]


def test_what_cannot_be_read_is_left_out_of_what_is_saved(model: tuple[str, str], tmp_path: Path) -> None:
    source = many_pictures(tmp_path / "many", 3)
    (source / "000000000001.png").write_bytes(b"no picture")
    with pytest.raises(demo.DemoError, match="1 of 3 inputs were left out"):
        run(model, tmp_path / "out", "--input", str(source), "--save", "--no-pictures")
    content = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [image["id"] for image in content["images"]] == [0, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--no-pictures"], "--no-pictures leaves nothing to do"),
        (["--batch", "0"], "at least 1"),
    ],
)
def test_options_without_sense_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.parse_arguments(["--config-file", "x", "--input", "y", "--output", "z", *words])
    assert message in capsys.readouterr().err


def test_unknown_kinds_are_not_saved(model: tuple[str, str], pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--save is 'masks'; expected one of panoptic, instances, sem_seg, saliency"):
        run(model, tmp_path / "out", "--input", str(pictures), "--save", "masks")
    with pytest.raises(ValueError, match=r"nothing to save: the model predicts \['panoptic_seg', 'sem_seg'\]"):
        run(model, tmp_path / "out", "--input", str(pictures), "--save", "saliency")


def test_what_predictions_depend_on_is_compared_and_nothing_else(model: tuple[str, str]) -> None:
    predictor = Predictor(load_config(model[0], ["MODEL.WEIGHTS", model[1]]))

    def identity(*opts: Any) -> dict[str, Any]:
        cfg = predictor.cfg.clone()
        cfg.defrost()
        cfg.merge_from_list(list(opts))
        changed = copy.copy(predictor)
        changed.cfg = cfg
        return demo.run_identity(changed, demo.DemoOptions())

    # A machine of another kind, and another name for the same classes, as packed models have.
    same = ("DATASETS.TEST", ("shapes_val_panoptic_zsp_unseen",), "MODEL.DEVICE", "cuda:1", "OUTPUT_DIR", "x")
    assert identity(*same) == identity()
    assert identity("INPUT.MIN_SIZE_TEST", 32) != identity()
    assert identity("MODEL.WEIGHTS", "other.pth") != identity()
    predictor.restrict_to(["red star"])
    restricted = demo.run_identity(predictor, demo.DemoOptions())
    assert restricted["classes"] == ["red star"]
