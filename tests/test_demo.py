# SPDX-License-Identifier: Apache-2.0
"""demo.py on images, folders, patterns and videos, and its error messages."""

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
    predict = Predictor.__call__

    def with_saliency(self: Predictor, image: np.ndarray) -> dict[str, Any]:
        saliency = torch.zeros(image.shape[:2])
        saliency[:, 20:30] = 1.0
        return {**predict(self, image), "saliency": saliency}

    monkeypatch.setattr(Predictor, "__call__", with_saliency)
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
    with pytest.raises(demo.DemoError, match=r"broken\.mp4 cannot be opened as a video"):
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


def test_label_maps_of_videos_and_other_models_are_errors(
    model: tuple[str, str], pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(demo.DemoError, match=r"--label-maps is for images; leave out clip\.mp4"):
        run(model, tmp_path / "out", "--input", str(tmp_path / "clip.mp4"), "--label-maps")
    words = ["--config-file", model[0], "--output", str(tmp_path / "out"), "--input", str(pictures), "--label-maps"]
    panoptic = ["--opts", "MODEL.WEIGHTS", model[1], "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", "False"]
    with pytest.raises(demo.DemoError, match=r"--label-maps: .*predicts \['panoptic_seg'\]"):
        demo.main([*words, *panoptic])
