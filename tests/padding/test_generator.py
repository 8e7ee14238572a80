# SPDX-License-Identifier: Apache-2.0
"""The batched generator against the expanded formulation, published names, noise and dropout."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from padding.generator import Gmmn, PrimitivePaper, PrimitiveTransformer


def transformer(**changes) -> PrimitiveTransformer:
    options = {"num_layers": 2, "num_heads": 4, "ffn_channels": 24, "dropout": 0.0, "noise_std": 0.0, **changes}
    return PrimitiveTransformer(16, **options)


def expanded_forward(generator: PrimitiveTransformer, conditions: torch.Tensor, primitives: torch.Tensor):
    """One condition at a time, sequence length 1, the primitives repeated for it, full multi-head attention."""
    outputs = []
    for condition in conditions:
        x = condition[None, None]  # (length 1, batch 1, D)
        memory = primitives[:, None]
        for layer in generator.layers:
            x = layer.norm1(x + layer.self_attn(x, x, x)[0])
            x = layer.norm2(x + layer.multihead_attn(x, memory, memory)[0])
            x = layer.norm3(x + layer.linear2(F.relu(layer.linear1(x))))
        outputs.append(generator.norm(x)[0, 0])
    return torch.stack(outputs)


@pytest.mark.parametrize("training", [True, False])
def test_batched_form_equals_the_expanded_one(training):
    generator = transformer().train(training)
    for p in generator.parameters():  # default biases are zero and would hide a wrong slice
        nn.init.normal_(p, std=0.3)
    conditions, primitives = torch.randn(5, 16), torch.randn(7, 16)
    expected = expanded_forward(generator, conditions, primitives)
    torch.testing.assert_close(generator(conditions, primitives), expected, atol=1e-5, rtol=1e-5)


def test_gradients_equal_the_expanded_form():
    generator = transformer()
    conditions, primitives = torch.randn(3, 16), torch.randn(7, 16)
    weights = torch.randn(3, 16)
    (generator(conditions, primitives) * weights).sum().backward()
    ours = {k: p.grad.clone() for k, p in generator.named_parameters()}
    generator.zero_grad()
    (expanded_forward(generator, conditions, primitives) * weights).sum().backward()
    for name, p in generator.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, atol=1e-5, rtol=1e-4)


def test_noise_acts_in_evaluation_too():
    conditions, primitives = torch.randn(3, 16), torch.randn(7, 16)
    noisy = transformer(noise_std=1.0).eval()
    assert not torch.equal(noisy(conditions, primitives), noisy(conditions, primitives))
    quiet = transformer(noise_std=0.0).eval()
    assert torch.equal(quiet(conditions, primitives), quiet(conditions, primitives))


def test_dropout_acts_in_training_only():
    conditions, primitives = torch.randn(3, 16), torch.randn(7, 16)
    generator = transformer(dropout=0.5)
    assert not torch.equal(generator(conditions, primitives), generator(conditions, primitives))
    generator.eval()
    assert torch.equal(generator(conditions, primitives), generator(conditions, primitives))


def test_published_names_shapes_and_count():
    generator = PrimitiveTransformer(256, num_layers=3, num_heads=8, ffn_channels=1024, dropout=0.1, noise_std=1.0)
    attention = {
        "in_proj_weight": (768, 256),
        "in_proj_bias": (768,),
        "out_proj.weight": (256, 256),
        "out_proj.bias": (256,),
    }
    expected = {"norm.weight": (256,), "norm.bias": (256,)}
    for i in range(3):
        for block in ("self_attn", "multihead_attn"):
            expected |= {f"layers.{i}.{block}.{k}": s for k, s in attention.items()}
        expected |= {f"layers.{i}.linear1.weight": (1024, 256), f"layers.{i}.linear1.bias": (1024,)}
        expected |= {f"layers.{i}.linear2.weight": (256, 1024), f"layers.{i}.linear2.bias": (256,)}
        expected |= {f"layers.{i}.norm{j}.{k}": (256,) for j in (1, 2, 3) for k in ("weight", "bias")}
    assert {k: tuple(v.shape) for k, v in generator.state_dict().items()} == expected
    assert sum(p.numel() for p in generator.parameters()) == 3_160_832


def test_no_conditions_give_no_features():
    assert transformer()(torch.zeros(0, 16), torch.randn(7, 16)).shape == (0, 16)


def test_primitive_self_attention_changes_the_output():
    torch.manual_seed(0)
    with_graph = transformer(primitive_self_attention=True)
    conditions, primitives = torch.randn(3, 16), torch.randn(7, 16)
    out = with_graph(conditions, primitives)
    graph, with_graph.graph = with_graph.graph, None
    assert not torch.allclose(out, with_graph(conditions, primitives))
    permuted = graph(primitives.flip(0))
    torch.testing.assert_close(permuted, graph(primitives).flip(0), atol=1e-5, rtol=1e-5)  # a graph has no order


def test_paper_generator_is_equation_1():
    generator = PrimitivePaper(6, num_layers=1, num_heads=2, dropout=0.0, noise_std=0.0)
    conditions, primitives = torch.randn(3, 6), torch.randn(4, 6)
    rows = []
    for a in conditions:
        q = generator.queries[0](a)
        weights = torch.stack([q @ generator.keys[0](p) / 6**0.5 for p in primitives]).softmax(0)
        mixed = sum(w * generator.values[0](p) for w, p in zip(weights, primitives, strict=True))
        rows.append(generator.outputs[0](mixed + a))
    torch.testing.assert_close(generator(conditions, primitives), torch.stack(rows), atol=1e-5, rtol=1e-5)


def test_paper_generator_repeats_and_adds_noise():
    generator = PrimitivePaper(6, num_layers=3, num_heads=2, dropout=0.0, noise_std=1.0, primitive_self_attention=True)
    conditions, primitives = torch.randn(3, 6), torch.randn(4, 6)
    first = generator(conditions, primitives)
    assert first.shape == (3, 6)
    assert not torch.equal(first, generator(conditions, primitives))
    first.sum().backward()
    assert all(p.grad is not None for p in generator.parameters())


def test_gmmn_follows_its_recipe():
    generator = Gmmn(5, 8, dropout=0.0, noise_std=1.0)
    first, last = generator.network[0], generator.network[-1]
    assert tuple(first.weight.shape) == (8, 10)
    assert tuple(last.weight.shape) == (8, 8)
    assert torch.all(first.bias == 0.01)
    assert torch.all(last.bias == 0.01)
    x = torch.randn(4, 5)
    assert not torch.equal(generator(x), generator(x))
    generator.noise_std = 0.0
    z = torch.cat([x, torch.zeros(4, 5)], dim=1)
    torch.testing.assert_close(generator(x), last(F.leaky_relu(first(z), 0.2)))
