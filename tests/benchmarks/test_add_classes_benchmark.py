# SPDX-License-Identifier: Apache-2.0
"""The benchmark runs with fewer features and a small backbone, and its last line is what it promises."""

import json

import pytest

from benchmarks.add_classes import main

SMALL = (
    *("MODEL.BACKBONE.NAME", "build_small_resnet_backbone", "MODEL.SMALL_RESNET.OUT_CHANNELS", "[8,8,8,8]"),
    *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "1", "MODEL.MASK_FORMER.DEC_LAYERS", "2"),
    *("MODEL.PADING.STATISTICS.PER_CLASS", "3", "MODEL.PADING.STATISTICS.NO_OBJECT", "10"),
    *("MODEL.PADING.ADD_CLASSES.NUM_PER_CLASS", "4", "MODEL.PADING.ADD_CLASSES.ITERATIONS", "5"),
)


@pytest.mark.parametrize("refit", [False, True])
def test_the_last_line_is_one_json_object(capsys: pytest.CaptureFixture[str], refit: bool) -> None:
    main(["--threads", "1", *(["--refit"] if refit else []), *SMALL])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < result["seconds"] < 30
    assert (result["old_class_max_change"] == 0.0) is not refit
    assert (result["old_classes"], result["added_classes"]) == (133, 2)
    assert result["stored_features"] == 119 * 3 + 10
