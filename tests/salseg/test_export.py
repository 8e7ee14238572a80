# SPDX-License-Identifier: Apache-2.0
"""The segmentation of a trained SalSeg alone: equal scores, fewer weights, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from padding.data.catalog import register_all
from padding.engine.commands import load_config
from padding.engine.part_export import export_part, num_parameters
from padding.errors import CheckpointError
from padding.modeling.weights.checkpoint import read_checkpoint
from padding.modeling.weights.loading import load_into
from salseg.export import SEGMENTATION, main
from salseg.meta_arch import SalSeg
from tests.tiny_salseg import random_samples, tiny_salseg_cfg
from tests.tiny_segmentor import write_dozen_shapes

NODE = "MODEL.SALSEG."


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_dozen_shapes(tmp_path_factory.mktemp("data"))
    register_all(root)
    return root


@pytest.fixture(autouse=True)
def _root(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))


def trained(folder: Path, *opts: Any) -> tuple[CfgNode, SalSeg, Path]:
    """A model after two steps, whose running statistics and log-variances have moved, with its checkpoint."""
    torch.manual_seed(0)
    cfg = tiny_salseg_cfg(*opts)
    model = build_model(cfg)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        samples = [s for s in random_samples(joint=1, seed=step) if "sem_seg" in s or model.branch is not None]
        sum(model(samples).values()).backward()
        optimizer.step()
    path = folder / "model_final.pth"
    torch.save({"model": model.state_dict(), "trainer": {"optimizers": {}}, "iteration": 2}, path)
    (folder / "config.yaml").write_text(cfg.dump())
    return cfg, model.eval(), path


def scores(model: SalSeg) -> list[dict[str, torch.Tensor]]:
    with torch.no_grad():
        return model([{"image": sample["image"]} for sample in random_samples(seed=7)])


def exported_model(target: Path, *opts: str) -> SalSeg:
    cfg = load_config(str(target), ["MODEL.DEVICE", "cpu", *opts])
    model = build_model(cfg)
    model.load_state_dict(read_checkpoint(cfg.MODEL.WEIGHTS))
    return model.eval()


@pytest.mark.parametrize(
    "opts",
    [
        (),
        (NODE + "SALIENCY.BN_STATS", "per_task"),
        (NODE + "SALIENCY.SHARE_DECODER", True),
        (NODE + "WEIGHTING", "uniform", NODE + "SALIENCY.CHANNELS", 5),
        (NODE + "WEIGHTING", "seg_only"),
        ("TEST.SEM_SEG.FLIP", True),
    ],
)
def test_scores_are_those_of_the_whole_model(tmp_path: Path, opts: tuple[Any, ...]) -> None:
    cfg, model, weights = trained(tmp_path, *opts)
    alone = exported_model(export_part(cfg, weights, tmp_path / "new" / "alone.pth", SEGMENTATION))
    assert alone.branch is None
    for whole, part in zip(scores(model), scores(alone), strict=True):
        assert set(part) == {"sem_seg"}
        assert torch.equal(whole["sem_seg"], part["sem_seg"])
    assert len(whole["sem_seg"].unique()) > 100  # not all the same


def test_learned_temperature_goes_into_the_last_layer(tmp_path: Path) -> None:
    cfg, model, weights = trained(tmp_path, NODE + "WEIGHTING", "likelihood")
    assert model.weighting.sharpness("seg") != 1
    alone = exported_model(export_part(cfg, weights, tmp_path / "alone.pth", SEGMENTATION))
    for whole, part in zip(scores(model), scores(alone), strict=True):
        torch.testing.assert_close(whole["sem_seg"], part["sem_seg"])


@pytest.mark.parametrize("statistics", ["seg_only", "per_task"])
def test_weights_load_where_the_branch_is_switched_off(tmp_path: Path, statistics: str) -> None:
    policy = (NODE + "SALIENCY.BN_STATS", statistics)
    cfg, model, weights = trained(tmp_path, *policy)
    export_part(cfg, weights, tmp_path / "alone.pth", SEGMENTATION)
    off = build_model(tiny_salseg_cfg(*policy, NODE + "SALIENCY.ENABLED", False))
    report = load_into(off, read_checkpoint(tmp_path / "alone.pth"))
    assert not report.missing
    assert not report.skipped
    assert torch.equal(scores(off.eval())[0]["sem_seg"], scores(model)[0]["sem_seg"])


def test_nothing_of_saliency_and_of_the_training_is_left(tmp_path: Path, capsys: Any) -> None:
    cfg, model, weights = trained(tmp_path)
    words = ["--config-file", str(tmp_path / "config.yaml"), "--weights", str(weights)]
    target = main([*words, "--output", str(tmp_path / "alone.pth"), "--opts", "INPUT.MIN_SIZE_TEST", "96"])
    assert target == tmp_path / "alone.yaml"
    content = torch.load(tmp_path / "alone.pth", weights_only=True)
    assert set(content) == {"model"}
    assert {name.split(".")[0] for name in content["model"]} == {"backbone", "pyramid", "decoder"}
    whole, part = (sum(p.numel() for p in m.parameters()) for m in (model, exported_model(target)))
    removed = sum(p.numel() for p in (*model.branch.parameters(), *model.weighting.parameters()))  # type: ignore[union-attr]
    assert part == whole - removed
    assert num_parameters(cfg) == whole
    assert f"{part:,} of {whole:,} parameters" in capsys.readouterr().out

    own = load_config(str(target), [])
    assert own.DATASETS.TEST == ("shapes_val_sem_seg_coarse",)
    assert own.DATASETS.TRAIN == cfg.DATASETS.TRAIN
    assert (own.INPUT.MIN_SIZE_TEST, str(tmp_path / "alone")) == (96, own.OUTPUT_DIR)
    assert str(weights) in target.read_text().splitlines()[0]


@pytest.mark.slow
def test_segmentation_alone_is_a_graph_too(tmp_path: Path) -> None:
    _, model, weights = trained(tmp_path)
    words = ["--config-file", str(tmp_path / "config.yaml"), "--weights", str(weights)]
    described = main([*words, "--output", str(tmp_path / "alone.pt2"), "--opts", "MODEL.DEVICE", "cpu"])
    assert json.loads(described.read_text())["differences"]["logits"] < 1e-4
    images = torch.rand(1, 3, 64, 96) * 255
    with torch.no_grad():
        wanted = model.logits((images - model.pixel_mean) / model.pixel_std)["sem_seg"]
        (found,) = torch.export.load(tmp_path / "alone.pt2").module()(images)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert not (tmp_path / "alone.yaml").exists()


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    cfg, _, weights = trained(tmp_path)
    with pytest.raises(ValueError, match="'saliency_only': segmentation was not trained"):
        SEGMENTATION.cfg(tiny_salseg_cfg(NODE + "WEIGHTING", "saliency_only"), tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"alone\.pkl: weights are written to a \.pth file"):
        export_part(cfg, weights, tmp_path / "alone.pkl", SEGMENTATION)
    with pytest.raises(ValueError, match="is the checkpoint to be read"):
        export_part(cfg, weights, weights, SEGMENTATION)
    with pytest.raises(CheckpointError, match=r"no parameter 'decoder\.\*': the checkpoint holds cnn, vit; is it"):
        SEGMENTATION.state({"cnn.a": torch.ones(1), "vit.b": torch.ones(1)})
    wider = tiny_salseg_cfg(NODE + "ASPP.CHANNELS", 12)
    with pytest.raises(CheckpointError, match=r"does not hold the segmentation that .* of another shape \(first: pyr"):
        export_part(wider, weights, tmp_path / "x.pth", SEGMENTATION)
    assert not list(tmp_path.glob("x.*"))
