# SPDX-License-Identifier: Apache-2.0
"""A model that scores pixels, from images on disk to results: evaluation, predictor and demo follow one plan."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from PIL import Image
from torch import nn

import demo
from padding.data.catalog import register_all
from padding.data.readers import read_label_map
from padding.engine import Predictor, load_cfg
from padding.engine.evaluation_loop import evaluate
from padding.evaluation.semantic import SemSegEvaluator
from padding.modeling.label_space import evaluation_split
from padding.modeling.tta import SegmentationPlan, segment
from tests.tiny_segmentor import write_dozen_shapes

CONFIG = """
VERSION: 2
MODEL: {META_ARCHITECTURE: PixelScorer, DEVICE: cpu, PIXEL_MEAN: [120.0, 120.0, 120.0], PIXEL_STD: [60.0, 60.0, 60.0]}
DATASETS: {TEST: [shapes_val_sem_seg_zss]}
DATALOADER: {NUM_WORKERS: 0}
INPUT: {FORMAT: RGB, MIN_SIZE_TEST: 96, MAX_SIZE_TEST: 96}
TEST: {SEM_SEG: {CROP_SIZE: [64, 40], SCALES: [0.75, 1.25], FLIP: True}}
"""


@META_ARCH_REGISTRY.register()
class PixelScorer(nn.Module):
    """Two convolutions as two networks, as in TCC; what is called the prediction is their mean."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        num_classes = evaluation_split(cfg).num_classes
        self.left, self.right = (nn.Conv2d(3, num_classes, 7, stride=4, padding=3) for _ in range(2))
        self.plan = SegmentationPlan.from_config(cfg)
        self.mean, self.std = cfg.MODEL.PIXEL_MEAN[0], cfg.MODEL.PIXEL_STD[0]

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
        predictions = []
        for sample in batch:
            image = (sample["image"].float() - self.mean) / self.std
            size = (sample["height"], sample["width"])
            found = segment(self._logits, image, self.plan, output_size=size)
            mean = (found["left"] + found["right"]) / 2
            predictions.append({"sem_seg": mean, "sem_seg_left": found["left"], "sem_seg_right": found["right"]})
        return predictions

    def _logits(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"left": self.left(images), "right": self.right(images)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_dozen_shapes(tmp_path_factory.mktemp("data"))
    (folder / "config.yaml").write_text(CONFIG)
    register_all(folder)
    torch.manual_seed(1)
    torch.save({"model": PixelScorer(load_cfg(str(folder / "config.yaml"), [], ())).state_dict()}, folder / "model.pth")
    return folder


def cfg_with(root: Path, output: Path, *opts: Any) -> CfgNode:
    paths = ["MODEL.WEIGHTS", str(root / "model.pth"), "OUTPUT_DIR", str(output)]
    return load_cfg(str(root / "config.yaml"), [*paths, *map(str, opts)], ())


@pytest.mark.parametrize("mode", ["whole", "slide", "center_crop"])
def test_predictor_follows_the_plan_of_the_evaluation(root: Path, tmp_path: Path, mode: str) -> None:
    cfg = cfg_with(root, tmp_path, "TEST.SEM_SEG.MODE", mode, "TEST.SEM_SEG.PARTS", "('left', 'right')")
    predictor = Predictor(cfg)
    results = evaluate(cfg, predictor.model)
    assert list(results) == ["sem_seg", "sem_seg_left", "sem_seg_right"]
    name = cfg.DATASETS.TEST[0]
    evaluator = SemSegEvaluator(name, parts=("left", "right"), only_scored=mode == "center_crop")
    records = DatasetCatalog.get(name)
    for record in records:
        image = np.asarray(Image.open(record["file_name"]).convert("RGB"))
        evaluator.process([record], [predictor(image)])
    assert evaluator.evaluate() == results
    counted = evaluator.confusions["sem_seg"].sum()
    assert (counted < 4 * 64 * 64 * 0.5) == (mode == "center_crop")
    assert len({results[task]["pACC"] for task in results}) == 3


def test_demo_writes_what_the_evaluation_counts(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    cfg = cfg_with(root, tmp_path, "TEST.SEM_SEG.MODE", "slide")
    results = evaluate(cfg, Predictor(cfg).model)
    words = ["--config-file", str(root / "config.yaml"), "--weights", str(root / "model.pth"), "--label-maps"]
    paths = ["--input", str(root / "shapes" / "images" / "val"), "--output", str(tmp_path / "out")]
    written = demo.main([*words, *paths, "--opts", "TEST.SEM_SEG.MODE", "slide"])
    assert len(written) == 4
    evaluator = SemSegEvaluator(cfg.DATASETS.TEST[0])
    for record in DatasetCatalog.get(cfg.DATASETS.TEST[0]):
        file = tmp_path / "out" / "label_maps" / Path(record["file_name"]).with_suffix(".png").name
        labels = torch.from_numpy(read_label_map(file).astype(np.int64))
        evaluator.process([record], [{"sem_seg": labels}])
    assert evaluator.evaluate() == results
