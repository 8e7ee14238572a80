# SPDX-License-Identifier: Apache-2.0
"""Sweeping gamma with a model: gamma 0 is the plain prediction, the ends exclude unseen and seen classes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList
from torch import Tensor

from padding.extension import extended_split
from padding.meta_arch import PADing
from padding.modeling.inference import widen_logits
from padding.modeling.postprocessing import InferenceOptions, predict_image
from padding.study.seen_bias import postprocess_with_bias, raw_predictions, sweep_model


class FourQueries:
    """Four queries on two test classes; class 1 is unseen but half as likely as class 0 everywhere."""

    thing_ids = frozenset({0, 1})
    inference = InferenceOptions(
        semantic_on=False, panoptic_on=True, instance_on=False, object_mask_threshold=0.3, overlap_threshold=0.5,
        top_k=10, resize_first=True,
    )  # fmt: skip

    def preprocess(self, batch: list[dict[str, Any]]) -> ImageList:
        return ImageList.from_tensors([sample["image"].float() for sample in batch], 32)

    def predict_queries(self, images: ImageList) -> dict[str, Tensor]:
        masks = torch.full((len(images), 4, 16, 16), -8.0)
        masks[:, 0, :, :8] = 8.0
        masks[:, 1, :, 8:] = 8.0
        return {"pred_masks": masks}

    def class_logits(self, outputs: dict[str, Tensor]) -> Tensor:
        logits = torch.tensor([[2.0, 1.0, -4.0], [2.0, 1.0, -4.0], [-4.0, -4.0, 4.0], [-4.0, -4.0, 4.0]])
        return logits.expand(len(outputs["pred_masks"]), 4, 3)


def sample() -> dict[str, Any]:
    return {"image": torch.zeros(3, 64, 60), "height": 32, "width": 30, "image_id": 7}


def test_gamma_zero_is_the_plain_prediction() -> None:
    model = FourQueries()
    (raw,) = raw_predictions(model, [[sample()]])
    segments, infos = postprocess_with_bias(model, (0,), 0.0)(raw)
    outputs = model.predict_queries(model.preprocess([sample()]))
    plain = predict_image(
        model.class_logits(outputs)[0], outputs["pred_masks"][0], options=model.inference, thing_ids=model.thing_ids,
        padded_size=(64, 64), image_size=(64, 60), output_size=(32, 30),
    )["panoptic_seg"]  # fmt: skip
    torch.testing.assert_close(segments, plain[0])
    assert infos == plain[1]
    assert raw["mask_logits"].shape == (4, 32, 30)
    assert raw["image_id"] == 7


@pytest.mark.parametrize(("gamma", "category"), [(-1000.0, 0), (0.5, 0), (1.5, 1), (1000.0, 1)])
def test_gamma_moves_the_choice_from_seen_to_unseen(gamma: float, category: int) -> None:
    model = FourQueries()
    (raw,) = raw_predictions(model, [[sample()]])
    _, infos = postprocess_with_bias(model, (0,), gamma)(raw)
    assert [info["category_id"] for info in infos] == [category, category]


def test_added_classes_compete_but_do_not_count(
    padding_cfg: Callable[..., CfgNode], padding_model: Callable[..., PADing]
) -> None:
    model = padding_model("MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 0.0)
    before, groups = sweep_model(padding_cfg(), model, (-1.0, 0.0, 1.0))
    split = extended_split(model.label_space, ["fog", "wolf"], ["fog"])
    added = torch.ones(2, model.class_embeddings.shape[1])
    model.widen(split, torch.cat([model.class_embeddings, added]))
    with torch.no_grad():
        model.new_fc.bias[-3:-1] = -50.0  # hardly ever chosen: the numbers stay
    after, same = sweep_model(padding_cfg(), model, (-1.0, 0.0, 1.0))
    assert groups == same
    for old, new in zip(before.scores("all"), after.scores("all"), strict=True):
        assert old.fp.sum() > 0  # something was predicted
        np.testing.assert_array_equal(new.fp, old.fp)
    with torch.no_grad():
        model.new_fc.bias[-3:-1] = 50.0  # always chosen: nothing that the data set knows is left
    swamped, _ = sweep_model(padding_cfg(), model, (-1.0, 0.0, 1.0))
    assert [score.fp.sum() for score in swamped.scores("all")] == [0, 0, 0]
    assert model.active_ids is None


def test_classes_without_data_stay_out_at_every_gamma() -> None:
    model = FourQueries()
    (raw,) = raw_predictions(model, [[sample()]])
    raw["class_logits"] = widen_logits(raw["class_logits"][:, [0, 2]], (0,), 2)
    for gamma in (-1000.0, 0.0, 1000.0):
        _, infos = postprocess_with_bias(model, (0,), gamma)(raw)
        assert all(info["category_id"] == 0 for info in infos)
