# SPDX-License-Identifier: Apache-2.0
"""Matching queries to true segments by their masks, and what is collected while predictions pass by."""

from typing import Any

import numpy as np
import torch

from padding.evaluation.grouping import ClassGroups
from padding.look.evaluation_pass import Observation, match_queries, observed_predictions

SIZE = (8, 12)
GROUPS = ClassGroups(("cat", "zebra", "sea"), (0, 2), (1,), frozenset({0, 1}), (1, 2, 11))


def boxes(*columns: tuple[int, int]) -> torch.Tensor:
    masks = torch.zeros(len(columns), *SIZE, dtype=torch.bool)
    for mask, (first, last) in zip(masks, columns, strict=True):
        mask[:, first:last] = True
    return masks


def test_queries_are_matched_one_to_one_by_masks_alone() -> None:
    truth = boxes((0, 4), (4, 8), (8, 12))
    # Two queries on the first segment, the second one exact; exactly half of the third; nothing.
    query, segment = match_queries(boxes((0, 3), (0, 4), (8, 10), (12, 12), (4, 9)), truth)
    assert query.tolist() == [1, 4]
    assert segment.tolist() == [0, 1]


def test_no_segments_or_no_masks_match_nothing() -> None:
    assert match_queries(boxes((0, 3)), boxes())[0].size == 0
    assert match_queries(boxes(), boxes((0, 3)))[0].size == 0


class Truth:
    """A cat, a zebra and a crowd of cats, three columns each; the sea is missing."""

    groups = GROUPS
    image_ids = (1, 2)

    def read(self, image_id: Any) -> tuple[np.ndarray, list[dict[str, Any]]]:
        ids = np.zeros(SIZE, np.int64)
        ids[:, 0:3], ids[:, 3:6], ids[:, 6:9] = 70, 71, 72
        segments = [
            {"id": 70, "category_id": 0},
            {"id": 71, "category_id": 1},
            {"id": 72, "category_id": 0, "iscrowd": 1},
        ]
        return ids, segments


def predictions() -> list[tuple[Any, torch.Tensor]]:
    masks = boxes((0, 3), (3, 6), (6, 9))
    raw = {"class_logits": torch.zeros(3, 4), "mask_logits": masks.float() * 10 - 5}
    return [({**raw, "image_id": i}, torch.arange(3.0)[:, None] + 10 * i) for i in Truth.image_ids]


def call_everything_a_cat(raw: Any) -> tuple[Any, list[dict[str, Any]]]:
    ids = torch.zeros(SIZE, dtype=torch.int32)
    ids[:, 0:3], ids[:, 3:6] = 1, 2
    return ids, [{"id": 1, "category_id": 0}, {"id": 2, "category_id": 0}]


def test_watching_collects_and_passes_on() -> None:
    observation = Observation(Truth(), call_everything_a_cat, max_per_class=5)
    raws = list(observation.watch(predictions()))
    assert [raw["image_id"] for raw in raws] == [1, 2]
    assert observation.quality.tp.tolist() == [2, 0, 0]
    assert observation.confusion.matrix.tolist() == [[2, 0, 0], [2, 0, 0], [0, 0, 0]]
    features, labels = observation.features()
    # The crowd gives no embedding, though a query covers it.
    assert labels.tolist() == [0, 0, 1, 1]
    assert features[:, 0].tolist() == [10, 20, 11, 21]


def test_embeddings_are_limited_by_class() -> None:
    observation = Observation(Truth(), call_everything_a_cat, max_per_class=1)
    list(observation.watch(predictions()))
    assert observation.features()[0][:, 0].tolist() == [10, 11]


def test_nothing_seen_yet() -> None:
    features, labels = Observation(Truth(), call_everything_a_cat, max_per_class=1).features()
    assert len(features) == len(labels) == 0


def test_embeddings_travel_with_their_prediction(padding_model: Any) -> None:
    """Also in batches of several images, and without leaving a hook behind."""
    model = padding_model().eval()
    image = torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8)
    samples = [{"image": image * i, "height": 32, "width": 48, "image_id": i} for i in range(3)]
    got = list(observed_predictions(model, [samples[:2], samples[2:]]))
    assert [raw["image_id"] for raw, _ in got] == [0, 1, 2]
    for raw, embeddings in got:
        torch.testing.assert_close(model.new_fc(embeddings), raw["class_logits"])
    assert not model.sem_seg_head._forward_hooks
