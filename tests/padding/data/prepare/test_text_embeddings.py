# SPDX-License-Identifier: Apache-2.0
"""Prompts, the cut context against the full one on a tiny random CLIP, the cache."""

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from padding.data.class_embeddings import normalise_rows
from padding.data.prepare.text_embeddings import (
    TEMPLATE_SETS,
    TextCache,
    class_text_embeddings,
    clean_name,
    clean_names,
    encode_texts,
    prompts_of,
    templates_of,
)

VISION = CLIPVisionCfg(layers=1, width=16, head_width=8, patch_size=16, image_size=16)
TEXTS = ["itap of a cow.", "a photo of the large sky-other-merged.", "a", "A photo of a hair drier in the scene"]


def tiny_clip(kind: type = open_clip.CLIP, **text: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return kind(embed_dim=12, vision_cfg=VISION, text_cfg=CLIPTextCfg(width=32, heads=4, layers=3, **text)).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return open_clip.get_tokenizer("ViT-B-16-quickgelu")


@pytest.mark.parametrize("kind", [open_clip.CLIP, open_clip.CustomTextCLIP])
@pytest.mark.parametrize("output_dict", [False, True])
def test_cut_context_equals_the_full_one(tokenizer, kind, output_dict):
    model = tiny_clip(kind).double()  # sums over 77 and over few tokens round differently
    model.output_dict = output_dict
    tokens = tokenizer(TEXTS)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cut = encode_texts(model, tokens)
    full = encode_texts(model, tokens, cut_context=False)
    assert cut.shape == (4, 12)
    assert cut.dtype == np.float32
    np.testing.assert_allclose(cut, full, atol=4e-7)
    with torch.no_grad():
        reference = torch.nn.functional.normalize(model.encode_text(tokens), dim=1).numpy()
    np.testing.assert_allclose(full, reference, atol=4e-7)
    # The model is handed back whole.
    assert model.context_length == 77
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_context_is_really_cut(tokenizer):
    model = tiny_clip()
    lengths = []
    model.transformer.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    tokens = tokenizer(TEXTS)
    encode_texts(model, tokens)
    encode_texts(model, tokens, cut_context=False)
    longest = int(tokens.argmax(dim=1).max()) + 1
    assert longest < 20
    assert lengths == [longest, 77]


@pytest.mark.parametrize("text", [{"no_causal_mask": True}, {"pool_type": "last"}, {"embed_cls": True}])
def test_models_that_read_the_whole_context_are_not_cut(tokenizer, text):
    model = tiny_clip(open_clip.CustomTextCLIP, **text)
    tokens = tokenizer(TEXTS)
    np.testing.assert_array_equal(encode_texts(model, tokens), encode_texts(model, tokens, cut_context=False))


def test_text_that_fills_the_context(tokenizer):
    model = tiny_clip()
    tokens = tokenizer(["cow " * 200, "a cow"])
    np.testing.assert_allclose(encode_texts(model, tokens), encode_texts(model, tokens, cut_context=False), atol=4e-7)


def test_template_sets():
    assert len(templates_of("imagenet_select")) == 8
    assert templates_of("single") == ("a photo of a {}.",)
    imagenet = templates_of("imagenet")
    assert len(imagenet) == 80
    assert "a bad photo of a {}." in imagenet
    assert all(template.count("{}") == 1 for template in (*imagenet, *TEMPLATE_SETS["imagenet_select"]))
    with pytest.raises(ValueError, match="unknown template set 'all'"):
        templates_of("all")


def test_synonyms_fill_every_template():
    assert prompts_of("sofa, couch", ("a {}.", "the {}")) == ["a sofa.", "the sofa", "a couch.", "the couch"]


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("sky-other-merged", "sky"),
        ("tree-merged", "tree"),
        ("door-stuff", "door"),
        ("wall-brick", "wall brick"),
        ("water-other", "water"),
        ("hair drier", "hair drier"),
        ("tv_monitor, tele-vision", "tv monitor, tele vision"),
    ],
)
def test_clean_name(name, cleaned):
    assert clean_name(name) == cleaned


def test_cleaning_must_keep_classes_apart():
    assert clean_names(["wall-brick", "wall-other-merged"]) == ["wall brick", "wall"]
    with pytest.raises(ValueError, match="same text: wall, wall-other-merged"):
        clean_names(["wall", "wall-other-merged", "cow"])


def test_class_embedding_is_normalise_mean_normalise():
    vectors = {
        "a x": [3.0, 4.0],
        "the x": [1.0, 0.0],
        "a y": [0.0, 2.0],
        "the y": [5.0, 5.0],
        "a z": [1, 1],
        "the z": [1, 0],
    }

    def encode(texts):
        return normalise_rows([vectors[text] for text in texts])

    rows = class_text_embeddings(["x, y", "z"], encode, ("a {}", "the {}"))
    unit = [np.array(vectors[text]) / np.linalg.norm(vectors[text]) for text in ("a x", "the x", "a y", "the y")]
    mean = np.mean(unit, axis=0)
    np.testing.assert_allclose(rows[0], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_cache_is_keyed_by_model_templates_and_text(tmp_path):
    calls = []

    def encode(texts):
        calls.append(texts)
        return normalise_rows(np.random.default_rng(len(calls)).standard_normal((len(texts), 4)))

    templates = ("a {}", "the {}")
    cache = TextCache(tmp_path, model="m", templates=templates)
    first = class_text_embeddings(["cow", "dog"], encode, templates, cache=cache)
    assert len(calls) == 2
    again = class_text_embeddings(["dog", "cow"], encode, templates, cache=cache)
    assert len(calls) == 2
    np.testing.assert_array_equal(again, first[::-1])
    for other in (
        TextCache(tmp_path, model="n", templates=templates),
        TextCache(tmp_path, model="m", templates=("a {}",)),
    ):
        assert other.read("cow") is None
    assert cache.read("cows") is None


def test_damaged_cache_entry_is_computed_again(tmp_path):
    cache = TextCache(tmp_path, model="m", templates=("{}",))
    cache.write("cow", np.ones(4, np.float32))
    (entry,) = tmp_path.iterdir()
    for content in (b"", entry.read_bytes()[:-3], b"\x80\x04N."):
        entry.write_bytes(content)
        assert cache.read("cow") is None
    cache.write("cow", np.full(4, np.nan, np.float32))
    assert cache.read("cow") is None
