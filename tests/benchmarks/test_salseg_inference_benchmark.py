# SPDX-License-Identifier: Apache-2.0
"""The comparison with Detectron2's DeepLabV3+ at a small image size: what is compared, and the form of the result."""

import json

import pytest
import torch

from benchmarks import salseg_inference


def test_the_last_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    salseg_inference.main(["--size", "32", "64", "--repeats", "1"])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["time_ratio"] > 0
    assert found["parameters"] == pytest.approx({"salseg": 46.816, "detectron2": 59.344}, abs=1e-3)
    assert found["gmac_ratio"] == pytest.approx(151.56 / 177.22, abs=2e-3)  # of every size


def test_both_networks_give_logits_of_one_size() -> None:
    with torch.device("meta"):
        networks = salseg_inference.build_networks((64, 96), ["MODEL.DEVICE", "meta"])
        sizes = {name: network(torch.empty(1, 3, 64, 96)).shape for name, network in networks.items()}
    assert set(sizes.values()) == {torch.Size([1, 19, 16, 24])}
