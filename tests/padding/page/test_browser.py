# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: Playwright with the system's Chromium drops images, types, draws and downloads."""

import http.client
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from padding.data.readers import read_label_map
from padding.page.examples import generated_image
from padding.page.strokes import stroke_colors
from tests.separable_features import ADDED

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ROOT = Path(__file__).parents[3]
PATIENCE_MS = 240_000  # a busy machine

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(packed_models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The command, serving models of three methods."""
    folder = tmp_path_factory.mktemp("served")
    words = [sys.executable, "-W", "ignore", "-m", "padding.app", "--port", "0", "--model", *map(str, packed_models)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    with subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            found = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in process.stdout)
            yield next(filter(None, found)).group()
        finally:
            process.terminate()
    assert not list(folder.glob("page_*")), "the temporary folder goes with the page"


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(generated_image(3)).resize((320, 240)).save(path)
    return path


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    """The page, and every address that it asked for."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1400, "height": 1300})
        opened.set_default_timeout(PATIENCE_MS)
        asked: list[str] = []
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto(address)
        yield opened
        browser.close()
    assert all(url.startswith((address, "data:", "blob:")) for url in asked), asked


def test_an_image_is_segmented_and_a_class_added(page: Any, image_file: Path) -> None:
    page.locator("#zero-shot-image input[type=file]").set_input_files(image_file)
    page.wait_for_selector("#zero-shot-picture img")
    page.locator("#new-class textarea, #new-class input").first.fill(ADDED[0])
    page.locator("#add-class").click()
    page.wait_for_selector(f"#zero-shot-said >> text=Added '{ADDED[0]}'")
    page.locator("#new-class textarea, #new-class input").first.fill("nothing of the kind")
    page.locator("#add-class").click()
    page.wait_for_selector("text=no table of this model's kind")


def draw_line(page: Any, *, height: float) -> None:
    """A stroke across the middle of the editor, at a part of its height."""
    box = page.locator("#strokes canvas").first.bounding_box()
    y, left, width = box["y"] + height * box["height"], box["x"], box["width"]
    page.mouse.move(left + 0.3 * width, y)
    page.mouse.down()
    page.mouse.move(left + 0.7 * width, y, steps=12)
    page.mouse.up()


def test_strokes_grow_and_the_label_map_is_downloaded(page: Any, image_file: Path, tmp_path: Path) -> None:
    page.get_by_role("tab", name="Scribbles").click()
    page.locator("#strokes input[type=file]").first.set_input_files(image_file)
    page.wait_for_selector("#strokes canvas")
    page.wait_for_timeout(2000)  # until the image is in the canvas
    draw_line(page, height=0.45)
    page.locator("#stroke-class label").nth(4).click()
    red, green, blue = stroke_colors(17)[4]
    page.wait_for_selector(f"#strokes button[style*='rgb({red}, {green}, {blue})']")  # the brush has its colour
    draw_line(page, height=0.55)
    page.locator("#grow").click()
    page.wait_for_selector("#grown-said >> text=step 2")
    page.wait_for_selector("#label-map:not([disabled])")
    with page.expect_download() as download:
        page.locator("#label-map").click()
    path = tmp_path / "labels.png"
    download.value.save_as(path)
    labels = read_label_map(path)
    assert labels.shape == (240, 320)
    assert {0, 4} <= set(np.unique(labels)) <= {0, 4, 255}


def test_all_models_are_shown_beside_each_other(page: Any, image_file: Path) -> None:
    page.get_by_role("tab", name="Side by side").click()
    page.locator("#compared-image input[type=file]").set_input_files(image_file)
    page.wait_for_selector("#compared-image img")
    page.locator("#compare").click()
    for caption in ("zero_shot: PADing", "scribbles: PSI", "saliency: SalSeg", "saliency: saliency"):
        page.wait_for_selector(f"#compared >> text={caption}")
    assert page.locator("#compared .grid-container img").count() == 5  # with the image itself


def answer(address: str, path: str, **headers: str) -> int:
    """Status of a plain request."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=PATIENCE_MS / 1000)
    connection.request("GET", path, headers=headers)
    return connection.getresponse().status


def test_no_file_of_the_machine_and_no_other_machine_is_served(address: str) -> None:
    assert answer(address, "/") == 200
    for path in ("/etc/passwd", str(ROOT / "README.md"), "README.md", "/tmp/../etc/passwd"):
        assert answer(address, f"/gradio_api/file={path}") in (403, 404), path
    assert answer(address, "/gradio_api/file=http://192.0.2.1/x.png") >= 400
    assert answer(address, "/", Host="evil.example") == 421
