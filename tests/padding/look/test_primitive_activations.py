# SPDX-License-Identifier: Apache-2.0
"""Attention over the primitives: against a formula written out, averaged over noise, refused without primitives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from padding.look.primitive_activations import characteristic_primitives, primitive_activations
from padding.meta_arch import PADing

PAPER = ("MODEL.PADING.GENERATOR.NAME", "primitive_paper")
SILENT = ("MODEL.PADING.GENERATOR.NOISE_STD", 0.0)
BuildModel = Callable[..., PADing]


@pytest.mark.parametrize("generator", [(), PAPER])
def test_rows_are_distributions_of_every_class(padding_model: BuildModel, generator: tuple[Any, ...]) -> None:
    model = padding_model(*generator)
    weights = primitive_activations(model, samples=3)
    assert weights.shape == (2, 6, 10)  # layers, classes, primitives
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(2, 6))
    assert model.generator.training  # as before
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.generator.modules())


def test_first_layer_follows_the_formula(padding_model: BuildModel) -> None:
    """Softmax over the primitives of q k / sqrt(d), head by head, for the condition after its own attention."""
    model = padding_model(*SILENT)
    weights = primitive_activations(model, samples=2)[0]
    layer, primitives = model.generator.layers[0].eval(), model.dict_feature.weight
    conditions = model.fc_projection(model.class_embeddings)
    x = layer.norm1(conditions + layer._attend_to_itself(conditions))
    attention = layer.multihead_attn
    width, heads = attention.embed_dim, attention.num_heads
    query = x @ attention.in_proj_weight[:width].T + attention.in_proj_bias[:width]
    key = primitives @ attention.in_proj_weight[width : 2 * width].T + attention.in_proj_bias[width : 2 * width]
    expected = torch.zeros(6, 10)
    for head in range(heads):
        part = slice(head * width // heads, (head + 1) * width // heads)
        expected += (query[:, part] @ key[:, part].T / (width / heads) ** 0.5).softmax(dim=1) / heads
    torch.testing.assert_close(weights, expected.detach())


def test_first_layer_of_the_printed_equation(padding_model: BuildModel) -> None:
    model = padding_model(*PAPER, *SILENT)
    generator, primitives = model.generator, model.dict_feature.weight
    query = generator.queries[0](model.fc_projection(model.class_embeddings))
    expected = (query @ generator.keys[0](primitives).T / query.shape[1] ** 0.5).softmax(dim=1)
    torch.testing.assert_close(primitive_activations(model, samples=1)[0], expected.detach())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("MODEL.PADING.METHOD", "projection"), "none"),
        (("MODEL.PADING.GENERATOR.NAME", "gmmn", "MODEL.PADING.ALIGN.TARGET", "raw"), "Gmmn"),
    ],
)
def test_models_without_primitives_are_refused(padding_model: BuildModel, options: tuple[Any, ...], name: str) -> None:
    with pytest.raises(ValueError, match=f"this model's generator is {name}"):
        primitive_activations(padding_model(*options), samples=1)


def test_characteristic_primitives_differ_between_classes_and_come_in_blocks() -> None:
    weights = torch.tensor([[0.3, 0.6, 0.0, 0.1, 0.0], [0.3, 0.0, 0.5, 0.1, 0.1], [0.3, 0.0, 0.1, 0.1, 0.5]])
    assert characteristic_primitives(weights, 3).tolist() == [1, 2, 4]  # by the class that uses each most
    assert characteristic_primitives(weights[[2, 1, 0]], 3).tolist() == [4, 2, 1]
    assert len(characteristic_primitives(weights, 99)) == 5
