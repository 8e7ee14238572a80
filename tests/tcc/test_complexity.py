# SPDX-License-Identifier: Apache-2.0
"""Counts of parameters and operations: by hand for a small network, against the specified numbers for the students."""

import re

import pytest
import torch

from padding.modeling.deeplab import DeepLabOptions, DeepLabV3PlusHead
from tcc.complexity import COUNTING, Complexity, main, student_complexity
from tcc.pvt import PVT, PVTArchitecture
from tcc.students import Student

ARCHITECTURE = PVTArchitecture(
    channels=(4, 8, 12, 16), depths=(1, 1, 2, 1), heads=(1, 2, 3, 4), mlp_ratios=(2, 3, 2, 2), pretrain_size=64
)
OPTIONS = DeepLabOptions(project_channels=4, aspp_channels=8, decoder_channels=6, dilations=(1, 2, 3))


def tiny_student() -> Student:
    head = DeepLabV3PlusHead(input_channels={"res2": 4, "res5": 16}, num_classes=5, options=OPTIONS)
    return Student(PVT(ARCHITECTURE), head)


def pvt_operations(height: int, width: int) -> int:
    """Twice the multiplications, written down from the definition of each layer."""
    total, before = 0, 3
    for stage, (c, depth) in enumerate(zip(ARCHITECTURE.channels, ARCHITECTURE.depths, strict=True)):
        stride = 4 * 2**stage
        patch = 4 if stage == 0 else 2
        tokens = (height // stride) * (width // stride)
        keys = tokens // ARCHITECTURE.reductions[stage] ** 2
        total += tokens * before * patch**2 * c
        reduce = tokens * c * c if ARCHITECTURE.reductions[stage] > 1 else 0  # each cell is read once
        attention = 2 * tokens * c * c + keys * c * 2 * c + 2 * tokens * keys * c
        perceptron = 2 * tokens * c * c * ARCHITECTURE.mlp_ratios[stage]
        total += depth * (reduce + attention + perceptron)
        before = c
    return 2 * total


def head_operations(height: int, width: int) -> int:
    last, low = (height // 32) * (width // 32), (height // 4) * (width // 4)
    pyramid = last * 16 * 8 * (1 + 9 + 9 + 9) + 16 * 8 + last * 40 * 8
    decoder = low * (4 * 4 + 9 * 12 * 6 + 9 * 6 * 6 + 6 * 5)
    return 2 * (pyramid + decoder)


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("size", [(64, 64), (128, 160)])
def test_operations_are_those_counted_by_hand(size: tuple[int, int], device: str) -> None:
    with torch.device(device):
        found = student_complexity(tiny_student().train(), size)
    assert found.gflops * 1e9 == pytest.approx(pvt_operations(*size) + head_operations(*size), rel=1e-9)


def test_parameters_are_counted_apart_and_the_mode_is_kept() -> None:
    student = tiny_student().train()
    found = student_complexity(student, (64, 64))
    assert student.training
    assert isinstance(found, Complexity)
    assert found.backbone_millions * 1e6 == pytest.approx(sum(p.numel() for p in student.backbone.parameters()))
    assert found.head_millions * 1e6 == pytest.approx(sum(p.numel() for p in student.head.parameters()))


def test_every_published_student_meets_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    lines = capsys.readouterr().out.strip().splitlines()[2:]
    assert len(lines) == 7
    for line in lines:
        cells = re.findall(r"([\d.]+) \(([\d.]+)\)", line)
        assert len(cells) == 4
        for found, expected in cells:
            digit = 0.5 if "." not in expected else 0.05
            assert float(found) == pytest.approx(float(expected), abs=digit + 0.051), line


def test_command_prints_the_students_of_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    options = "MODEL.TCC.CNN.BACKBONE small_resnet MODEL.TCC.CNN.OUTPUT_STRIDE 32 MODEL.TCC.VIT.BACKBONE pvt_nano"
    main(["--size", "64", "96", "--num-classes", "4", *options.split()])
    header, _, cnn, vit = capsys.readouterr().out.strip().splitlines()
    assert "GFLOP (64x96, 4 classes)" in header
    assert cnn.startswith("| small_resnet OS32 | 0.57")
    assert vit.startswith("| pvt_nano OS32")


def test_published_numbers_stand_only_beside_those_of_their_size() -> None:
    rows = {"resnet50 OS16": ["23.5", "16.8", "40.4", "138.0"]}
    assert "138.0 (138)" in COUNTING.table(rows, (512, 512), 21, published=True)
    for size, num_classes, published in (((512, 512), 21, False), ((64, 512), 21, True), ((512, 512), 5, True)):
        assert "(138)" not in COUNTING.table(rows, size, num_classes, published=published)


def test_size_without_a_configuration_is_that_of_the_published_students(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tcc.complexity.REFERENCE", {("resnet50", 16): (23.5, 16.8, 40.4, 138)})
    main(["--size", "64", "64"])
    table = capsys.readouterr().out
    assert "GFLOP (64x64, 21 classes)" in table
    assert "(138)" not in table
