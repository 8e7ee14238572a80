# SPDX-License-Identifier: Apache-2.0
"""Writing, resuming, converting and checking the scribbles of a folder of images."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from padding.data.class_split import ClassSplit
from padding.data.prepare.scribble_preview import draw_preview
from padding.data.prepare.scribbles import (
    LabelSpace,
    ScribbleTask,
    check_scribbles,
    convert_scribbles,
    simulate_files,
)
from padding.data.scribbles.folder import ScribbleFolder
from padding.data.scribbles.polylines import draw_scribbles, parse_scribble_xml
from padding.data.scribbles.simulator import SimulatorConfig
from padding.data.scribbles.sources import ScribbleReader, find_scribbles
from padding.data.scribbles.tags import ScribbleTags
from padding.errors import ConfigError, DataError, PreparationError

SPLIT = ClassSplit(
    ("background", "lake", "tower"), (False, False, True), (0, 1, 2), colors=((0, 0, 0), (0, 0, 255), (255, 0, 0))
)
VOID = 9
SPACE = LabelSpace(SPLIT, ScribbleTags.of(SPLIT), {0: 0, 1: 1, 2: 2, VOID: 255, 255: 255})
CONFIG = SimulatorConfig(min_area=30, erosion=(1.0, 4.0))
SIZE = (48, 64)


@dataclass
class Made:
    tasks: list[ScribbleTask]
    folder: ScribbleFolder

    def read(self, key: str) -> np.ndarray:
        return np.asarray(Image.open(self.folder.png(key)))

    def times(self) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in sorted(self.folder.path.glob("*.png"))}

    @property
    def manifest(self) -> dict:
        return json.loads(self.folder.manifest.read_text())


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Four images whose dense labels have three classes and void."""
    tasks = []
    for folder in ("images", "dense"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        dense = np.zeros(SIZE, np.uint8)
        dense[:, 30 + number :] = 1
        dense[10:40, 4:18] = 2
        dense[:3] = VOID
        task = ScribbleTask(
            f"im{number}", tmp_path / "images" / f"im{number}.jpg", tmp_path / "dense" / f"{number}.png"
        )
        Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(task.image_file)
        Image.fromarray(dense).save(task.dense_file)
        tasks.append(task)
    return Made(tasks, ScribbleFolder(tmp_path / "scribbles" / "train"))


def simulate(made: Made, config: SimulatorConfig = CONFIG, **options):
    return simulate_files(made.tasks, SPACE, config, made.folder, **options)


def test_simulated_files_agree_with_each_other_and_with_the_dense_labels(made: Made) -> None:
    statistics, written = simulate(made)
    assert written == 4
    assert statistics.images == statistics.dense_images == 4
    assert not statistics.contradictions.any()
    assert statistics.on_void == 0
    for task in made.tasks:
        raster, dense = made.read(task.key), np.asarray(Image.open(task.dense_file))
        assert set(np.unique(raster)) == {0, 1, 2, 255}
        assert (raster[raster != 255] == dense[raster != 255]).all()
        image = parse_scribble_xml(made.folder.xml(task.key).read_bytes(), SPACE.tags, where="")
        np.testing.assert_array_equal(draw_scribbles(image.scribbles, image.size, width=CONFIG.width), raster)
    with Image.open(made.folder.png("im0")) as image:
        assert image.mode == "P"
        assert image.getpalette()[3:9] == [0, 0, 255, 255, 0, 0]
        assert image.getpalette()[-3:] == [255, 255, 255]
    manifest = made.manifest
    assert manifest["complete"]
    assert manifest["settings"] == {"kind": "simulated", **CONFIG.as_json(), "classes": list(SPLIT.names)}
    assert manifest["statistics"]["coverage_pct"] == pytest.approx(statistics.coverage_pct, abs=1e-3)


def assert_same_files(made: Made, other: Made) -> None:
    for task in made.tasks:
        np.testing.assert_array_equal(made.read(task.key), other.read(task.key))
        assert made.folder.xml(task.key).read_bytes() == other.folder.xml(task.key).read_bytes()


def test_order_does_not_matter_and_work_can_be_sent_away(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a pool of processes does to function, tasks and results, without its seconds of starting."""
    simulate(made)

    def sent(function, tasks, *, num_workers):
        return (pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(function))(task))) for task in tasks)

    monkeypatch.setattr("padding.data.prepare.scribbles.map_tasks", sent)
    other = Made(made.tasks[::-1], ScribbleFolder(tmp_path / "other"))
    statistics, _ = simulate(other)
    assert statistics.images == 4
    assert_same_files(made, other)
    convert(made, other.folder.path, ScribbleFolder(tmp_path / "converted"))
    assert not check_scribbles(made.tasks, SPACE, other.folder)[1]


@pytest.mark.slow
def test_processes_do_not_matter(made: Made, tmp_path: Path) -> None:
    simulate(made)
    other = Made(made.tasks, ScribbleFolder(tmp_path / "other"))
    simulate(other, num_workers=2)
    assert_same_files(made, other)


def test_a_run_continues_and_mends(made: Made) -> None:
    simulate(made)
    rasters = {task.key: made.read(task.key) for task in made.tasks}
    before = made.times()
    made.folder.png("im1").unlink()
    made.folder.png("im2").write_bytes(b"half")
    made.folder.xml("im3").unlink()
    (made.folder.path / ".im1.png.77.tmp").write_bytes(b"")
    statistics, written = simulate(made)
    assert (statistics.images, written) == (4, 3)
    assert made.times()["im0.png"] == before["im0.png"]
    for key, raster in rasters.items():
        np.testing.assert_array_equal(made.read(key), raster)
    assert not list(made.folder.path.glob(".*"))


def test_a_changed_label_map_or_changed_lines_are_made_again(made: Made) -> None:
    simulate(made)
    expected = made.read("im0")
    Image.fromarray(np.full(SIZE, 2, np.uint8)).save(made.folder.png("im0"))
    assert simulate(made)[1] == 1
    np.testing.assert_array_equal(made.read("im0"), expected)
    # Lines and label map agree, but the truth has changed.
    Image.fromarray(np.full(SIZE, 1, np.uint8)).save(made.tasks[0].dense_file)
    statistics, written = simulate(made)
    assert written == 1
    assert not statistics.contradictions.any()


def test_other_settings_need_overwrite(made: Made) -> None:
    simulate(made)
    other = SimulatorConfig(min_area=30, erosion=(1.0, 4.0), style="line", seed=3)
    with pytest.raises(
        PreparationError, match=r"made with other settings: seed 0 \(now 3\), style skeleton \(now line\)"
    ):
        simulate(made, other)
    assert made.manifest["settings"]["style"] == "skeleton"
    assert simulate(made, other, overwrite=True)[1] == 4
    assert made.manifest["settings"]["style"] == "line"


def test_foreign_files_are_not_touched(made: Made) -> None:
    made.folder.path.mkdir(parents=True)
    mine = made.folder.png("im0")
    mine.write_bytes(b"drawn by hand")
    with pytest.raises(PreparationError, match="holds label images that this command did not write"):
        simulate(made)
    assert mine.read_bytes() == b"drawn by hand"
    made.folder.manifest.write_text("{")
    with pytest.raises(PreparationError, match=r"train\.json: not valid JSON.*Pass --overwrite"):
        simulate(made)
    assert simulate(made, overwrite=True)[1] == 4


def test_interrupted_overwriting_asks_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(made)

    def interrupted(self: Path) -> None:
        raise KeyboardInterrupt

    real = Path.unlink
    monkeypatch.setattr(
        Path,
        "unlink",
        lambda self, missing_ok=False: interrupted(self) if self.suffix == ".png" else real(self, missing_ok),
    )
    with pytest.raises(KeyboardInterrupt):
        simulate(made, SimulatorConfig(style="line"), overwrite=True)
    monkeypatch.undo()
    with pytest.raises(PreparationError, match="did not write"):
        simulate(made, SimulatorConfig(style="line"))


def test_missing_or_strange_dense_labels_are_named(made: Made) -> None:
    made.tasks[2].dense_file.unlink()
    with pytest.raises(PreparationError, match="im2: no dense labels to simulate from"):
        simulate(made)
    Image.fromarray(np.full(SIZE, 77, np.uint8)).save(made.tasks[2].dense_file)
    with pytest.raises(DataError, match=r"2\.png: holds the values \[77\]"):
        simulate(made)


def convert(made: Made, source: Path, target: ScribbleFolder, *, reader: dict | None = None, **options):
    found = find_scribbles(source)
    return convert_scribbles(made.tasks, SPACE, ScribbleReader(found, SPACE.tags, **(reader or {})), target, **options)


def test_xml_and_png_convert_to_what_was_simulated(made: Made, tmp_path: Path) -> None:
    simulate(made)
    for number, source in enumerate((made.folder.xml("").parent, made.folder.path)):
        target = Made(made.tasks, ScribbleFolder(tmp_path / f"converted{number}"))
        statistics, written = convert(made, source, target.folder)
        assert (statistics.images, written) == (4, 4)
        assert not statistics.contradictions.any()
        for task in made.tasks:
            np.testing.assert_array_equal(target.read(task.key), made.read(task.key))
        assert convert(made, source, target.folder)[1] == 0, "everything was right already"
        assert target.manifest["settings"]["format"] == ("xml", "png")[number]
        assert target.manifest["complete"]


def test_conversion_counts_contradictions_and_needs_no_dense_labels(made: Made, tmp_path: Path) -> None:
    simulate(made)
    swapped = {0: 0, 1: 2, 2: 1}
    statistics, _ = convert(made, made.folder.path, ScribbleFolder(tmp_path / "swapped"), reader={"value_map": swapped})
    assert statistics.contradictions[0] == 0
    assert statistics.contradictions[1] == statistics.labeled[1] > 0
    for task in made.tasks:
        task.dense_file.unlink()
    statistics, _ = convert(made, made.folder.path, ScribbleFolder(tmp_path / "plain"))
    assert (statistics.images, statistics.dense_images) == (4, 0)


def test_images_without_scribbles(made: Made, tmp_path: Path) -> None:
    simulate(made)
    made.folder.png("im1").unlink()
    made.folder.png("im3").unlink()
    target = Made(made.tasks, ScribbleFolder(tmp_path / "converted"))
    with pytest.raises(PreparationError, match="no png file for 2 of 4 images, first im1, im3"):
        convert(made, made.folder.path, target.folder)
    statistics, _ = convert(made, made.folder.path, target.folder, missing_as_empty=True)
    assert statistics.images_without == ["im1", "im3"]
    assert (target.read("im1") == 255).all()


def test_conversion_errors_name_the_file(made: Made, tmp_path: Path) -> None:
    simulate(made)
    path = made.folder.xml("im2")
    path.write_bytes(path.read_bytes().replace(b"tower", b"steeple"))
    with pytest.raises(PreparationError, match=r"im2\.xml: unknown tag 'steeple'"):
        convert(made, path.parent, ScribbleFolder(tmp_path / "converted"))
    made.tasks[0].image_file.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"im0\.jpg: cannot be decoded"):
        convert(made, path.parent, ScribbleFolder(tmp_path / "converted"))


def test_check_finds_what_training_would_stumble_over(made: Made) -> None:
    simulate(made)
    statistics, problems = check_scribbles(made.tasks, SPACE, made.folder)
    assert not problems
    assert statistics.images == 4
    made.folder.png("im0").unlink()
    Image.fromarray(np.full(SIZE, 7, np.uint8)).save(made.folder.png("im1"))
    Image.fromarray(np.full((4, 4), 0, np.uint8)).save(made.folder.png("im2"))
    Image.fromarray(np.where(np.arange(64) < 9, 254, 1)[None].repeat(48, 0).astype(np.uint8)).save(
        made.folder.png("im3")
    )
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(made.folder.png("stray"))
    statistics, problems = check_scribbles(made.tasks, SPACE, made.folder)
    text = "\n".join(problems)
    assert len(problems) == 5
    assert "im0.png: no such file" in text
    assert "im1.png: holds the values [7]; expected 0 to 2, 254 and 255" in text
    assert "im2.png: (4, 4) labels of an image of (48, 64)" in text
    assert "1 files of no image, delete them: stray.png" in text
    assert "simulated scribbles contradict the dense labels" in text
    assert statistics.images == 1
    assert statistics.labeled.tolist() == [0, 48 * 55, 0], "254 is unlabelled"


def test_preview_shows_scribbles_in_the_colours_of_their_classes(made: Made, tmp_path: Path) -> None:
    with pytest.raises(PreparationError, match="no scribbles to draw"):
        draw_preview(made.tasks, made.folder, SPACE.palette, tmp_path / "sheet.png")
    simulate(made)
    assert draw_preview(made.tasks, made.folder, SPACE.palette, tmp_path / "deep" / "sheet.png") == 4
    sheet = np.asarray(Image.open(tmp_path / "deep" / "sheet.png"))
    assert sheet.shape == (2 * 360, 3 * 480, 3)
    for color in ((0, 0, 255), (255, 0, 0), (0, 0, 0)):
        assert (sheet == color).all(axis=-1).sum() > 500
    assert (sheet[400:, 700:] == 255).all(), "no fifth and sixth image"
    with pytest.raises(ConfigError, match=r"sheet\.strange cannot be written: use a name that ends"):
        draw_preview(made.tasks, made.folder, SPACE.palette, tmp_path / "sheet.strange")
