# SPDX-License-Identifier: Apache-2.0
import numpy as np

from benchmarks import pictures


def test_pictures_keep_their_shape_and_ids() -> None:
    labels = np.full((640, 320), 255)
    labels[:320], labels[320:322, :3] = 7, 8
    ids, segments = pictures.segments_of(labels)
    assert [segment["category_id"] for segment in segments] == [7]  # the other one is a few pixels
    assert set(np.unique(ids)) == {0, 8}
    padded = pictures.fitted(ids, 0)
    assert padded.shape == pictures.SHEET_SIZE
    assert set(np.unique(padded)) == {0, 8}
    assert (padded[:240, 200:440] == 8).all()
    assert (padded[:, :200] == 0).all()
    assert (pictures.fitted(np.zeros((480, 320, 3), np.uint8), 255)[:, :160] == 255).all()
