# SPDX-License-Identifier: Apache-2.0
"""The sheet has the promised size, and a prediction changes only its own column."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data.catalog import Metadata

from padding.engine.contact_sheet import GAP_PX, HEADER_PX, SheetRow, draw_contact_sheet, draw_panoptic


@pytest.fixture
def metadata() -> Metadata:
    names = ["cat", "grass*"]
    return Metadata(
        name="two classes", thing_classes=names, stuff_classes=names, thing_colors=[(200, 0, 0), (0, 200, 0)],
        stuff_colors=[(200, 0, 0), (0, 200, 0)],
    )  # fmt: skip


def a_row(predicted: list[dict[str, object]]) -> SheetRow:
    image = np.full((32, 48, 3), 90, np.uint8)
    ids = np.ones((32, 48), np.int32)
    ids[8:20, 10:30] = 2
    truth = [{"id": 1, "category_id": 1, "isthing": False}, {"id": 2, "category_id": 0, "isthing": True}]
    return SheetRow(image, (ids, truth), (ids, predicted))


def test_size_of_the_sheet(tmp_path: Path, metadata: Metadata) -> None:
    row = a_row([{"id": 2, "category_id": 0, "isthing": True}])
    draw_contact_sheet(tmp_path / "new/sheet.png", [row] * 5, metadata, scale=2, panels=2)
    sheet = cv2.imread(str(tmp_path / "new/sheet.png"))
    assert sheet.shape == (HEADER_PX + 2 * 64 + GAP_PX, 6 * 96 + 5 * GAP_PX, 3)  # the fifth image fills no line


def test_prediction_changes_only_its_column(tmp_path: Path, metadata: Metadata) -> None:
    for name, predicted in (("none", []), ("one", [{"id": 2, "category_id": 0, "isthing": True}])):
        draw_contact_sheet(tmp_path / f"{name}.png", [a_row(predicted)], metadata)
    none, one = (cv2.imread(str(tmp_path / f"{name}.png")).astype(int) for name in ("none", "one"))
    changed = np.flatnonzero(np.abs(none - one).sum(axis=(0, 2)))
    assert changed.size > 0
    assert changed.min() >= 2 * (48 + GAP_PX)


def test_no_segments_leave_the_image_alone(metadata: Metadata) -> None:
    row = a_row([])
    np.testing.assert_array_equal(draw_panoptic(row.image, row.truth[0], [], metadata), row.image)


def test_errors_name_the_cure(tmp_path: Path, metadata: Metadata) -> None:
    with pytest.raises(ValueError, match="needs at least that many images, got 0"):
        draw_contact_sheet(tmp_path / "a.png", [], metadata)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OSError, match=r"folder\.png"):
        draw_contact_sheet(tmp_path / "folder.png", [a_row([])], metadata)
