# SPDX-License-Identifier: Apache-2.0
"""Importing released PADing files and the command line: repair, placement of class rows, refusals, files on disk."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from detectron2.config import CfgNode
from torch import Tensor

from padding import import_weights as command
from padding.checkpoint import CLASSIFIER, HEAD, load_padding_weights
from padding.errors import CheckpointError
from padding.import_weights import fit_to_network, import_pading, import_weights, reorder_class_rows
from padding.meta_arch import PADing
from padding.modeling.weights.checkpoint import read_checkpoint
from tests.hf_layout import to_huggingface

State = dict[str, Tensor]
OFFICIAL = (
    "MODEL.PADING.DISENTANGLE.ARCH", "official", "MODEL.PADING.DISENTANGLE.RELATION", "relation_net",
    "MODEL.PADING.ALIGN.TARGET", "projected", "MODEL.PADING.DISENTANGLE.UNRELATED", "official",
)  # fmt: skip
# "gem" (2) and "lake" (4) of six classes are unseen; the segmentor knows the other four.
SEEN, NO_OBJECT = [0, 1, 3, 5], 6


def released_names(goldens: Path) -> list[str]:
    """The 635 names of the released 48/17 instance model, from the description of its layout."""
    linear = ("weight", "bias")
    attention = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    names = [
        f"{module}.{leaf}" for module in ("new_fc", "fc_projection", "relation.fc1", "relation.fc2") for leaf in linear
    ]
    names += ["dict_feature.weight", "generator.norm.weight", "generator.norm.bias"]
    for layer in range(3):
        parts = [f"{part}.{leaf}" for part in ("self_attn", "multihead_attn") for leaf in attention]
        parts += [f"{part}.{leaf}" for part in ("linear1", "linear2", "norm1", "norm2", "norm3") for leaf in linear]
        names += [f"generator.layers.{layer}.{part}" for part in parts]
    for encoder in ("projection_related", "projection_unrelated"):
        names += [f"{encoder}.encoder.{i}.{leaf}" for i in range(2) for leaf in linear]
    names += [f"decoder.decoder.{i}.{leaf}" for i in (0, 3) for leaf in linear]
    return [*json.loads((goldens / "mask2former_r50_keys.json").read_text()), *names]


def released_state(goldens: Path) -> State:
    """All names, each tensor with its own numbers; three rows, so that queries, keys and values can be told apart."""
    names = released_names(goldens)
    return {name: torch.full((3, 1) if name.endswith(".weight") else (3,), i + 1.0) for i, name in enumerate(names)}


def test_every_released_name_is_known_and_no_other(goldens: Path) -> None:
    state = released_state(goldens)
    assert len(state) == 635
    imported = import_weights(state, "pading")
    torch.testing.assert_close(imported.state, state)
    assert not imported.notes
    assert "635 of 635" in str(imported.report())
    with pytest.raises(CheckpointError, match=r"1 names of the file are unknown.*generator\.layers\.0\.norm4"):
        import_weights(state | {"generator.layers.0.norm4.weight": torch.ones(1)}, "pading")


def test_kinds_are_told_apart(goldens: Path) -> None:
    released = released_state(goldens)
    with pytest.raises(CheckpointError, match="layout 'pading', not 'mask2former'; pass --from pading"):
        import_weights(released, "mask2former")
    segmentor = {name: tensor for name, tensor in released.items() if name.startswith(("backbone.", "sem_seg_head."))}
    assert import_weights(segmentor, "pading").state.keys() == segmentor.keys()  # released before its second stage
    with pytest.raises(CheckpointError, match="layout 'mask2former', not 'huggingface'"):
        import_weights(segmentor, "huggingface")


@pytest.fixture
def released(padding_model: Callable[..., PADing]) -> State:
    """A trained network of preset "official" with wide class heads, as it would be released."""
    model = padding_model(*OFFICIAL)
    state = {name: torch.rand(tensor.shape) for name, tensor in model.state_dict().items() if "num_batches" not in name}
    state[f"{HEAD}.weight"], state[f"{HEAD}.bias"] = torch.randn(7, 32), torch.randn(7)
    return state


def test_misplaced_no_object_row_is_moved_in_both_heads(released: State) -> None:
    for head in (HEAD, CLASSIFIER):  # seen classes first, no-object behind them, zeros for the unseen
        released[f"{head}.weight"][5:], released[f"{head}.bias"][5:] = 0, 0
    imported = import_pading(released)
    assert len(imported.notes) == 2
    for head in (HEAD, CLASSIFIER):
        weight = imported.state[f"{head}.weight"]
        assert torch.equal(weight[-1], released[f"{head}.weight"][4])
        assert torch.equal(weight[:4], released[f"{head}.weight"][:4])
        assert not weight[4:-1].any()


def test_released_file_round_trips_through_the_command(
    released: State, padding_cfg: Callable[..., CfgNode], padding_model: Callable[..., PADing], tmp_path: Path
) -> None:
    """With a configuration the written file is complete for evaluation, whichever label space the file had."""
    extras = {"trainer": {"iteration": 3}, "iteration": 3, "optimizer": {"state": {}, "param_groups": []}}
    torch.save({"model": released, **extras}, tmp_path / "released.pth")
    state, report = fit_to_network(
        padding_cfg(*OFFICIAL), import_weights(read_checkpoint(tmp_path / "released.pth"), "pading")
    )
    rows = [*SEEN, NO_OBJECT]
    torch.testing.assert_close(state[f"{HEAD}.weight"], released[f"{HEAD}.weight"][rows])
    torch.testing.assert_close(state[f"{CLASSIFIER}.bias"], released[f"{CLASSIFIER}.bias"])
    torch.testing.assert_close(
        state["generator.layers.1.linear1.weight"], released["generator.layers.1.linear1.weight"]
    )
    assert not report.missing
    torch.save({"model": state}, tmp_path / "fitted.pth")
    load_padding_weights(padding_model(*OFFICIAL), str(tmp_path / "fitted.pth"), complete=True)


def test_released_file_needs_the_official_preset(released: State, padding_cfg: Callable[..., CfgNode]) -> None:
    with pytest.raises(CheckpointError, match=r"add configs/_base_/padding_official\.yaml to _BASE_"):
        fit_to_network(padding_cfg(), import_weights(released, "pading"))


def test_segmentor_becomes_the_first_stage(
    padding_cfg: Callable[..., CfgNode], padding_model: Callable[..., PADing]
) -> None:
    """A plain Mask2Former starts the classifier; the generator stays untrained and is not in the file."""
    segmentor = {
        name: torch.rand(tensor.shape)
        for name, tensor in padding_model().state_dict().items()
        if name.startswith(("backbone.", "sem_seg_head.")) and "num_batches" not in name
    }
    state, report = fit_to_network(padding_cfg(), import_weights(segmentor, "mask2former"))
    assert set(state) == {*segmentor, f"{CLASSIFIER}.weight", f"{CLASSIFIER}.bias"}
    torch.testing.assert_close(state[f"{CLASSIFIER}.weight"][SEEN], segmentor[f"{HEAD}.weight"][:4])
    assert any(name.startswith("generator.") for name in report.missing)


def test_rows_follow_the_class_names() -> None:
    state = {f"{HEAD}.weight": torch.arange(4.0)[:, None], f"{HEAD}.bias": torch.arange(4.0), "other": torch.ones(4)}
    moved = reorder_class_rows(state, ("cat", "dog", "emu"), ("emu", "cat", "dog"))
    assert moved[f"{HEAD}.bias"].tolist() == moved[f"{HEAD}.weight"][:, 0].tolist() == [2, 0, 1, 3]
    assert torch.equal(moved["other"], state["other"])
    with pytest.raises(CheckpointError, match=r"3 names, the network 3; in only one of them: emu, fox"):
        reorder_class_rows(state, ("cat", "dog", "emu"), ("fox", "cat", "dog"))
    with pytest.raises(CheckpointError, match="2 names, but the class head of the file 4 rows"):
        reorder_class_rows(state, ("cat", "dog"), ("dog", "cat"))


@pytest.mark.parametrize("source", ["mask2former", "huggingface", "pading"])
def test_command_writes_a_file_that_reads_back(goldens: Path, tmp_path: Path, source: str) -> None:
    state = released_state(goldens)
    published = dict(list(state.items())[:558])
    if source == "huggingface":
        path = tmp_path / "model.safetensors"
        safetensors.torch.save_file(to_huggingface(published), path)
    elif source == "pading":
        path, published = tmp_path / "model.pth", state
        torch.save({"model": state, "trainer": {}, "iteration": 1}, path)
    else:
        path = tmp_path / "model.pkl"
        path.write_bytes(
            pickle.dumps({"model": {k: v.numpy() for k, v in state.items() if k in published}, "__author__": "x"})
        )
    output = tmp_path / "new" / "out.pth"
    report = command.main(["--from", source, str(path), "--output", str(output)])
    assert len(report.matched) == len(published)
    torch.testing.assert_close(read_checkpoint(output), published)
    assert [file.name for file in output.parent.iterdir()] == ["out.pth"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--output", "x.bin"), "must end in .pth"),
        (("--output", "x.pth", "--class-names", "names.txt"), "need --config-file"),
        (("--output", "x.pth", "MODEL.DEVICE", "cpu"), "need --config-file"),
    ],
)
def test_command_line_is_checked(extra: tuple[str, ...], message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        command.main(["--from", "pading", "in.pth", *extra])
    assert message in capsys.readouterr().err
