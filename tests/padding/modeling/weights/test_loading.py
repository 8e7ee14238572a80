# SPDX-License-Identifier: Apache-2.0
"""A training starts from a whole checkpoint or from a file of its backbone alone."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from padding.errors import CheckpointError
from padding.modeling.weights.loading import load_initial_weights, load_weights


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
