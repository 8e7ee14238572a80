# SPDX-License-Identifier: Apache-2.0
"""Packed models in a folder and on a Hub on the loopback interface: the file is the same, the card says what it is."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

import padding.hub
from padding.engine import hub
from padding.engine.packing import packed_classes
from padding.errors import CheckpointError, ConfigError, MissingFileError
from padding.modeling.weights.packed import FORMAT_VERSION, Description, PackedClasses, packed_bytes
from tests.hub_stub import Stub, running_stub

SEEN = PackedClasses(("cat",), (True,), (1,), (), ((9, 9, 9),))
ALL = PackedClasses(("cat", "zebra"), (True, True), (1, 2), ("zebra",), ((9, 9, 9), (1, 2, 3)))
CONFIGURATION = "MODEL:\n  META_ARCHITECTURE: PADing\n"
RESULTS = {"val/panoptic_seg/PQ": 12.345, "val/panoptic_seg/SQ": None}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A packed file whose weights nobody builds."""
    path = tmp_path / "trained.safetensors"
    description = Description(FORMAT_VERSION, CONFIGURATION, SEEN, ALL, RESULTS)
    path.write_bytes(packed_bytes(description, {"model": {"weight": torch.arange(6.0)}}))
    return path


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stub]:
    """A Hub that the library talks to instead of the real one; its address is read where it is imported."""
    with running_stub() as server:
        api, constants, download = map(
            importlib.import_module,
            ("huggingface_hub.hf_api", "huggingface_hub.constants", "huggingface_hub.file_download"),
        )
        monkeypatch.setenv("HF_TOKEN", server.token)
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        assert {api.constants, download.constants} == {constants}
        yield server


def test_model_goes_to_the_hub_and_comes_back(model: Path, stub: Stub, tmp_path: Path) -> None:
    place = padding.hub.main(["push", str(model), "me/zebras", "--license", "apache-2.0", "--private"])
    assert place == f"{stub.address}/me/zebras"
    assert stub.created[0].get("private") or stub.created[0].get("visibility") == "private"
    assert stub.files["me/zebras", "model.safetensors"] == model.read_bytes()
    card = stub.files["me/zebras", "README.md"].decode()
    assert "license: apache-2.0" in card
    output = tmp_path / "again.safetensors"
    assert padding.hub.main(["pull", "me/zebras", "--output", str(output)]) == str(output)
    assert output.read_bytes() == model.read_bytes()


def test_model_goes_to_a_folder_and_comes_back(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "zebras"
    padding.hub.main(["push", str(model), str(folder)])
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "model.safetensors"]
    padding.hub.main(["pull", str(folder), "--output", str(tmp_path / "again.safetensors")])
    assert (tmp_path / "again.safetensors").read_bytes() == model.read_bytes()
    assert capsys.readouterr().out.splitlines()[0] == f"pushed: {folder}"


def test_card_says_what_the_model_is(model: Path) -> None:
    card = hub.model_card(model, "me/zebras", license_name="cc-by-4.0")
    _, head, body = card.split("---\n", 2)
    described = yaml.safe_load(head)
    assert described["license"] == "cc-by-4.0"
    assert described["pipeline_tag"] == "image-segmentation"
    (result,) = described["model-index"][0]["results"]  # what does not exist is left out
    assert result["dataset"] == {"type": "val", "name": "val"}
    assert result["metrics"] == [{"type": "panoptic_seg/PQ", "value": 12.345}]
    assert "# zebras" in body
    assert "PADing, 2 classes, 1 of them without any training example" in body
    assert "cat, zebra\\*" in body
    assert "| val    | panoptic_seg/PQ | 12.35" in body or "| val    | panoptic_seg/PQ | 12.34" in body
    assert "python -m padding.hub pull me/zebras --output model.safetensors" in body


def test_classes_that_were_added_are_listed(model: Path) -> None:
    wide = {"names": ["cat", "zebra", "okapi"], "is_thing": [True] * 3, "dataset_ids": [1, 2, 3]}
    wide |= {"unseen_names": ["okapi", "zebra"], "colors": [[1, 1, 1]] * 3, "class_embeddings": torch.ones(3, 2)}
    description = Description(FORMAT_VERSION, CONFIGURATION, SEEN, ALL, {})
    model.write_bytes(packed_bytes(description, {"model": {"weight": torch.ones(1)}, "label_space": wide}))
    assert packed_classes(model).names == ("cat", "zebra", "okapi")
    assert "cat, zebra\\*, okapi\\*" in hub.model_card(model, "me/zebras")


def test_refusals_are_one_line(model: Path, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(hub.HubError, match=r"me/none: the Hub cannot be reached or refuses"):
        hub.pull("me/none", tmp_path / "x.safetensors")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(hub.HubError, match=r"me/zebras: .*hf auth login") as caught:
        hub.push(model, "me/zebras")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="expected owner/name or a folder"):
        hub.push(model, "a/b/c/d")


def test_a_hub_that_is_not_there_is_one_line(stub: Stub, tmp_path: Path, model: Path) -> None:
    stub.shutdown()
    stub.server_close()
    with pytest.raises(hub.HubError, match="cannot be reached or refuses"):
        hub.push(model, "me/zebras")


def test_damaged_models_are_neither_sent_nor_kept(model: Path, stub: Stub, tmp_path: Path) -> None:
    sound = model.read_bytes()
    model.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="checksum"):
        hub.push(model, "me/zebras")
    assert not stub.files
    stub.files["me/zebras", "model.safetensors"] = model.read_bytes()
    with pytest.raises(CheckpointError, match="checksum"):
        hub.pull("me/zebras", tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


def test_folders_without_a_model_and_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"model\.safetensors: no such file"):
        hub.pull(str(tmp_path), tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="change the ending"):
        hub.pull(str(tmp_path), tmp_path / "x.pth")
