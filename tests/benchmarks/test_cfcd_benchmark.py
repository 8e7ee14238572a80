# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the class-aware consistency runs at a small size, and counts bytes as a real run keeps them."""

import json

import pytest
import torch

from benchmarks import cfcd

SMALL = cfcd.Case(size=32, batch=2, classes=5, channels=(12, 8), stride=4)


def test_both_forms_agree_and_the_loop_keeps_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cfcd, "DECODER_CHANNELS", (24, 24))  # wide enough that no ReLU leaves zeros only
    sizes = ["--size", "32", "--batch", "2", "--classes", "5", "--channels", "32", "16", "--stride", "4"]
    cfcd.main([*sizes, "--repeats", "1"])
    *details, result = map(json.loads, capsys.readouterr().out.splitlines())
    assert [row["memory"]["stride"] for row in details[:3]] == [4, 4, 1]
    assert (result["size"], result["batch"], result["channels"], result["stride"]) == (32, 2, [32, 16], 4)
    for part in (details[-1]["decoder"], result):
        assert part["time_ratio"] > 0
        assert part["memory_ratio"] > 1
        assert 0 <= part["max_difference"] < 1e-5
        assert 0 <= part["max_gradient_difference"] < 1e-4
    assert 0 < result["vectorised_gradient_error"] < 1e-4


@pytest.mark.parametrize("name", list(cfcd.FORMS))
def test_kept_bytes_are_those_of_a_real_run(name: str) -> None:
    features, labels = SMALL.inputs()
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = cfcd.FORMS[name](features, labels, SMALL.classes)
    assert loss.requires_grad
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert cfcd.kept_bytes(cfcd.FORMS[name], SMALL) == real


def test_the_loop_leaves_ignored_pixels_as_they_are() -> None:
    features, labels = torch.randn(1, 6, 2, 2), torch.tensor([[[0, 0], [1, 255]]])
    assert cfcd.loop_similarity(features, labels, 2)[0, 1].tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
