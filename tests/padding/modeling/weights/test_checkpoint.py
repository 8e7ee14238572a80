# SPDX-License-Identifier: Apache-2.0
"""Tests of reading weight files: every layout, what is refused, renaming by content, the report."""

import argparse
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from padding.errors import CheckpointError
from padding.modeling.weights.checkpoint import load_into, normalise_keys, read_checkpoint

State = dict[str, Tensor]


def arrays(state: State) -> OrderedDict[str, np.ndarray]:
    return OrderedDict((name, tensor.numpy()) for name, tensor in state.items())


def changed(model: nn.Module) -> State:
    """A state that differs from the model's own everywhere."""
    return {name: tensor + 1 for name, tensor in model.state_dict().items()}


def write_pkl(path: Path, content: Any, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


class Attack:
    """Creates a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.target),)


# ---------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_model_zoo_pickle(tmp_path: Path, protocol: int) -> None:
    state = {"a.weight": torch.randn(2, 3), "a.count": torch.tensor(4)}
    content = {"model": arrays(state), "__author__": "somebody"}
    torch.testing.assert_close(read_checkpoint(write_pkl(tmp_path / "zoo.pkl", content, protocol)), state)


def test_pickle_written_by_python_2(tmp_path: Path) -> None:
    """Its strings are bytes, which only latin1 reads; numpy had its old module name."""
    array = np.arange(3, dtype="<f4")
    raw = array.tobytes()
    text = (
        b"(dp0\nS'model'\n(dp1\nS'w'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I3\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS"
        + repr(raw)[1:].encode()
        + b"\ntbss."
    )
    path = tmp_path / "python2.pkl"
    path.write_bytes(text)
    assert read_checkpoint(path)["w"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_torch_file_with_trainer_state(tmp_path: Path, suffix: str) -> None:
    state = {"a.weight": torch.randn(2, 3)}
    content = {
        "model": OrderedDict(state),
        "iteration": 7,
        "trainer": {"best": np.float64(1.5), "history": np.arange(3), "optimizer": {"state": {0: {"step": 3}}}},
    }
    torch.save(content, tmp_path / f"model{suffix}")
    torch.testing.assert_close(read_checkpoint(tmp_path / f"model{suffix}"), state)


def test_bare_states_and_safetensors(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(2, 3), "b": torch.randn(4).half()}
    torch.save(state, tmp_path / "bare.pth")
    torch.save({"state_dict": state}, tmp_path / "wrapped.pth")
    safetensors.torch.save_file(state, tmp_path / "safe.safetensors")
    write_pkl(tmp_path / "bare.pkl", dict(arrays(state)))
    for name in ("bare.pth", "wrapped.pth", "safe.safetensors", "bare.pkl"):
        torch.testing.assert_close(read_checkpoint(str(tmp_path / name)), state)


def test_arrays_in_a_torch_file(tmp_path: Path) -> None:
    torch.save({"model": {"w": np.ones((2, 2), np.float32)}}, tmp_path / "a.pth")
    torch.testing.assert_close(read_checkpoint(tmp_path / "a.pth"), {"w": torch.ones(2, 2)})


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_pickle_is_refused_unexecuted(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "executed"
    path = write_pkl(tmp_path / "evil.pkl", {"model": {"w": Attack(target)}}, protocol)
    with pytest.raises(CheckpointError, match=r"evil.pkl: asks to run \w+\.mkdir"):
        read_checkpoint(path)
    assert not target.exists()


def test_malicious_torch_file_is_refused_unexecuted(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    torch.save({"model": {"w": torch.ones(1)}, "args": Attack(target)}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil.pth: asks to build \w+\.mkdir"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not target.exists()


def test_torch_file_with_foreign_classes_names_them(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(1)}, "args": argparse.Namespace(lr=1)}, tmp_path / "args.pth")
    with pytest.raises(CheckpointError, match=r"args.pth: asks to build argparse.Namespace"):
        read_checkpoint(tmp_path / "args.pth")


def test_codec_trick_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"c_codecs\nencode\n(V41\nVhex\ntR.")
    with pytest.raises(CheckpointError, match="text encoding 'hex'"):
        read_checkpoint(tmp_path / "a.pkl")


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["truncated", "empty", "text"])
def test_broken_files_are_one_error_naming_the_file(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"broken{suffix}"
    state = {"a.weight": torch.randn(50, 30)}
    if suffix == ".pkl":
        write_pkl(path, {"model": arrays(state), "__author__": "x"})
    elif suffix == ".pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    path.write_bytes({"truncated": path.read_bytes()[:-2000], "empty": b"", "text": b"<html>404</html>\n"}[kind])
    with pytest.raises(
        CheckpointError, match=f"broken{suffix}: cannot be read as a {suffix} checkpoint .* fetch it again"
    ):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds list without named weights"),
        ({}, "holds dict without named weights"),
        ({1: np.ones(1)}, "holds dict without named weights"),
        ({"model": {"w": "text"}}, "entry 'w' is a str, not an array"),
        ({"blobs": {"conv1_w": np.ones(1)}}, "Caffe2 layout"),
    ],
)
def test_files_without_weights(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"a.pkl: {message}"):
        read_checkpoint(write_pkl(tmp_path / "a.pkl", content))


def test_missing_file_and_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.pth: no such weight file; check MODEL.WEIGHTS"):
        read_checkpoint(tmp_path / "none.pth")
    (tmp_path / "a.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"unknown kind '.onnx'; weights are read from .pkl, .pth"):
        read_checkpoint(tmp_path / "a.onnx")


def test_remote_weights_come_from_the_cache_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    name = "ImageNetPretrained/torchvision/R-50.pkl"
    with pytest.raises(CheckpointError, match="never downloaded silently") as caught:
        read_checkpoint(f"detectron2://{name}")
    cached = tmp_path / "detectron2" / name
    assert f"curl -fL --create-dirs -o {cached} https://" in str(caught.value)
    cached.parent.mkdir(parents=True)
    write_pkl(cached, {"model": {"stem.conv1.weight": np.ones(2, np.float32)}, "__author__": "x"})
    assert list(read_checkpoint(f"detectron2://{name}")) == ["stem.conv1.weight"]


# --------------------------------------------------------------------------------------------------- renaming


def published_keys(goldens: Path) -> dict[str, list[int]]:
    return {name: shape for name, (shape, _) in json.loads((goldens / "mask2former_r50_keys.json").read_text()).items()}


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


# --------------------------------------------------------------------------------------------------- loading


def assert_loaded(model: nn.Module, state: State, names: list[str]) -> None:
    own = model.state_dict()
    for name in names:
        torch.testing.assert_close(own[name], state[name])


def test_own_state_round_trips(tiny_model: nn.Module) -> None:
    state = changed(tiny_model)
    report = load_into(tiny_model, state)
    assert set(report.matched) == set(state)
    assert [*report.missing, *report.unexpected, *report.renamed, *report.skipped] == []
    assert_loaded(tiny_model, state, list(state))
    assert f"{len(state)} of {len(state)} tensors of the network come from the file." in str(report)


def test_published_layout_loads_into_the_published_network(tiny_cfg: CfgNode, goldens: Path) -> None:
    """Names and shapes only: the network has no storage."""
    shapes = published_keys(goldens)
    network = nn.Module()
    for name, shape in shapes.items():
        *path, leaf = name.split(".")
        module = network
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_buffer(leaf, torch.empty(shape, device="meta"))
    state = {
        name.replace("query_feat", "static_query"): torch.empty(shape, device="meta") for name, shape in shapes.items()
    }
    for class_dependent in ("sem_seg_head.predictor.class_embed.weight", "criterion.empty_weight"):
        state[class_dependent] = torch.empty(81, *shapes[class_dependent][1:], device="meta")
    state["pixel_mean"] = torch.empty(3, 1, 1, device="meta")
    report = load_into(network, state)
    assert len(report.matched) == 556
    assert list(report.renamed.values()) == ["sem_seg_head.predictor.query_feat.weight"]
    assert report.skipped == {
        "sem_seg_head.predictor.class_embed.weight": "shape 81x256 in the file, 134x256 in the network",
        "criterion.empty_weight": "shape 81 in the file, 134 in the network",
        "pixel_mean": "not needed",
    }
    assert not report.missing
    assert not report.unexpected
    table = str(report)
    assert "shape 81x256 in the file" in table
    assert "556 of 558 tensors of the network come from the file." in table
    assert len(table.splitlines()) < 30


def test_old_layouts_load(tiny_model: nn.Module, tmp_path: Path) -> None:
    state = changed(tiny_model)
    old = {name.replace("query_feat", "static_query").replace("pixel_decoder.", ""): t for name, t in state.items()}
    path = write_pkl(tmp_path / "old.pkl", {"model": arrays(old), "__author__": "x"})
    report = load_into(tiny_model, read_checkpoint(path))
    assert set(report.matched) == set(state)
    assert set(report.renamed) == set(old) - set(state)
    assert_loaded(tiny_model, state, list(state))
    assert "loaded, renamed" in str(report)


def test_imagenet_layout_fills_the_backbone(tiny_model: nn.Module) -> None:
    state = changed(tiny_model)
    backbone = {name: tensor for name, tensor in state.items() if name.startswith("backbone.")}
    imagenet = {name.removeprefix("backbone."): tensor for name, tensor in backbone.items()}
    imagenet |= {"stem.fc.weight": torch.ones(10, 16), "stem.fc.bias": torch.ones(10)}
    report = load_into(tiny_model, imagenet)
    assert set(report.matched) == set(backbone)
    assert report.skipped == {"backbone.stem.fc.weight": "not needed", "backbone.stem.fc.bias": "not needed"}
    assert not report.unexpected
    assert all(not name.startswith("backbone.") for name in report.missing)
    assert_loaded(tiny_model, state, list(backbone))
    assert "the rest must be trained before results mean anything: criterion, sem_seg_head." in str(report)


def test_new_parts_of_a_later_stage_are_explained(tiny_model: nn.Module) -> None:
    state = tiny_model.state_dict()
    tiny_model.generator, tiny_model.new_fc = nn.Linear(2, 2), nn.Linear(2, 3)
    report = load_into(tiny_model, state)
    assert len(report.missing) == 4
    assert "the rest starts afresh, as expected when a later stage adds it: generator, new_fc." in str(report)


def test_class_dependent_tensors_of_another_data_set_are_skipped(tiny_model: nn.Module, tiny_cfg: CfgNode) -> None:
    state = changed(tiny_model)
    state["sem_seg_head.predictor.class_embed.weight"] = torch.ones(9, 32)
    state["criterion.empty_weight"] = torch.ones(9)
    state["generator.layers.0.linear1.weight"] = torch.ones(2)
    before = tiny_model.state_dict()["criterion.empty_weight"].clone()
    report = load_into(tiny_model, state)
    assert set(report.skipped) == {"sem_seg_head.predictor.class_embed.weight", "criterion.empty_weight"}
    assert report.unexpected == ["generator.layers.0.linear1.weight"]
    torch.testing.assert_close(tiny_model.state_dict()["criterion.empty_weight"], before)


BODY_KEY = "sem_seg_head.predictor.decoder_norm.weight"


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_unmatched_body_is_an_error_that_changes_nothing_unless_allowed(tiny_model: nn.Module, damage: str) -> None:
    state = changed(tiny_model)
    name, allowed = BODY_KEY, {"allow_missing": ("sem_seg_head.predictor.decoder_norm",)}
    if damage == "missing":
        del state[BODY_KEY]
    elif damage == "shape":
        state[BODY_KEY] = torch.ones(7)
    else:
        name = "backbone.res6.0.conv1.weight"
        state[name] = torch.ones(1)
        allowed = {}
    before = {key: value.clone() for key, value in tiny_model.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"1 tensors of backbone or head do not fit, first '{name}'"):
        load_into(tiny_model, state)
    torch.testing.assert_close(dict(tiny_model.state_dict()), before)
    if damage == "unexpected":
        return
    report = load_into(tiny_model, state, **allowed)
    assert name in (*report.missing, *report.unexpected, *report.skipped)
    assert len(report.matched) >= len(before) - 1


def test_foreign_file_is_an_error(tiny_model: nn.Module) -> None:
    with pytest.raises(CheckpointError, match="no tensor of the file fits the network"):
        load_into(tiny_model, {"encoder.weight": torch.ones(3)})


def test_segment_classifier_warms_up_the_backbone(tiny_model: nn.Module, tiny_cfg: CfgNode, tmp_path: Path) -> None:
    tiny_cfg.MODEL.META_ARCHITECTURE = "SegmentClassifier"
    state = changed(build_model(tiny_cfg))
    torch.save({"model": state}, tmp_path / "warm.pth")
    report = load_into(tiny_model, read_checkpoint(tmp_path / "warm.pth"))
    assert_loaded(tiny_model, state, [name for name in state if name.startswith("backbone.")])
    assert set(report.unexpected) == {name for name in state if name.startswith("classifiers.")}
    assert any(name.startswith("sem_seg_head.") for name in report.missing)
