# SPDX-License-Identifier: Apache-2.0
"""Attacks on what trainings write and read again, on weight files, and on images: bits, parts, lengths, crafted states.

Files with checksums must be read as they were written, or refused by name. JPEG, ``.pkl`` and safetensors of others
have none: there a changed value is a right result, another shape is none.
"""

from __future__ import annotations

import io
import pickle
import random
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from padding.bank.feature_bank import BankSpec, FeatureBank, FeatureBatch, build_feature_bank, concatenate
from padding.bank.seen_statistics import SeenStatistics, open_bank
from padding.data.class_embeddings import read_class_embeddings, save_class_embeddings
from padding.data.files import save_panoptic_png, save_png
from padding.data.photographs import read_photograph
from padding.data.readers import displayed_size, read_label_map, read_panoptic_ids
from padding.engine.checkpointer import read_training_checkpoint, write_checkpoint
from padding.modeling.weights.checkpoint import read_checkpoint
from padding.modeling.weights.packed import (
    FORMAT_VERSION,
    Description,
    PackedClasses,
    packed_bytes,
    read_description,
    read_packed,
)
from psi.label_store import LabelStore
from psi.supervision import PixelSupervision
from tests.fuzz.harness import Target
from tests.fuzz.mutators import ODD_VALUES, mutate_bytes, mutate_json_text

SIZE = (24, 30)


def pixels(seed: int = 0, high: int = 5, shape: tuple[int, ...] = SIZE) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, high, shape, dtype=np.uint8)


@cache
def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"backbone.weight": (40, 30), "head.bias": (7,), "head.count": ()}
    return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}


def same_state(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == state().keys(), f"names {list(found)}"
    for name, expected in state().items():
        assert torch.equal(found[name], expected), f"other values of {name}"


def damaged_at(*patterns: str, zeros: int = 4096) -> Callable[[Path, random.Random], str]:
    """Mutate the bytes of one of the files that some patterns find; a large file also has a block of zeros."""

    def mutate(folder: Path, rng: random.Random) -> str:
        path = rng.choice(sorted(file for pattern in patterns for file in folder.rglob(pattern)))
        content = path.read_bytes()
        if len(content) > zeros and rng.random() < 0.2:
            start = rng.randrange(len(content))
            content, kind = (
                content[:start] + bytes(len(content[start : start + zeros])) + content[start + zeros :],
                "block",
            )
        elif rng.random() < 0.1:
            content, kind = (
                rng.choice((b"", b"<html><body>404</body></html>", b"[]", b"{}", rng.randbytes(100))),
                "other",
            )
        else:
            content, kind = mutate_bytes(content, rng)
        path.write_bytes(content)
        return f"{path.suffix} {kind}"

    return mutate


# --------------------------------------------------------------------------------------------------------- checkpoints


def write_training_checkpoint(folder: Path) -> None:
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(300)}}, "lr": 0.1}
    trainer = {"iteration": 4, "optimizers": optimizer, "best": np.float64(0.5)}
    write_checkpoint(folder / "model_final.pth", {"model": state(), "trainer": trainer, "iteration": 4})


def read_training(folder: Path) -> None:
    found = read_training_checkpoint(folder / "model_final.pth")
    same_state(found["model"])
    trainer = found["trainer"]
    assert (found["iteration"], trainer["iteration"], trainer["best"]) == (4, 4, 0.5)
    assert torch.equal(trainer["optimizers"]["state"][0]["exp_avg"], torch.ones(300))


def write_pth(folder: Path) -> None:
    torch.save({"model": state()}, folder / "weights.pth")


def read_pth(folder: Path) -> None:
    same_state(read_checkpoint(folder / "weights.pth"))


def same_shapes(found: dict[str, torch.Tensor]) -> None:
    assert sum(tensor.numel() for tensor in found.values()) <= 40 * 30 + 8, "more numbers than there were"


def write_safetensors(folder: Path) -> None:
    safetensors.torch.save_file(state(), folder / "weights.safetensors")


def write_packed(folder: Path) -> None:
    space = PackedClasses(("cat", "sky"), (True, False), (1, 2), ("sky",), ((1, 2, 3), (4, 5, 6)))
    description = Description(FORMAT_VERSION, "MODEL: {}", space, space, {"val/sem_seg/mIoU": 1.5})
    (folder / "model.safetensors").write_bytes(packed_bytes(description, {"model": state(), "names": ["cat"]}))


def read_packed_model(folder: Path) -> None:
    content = read_packed(folder / "model.safetensors")
    same_state(content["model"])
    description = read_description(folder / "model.safetensors")
    assert (content["names"], description.configuration) == (["cat"], "MODEL: {}"), "another description"
    assert description.learned.split().names == ("cat", "sky"), "other classes"


def write_pkl(folder: Path) -> None:
    arrays = {name: tensor.numpy() for name, tensor in state().items()}
    (folder / "weights.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}, 2))


def craft_pickle(folder: Path, rng: random.Random) -> str:
    """A pickle of one array with a state, a type or a shape that numpy does not expect, in a .pkl or a .pth file."""
    odd = [*ODD_VALUES, ("a",), {"a": (np.int64, 4)}, ("f4", (3,)), b"x", (1, 2), 63, ">", "V8", "O", "S9", "M8[s]"]
    dtype_state = [3, "<", None, None, None, -1, -1, 0]
    array_state: list[Any] = [1, (2, 2), False]
    content, specification = bytes(16), "f4"
    kind = rng.choice(("dtype", "dtype", "dtype", "array", "specification", "content"))
    if kind == "dtype":
        for _ in range(rng.choice((1, 1, 2, 3))):
            dtype_state[rng.randrange(len(dtype_state))] = rng.choice(odd)
        if rng.random() < 0.2:
            dtype_state = [*dtype_state, rng.choice(odd)][: rng.randrange(10)]
    elif kind == "array":
        array_state[rng.randrange(3)] = rng.choice([*odd, (1 << 40, 1 << 40), (-1, -4), (2,), (2, 2, 2), ("a", 2)])
    elif kind == "specification":
        specification = rng.choice(odd)
    else:
        content = rng.randbytes(rng.randrange(40))

    def opcodes(value: Any) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    dtype = b"cnumpy\ndtype\n" + opcodes((specification, False, True)) + b"R" + opcodes(tuple(dtype_state)) + b"b"
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85X\x01\x00\x00\x00btR("
    made += opcodes(array_state[0]) + opcodes(array_state[1]) + dtype + opcodes(array_state[2])
    made += b"c_codecs\nencode\n" + opcodes((content.decode("latin1"), "latin1")) + b"Rtb"
    whole = b"\x80\x02}X\x01\x00\x00\x00w" + made + b"s."
    for path in folder.iterdir():
        path.unlink()
    if rng.random() < 0.7:
        (folder / "crafted.pkl").write_bytes(whole)
        return f"state pkl {kind}"
    torch.save({"w": np.ones(1, np.float32)}, buffer := io.BytesIO())
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(folder / "crafted.pth", "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, whole if entry.filename.endswith("data.pkl") else old.read(entry))
    return f"state pth {kind}"


def read_crafted(folder: Path) -> None:
    (path,) = folder.iterdir()
    found = read_checkpoint(path)
    assert sum(tensor.numel() for tensor in found.values()) <= 1208, "numbers that are not in the file"


# ------------------------------------------------------------------------------------------- banks, statistics, labels

SPEC = BankSpec(
    num_images=5,
    num_classes=4,
    views=1,
    no_object_per_image=2,
    images_per_shard=3,
    batch_size=2,
    dtype="float16",
    seed=0,
    origin={"segmentor": "abc", "configuration": {"INPUT.FORMAT": "RGB"}},
)


def extract(samples: list[dict[str, Any]]) -> FeatureBatch:
    rows = torch.arange(len(samples) * 6.0)[:, None] + torch.arange(4.0)
    labels = torch.tensor([0, 4, 4, 2, 4, 1]).repeat(len(samples))
    return concatenate([FeatureBatch(rows, labels, torch.ones(len(rows)))])


def open_stream(start: int, batch_size: int) -> Any:
    while True:
        yield [{}] * batch_size


def write_files(files: dict[str, bytes], folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


@cache
def sound_bank() -> tuple[dict[str, bytes], FeatureBatch]:
    """Files of a bank, and what it holds."""
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        bank = build_feature_bank(folder, SPEC, extract, open_stream).images(range(SPEC.total))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}, bank


def write_bank(folder: Path) -> None:
    write_files(sound_bank()[0], folder / "bank")


def read_bank(folder: Path) -> None:
    for bank in (FeatureBank(folder / "bank", SPEC), open_bank(folder / "bank")):
        found = bank.images(range(SPEC.total))
        for mine, expected in zip(found, sound_bank()[1], strict=True):
            assert torch.equal(mine, expected), "other features"


def damage_manifest(folder: Path, rng: random.Random) -> str:
    (path,) = folder.rglob("manifest.json")
    content, kind = mutate_json_text(path.read_bytes(), rng)
    path.write_bytes(content)
    return f"manifest {kind}"


def write_statistics(folder: Path) -> None:
    statistics = SeenStatistics(("cat", "dog", "zebra", "sky"), per_class=3, no_object=4, origin="abc")
    statistics.add(extract([{}, {}]), num_images=2)
    statistics.save(folder / "seen_statistics.safetensors")


@cache
def sound_rows() -> FeatureBatch:
    statistics = SeenStatistics(("cat", "dog", "zebra", "sky"), per_class=3, no_object=4, origin="abc")
    statistics.add(extract([{}, {}]), num_images=2)
    return statistics.rows()


def read_statistics(folder: Path) -> None:
    found = SeenStatistics.load(folder / "seen_statistics.safetensors")
    assert (found.names, found.origin, found.num_images) == (("cat", "dog", "zebra", "sky"), "abc", 2)
    for mine, expected in zip(found.rows(), sound_rows(), strict=True):
        assert torch.equal(mine, expected), "other rows"


def supervision(number: int) -> PixelSupervision:
    labels = torch.from_numpy(pixels(number).astype(np.int64))[None]
    weights = torch.from_numpy(pixels(number + 10, 255).astype(np.float32))[None] / 255
    return PixelSupervision(labels, weights, torch.zeros(1, *SIZE, dtype=torch.bool))


@cache
def sound_labels() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        store = LabelStore(folder, num_classes=5)
        store.start_round(1)
        for number in range(2):
            store.write(1, number, supervision(number))
        return {path.name: path.read_bytes() for path in store.finish_round(1, range(2)).iterdir()}


def write_labels(folder: Path) -> None:
    write_files(sound_labels(), folder / "labels" / "round_1")


def read_labels(folder: Path) -> None:
    store = LabelStore(folder / "labels", num_classes=5)
    store.entries([{"image_id": number} for number in range(2)], 1)
    for number in range(2):
        found = store.read(1, number)
        assert torch.equal(found.labels, supervision(number).labels), "other labels"
        assert found.weights.shape == (1, *SIZE)


# -------------------------------------------------------------------------------------------------- tables and images


def write_table(folder: Path) -> None:
    save_class_embeddings(folder / "table.npz", ("cat", "dog", "zebra"), np.eye(3, 20, dtype=np.float32) + 1)


def read_table(folder: Path) -> None:
    found = read_class_embeddings(folder / "table.npz")
    assert found.names == ("cat", "dog", "zebra"), f"names {found.names}"
    np.testing.assert_array_equal(found.embeddings, np.eye(3, 20, dtype=np.float32) + 1)


def craft_npz(folder: Path, rng: random.Random) -> str:
    """An npz whose headers say something else than its bytes, or that unpacks to gigabytes."""
    kind = rng.choice(("shape", "type", "bomb", "missing"))
    header = {"descr": "<f4", "fortran_order": False, "shape": (3, 20)}
    content = np.ones((3, 20), np.float32).tobytes()
    if kind == "shape":
        header["shape"] = rng.choice([(1 << 40,), (3, -20), (20, 3), (60,), (3, 20, 1 << 50), (), (0,), (3.0, 20)])
    elif kind == "type":
        header["descr"] = rng.choice(["|O", "<f8", "<i4", "<c8", "|V4", [("a", "<f4")], "<M8[s]", "<U1", "x", 7, "<f2"])
    array = io.BytesIO()
    text = repr(header).encode()
    array.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n" + content)
    if kind == "bomb":
        (folder / "table.npz").write_bytes(bomb())
        return "npz bomb"
    with zipfile.ZipFile(folder / "table.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        names = io.BytesIO()
        np.save(names, np.array(["cat", "dog", "zebra"]))
        archive.writestr("names.npy", names.getvalue())
        if kind != "missing":
            archive.writestr("embeddings.npy", array.getvalue())
    return f"npz {kind}"


@cache
def bomb() -> bytes:
    """An npz of 300 KB that unpacks to 300 MB."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("embeddings.npy", "w") as member:
        for _ in range(300):
            member.write(bytes(1 << 20))
    return file.getvalue()


def read_any_table(folder: Path) -> None:
    found = read_class_embeddings(folder / "table.npz")
    assert found.embeddings.shape[0] == 3
    assert found.embeddings.nbytes <= 3 * 20 * 4, "numbers that are not in the file"


IDS = pixels(3, 200).astype(np.int64) * 300


def write_images(folder: Path) -> None:
    save_png(pixels(), folder / "labels.png")
    save_panoptic_png(IDS, folder / "ids.png")
    save_png(pixels(1, 255, (*SIZE, 3)), folder / "picture.png")


def read_images(folder: Path) -> None:
    np.testing.assert_array_equal(read_label_map(folder / "labels.png"), pixels())
    np.testing.assert_array_equal(read_panoptic_ids(folder / "ids.png"), IDS)
    np.testing.assert_array_equal(read_photograph(folder / "picture.png"), pixels(1, 255, (*SIZE, 3)))
    assert displayed_size(folder / "picture.png") == SIZE


def craft_png(folder: Path, rng: random.Random) -> str:
    """A header that says another size, depth or kind, with the right checksum; also one of a hundred gigabytes.

    Rows that a header promises and the file does not hold are zeros to Pillow.
    """
    path = rng.choice(sorted(folder.glob("*.png")))
    content = path.read_bytes()
    fields = list(struct.unpack(">IIBBBBB", content[16:29]))
    index = rng.randrange(7)
    large = rng.choice((0, 1, 7, 12_000, 100_000, 1 << 31, (1 << 32) - 1))
    fields[index] = large if index < 2 else rng.randrange(256) if rng.random() < 0.3 else rng.randrange(18)
    head = b"IHDR" + struct.pack(">IIBBBBB", *fields)
    path.write_bytes(content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:])
    return f"png header field {index}"


def read_any_images(folder: Path) -> None:
    for name, read in (
        ("labels.png", read_label_map),
        ("ids.png", read_panoptic_ids),
        ("picture.png", read_photograph),
    ):
        found = read(folder / name)
        assert found.shape[:2] == displayed_size(folder / name), "another size than the header's"
        assert found.size <= 3 << 26, "more than may be unpacked"


def write_jpeg(folder: Path) -> None:
    Image.fromarray(pixels(1, 255, (64, 80, 3))).save(folder / "picture.jpg", quality=90)


def damage_jpeg(folder: Path, rng: random.Random) -> str:
    path = folder / "picture.jpg"
    content = path.read_bytes()
    if rng.random() < 0.5:
        path.write_bytes(content[: rng.randrange(len(content))])
        return "jpeg ends early"
    changed, kind = mutate_bytes(content, rng)
    path.write_bytes(changed)
    return f"jpeg {kind}"


def read_jpeg(folder: Path) -> None:
    content = (folder / "picture.jpg").read_bytes()
    whole = io.BytesIO()
    Image.fromarray(pixels(1, 255, (64, 80, 3))).save(whole, "JPEG", quality=90)
    found = read_photograph(folder / "picture.jpg")
    ends_early = len(content) < len(whole.getvalue()) - 1 and whole.getvalue().startswith(content)
    assert not ends_early, "a picture that ends early"
    assert found.ndim == 3
    assert found.dtype == np.uint8


TARGETS = (
    Target("training checkpoint", write_training_checkpoint, damaged_at("*.pth"), read_training),
    Target("weights pth", write_pth, damaged_at("*.pth"), read_pth),
    Target(
        "weights safetensors",
        write_safetensors,
        damaged_at("*.safetensors"),
        lambda folder: same_shapes(read_checkpoint(folder / "weights.safetensors")),
    ),
    Target("packed model", write_packed, damaged_at("*.safetensors"), read_packed_model),
    Target(
        "weights pkl",
        write_pkl,
        damaged_at("*.pkl"),
        lambda folder: same_shapes(read_checkpoint(folder / "weights.pkl")),
    ),
    Target("pickled states", write_pkl, craft_pickle, read_crafted),
    Target("bank shards", write_bank, damaged_at("*.safetensors"), read_bank),
    Target("bank manifest", write_bank, damage_manifest, read_bank),
    Target("seen statistics", write_statistics, damaged_at("*.safetensors"), read_statistics),
    Target("label store", write_labels, damaged_at("*.png"), read_labels),
    Target("label store manifest", write_labels, damage_manifest, read_labels),
    Target("npz table", write_table, damaged_at("*.npz"), read_table),
    Target("npz headers", write_table, craft_npz, read_any_table),
    Target("png", write_images, damaged_at("*.png"), read_images),
    Target("png headers", write_images, craft_png, read_any_images),
    Target("jpeg", write_jpeg, damage_jpeg, read_jpeg),
)
