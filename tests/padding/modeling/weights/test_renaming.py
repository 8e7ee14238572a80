# SPDX-License-Identifier: Apache-2.0
"""Renaming by content alone, and the record of what became of a name."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from padding.errors import CheckpointError
from padding.modeling.weights.renaming import Fusion, Imported, Layout, normalise_keys
from tests.weight_files import published_keys

State = dict[str, Tensor]


def meta_state(names: list[str]) -> State:
    return {name: torch.empty(1, device="meta") for name in names}


def test_current_names_stay(goldens: Path) -> None:
    names = list(published_keys(goldens))
    assert len(names) == 558
    state, renames = normalise_keys(meta_state(names))
    assert list(state) == names
    assert renames == {}


def test_early_mask2former_names(goldens: Path) -> None:
    names = list(published_keys(goldens))
    state, renames = normalise_keys(meta_state([name.replace("query_feat", "static_query") for name in names]))
    assert list(state) == names
    old, new = "sem_seg_head.predictor.static_query.weight", "sem_seg_head.predictor.query_feat.weight"
    assert renames == {old: new}


def test_early_maskformer_names(goldens: Path) -> None:
    names = list(published_keys(goldens))
    state, renames = normalise_keys(meta_state([name.replace("pixel_decoder.", "") for name in names]))
    assert list(state) == names
    assert len(renames) == sum("pixel_decoder." in name for name in names) > 100


def test_version_metadata_is_never_looked_at(goldens: Path) -> None:
    """A state saved again as a plain dict has lost it, and must not be renamed twice; a stale one must not mislead."""
    names = list(published_keys(goldens))
    state = OrderedDict(meta_state(names))
    state._metadata = {"sem_seg_head": {"version": 1}}  # type: ignore[attr-defined]
    assert list(normalise_keys(state)[0]) == names


def test_wrapper_prefix_and_foreign_heads() -> None:
    state, renames = normalise_keys(meta_state(["module.a.w", "module.b.w"]))
    assert list(state) == ["a.w", "b.w"]
    assert renames == {"module.a.w": "a.w", "module.b.w": "b.w"}
    deeplab = ["sem_seg_head.aspp.convs.0.weight", "sem_seg_head.predictor_weight", "other.static_query.w"]
    assert list(normalise_keys(meta_state(deeplab))[0]) == deeplab


LAYOUT = Layout(
    "toy",
    ((r"block(\d)\.(a|b)\.w", "blocks.{}.{}.w"), (r"table", lambda match: "blocks.0." + match[0])),
    classifier=r"fc\.",
    fusion=Fusion(r"(.+\.)(a|b)\.(w)", ("a", "b"), "{}ab.{}"),
    class_row=".table",
)


def test_a_name_is_followed_from_the_file_to_its_end() -> None:
    state = {"x.block1.b.w": torch.ones(1), "x.block1.a.w": torch.zeros(2), "x.fc.w": torch.ones(1)}
    state |= {"x.table": torch.arange(5.0)[None], "other": torch.ones(1)}
    imported = Imported(dict(state))
    imported.skip(["other"], "elsewhere")
    imported.rename_all(lambda name: name.removeprefix("x."))
    imported.apply(LAYOUT)
    assert {name: tensor.flatten().tolist() for name, tensor in imported.state.items()} == {
        "blocks.1.ab.w": [0.0, 0.0, 1.0],
        "blocks.0.table": [1.0, 2.0, 3.0, 4.0],
    }
    assert imported.renamed == {
        **dict.fromkeys(["x.block1.b.w", "x.block1.a.w"], "blocks.1.ab.w"),
        "x.table": "blocks.0.table",
    }
    assert imported.skipped == {
        "other": "elsewhere",
        "x.fc.w": "serves classification alone",
        "blocks.0.table[0]": "position of the class token",
    }


def test_a_part_of_a_fusion_is_missed_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"blocks\.2\.b\.w is there but blocks\.2\.a\.w is not"):
        Imported({"block2.b.w": torch.ones(1)}).apply(LAYOUT)
