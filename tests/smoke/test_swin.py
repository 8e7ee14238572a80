# SPDX-License-Identifier: Apache-2.0
"""Every method trains a step and predicts with a Swin for its backbone."""

from pathlib import Path

import pytest
import timm
from detectron2.modeling import build_model

import train_net
from padding.engine.commands import load_config, training_parser
from padding.modeling.swin import FilledSwinBlock

ROOT = Path(__file__).parents[2]
NAME = "swin_tiny_patch4_window7_224"
STEP = ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SOLVER.MAX_ITER", "1", "SOLVER.CHECKPOINT_PERIOD", "1"]
STEP += ["DATASETS.CHECK_AT_START", "False", "TEST.EVAL_PERIOD", "0"]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("shapes_zsp", "shapes_tcc", "shapes_salseg")]


@pytest.mark.parametrize("method", ["shapes_zsp_pretrain", "shapes_psi", *SLOW])
def test_every_method_takes_a_swin(method: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create, sizes = timm.create_model, {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **options, **sizes))
    config = tmp_path / "swin.yaml"
    bases = [ROOT / "configs" / "smoke" / f"{method}.yaml", ROOT / "configs" / "_base_" / "swin_t.yaml"]
    config.write_text(f"_BASE_: {[str(path) for path in bases]}\nMODEL: {{TCC: {{VIT: {{BACKBONE: {NAME}}}}}}}\n")
    words = ["--config-file", str(config), *STEP, "OUTPUT_DIR", str(tmp_path / "out")]
    results = train_net.main(train_net.parse(training_parser(None), words))
    assert results
    model = build_model(load_config(config, ["MODEL.DEVICE", "cpu"]))
    assert sum(isinstance(module, FilledSwinBlock) for module in model.modules()) >= 4
