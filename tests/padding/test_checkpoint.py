# SPDX-License-Identifier: Apache-2.0
"""Rows of the class head by class, no-object last; repair; files of either label space and of PADing itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from padding.checkpoint import HEAD, fit_class_head, load_padding_weights, repair_class_head, widen_rows
from padding.errors import CheckpointError
from padding.meta_arch import PADing

BuildModel = Callable[..., PADing]
# "gem" (2) and "lake" (4) of six classes are unseen
SEEN, UNSEEN, NO_OBJECT = [0, 1, 3, 5], [2, 4], 6


@pytest.mark.parametrize(("seen", "total"), [(48, 65), (65, 80), (156, 171), (119, 133)])
def test_widening_puts_every_row_at_its_class_and_no_object_last(seen: int, total: int) -> None:
    class_ids = sorted(torch.randperm(total)[:seen].tolist())
    rows = torch.arange(1.0, seen + 2)[:, None].expand(seen + 1, 3)
    wide = widen_rows(rows, class_ids, torch.zeros(total + 1, 3))
    assert wide.shape == (total + 1, 3)
    assert wide[class_ids, 0].tolist() == list(range(1, seen + 1))
    assert (wide[-1] == seen + 1).all()
    unseen = [i for i in range(total) if i not in set(class_ids)]
    assert (wide[unseen] == 0).all()


def test_widening_refuses_a_wrong_number_of_rows() -> None:
    with pytest.raises(ValueError, match="5 rows for 3 classes"):
        widen_rows(torch.zeros(5, 2), [0, 1, 2], torch.zeros(7, 2))


@pytest.mark.parametrize(("narrow", "wide"), [(49, 66), (66, 81), (157, 172)])
def test_misplaced_no_object_row_of_the_released_converter_is_repaired(narrow: int, wide: int) -> None:
    weight, bias = torch.zeros(wide, 3), torch.zeros(wide)
    weight[:narrow], bias[:narrow] = torch.randn(narrow, 3), torch.randn(narrow)
    fixed_weight, fixed_bias, repaired = repair_class_head(weight, bias)
    assert repaired
    assert torch.equal(fixed_weight[-1], weight[narrow - 1])
    assert fixed_bias[-1] == bias[narrow - 1]
    assert not fixed_weight[narrow - 1 : -1].any()
    assert torch.equal(fixed_weight[: narrow - 1], weight[: narrow - 1])
    again = repair_class_head(fixed_weight, fixed_bias)
    assert not again[2]
    assert torch.equal(again[0], fixed_weight)


def test_sound_head_is_left_alone() -> None:
    weight, bias = torch.randn(5, 3), torch.randn(5)
    weight[2] = 0  # a class without weights is no sign of the converter
    bias[2] = 0
    assert not repair_class_head(weight, bias)[2]


def test_wide_heads_are_narrowed_and_other_sizes_named() -> None:
    rows = torch.arange(7.0)[:, None]
    narrow, wide = fit_class_head(rows, SEEN, 6, torch.zeros(7, 1))
    assert narrow[:, 0].tolist() == [0, 1, 3, 5, 6]
    assert torch.equal(wide, rows)
    with pytest.raises(CheckpointError, match=r"has 9 rows; expected 5 .* or 7"):
        fit_class_head(torch.zeros(9, 1), SEEN, 6, torch.zeros(7, 1))


@pytest.fixture
def segmentor_file(padding_cfg: Callable[..., CfgNode], tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    torch.manual_seed(5)
    state = build_model(padding_cfg("MODEL.META_ARCHITECTURE", "MaskFormer")).state_dict()
    state[f"{HEAD}.bias"] = torch.tensor([10.0, 11.0, 13.0, 15.0, 16.0])
    path = tmp_path / "segmentor.pth"
    torch.save({"model": state, "iteration": 3}, path)
    return path, state


def test_pretrained_segmentor_starts_the_classifier(padding_model: BuildModel, segmentor_file) -> None:
    path, state = segmentor_file
    model = padding_model()
    before = model.new_fc.weight.detach().clone()
    report = load_padding_weights(model, str(path), complete=False)
    assert model.new_fc.bias[SEEN].tolist() == [10.0, 11.0, 13.0, 15.0]
    assert model.new_fc.bias[NO_OBJECT].item() == 16.0
    torch.testing.assert_close(model.new_fc.weight[[*SEEN, NO_OBJECT]], state[f"{HEAD}.weight"])
    torch.testing.assert_close(model.new_fc.weight[UNSEEN], before[UNSEEN])
    torch.testing.assert_close(model.sem_seg_head.predictor.class_embed.bias, state[f"{HEAD}.bias"])
    torch.testing.assert_close(model.backbone.stem.conv1.weight, state["backbone.stem.conv1.weight"])
    assert "generator" in report.explanation()


def test_random_initialisation_ignores_the_segmentors_rows(padding_model: BuildModel, segmentor_file) -> None:
    model = padding_model("MODEL.PADING.CLASSIFIER.INIT", "random")
    before = model.new_fc.bias.detach().clone()
    load_padding_weights(model, str(segmentor_file[0]), complete=False)
    torch.testing.assert_close(model.new_fc.bias.detach(), before)
    assert model.sem_seg_head.predictor.class_embed.bias[-1].item() == 16.0


def test_wide_segmentor_with_a_corrupt_head_is_repaired(
    padding_model: BuildModel, segmentor_file, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, state = segmentor_file
    width = state[f"{HEAD}.weight"].shape[1]
    weight, bias = torch.zeros(7, width), torch.zeros(7)
    weight[:5], bias[:5] = torch.randn(5, width), torch.tensor([10.0, 11.0, 12.0, 13.0, 99.0])
    path = tmp_path / "official.pth"
    torch.save({"model": {**state, f"{HEAD}.weight": weight, f"{HEAD}.bias": bias}}, path)
    model = padding_model()
    with caplog.at_level("WARNING"):
        load_padding_weights(model, str(path), complete=False)
    assert "misplaced" in caplog.text
    assert model.new_fc.bias[NO_OBJECT].item() == 99.0
    assert model.sem_seg_head.predictor.class_embed.bias[-1].item() == 99.0


def test_padings_own_checkpoint_is_loaded_as_it_is(padding_model: BuildModel, tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained = padding_model()
    torch.save({"model": trained.state_dict()}, tmp_path / "padding.pth")
    for complete in (True, False):
        torch.manual_seed(2)
        model = padding_model()
        load_padding_weights(model, str(tmp_path / "padding.pth"), complete=complete)
        for name, value in trained.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, msg=name)


def test_evaluation_refuses_a_mere_segmentor(padding_model: BuildModel, segmentor_file) -> None:
    with pytest.raises(CheckpointError, match=r"untrained"):
        load_padding_weights(padding_model(), str(segmentor_file[0]), complete=True)
    supervised = padding_model("MODEL.PADING.METHOD", "supervised")
    load_padding_weights(supervised, str(segmentor_file[0]), complete=True)
    assert supervised.sem_seg_head.predictor.class_embed.bias[-1].item() == 16.0
