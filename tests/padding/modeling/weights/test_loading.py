# SPDX-License-Identifier: Apache-2.0
"""Weights into a model: the report, what is refused, and the start from a whole checkpoint or a backbone's file."""

from pathlib import Path

import pytest
import timm
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from padding.engine.commands import load_config, register_data
from padding.engine.trainer import Trainer
from padding.errors import CheckpointError
from padding.modeling.weights.checkpoint import read_checkpoint
from padding.modeling.weights.loading import load_initial_weights, load_into, load_weights
from tests.tiny_segmentor import write_config
from tests.weight_files import arrays, published_keys, write_pkl

State = dict[str, Tensor]


def changed(model: nn.Module) -> State:
    """A state that differs from the model's own everywhere."""
    return {name: tensor + 1 for name, tensor in model.state_dict().items()}


def assert_loaded(model: nn.Module, state: State, names: list[str]) -> None:
    own = model.state_dict()
    for name in names:
        torch.testing.assert_close(own[name], state[name])


def test_own_state_round_trips(tiny_model: nn.Module) -> None:
    state = changed(tiny_model)
    report = load_into(tiny_model, state)
    assert set(report.matched) == set(state)
    assert [*report.missing, *report.unexpected, *report.renamed, *report.skipped] == []
    assert_loaded(tiny_model, state, list(state))
    assert f"{len(state)} of {len(state)} tensors of the network come from the file." in str(report)


def test_published_layout_loads_into_the_published_network(tiny_cfg: CfgNode, goldens: Path) -> None:
    """Names and shapes only: the network has no storage."""
    shapes = published_keys(goldens)
    network = nn.Module()
    for name, shape in shapes.items():
        *path, leaf = name.split(".")
        module = network
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_buffer(leaf, torch.empty(shape, device="meta"))
    state = {
        name.replace("query_feat", "static_query"): torch.empty(shape, device="meta") for name, shape in shapes.items()
    }
    for class_dependent in ("sem_seg_head.predictor.class_embed.weight", "criterion.empty_weight"):
        state[class_dependent] = torch.empty(81, *shapes[class_dependent][1:], device="meta")
    state["pixel_mean"] = torch.empty(3, 1, 1, device="meta")
    report = load_into(network, state)
    assert len(report.matched) == 556
    assert list(report.renamed.values()) == ["sem_seg_head.predictor.query_feat.weight"]
    assert report.skipped == {
        "sem_seg_head.predictor.class_embed.weight": "shape 81x256 in the file, 134x256 in the network",
        "criterion.empty_weight": "shape 81 in the file, 134 in the network",
        "pixel_mean": "not needed",
    }
    assert not report.missing
    assert not report.unexpected
    table = str(report)
    assert "shape 81x256 in the file" in table
    assert "556 of 558 tensors of the network come from the file." in table
    assert len(table.splitlines()) < 30


def test_old_layouts_load(tiny_model: nn.Module, tmp_path: Path) -> None:
    state = changed(tiny_model)
    old = {name.replace("query_feat", "static_query").replace("pixel_decoder.", ""): t for name, t in state.items()}
    path = write_pkl(tmp_path / "old.pkl", {"model": arrays(old), "__author__": "x"})
    report = load_into(tiny_model, read_checkpoint(path))
    assert set(report.matched) == set(state)
    assert set(report.renamed) == set(old) - set(state)
    assert_loaded(tiny_model, state, list(state))
    assert "loaded, renamed" in str(report)


def test_imagenet_layout_fills_the_backbone(tiny_model: nn.Module) -> None:
    state = changed(tiny_model)
    backbone = {name: tensor for name, tensor in state.items() if name.startswith("backbone.")}
    imagenet = {name.removeprefix("backbone."): tensor for name, tensor in backbone.items()}
    imagenet |= {"stem.fc.weight": torch.ones(10, 16), "stem.fc.bias": torch.ones(10)}
    report = load_into(tiny_model, imagenet)
    assert set(report.matched) == set(backbone)
    assert report.skipped == {"backbone.stem.fc.weight": "not needed", "backbone.stem.fc.bias": "not needed"}
    assert not report.unexpected
    assert all(not name.startswith("backbone.") for name in report.missing)
    assert_loaded(tiny_model, state, list(backbone))
    assert "the rest must be trained before results mean anything: criterion, sem_seg_head." in str(report)


def test_new_parts_of_a_later_stage_are_explained(tiny_model: nn.Module) -> None:
    state = tiny_model.state_dict()
    tiny_model.generator, tiny_model.new_fc = nn.Linear(2, 2), nn.Linear(2, 3)
    report = load_into(tiny_model, state)
    assert len(report.missing) == 4
    assert "the rest starts afresh, as expected when a later stage adds it: generator, new_fc." in str(report)


def test_class_dependent_tensors_of_another_data_set_are_skipped(tiny_model: nn.Module, tiny_cfg: CfgNode) -> None:
    state = changed(tiny_model)
    state["sem_seg_head.predictor.class_embed.weight"] = torch.ones(9, 32)
    state["criterion.empty_weight"] = torch.ones(9)
    state["generator.layers.0.linear1.weight"] = torch.ones(2)
    before = tiny_model.state_dict()["criterion.empty_weight"].clone()
    report = load_into(tiny_model, state)
    assert set(report.skipped) == {"sem_seg_head.predictor.class_embed.weight", "criterion.empty_weight"}
    assert report.unexpected == ["generator.layers.0.linear1.weight"]
    torch.testing.assert_close(tiny_model.state_dict()["criterion.empty_weight"], before)


BODY_KEY = "sem_seg_head.predictor.decoder_norm.weight"


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_unmatched_body_is_an_error_that_changes_nothing_unless_allowed(tiny_model: nn.Module, damage: str) -> None:
    state = changed(tiny_model)
    name, allowed = BODY_KEY, {"allow_missing": ("sem_seg_head.predictor.decoder_norm",)}
    if damage == "missing":
        del state[BODY_KEY]
    elif damage == "shape":
        state[BODY_KEY] = torch.ones(7)
    else:
        name = "backbone.res6.0.conv1.weight"
        state[name] = torch.ones(1)
        allowed = {}
    before = {key: value.clone() for key, value in tiny_model.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"1 tensors of backbone or head do not fit, first '{name}'"):
        load_into(tiny_model, state)
    torch.testing.assert_close(dict(tiny_model.state_dict()), before)
    if damage == "unexpected":
        return
    report = load_into(tiny_model, state, **allowed)
    assert name in (*report.missing, *report.unexpected, *report.skipped)
    assert len(report.matched) >= len(before) - 1


def test_foreign_file_is_an_error(tiny_model: nn.Module) -> None:
    with pytest.raises(CheckpointError, match="no tensor of the file fits the network"):
        load_into(tiny_model, {"encoder.weight": torch.ones(3)})


def test_segment_classifier_warms_up_the_backbone(tiny_model: nn.Module, tiny_cfg: CfgNode, tmp_path: Path) -> None:
    tiny_cfg.MODEL.META_ARCHITECTURE = "SegmentClassifier"
    state = changed(build_model(tiny_cfg))
    torch.save({"model": state}, tmp_path / "warm.pth")
    report = load_into(tiny_model, read_checkpoint(tmp_path / "warm.pth"))
    assert_loaded(tiny_model, state, [name for name in state if name.startswith("backbone.")])
    assert set(report.unexpected) == {name for name in state if name.startswith("classifiers.")}
    assert any(name.startswith("sem_seg_head.") for name in report.missing)


class Model(nn.Module):
    training_only: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 3)})

    @property
    def backbone(self) -> nn.Module:
        return self.network["backbone"]


def filled(state: dict[str, Tensor], value: float) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_file_of_the_backbone_leaves_the_rest_alone(tmp_path: Path, prefix: str) -> None:
    model = Model()
    head = model.network["head"].weight.clone()
    state = filled(model.backbone.state_dict(), 7.0)
    torch.save({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "backbone.pth")
    load_initial_weights(model, model.backbone, str(tmp_path / "backbone.pth"))
    assert all((p == 7.0).all() for p in model.backbone.parameters())
    assert torch.equal(model.network["head"].weight, head)


def test_a_whole_checkpoint_fills_everything(tmp_path: Path) -> None:
    model = Model()
    torch.save({"model": filled(model.state_dict(), 5.0)}, tmp_path / "model.pth")
    load_initial_weights(model, model.backbone, str(tmp_path / "model.pth"))
    assert all((p == 5.0).all() for p in model.parameters())


def test_another_backbone_is_refused_and_the_key_named(tmp_path: Path) -> None:
    model = Model()
    torch.save({"stem.conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"ResNet of Detectron2 .* Compare MODEL\.BACKBONE"):
        load_initial_weights(model, model.backbone, str(tmp_path / "other.pth"))


def test_evaluation_misses_only_what_predictions_depend_on(tmp_path: Path) -> None:
    model = Model()
    torch.save(
        {f"network.{k}": v for k, v in model.network.state_dict().items() if "head" not in k}, tmp_path / "a.pth"
    )
    with pytest.raises(CheckpointError, match=r"leaves 2 parameters of Model untrained, first 'network\.head"):
        load_weights(model, str(tmp_path / "a.pth"), complete=True)
    model.training_only = ("network.head.",)
    assert sorted(load_weights(model, str(tmp_path / "a.pth"), complete=True).missing) == [
        "network.head.bias",
        "network.head.weight",
    ]


def test_a_segmentor_starts_from_a_published_backbone(tmp_path: Path) -> None:
    """Whatever names the file has: MODEL.WEIGHTS of a pre-training is ImageNet weights of the backbone."""
    published = timm.create_model("mobilenetv2_050")
    torch.save(published.state_dict(), tmp_path / "published.pth")
    options = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "mobilenetv2_050")
    cfg = load_config(write_config(tmp_path), options)
    register_data(cfg)
    model = Trainer.build_model(cfg)
    before = model.sem_seg_head.predictor.query_feat.weight.clone()
    Trainer.load_weights(model, str(tmp_path / "published.pth"), complete=False)
    torch.testing.assert_close(model.backbone.network.conv_stem.weight, published.conv_stem.weight)
    assert torch.equal(model.sem_seg_head.predictor.query_feat.weight, before)
