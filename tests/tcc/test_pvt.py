# SPDX-License-Identifier: Apache-2.0
"""PVT v1: any size that is a multiple of 32, position tables, attention against its definition, output strides."""

import math

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor

from padding.modeling.recompute import recompute_blocks
from tcc.pvt import PVT, PVT_VARIANTS, PVTArchitecture, PVTBlock, ReducedAttention, build_pvt, resize_position_table

TINY = PVTArchitecture(
    channels=(4, 8, 12, 16), depths=(1, 1, 1, 1), heads=(1, 2, 3, 4), mlp_ratios=(2, 2, 2, 2), pretrain_size=224
)


def tiny(**options: object) -> PVT:
    torch.manual_seed(0)
    return PVT(TINY, **options).eval()


# Published implementations fail at 448 and 896 (whai362) or at all of these but 224 (transformers).
@pytest.mark.parametrize(
    "size", [(224, 224), (448, 448), (512, 512), (800, 1024), (896, 896), (32, 32), (448, 112 * 2)]
)
def test_maps_have_the_announced_sizes_at_every_multiple_of_32(size: tuple[int, int]) -> None:
    network = tiny()
    with torch.no_grad():
        maps = network(torch.randn(1, 3, *size))
    announced = network.output_shape()
    assert list(maps) == ["res2", "res3", "res4", "res5"] == list(announced)
    for name, features in maps.items():
        stride = announced[name].stride
        assert features.shape == (1, announced[name].channels, size[0] // stride, size[1] // stride)
        assert torch.isfinite(features).all()


def test_other_sizes_are_refused_with_the_cure() -> None:
    with pytest.raises(ValueError, match=r"\(513, 512\) pixels: a PVT takes multiples of 32; pad them"):
        tiny()(torch.randn(1, 3, 513, 512))
    assert tiny().size_divisibility == 32


def test_position_table_is_untouched_on_its_own_grid() -> None:
    table = torch.randn(1, 49, 8)
    assert resize_position_table(table, (7, 7), (7, 7)) is table


@pytest.mark.parametrize("size", [(14, 14), (5, 9), (1, 49), (3, 3)])
def test_position_table_is_interpolated_on_another_grid(size: tuple[int, int]) -> None:
    table = torch.randn(1, 49, 2)
    resized = resize_position_table(table, (7, 7), size).unflatten(1, size)
    for row in range(size[0]):
        for column in range(size[1]):
            expected = bilinear(table[0].unflatten(0, (7, 7)), row, column, size)
            torch.testing.assert_close(resized[0, row, column], expected, rtol=1e-4, atol=1e-5)


def bilinear(grid: Tensor, row: int, column: int, size: tuple[int, int]) -> Tensor:
    """Cell of ``grid`` (h0, w0, C) resized to ``size`` without aligned corners, by the definition."""

    def neighbours(index: int, own: int, new: int) -> tuple[int, int, float]:
        position = max((index + 0.5) * own / new - 0.5, 0.0)
        low = math.floor(position)
        return low, min(low + 1, own - 1), position - low

    top, bottom, down = neighbours(row, grid.shape[0], size[0])
    left, right, along = neighbours(column, grid.shape[1], size[1])
    upper = grid[top, left] * (1 - along) + grid[top, right] * along
    lower = grid[bottom, left] * (1 - along) + grid[bottom, right] * along
    return upper * (1 - down) + lower * down


def test_each_stage_compares_the_grid_with_its_own() -> None:
    """At 448x112 every grid has the area of the stage's table and another shape: 112x28 cells, not 56x56."""
    network = tiny()
    embed = network.stages[0].embed
    with torch.no_grad():
        embed.proj.weight.zero_()
        embed.proj.bias.zero_()
        table = embed.absolute_pos_embed.copy_(torch.arange(56.0 * 56).view(1, -1, 1).expand(-1, -1, 4))
        tokens, size = embed(torch.zeros(1, 3, 448, 112))
    assert size == (112, 28)
    assert tokens.shape == table.shape
    torch.testing.assert_close(tokens, resize_position_table(table, (56, 56), (112, 28)))
    assert not torch.allclose(tokens, table)


def test_positions_reach_the_output_of_every_stage() -> None:
    network = tiny()
    images = torch.zeros(1, 3, 448, 128)
    for stage, name in zip(network.stages, ("res2", "res3", "res4", "res5"), strict=True):
        before = network(images)[name]
        with torch.no_grad():
            stage.embed.absolute_pos_embed.normal_()
        assert not torch.allclose(before, network(images)[name])


@pytest.mark.parametrize("reduction", [1, 2, 4])
def test_attention_equals_its_definition(reduction: int) -> None:
    attention = ReducedAttention(6, 2, reduction).double()
    size = (4, 8)
    tokens = torch.randn(2, 32, 6, dtype=torch.double)
    result = attention(tokens, size)
    for image in range(2):
        coarse = tokens[image]
        if reduction > 1:
            merged = F.conv2d(
                coarse.T.reshape(1, 6, *size), attention.sr.weight, attention.sr.bias, stride=reduction
            ).reshape(6, -1)
            coarse = F.layer_norm(merged.T, (6,), attention.norm.weight, attention.norm.bias, eps=1e-6)
        keys_values = coarse @ attention.kv.weight.T + attention.kv.bias
        queries = tokens[image] @ attention.q.weight.T + attention.q.bias
        heads = []
        for head in range(2):
            part = slice(3 * head, 3 * head + 3)
            key, value = keys_values[:, :6][:, part], keys_values[:, 6:][:, part]
            weights = torch.softmax(queries[:, part] @ key.T / math.sqrt(3), dim=1)
            heads.append(weights @ value)
        expected = torch.cat(heads, dim=1) @ attention.proj.weight.T + attention.proj.bias
        torch.testing.assert_close(result[image], expected)


def test_block_equals_its_definition() -> None:
    block = PVTBlock(6, 2, mlp_ratio=3, reduction=2, drop_path=0.0)
    tokens, size = torch.randn(1, 16, 6), (4, 4)
    middle = tokens + block.attn(block.norm1(tokens), size)
    hidden = F.gelu(block.mlp.fc1(block.norm2(middle)))
    torch.testing.assert_close(block(tokens, size), middle + block.mlp.fc2(hidden))
    assert block.norm1.eps == block.norm2.eps == block.attn.norm.eps == 1e-6


def test_output_stride_16_keeps_the_resolution_of_the_last_embedding() -> None:
    coarse, fine = tiny(), tiny(output_stride=16)
    fine.load_state_dict(coarse.state_dict())  # the same parameters
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = {32: coarse(images), 16: fine(images)}
    assert {name: shape.stride for name, shape in fine.output_shape().items()}["res5"] == 16
    assert maps[16]["res5"].shape == (1, 16, 4, 6)
    torch.testing.assert_close(maps[16]["res4"], maps[32]["res4"])
    # The convolution reads the same squares, and those between them.
    with torch.no_grad():
        stage = [network.stages[3].embed.proj for network in (coarse, fine)]
        res4 = maps[32]["res4"]
        between = stage[1](F.pad(res4, (0, 1, 0, 1)))
    torch.testing.assert_close(between[..., ::2, ::2], stage[0](res4))
    with pytest.raises(ValueError, match="OUTPUT_STRIDE of a PVT is 8; expected 16 or 32"):
        tiny(output_stride=8)


def test_stochastic_depth_grows_linearly_over_the_blocks() -> None:
    network = build_pvt("pvt_small", drop_path=0.3)
    rates = [
        m.drop_path.drop_prob for m in network.modules() if isinstance(m, PVTBlock) and type(m.drop_path) is DropPath
    ]
    assert rates == pytest.approx([0.3 * index / 15 for index in range(1, 16)])
    assert not any(isinstance(m, DropPath) for m in build_pvt("pvt_nano").modules())


# Origin: PvtModel of transformers 5.23 has 23.97 M and 43.70 M parameters; less its class token (512), last row of
# positions (512) and final norm (1024). The paper gives 13.2 M for the smallest, of which its classifier has 0.51 M.
@pytest.mark.parametrize(("name", "millions"), [("pvt_tiny", 12.7), ("pvt_small", 23.97), ("pvt_medium", 43.69)])
def test_published_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = build_pvt(name)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.02)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no PVT is called 'pvt_v2_b0'; there are pvt_tiny, pvt_small"):
        build_pvt("pvt_v2_b0")
    assert set(PVT_VARIANTS) == {"pvt_tiny", "pvt_small", "pvt_medium", "pvt_nano"}


def test_every_parameter_is_trained() -> None:
    network = tiny().train()
    network(torch.randn(2, 3, 64, 64))["res5"].square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_recomputed_activations_give_equal_gradients() -> None:
    images = torch.randn(2, 3, 64, 64)
    gradients = []
    for recompute in (False, True):
        network = tiny(drop_path=0.5).train()
        if recompute:
            assert recompute_blocks(network, (PVTBlock,)) == 4
        torch.manual_seed(1)  # of the stochastic depth
        network(images)["res5"].square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)
