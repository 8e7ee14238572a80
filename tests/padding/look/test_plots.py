# SPDX-License-Identifier: Apache-2.0
"""The figures of a tiny model: files, numbers, what is left out; and each drawing for hard cases."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode

from padding.evaluation.grouping import ClassGroups
from padding.evaluation.panoptic_confusion import PanopticConfusion
from padding.evaluation.panoptic_quality import PanopticQuality
from padding.extension import extended_split
from padding.look.figures import draw_class_bars, draw_confusion, draw_embedding_map, draw_primitives
from padding.look.plots import FIGURES, draw_figures, embed_in_plane
from padding.meta_arch import PADing

GROUPS = ClassGroups(("cat", "zebra", "sea"), (0, 2), (1,), frozenset({0, 1}), (1, 2, 11))
ONLY_SEEN = ClassGroups(("cat", "zebra", "sea"), (0, 1, 2), (), frozenset({0, 1}), (1, 2, 11))


def picture(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    assert min(image.shape[:2]) > 200
    assert image.std() > 5  # not an empty canvas
    return image


def test_all_figures_of_a_model(
    padding_cfg: Callable[..., CfgNode], padding_model: Callable[..., PADing], tmp_path: Path
) -> None:
    model = padding_model("MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 0.0)
    drawn = draw_figures(padding_cfg(), model, tmp_path / "figures")
    assert drawn == list(FIGURES)
    for name in ("tsne", "primitives", "curve", "class_pq", "confusion"):
        picture(tmp_path / "figures" / f"{name}.png")
    confusion = json.loads((tmp_path / "figures" / "confusion.json").read_text())
    assert np.shape(confusion["matrix"]) == (6, 6)
    # Four images, each with sky, ground or lake, a box and a tower, the odd ones with a gem; one tower is a crowd.
    assert np.sum(confusion["matrix"]) + np.sum(confusion["missed"]) == 4 * 4 + 2 - 1
    primitives = json.loads((tmp_path / "figures" / "primitives.json").read_text())
    assert primitives["num_primitives"] == 10
    layers = primitives["strongest_by_class_and_layer"]["gem"]
    assert len(layers) == 2
    assert [entry["weight"] for entry in layers[0]] == sorted((e["weight"] for e in layers[0]), reverse=True)


def test_added_classes_are_drawn_where_the_data_do_not_matter(
    padding_cfg: Callable[..., CfgNode], padding_model: Callable[..., PADing], tmp_path: Path
) -> None:
    model = padding_model("MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 0.0)
    split = extended_split(model.label_space, ["fog"], ["fog"])
    model.widen(split, torch.cat([model.class_embeddings, torch.ones(1, model.class_embeddings.shape[1])]))
    with torch.no_grad():
        model.new_fc.bias[-2] = 50.0  # "fog" wins every query: nothing that the data set knows is left
    assert draw_figures(padding_cfg(), model, tmp_path) == list(FIGURES)
    assert "fog" in json.loads((tmp_path / "primitives.json").read_text())["strongest_by_class_and_layer"]
    confusion = json.loads((tmp_path / "confusion.json").read_text())
    assert np.shape(confusion["matrix"]) == (6, 6)
    assert np.sum(confusion["matrix"]) == 0
    assert np.sum(confusion["missed"]) == 4 * 4 + 2 - 1
    assert model.active_ids is None


def test_a_model_without_primitives_gets_the_other_figures(
    padding_cfg: Callable[..., CfgNode], padding_model: Callable[..., PADing], tmp_path: Path
) -> None:
    model = padding_model("MODEL.PADING.METHOD", "projection")
    assert draw_figures(padding_cfg(), model, tmp_path, ("primitives", "pq")) == ["pq"]
    assert [path.name for path in tmp_path.glob("*.*")] == ["class_pq.png"]


def test_plane_keeps_clusters_apart_and_repeats() -> None:
    features = torch.cat([torch.randn(20, 8), torch.randn(20, 8) + 20])
    points = embed_in_plane(features, seed=1)
    np.testing.assert_array_equal(points, embed_in_plane(features, seed=1))
    centres = points[:20].mean(axis=0), points[20:].mean(axis=0)
    spread = max(np.abs(points[:20] - centres[0]).max(), np.abs(points[20:] - centres[1]).max())
    assert np.linalg.norm(centres[0] - centres[1]) > spread
    with pytest.raises(ValueError, match="at least 4 features, got 3"):
        embed_in_plane(torch.randn(3, 8), seed=0)


@pytest.mark.parametrize("groups", [GROUPS, ONLY_SEEN])
def test_drawings_without_unseen_or_absent_classes(groups: ClassGroups, tmp_path: Path) -> None:
    quality, confusion = PanopticQuality(3), PanopticConfusion(3)
    quality.tp[:2], quality.iou[:2], confusion.matrix[0, 1] = 4, 3.0, 2
    draw_class_bars(tmp_path / "bars.png", quality.compute(), groups)
    draw_confusion(tmp_path / "confusion.png", confusion, groups)
    weights = np.random.default_rng(0).dirichlet(np.ones(9), (2, 3))
    draw_primitives(tmp_path / "primitives.png", weights, [[0, 3], [5, 1]], groups)
    points = np.random.default_rng(0).normal(size=(12, 2))
    draw_embedding_map(tmp_path / "map.png", points, np.arange(12) % 3, np.arange(12) > 6, groups)
    for name in ("bars", "confusion", "primitives", "map"):
        picture(tmp_path / f"{name}.png")


def test_nothing_predicted_at_all(tmp_path: Path) -> None:
    draw_class_bars(tmp_path / "bars.png", PanopticQuality(3).compute(), GROUPS)
    picture(tmp_path / "bars.png")
    confusion = PanopticConfusion(3)
    confusion.missed[:] = 1
    draw_confusion(tmp_path / "confusion.png", confusion, GROUPS)
    picture(tmp_path / "confusion.png")
