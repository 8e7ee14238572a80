# SPDX-License-Identifier: Apache-2.0
"""The segmentor against that of transformers: one network with the same weights, or a sentence that names the extra."""

import importlib.util

import pytest

from benchmarks import segmentor
from padding.engine.commands import load_config
from padding.errors import UserError

TINY = {
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_DIM_FEEDFORWARD": 32,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 2,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.NHEADS": 2,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 10,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
    "MODEL.MASK_FORMER.DEC_LAYERS": 3,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 64,
}
OPTS = [word for key, value in TINY.items() for word in (key, str(value))]


def test_both_networks_give_the_same_logits() -> None:
    pytest.importorskip("transformers")
    words = ["--sizes", "64x90", "--objects", "3", "--repeats", "1", "--no-memory", *OPTS]
    result = segmentor.main(words)["64x90"]
    assert result["max_difference"] < 1e-4
    assert result["forward_ratio"] > 0
    assert result["train_ratio"] > 0


def test_a_step_of_ours_takes_memory() -> None:
    assert segmentor.step_memory("ours", (64, 90), 3, OPTS) > 0


def test_images_are_padded_as_for_the_network() -> None:
    image, target = segmentor.draw((64, 90), 3, 5)
    assert image.shape == (1, 3, 64, 96)
    assert target["masks"].shape == (3, 64, 96)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"'\.\[huggingface\]'"):
        segmentor.their_network(load_config(segmentor.CONFIG, OPTS), 5)
