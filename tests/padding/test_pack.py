# SPDX-License-Identifier: Apache-2.0
"""One file is a model: packed, opened elsewhere, extended, drawn with; and what damaged or foreign files say."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from detectron2.config import CfgNode
from PIL import Image

import demo
import padding.pack
from padding.bank.seen_statistics import FILE_NAME
from padding.data.catalog import register_all
from padding.engine import Predictor
from padding.engine.commands import load_config, load_model
from padding.engine.packing import last_results, open_packed, pack_model, portable_configuration
from padding.engine.trainer import TRAINER_REGISTRY
from padding.errors import CheckpointError, ConfigError, MissingFileError
from padding.modeling.weights.checkpoint import read_checkpoint, read_with_entries
from padding.modeling.weights.packed import is_packed, packed_bytes, read_description, read_packed
from tests.separable_features import separable_cfg, train_second_stage
from tests.tiny_psi import tiny_psi_cfg
from tests.tiny_salseg import tiny_salseg_cfg
from tests.tiny_segmentor import write_config
from tests.tiny_tcc import tiny_tcc_cfg

ROOT = Path(__file__).parents[2]
ADDED = "green cross"


def with_keys(cfg: CfgNode, *opts: Any) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(list(opts))
    cfg.freeze()
    return cfg


def untrained(cfg: CfgNode, folder: Path) -> CfgNode:
    """The configuration with weights of an untrained model of it."""
    torch.manual_seed(0)
    model = TRAINER_REGISTRY.get(cfg.TRAINER).build_model(cfg)
    for name, parameter in model.named_parameters():
        if name.endswith("predictor.bias"):
            torch.nn.init.normal_(parameter)  # otherwise every pixel is a tie
    path = folder / f"{cfg.MODEL.META_ARCHITECTURE}.pth"
    torch.save({"model": model.state_dict()}, path)
    return with_keys(cfg, "MODEL.WEIGHTS", str(path))


@pytest.fixture(scope="module")
def second_stage(tmp_path_factory: pytest.TempPathFactory) -> CfgNode:
    """A folder as the second stage of PADing leaves it."""
    folder = tmp_path_factory.mktemp("padding")
    cfg = separable_cfg(folder)
    model, statistics = train_second_stage(cfg, iterations=20)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    statistics.save(folder / FILE_NAME)
    (folder / "inference").mkdir()
    results = {"val": {"panoptic_seg": {"PQ": 12.5, "SQ": None}}, "seconds": 3.0}
    (folder / "inference/metrics.json").write_text(json.dumps(results))
    return with_keys(cfg, "MODEL.WEIGHTS", str(folder / "model_final.pth"))


@pytest.fixture(scope="module")
def packed(second_stage: CfgNode, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "model.safetensors"
    pack_model(second_stage, load_model(second_stage), path)
    return path


def semantic_cfg(make: Callable[..., CfgNode]) -> CfgNode:
    register_all()
    return with_keys(make(), "MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", 48, "INPUT.MAX_SIZE_TEST", 96)


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def tensors_of(prediction: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The plain tensors of a prediction."""
    parts = (
        {**prediction, "panoptic_seg": prediction["panoptic_seg"][0]} if "panoptic_seg" in prediction else prediction
    )
    return {name: value for name, value in parts.items() if isinstance(value, torch.Tensor)}


def test_packed_models_of_every_method_predict_alike_where_nothing_else_is(
    second_stage: CfgNode, packed: Path, tmp_path: Path
) -> None:
    """In a process of its own, in an empty folder: no YAML, no data set."""
    register_all()
    maskformer = with_keys(load_config(write_config(tmp_path)), "DATASETS.TEST", ("shapes_val_panoptic_zsp",))
    configs = [maskformer, *map(semantic_cfg, (tiny_tcc_cfg, tiny_psi_cfg, tiny_salseg_cfg))]
    expected = {packed: tensors_of(Predictor(second_stage)(picture()))}
    for cfg in (untrained(cfg, tmp_path) for cfg in configs):
        predictor = Predictor(cfg)
        path = tmp_path / f"{cfg.MODEL.META_ARCHITECTURE}.safetensors"
        pack_model(cfg, predictor.model, path)
        expected[path] = tensors_of(predictor(picture()))
    for path, tensors in expected.items():
        assert tensors, path
        torch.save(tensors, path.with_suffix(".expected"))
    code = """
import sys, numpy, torch
from pathlib import Path
from padding.engine import Predictor
torch.set_num_threads(1)
image = numpy.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=numpy.uint8)
for path in map(Path, sys.argv[1:]):
    predictor = Predictor.from_file(path, ["MODEL.DEVICE", "cpu"])
    prediction = predictor(image)
    assert predictor.draw(image, prediction).shape == image.shape
    for name, tensor in torch.load(path.with_suffix(".expected"), weights_only=True).items():
        found = prediction[name][0] if name == "panoptic_seg" else prediction[name]
        assert torch.equal(found, tensor), (path, name)
    print(type(predictor.model).__name__)
"""
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, expected)],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(empty)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["PADing", "MaskFormer", "TCC", "PSI", "SalSeg"]


def test_file_has_everything_but_places_of_the_training(second_stage: CfgNode, packed: Path) -> None:
    text = read_description(packed).configuration
    folder = str(Path(second_stage.MODEL.WEIGHTS).parent)
    assert folder in second_stage.dump()
    assert folder not in text
    assert folder.encode() not in packed.read_bytes()
    cfg = open_packed(packed)
    assert str(packed) == cfg.MODEL.WEIGHTS
    assert cfg.MODEL.PADING.EMBEDDINGS.PATH == ""
    assert cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES == second_stage.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
    assert cfg.MODEL.PADING.GENERATOR.NUM_PRIMITIVES == second_stage.MODEL.PADING.GENERATOR.NUM_PRIMITIVES
    assert read_description(packed).results == {"val/panoptic_seg/PQ": 12.5, "val/panoptic_seg/SQ": None}
    assert is_packed(packed)


def test_keys_of_the_command_line_come_last(packed: Path) -> None:
    assert open_packed(packed, ["MODEL.PADING.TEST.SEEN_BIAS", "1.5"]).MODEL.PADING.TEST.SEEN_BIAS == 1.5
    with pytest.raises(ConfigError, match=r"MODEL\.PADING\.TEST\.SEEN_BIAZ"):
        open_packed(packed, ["MODEL.PADING.TEST.SEEN_BIAZ", "1.5"])


def test_classes_are_added_to_a_packed_model_as_to_its_checkpoint(second_stage: CfgNode, packed: Path) -> None:
    ours, theirs = Predictor.from_file(packed), Predictor(second_stage)
    ours.add_classes([ADDED])
    theirs.add_classes([ADDED])
    assert ours.class_names == theirs.class_names
    assert ours.class_names[-1] == ADDED
    assert torch.equal(ours.model.new_fc.weight, theirs.model.new_fc.weight)
    assert torch.equal(ours.model.class_embeddings, theirs.model.class_embeddings)


def test_an_extended_model_is_packed_with_its_classes(second_stage: CfgNode, packed: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_file(packed)
    predictor.add_classes([ADDED])
    path = tmp_path / "wide.safetensors"
    pack_model(predictor.cfg, predictor.model, path)
    again = Predictor.from_file(path)
    assert again.class_names == predictor.class_names
    assert torch.equal(again.model.class_embeddings, predictor.model.class_embeddings)
    mine, other = again(picture()), predictor(picture())
    assert torch.equal(mine["panoptic_seg"][0], other["panoptic_seg"][0])


def test_packing_without_statistics_warns_and_says_so_when_classes_are_added(
    second_stage: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"model": load_model(second_stage).state_dict()}, tmp_path / "alone.pth")
    cfg = with_keys(second_stage, "MODEL.WEIGHTS", str(tmp_path / "alone.pth"), "OUTPUT_DIR", str(tmp_path))
    path = tmp_path / "m.safetensors"
    pack_model(cfg, load_model(cfg), path)
    assert "Packed without seen statistics" in caplog.text
    with pytest.raises(ValueError, match="no seen statistics"):
        Predictor.from_file(path).add_classes([ADDED])


def test_packed_file_is_a_weight_file_too(second_stage: CfgNode, packed: Path) -> None:
    checkpoint, entries = read_with_entries(second_stage.MODEL.WEIGHTS)[0], read_with_entries(packed)[1]
    assert {"label_space", "seen_statistics", "class_vectors"} <= entries.keys()
    found = read_checkpoint(packed)
    assert found.keys() == checkpoint.keys()
    assert all(torch.equal(found[name], checkpoint[name]) for name in found)
    model = load_model(with_keys(second_stage, "MODEL.WEIGHTS", str(packed)))
    assert torch.equal(model.new_fc.weight, checkpoint["new_fc.weight"])


def test_equal_models_give_equal_bytes(packed: Path) -> None:
    description = read_description(packed)
    assert packed_bytes(description, read_packed(packed)) == packed.read_bytes()


def test_commands_pack_and_draw(
    packed: Path,
    second_stage: CfgNode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("padding.data.catalog.register_all", lambda: None)
    (tmp_path / "config.yaml").write_text(second_stage.dump())
    written = padding.pack.main(
        ["--config-file", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "new.safetensors")]
    )
    assert torch.equal(read_packed(written)["model"]["new_fc.weight"], read_packed(packed)["model"]["new_fc.weight"])
    assert f"PADing of {len(Predictor(second_stage).class_names)} classes in {written}" in capsys.readouterr().out
    Image.fromarray(picture()).save(tmp_path / "a.png")
    words = ["--model", str(written), "--input", str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
    (drawn,) = demo.main([*words, "--confidence", "0.1"])
    assert Image.open(drawn).size == (56, 40)
    for wrong in ([*words, "--weights", "x.pth"], [*words, "--config-file", "x.yaml"], words[2:]):
        with pytest.raises(demo.DemoError, match="either --config-file"):
            demo.main(wrong)


def test_a_packed_model_has_no_images_of_its_own(packed: Path) -> None:
    from detectron2.data import DatasetCatalog

    cfg = open_packed(packed)
    with pytest.raises(ValueError, match="is a model and has no images"):
        DatasetCatalog.get(cfg.DATASETS.TEST[0])


# Files that are none -------------------------------------------------------------------------------------------------


def rewritten(source: Path, target: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> Path:
    with safetensors.safe_open(source, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata())
    change(tensors, metadata)
    safetensors.torch.save_file(tensors, target, metadata)
    return target


def edited(metadata: dict[str, str], **values: Any) -> None:
    metadata["segmentation_model"] = json.dumps(
        {**json.loads(metadata["segmentation_model"]), **values}, separators=(",", ":")
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, _: tensors["model/new_fc.bias"].add_(1), "checksum"),
        (lambda tensors, _: tensors.pop("model/new_fc.bias"), "checksum"),
        (lambda _, metadata: edited(metadata, crc32=""), "checksum"),
        (lambda _, metadata: edited(metadata, results={"a": 1.0}), "checksum"),
        (lambda _, metadata: edited(metadata, format=2), "format 2, this project reads 1"),
        (lambda _, metadata: edited(metadata, learned=None), "description is damaged"),
        (lambda _, metadata: edited(metadata, learned={}), "description is damaged"),
        (lambda _, metadata: metadata.update(segmentation_model="{"), "description is damaged"),
    ],
    ids=["tensor", "missing tensor", "no checksum", "results", "version", "no classes", "half classes", "no JSON"],
)
def test_damaged_files_are_refused(packed: Path, tmp_path: Path, change: Any, message: str) -> None:
    path = rewritten(packed, tmp_path / "other.safetensors", change)
    with pytest.raises(CheckpointError, match=message) as caught:
        Predictor.from_file(path)
    assert str(caught.value).count(str(path)) == 1


def test_other_files_are_refused(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such model file"):
        open_packed(tmp_path / "nothing.safetensors")
    half = tmp_path / "half.safetensors"
    half.write_bytes(packed.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="cut short or something else"):
        open_packed(half)
    weights = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, weights)
    assert not is_packed(weights)
    with pytest.raises(CheckpointError, match="holds weights alone"):
        open_packed(weights)


@pytest.mark.parametrize("text", ["[1]", "MODEL: {NOPE: 1}", "MODEL: 3", "a: [", "MODEL: {WEIGHTS: 3}"])
def test_a_strange_configuration_is_refused(packed: Path, tmp_path: Path, text: str) -> None:
    path = rewritten(packed, tmp_path / "other.safetensors", lambda _, metadata: edited(metadata, configuration=text))
    with pytest.raises(ConfigError, match="other"):
        open_packed(path)


def test_only_tensors_and_plain_values_are_packed(packed: Path) -> None:
    with pytest.raises(TypeError, match="model/a is a set"):
        packed_bytes(read_description(packed), {"model": {"a": {1}}})


def test_output_must_be_another_safetensors_file(second_stage: CfgNode, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="change the ending"):
        pack_model(second_stage, torch.nn.Identity(), tmp_path / "m.pth")
    with pytest.raises(ConfigError, match="choose another name"):
        pack_model(open_packed(packed), torch.nn.Identity(), packed)


def test_results_of_another_making_are_left_out(tmp_path: Path) -> None:
    assert last_results(tmp_path) == {}
    (tmp_path / "inference").mkdir()
    for text in ("{", "[]", '{"a": 3}', '{"a": {"b": 2}}'):
        (tmp_path / "inference/metrics.json").write_text(text)
        assert last_results(tmp_path) == {}


def test_portable_configuration_keeps_what_makes_the_model(tmp_path: Path) -> None:
    cfg = with_keys(load_config(write_config(tmp_path)), "MODEL.TCC.CNN.WEIGHTS", "/home/me/r50.pth")
    text = portable_configuration(cfg)
    assert "/home/me" not in text
    assert "shapes_train" not in text
    assert "NUM_OBJECT_QUERIES: 10" in text
    assert cfg.MODEL.TCC.CNN.WEIGHTS == "/home/me/r50.pth"
