# SPDX-License-Identifier: Apache-2.0
"""The tried evaluation on panoptic data."""

import json
from pathlib import Path

import pytest

import train_net
from padding.data.catalog import register_all
from padding.engine.commands import load_config
from padding.engine.start_check import try_evaluation
from padding.engine.trainer import TRAINER_REGISTRY
from padding.errors import DataError
from tests.tiny_psi import write_dozen_scribbled_shapes


def test_an_image_without_annotation_is_found_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_dozen_scribbled_shapes(tmp_path / "data")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    register_all()
    file = Path(train_net.__file__).parent / "configs" / "smoke" / "shapes_zsp_pretrain.yaml"
    cfg = load_config(file, ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "out"), "TEST.BEST_METRIC", ""])
    model = TRAINER_REGISTRY.get(cfg.TRAINER).build_model(cfg)
    try_evaluation(cfg, model)
    annotations = root / "shapes" / "annotations" / "panoptic_val.json"
    content = json.loads(annotations.read_text())
    gone = content["annotations"].pop()  # the last image, which two tried images would not reach
    annotations.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"no annotation of image {gone['image_id']}"):
        try_evaluation(cfg, model)
