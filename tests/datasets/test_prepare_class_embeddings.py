# SPDX-License-Identifier: Apache-2.0
"""The command line that writes class embedding tables; nothing here may touch the network."""

import json
import socket
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from gensim.models import KeyedVectors
from safetensors.torch import save_file

from padding.data.class_embeddings import read_class_embeddings, save_class_embeddings
from padding.data.prepare.text_embeddings import encode_texts, prompts_of, templates_of
from tests.scripts import load_script

SCRIPT = load_script("prepare_class_embeddings")
main = SCRIPT.main
MODEL = "tiny-clip-of-the-tests"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("cow\nhorse\nsky-other-merged\n")
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Random weights of a tiny model that open_clip knows by name."""
    config = {
        "embed_dim": 8,
        "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16, "image_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    folder = tmp_path / "model_configs"
    folder.mkdir()
    (folder / f"{MODEL}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model(MODEL)
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, str(path))
    return path


def test_random(tmp_path, names, capsys):
    output = tmp_path / "out.npz"
    assert main(["random", "--names", str(names), "--width", "5", "--seed", "7", "--output", str(output)]) == 0
    table = read_class_embeddings(output)
    assert table.names == ("cow", "horse", "sky-other-merged")
    assert table.embeddings.shape == (3, 5)
    assert table.source == "random unit vectors, seed 7"
    assert "3 classes, 5 wide" in capsys.readouterr().out


def test_default_names_are_coco_panoptic(tmp_path):
    assert main(["random", "--output", str(tmp_path / "out.npz")]) == 0
    names = read_class_embeddings(tmp_path / "out.npz").names
    assert len(names) == 133
    assert names[119] == "sky-other-merged"


def test_nearest_known_classes_are_printed(tmp_path, names, capsys):
    unseen = tmp_path / "unseen.txt"
    unseen.write_text("cow\n")
    arguments = ["random", "--names", str(names), "--unseen", str(unseen), "--output", str(tmp_path / "out.npz")]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "cow: nearest known " in output
    assert "horse: nearest" not in output
    unseen.write_text("cwo\n")
    assert main(arguments) == 2
    assert "not among the 3 classes" in capsys.readouterr().err


def clip(checkpoint: Path, names: Path, output: Path, *more: str) -> list[str]:
    return [
        *("clip", "--model", MODEL, "--checkpoint", str(checkpoint), "--names", str(names)),
        *("--output", str(output), "--cache-dir", str(output.parent / "cache"), *more),
    ]


def test_clip_from_a_local_checkpoint(tmp_path, checkpoint, names, capsys):
    output = tmp_path / "clip.npz"
    assert main(clip(checkpoint, names, output)) == 0, capsys.readouterr().err
    table = read_class_embeddings(output)
    model = SCRIPT.load_model(MODEL, checkpoint)
    tokenizer = open_clip.get_tokenizer(MODEL)
    for name, row in zip(table.names, table.embeddings, strict=True):
        prompts = prompts_of(name, templates_of("imagenet_select"))
        mean = encode_texts(model, tokenizer(prompts), cut_context=False).mean(axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)
    assert "templates imagenet_select (8), raw names" in table.source


def test_clip_uses_its_cache_and_writes_equal_bytes(tmp_path, checkpoint, names, monkeypatch):
    output, again = tmp_path / "a.npz", tmp_path / "b.npz"
    assert main(clip(checkpoint, names, output)) == 0
    monkeypatch.setattr(SCRIPT, "load_model", lambda *_: pytest.fail("the network was built although all is cached"))
    assert main(clip(checkpoint, names, again)) == 0
    assert output.read_bytes() == again.read_bytes()


def test_clip_options_change_the_table(tmp_path, checkpoint, names):
    tables = {}
    for key, more in {"raw": (), "clean": ("--clean-names",), "single": ("--templates", "single")}.items():
        assert main(clip(checkpoint, names, tmp_path / f"{key}.npz", *more)) == 0
        tables[key] = read_class_embeddings(tmp_path / f"{key}.npz")
    assert tables["clean"].names == tables["raw"].names
    np.testing.assert_array_equal(tables["clean"].embeddings[0], tables["raw"].embeddings[0])
    assert np.abs(tables["clean"].embeddings[2] - tables["raw"].embeddings[2]).max() > 1e-3
    assert np.abs(tables["single"].embeddings - tables["raw"].embeddings).max() > 1e-3


def test_clip_without_weights_names_the_command(tmp_path, names, capsys):
    output = tmp_path / "out.npz"
    assert main(["clip", "--names", str(names), "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert "nothing is downloaded by default" in error
    assert f"clip --model ViT-B-16-quickgelu --pretrained openai --output {output} --download" in error
    assert not output.exists()


def test_clip_finds_weights_in_the_hub_cache(tmp_path):
    snapshot = tmp_path / "hub" / "models--timm--vit_base_patch16_clip_224.openai" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    weights = snapshot / "open_clip_pytorch_model.bin"
    weights.write_bytes(b"")
    found = SCRIPT.find_weights("ViT-B-16-quickgelu", "openai", download=False, output=Path("x.npz"))
    assert found == weights


def test_clip_download_is_the_only_way_to_the_network(tmp_path, names, capsys, monkeypatch):
    asked = []

    def refuse(repository, name):
        asked.append((repository, name))
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    arguments = ["clip", "--names", str(names), "--output", str(tmp_path / "o.npz")]
    assert main(arguments) == 2
    assert asked == []
    capsys.readouterr()
    assert main([*arguments, "--download"]) == 2
    assert asked[0] == ("timm/vit_base_patch16_clip_224.openai", "open_clip_model.safetensors")
    assert "open_clip_model.safetensors: no route" in capsys.readouterr().err


def test_clip_unknown_tag_and_wrong_weights(tmp_path, checkpoint, names, capsys):
    assert main(["clip", "--pretrained", "openia", "--names", str(names), "--output", str(tmp_path / "o.npz")]) == 2
    assert "its tags: ['openai'" in capsys.readouterr().err
    assert main(clip(tmp_path / "none.pt", names, tmp_path / "o.npz")) == 2
    assert "No weights at" in capsys.readouterr().err
    save_file({"text_projection": torch.zeros(3, 3)}, str(checkpoint))
    assert main(clip(checkpoint, names, tmp_path / "o.npz")) == 2
    assert "cannot be loaded as" in capsys.readouterr().err


def test_word2vec(tmp_path, names, capsys):
    vectors = KeyedVectors(vector_size=2)
    vectors.add_vectors(["cow", "horse", "sky"], np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32))
    vectors.save_word2vec_format(str(tmp_path / "v.txt"))
    arguments = [
        "word2vec",
        "--vectors",
        str(tmp_path / "v.txt"),
        "--output",
        str(tmp_path / "o.npz"),
        "--names",
        str(names),
    ]
    assert main(arguments) == 0
    np.testing.assert_array_equal(read_class_embeddings(tmp_path / "o.npz").embeddings, [[1, 0], [0, 1], [1, 1]])
    assert "sky-other-merged: sky" in capsys.readouterr().out
    names.write_text("cow\nzebra\n")
    assert main(arguments) == 2
    assert "'zebra'" in capsys.readouterr().err


def write_csv(path: Path, background: np.ndarray, rows: np.ndarray) -> None:
    np.savetxt(path, np.column_stack([background, rows.T]), delimiter=",")


def test_word2vec_csv_checks_order_and_background_against_a_reference(tmp_path, names, capsys):
    everything = np.array([[1.0, 2], [3, 4], [5, 6], [7, 8]])
    reference = tmp_path / "reference.npz"
    save_class_embeddings(reference, ["horse", "cow", "zebra", "sky-other-merged"], everything)
    csv, output = tmp_path / "w.txt", tmp_path / "o.npz"
    common = ["word2vec-csv", "--csv", str(csv), "--names", str(names), "--output", str(output)]
    write_csv(csv, everything.mean(axis=0), everything[[1, 0, 3]])
    assert main([*common, "--reference", str(reference), "--source", "a test"]) == 0
    assert "3 classes have the same vector" in capsys.readouterr().out
    table = read_class_embeddings(output)
    np.testing.assert_array_equal(table.embeddings, everything[[1, 0, 3]])
    assert table.source == "a test"

    write_csv(csv, everything.mean(axis=0), everything[[0, 1, 3]])
    assert main([*common, "--reference", str(reference)]) == 2
    assert "2 of 3 shared classes differ" in capsys.readouterr().err
    write_csv(csv, everything[[1, 0, 3]].mean(axis=0), everything[[1, 0, 3]])
    assert main([*common, "--reference", str(reference)]) == 2
    assert "the first column differs" in capsys.readouterr().err
    # Without a reference the column cannot be judged, only described.
    assert main(common) == 0
    write_csv(csv, everything[0], everything)
    assert main(common) == 2
    assert "5 columns, expected 4" in capsys.readouterr().err


@pytest.mark.data
@pytest.mark.parametrize("split", ["48_17", "65_15"])
def test_shipped_tables_are_what_the_command_writes(real_data, tmp_path, split):
    repository = Path(__file__).parents[2]
    shipped = repository / "datasets" / "embeddings" / f"word2vec_coco_{split}.npz"
    lists = [str(repository / "datasets" / "splits" / f"coco_zsi_{split}_{part}.txt") for part in ("seen", "unseen")]
    arguments = [
        *("word2vec-csv", "--csv", str(real_data / "word2vec" / f"word_w2v_withbg_{split}.txt"), "--names", *lists),
        *("--reference", str(shipped.with_name("word2vec_coco_65_15.npz"))),
        *("--source", read_class_embeddings(shipped).source, "--output", str(tmp_path / "again.npz")),
    ]
    assert main(arguments) == 0
    assert (tmp_path / "again.npz").read_bytes() == shipped.read_bytes()
