# SPDX-License-Identifier: Apache-2.0
"""Exported graphs: what they compute is what the models predict; files of every method, formats, sizes and errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from packaging.version import Version
from torch import Tensor, nn

import padding.export
from padding.data.catalog import register_all
from padding.engine.commands import load_config
from padding.engine.export import ExportError, difference, export_graph
from padding.engine.graphs import PixelGraph, best_instances, graph_of, panoptic_maps
from padding.engine.packing import pack_model
from padding.engine.trainer import TRAINER_REGISTRY
from padding.errors import ConfigError, MethodError
from padding.modeling.inference import instance_inference, panoptic_inference
from padding.modeling.tta import SegmentationPlan
from tests.tiny_padding import register_tiny_data, tiny_padding_cfg
from tests.tiny_psi import tiny_psi_cfg
from tests.tiny_salseg import tiny_salseg_cfg
from tests.tiny_segmentor import write_config
from tests.tiny_tcc import tiny_tcc_cfg

K, Q = 5, 12
THINGS = frozenset({0, 2})


class TwoConvolutions(nn.Module):
    """A network that scores pixels, as TCC, PSI and SalSeg do."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(4, K, 1))
        self.register_buffer("pixel_mean", torch.full((3, 1, 1), 100.0))
        self.register_buffer("pixel_std", torch.full((3, 1, 1), 50.0))
        self.plan = SegmentationPlan(size_divisibility=8)

    def logits(self, view: Tensor) -> dict[str, Tensor]:
        return {"sem_seg": self.layers(view)}


def random_queries(batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Confident class logits and blobs of mask logits, some of which overlap."""
    generator = torch.Generator().manual_seed(seed)
    class_logits = 6 * torch.randn(batch, Q, K + 1, generator=generator)
    coarse = 8 * torch.randn(batch, Q, 4, 5, generator=generator)
    return class_logits, nn.functional.interpolate(coarse, size=(24, 30), mode="bilinear")


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.4])
def test_panoptic_maps_are_those_of_the_prediction(overlap: float) -> None:
    class_logits, mask_logits = random_queries(3)
    is_thing = torch.tensor([i in THINGS for i in range(K + 1)])
    options: dict[str, Any] = {"object_mask_threshold": 0.6, "overlap_threshold": overlap}
    segments, classes, scores = panoptic_maps(class_logits, mask_logits.sigmoid(), is_thing=is_thing, **options)
    kinds = set()
    for i, (logits, masks) in enumerate(zip(class_logits, mask_logits, strict=True)):
        ids, info = panoptic_inference(logits, masks, thing_ids=THINGS, **options)
        assert len(info) == len(segments[i][segments[i] > 0].unique())
        assert torch.equal(ids == 0, segments[i] == 0)
        for segment in info:
            (name,) = segments[i][ids == segment["id"]].unique().tolist()
            assert classes[i, name - 1] == segment["category_id"]
            assert float(scores[i, name - 1]) == pytest.approx(segment["score"])
            kinds.add(segment["isthing"])
    assert kinds == {True, False}


def test_nothing_is_left_of_queries_without_a_class() -> None:
    class_logits, mask_logits = random_queries(1)
    class_logits[..., -1] = 50.0
    options: dict[str, Any] = {"object_mask_threshold": 0.6, "overlap_threshold": 0.5}
    segments, _, scores = panoptic_maps(
        class_logits, mask_logits.sigmoid(), is_thing=torch.zeros(K + 1, dtype=torch.bool), **options
    )
    assert not segments.any()
    assert not scores.any()


def test_instances_are_those_of_the_prediction() -> None:
    class_logits, mask_logits = random_queries(2, seed=3)
    scores, classes, queries, masks = best_instances(class_logits, mask_logits.sigmoid(), top_k=20)
    for i in range(2):
        wanted = instance_inference(class_logits[i], mask_logits[i], top_k=20, keep_ids=None)
        assert torch.equal(classes[i], wanted.pred_classes)
        assert torch.equal(masks[i][queries[i]], wanted.pred_masks)
        torch.testing.assert_close(scores[i], wanted.scores)


def untrained(cfg: CfgNode) -> Any:
    torch.manual_seed(0)
    return TRAINER_REGISTRY.get(cfg.TRAINER).build_model(cfg).eval()


def images_of(height: int = 64, width: int = 96, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, height, width), generator=generator).float()


@pytest.mark.parametrize("make", [tiny_tcc_cfg, tiny_psi_cfg, tiny_salseg_cfg])
def test_labels_of_pixels_are_those_of_the_prediction(make: Callable[..., CfgNode]) -> None:
    register_all()
    cfg = make().clone()
    cfg.defrost()
    cfg.merge_from_list(["TEST.SEM_SEG.SCALES", (1.0,), "TEST.SEM_SEG.FLIP", False, "TEST.SEM_SEG.MODE", "whole"])
    model, images = untrained(cfg), images_of()
    graph = graph_of(model, post_processing=True)
    with torch.no_grad():
        scores = model([{"image": images[0], "height": 64, "width": 96}])[0]["sem_seg"]
        labels = graph(images)[0][0]
        logits = graph_of(model, post_processing=False)(images)[0]
    assert next(iter(graph.outputs)) == "labels"
    assert logits.shape[:2] == (1, len(scores))
    best = scores.gather(0, labels[None])[0]
    torch.testing.assert_close(best, scores.amax(dim=0), rtol=1e-4, atol=1e-6)  # ties have several labels


def test_queries_of_padding_are_those_of_the_prediction(tmp_path: Path) -> None:
    register_tiny_data(tmp_path)
    task = "MODEL.MASK_FORMER.TEST."
    opts = [task + "SEMANTIC_ON", True, task + "INSTANCE_ON", True, task + "OBJECT_MASK_THRESHOLD", 0.05]
    model, images = untrained(tiny_padding_cfg(tmp_path, tmp_path, *opts)), images_of()
    graph = graph_of(model, post_processing=True)
    with torch.no_grad():
        prediction = model([{"image": images[0], "height": 64, "width": 96}])[0]
        found = dict(zip(graph.outputs, graph(images), strict=True))
        class_logits, _ = graph_of(model, post_processing=False)(images)
    assert class_logits.shape == (1, 8, model.num_test_classes + 1)
    ids, info = prediction["panoptic_seg"]
    assert len(found["segments"].unique()) - int((ids == 0).any()) == len(info)
    assert torch.equal(found["segments"][0] == 0, ids == 0)
    scores = prediction["sem_seg"]
    torch.testing.assert_close(scores.gather(0, found["labels"])[0], scores.amax(dim=0), rtol=1e-4, atol=1e-6)
    assert {"instance_scores", "instance_classes", "instance_queries", "masks"} <= found.keys()


def test_other_models_are_refused() -> None:
    with pytest.raises(MethodError, match="Identity cannot be exported"):
        graph_of(nn.Identity(), post_processing=False)


@pytest.mark.parametrize("post_processing", [False, True])
def test_a_graph_takes_any_batch_and_size_and_says_how_exact_it_is(post_processing: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = PixelGraph(TwoConvolutions(), post_processing=post_processing)
    path = tmp_path / "model.pt2"
    report = export_graph(graph, path, form="torch-export", pixels="RGB", classes=("a", "b"))
    (name,) = graph.outputs
    assert (report.size, report.batch, report.size_divisibility) == (None, None, 8)
    assert report.differences[name] < 1e-5
    program = torch.export.load(path)
    for images in (images_of(8 * 7, 8 * 3, batch=4), images_of(8 * 2, 8 * 9)):
        with torch.no_grad():
            assert difference(program.module()(images)[0], graph(images)[0]) < 1e-5
    described = json.loads((tmp_path / "model.json").read_text())
    assert described["classes"] == ["a", "b"]
    assert described["inputs"]["images"] == "(B, 3, H, W) float32 in [0, 255], RGB"
    assert described["outputs"] == dict(graph.outputs)


class OfOneSize(TwoConvolutions):
    """Cannot be traced with free sizes: how it computes hangs on them."""

    def logits(self, view: Tensor) -> dict[str, Tensor]:
        return {"sem_seg": self.layers(view) * (2.0 if view.shape[-1] == 352 else 1.0)}


def test_what_allows_no_other_size_is_fixed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    graph = PixelGraph(OfOneSize(), post_processing=False)
    report = export_graph(graph, tmp_path / "m.pt2", form="torch-export")
    assert (report.size, report.batch) == ((224, 352), 2)
    assert "so both are fixed" in caplog.text
    report = export_graph(graph, tmp_path / "m.pt2", form="torch-export", size=(16, 24), batch=3)
    assert (report.size, report.batch) == ((16, 24), 3)


def test_wrong_endings_and_sizes_are_refused(tmp_path: Path) -> None:
    graph = PixelGraph(TwoConvolutions(), post_processing=False)
    for name, form in (("m.onnx", "torch-export"), ("m.pt2", "onnx"), ("m.pth", "other")):
        with pytest.raises(ConfigError, match=r"is written to a file \*"):
            export_graph(graph, tmp_path / name, form=form)
    with pytest.raises(ConfigError, match="expected multiples of 8"):
        export_graph(graph, tmp_path / "m.pt2", form="torch-export", size=(16, 20))


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("onnxscript"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ExportError, match=r"pip install '\.\[export\]'"):
        export_graph(PixelGraph(TwoConvolutions(), post_processing=False), tmp_path / "m.onnx", form="onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_differences_are_absolute_or_shares() -> None:
    infinite = torch.tensor([float("-inf"), 1.0])
    assert difference(infinite, infinite.clone()) == 0.0
    assert difference(infinite + torch.tensor([0.0, 0.25]), infinite) == 0.25
    assert difference(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5])) == 0.25


def test_command_wants_one_model() -> None:
    for words in ([], ["--config-file", "a.yaml", "--model", "m.safetensors"]):
        with pytest.raises(ConfigError, match="either --config-file"):
            padding.export.main([*words, "--format", "onnx", "--output", "m.onnx"])


def packed(make: str, tmp_path: Path) -> Path:
    """A packed untrained model of a method."""
    register_all()
    if make == "padding":
        register_tiny_data(tmp_path)
        cfg = tiny_padding_cfg(tmp_path, tmp_path)
    elif make == "maskformer":
        cfg = load_config(write_config(tmp_path))
    else:
        cfg = {"tcc": tiny_tcc_cfg, "psi": tiny_psi_cfg, "salseg": tiny_salseg_cfg}[make]()
    path = tmp_path / "model.safetensors"
    pack_model(cfg, untrained(cfg), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torch-export", "onnx"])
@pytest.mark.parametrize("make", ["maskformer", "padding", "tcc", "salseg", "psi"])
def test_every_method_is_exported(make: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Logits with any batch and size; labels and segments at a fixed one."""
    if form == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    if make in ("maskformer", "padding") and Version(torch.__version__) < Version("2.6"):
        pytest.skip("torch.export of torch 2.4 refuses the pixel decoder")
    model = packed(make, tmp_path)
    output = tmp_path / ("m.onnx" if form == "onnx" else "m.pt2")
    words = ["--format", form, "--model", str(model), "--output", str(output)]
    padding.export.main(words)
    described = json.loads(output.with_suffix(".json").read_text())
    assert described["size"] is None
    assert max(described["differences"].values()) < 1e-3
    assert "any batch and size" in capsys.readouterr().out
    padding.export.main([*words, "--post-processing", "--size", "64", "64"])
    described = json.loads(output.with_suffix(".json").read_text())
    assert (described["size"], described["batch"]) == ([64, 64], 1)
    assert max(described["differences"].values()) < 1e-2
