# SPDX-License-Identifier: Apache-2.0
"""Sentence embeddings from a synthetic package: tokens by hand, the encoder against torch's own layers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from padding.data.prepare.sentence_vectors import MINILM, encode_tokens, sentence_embeddings, word_pieces
from padding.errors import DataError
from tests.fake_package import write_package

VOCABULARY = ["[UNK]", "[CLS]", "[SEP]", "play", "##ing", "##field", "cafe", "-", "_", "sky", "\x85"]
HEADS, WIDTH, LAYERS = 2, 8, 2


def test_word_pieces():
    assert word_pieces("Playingfield", VOCABULARY) == ["[CLS]", "play", "##ing", "##field", "[SEP]"]
    assert word_pieces("Café-sky_xyz", VOCABULARY) == ["[CLS]", "cafe", "-", "sky", "_", "[UNK]", "[SEP]"]
    assert word_pieces("", VOCABULARY) == ["[CLS]", "[SEP]"]


def encoder() -> tuple[nn.TransformerEncoder, dict[str, torch.Tensor]]:
    """Random layers, and the same numbers under BERT's names."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 12, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True)
    layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False).eval()
    weights = {
        "embeddings.word_embeddings.weight": torch.randn(len(VOCABULARY), WIDTH),
        "embeddings.position_embeddings.weight": torch.randn(9, WIDTH),
        "embeddings.token_type_embeddings.weight": torch.randn(2, WIDTH),
        "embeddings.LayerNorm.weight": torch.randn(WIDTH),
        "embeddings.LayerNorm.bias": torch.randn(WIDTH),
    }
    names = {
        "self_attn.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    for tensor in layers.parameters():
        nn.init.normal_(tensor, std=0.5)
    state = layers.state_dict()
    for i in range(LAYERS):
        for kind in ("weight", "bias"):
            for ours, theirs in names.items():
                weights[f"encoder.layer.{i}.{theirs}.{kind}"] = state[f"layers.{i}.{ours}.{kind}"].clone()
            parts = state[f"layers.{i}.self_attn.in_proj_{kind}"].chunk(3)
            for part, tensor in zip(("query", "key", "value"), parts, strict=True):
                weights[f"encoder.layer.{i}.attention.self.{part}.{kind}"] = tensor.clone()
    return layers, weights


@torch.no_grad()
def test_encoder_equals_torchs_layers():
    layers, weights = encoder()
    tokens = torch.tensor([1, 3, 4, 5, 2])
    x = weights["embeddings.word_embeddings.weight"][tokens] + weights["embeddings.position_embeddings.weight"][:5]
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    scale, shift = weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"]
    expected = layers(nn.functional.layer_norm(x, (WIDTH,), scale, shift, 1e-12)[None])[0].mean(dim=0)
    torch.testing.assert_close(encode_tokens(tokens, weights, heads=HEADS, epsilon=1e-12), expected)


def test_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, weights = encoder()
    files = {
        "model/model.safetensors": save(weights),
        "model/vocab.txt": "\n".join([*VOCABULARY, ""]).encode(),
        "model/config.json": json.dumps({"num_attention_heads": HEADS, "layer_norm_eps": 1e-12}).encode(),
    }
    folder = write_package(tmp_path, MINILM, files, "0.1.0")
    monkeypatch.syspath_prepend(tmp_path)
    rows, source = sentence_embeddings(["sky", "playing", "sky"])
    assert (rows.shape, rows.dtype) == ((3, WIDTH), np.float32)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(rows[0], rows[2])
    assert np.abs(rows[0] - rows[1]).max() > 1e-3
    with torch.no_grad():
        one = encode_tokens(torch.tensor([1, 9, 2]), weights, heads=HEADS, epsilon=1e-12).numpy()
    np.testing.assert_allclose(rows[0], one / np.linalg.norm(one), rtol=1e-5)
    assert source.startswith(f"sentence embeddings of {MINILM} 0.1.0, model.safetensors sha256 ")
    with pytest.raises(DataError, match="not the files of a BERT encoder"):
        sentence_embeddings(["sky " * 9])
    (folder / "model/model.safetensors").write_bytes(b"cut")
    with pytest.raises(DataError, match=f"install {MINILM} again"):
        sentence_embeddings(["sky"])
