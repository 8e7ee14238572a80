# SPDX-License-Identifier: Apache-2.0
"""A bank equals what was extracted, resumes, refuses to be stale, and streams reproducibly."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from padding.bank.feature_bank import (
    RELEASE_BYTES,
    BankSpec,
    FeatureBank,
    FeatureBatch,
    FeatureStream,
    build_feature_bank,
    concatenate,
    gather_features,
    weights_digest,
)
from padding.bank.seen_statistics import open_bank
from padding.errors import DataError, MissingFileError

K, Q, D = 5, 8, 3


def sample(position: int) -> dict:
    return {"position": position}


def extract(samples: list[dict]) -> FeatureBatch:
    """Embeddings that name their image and query; as many matched queries as the image's position modulo 4."""
    rows = []
    for entry in samples:
        position = entry["position"]
        labels = torch.full((Q,), K)
        labels[: position % 4] = torch.arange(position % 4)
        embeddings = torch.stack([torch.tensor([position, q, 0.5]) for q in range(Q)])
        rows.append(FeatureBatch(embeddings, labels, torch.ones(Q)))
    return concatenate(rows)


def open_stream(start: int, batch_size: int):
    position = start
    while True:
        yield [sample(position + i) for i in range(batch_size)]
        position += batch_size


@pytest.fixture
def spec() -> BankSpec:
    return BankSpec(
        num_images=7,
        num_classes=K,
        views=2,
        no_object_per_image=3,
        images_per_shard=4,
        batch_size=3,
        dtype="float16",
        seed=0,
        origin={"segmentor": "abc"},
    )


def test_bank_returns_every_matched_query_of_every_view(tmp_path, spec):
    bank = build_feature_bank(tmp_path, spec, extract, open_stream)
    assert len(bank) == 14
    for position in range(14):
        image = bank.images([position])
        assert (image.embeddings[:, 0] == position).all()
        matched = image.labels != K
        assert image.labels[matched].tolist() == list(range(position % 4))
        assert image.embeddings[matched, 1].tolist() == list(range(position % 4))
        assert (~matched).sum() == 3
        # three rows stand for all unmatched queries
        assert float(image.weights[~matched].sum()) == pytest.approx(Q - position % 4)
        assert (image.weights[matched] == 1).all()
        assert len(set(image.embeddings[:, 1].tolist())) == len(image.labels)


def test_all_unmatched_queries_can_be_kept(tmp_path, spec):
    spec = dataclasses.replace(spec, no_object_per_image=0)
    image = build_feature_bank(tmp_path, spec, extract, open_stream).images([1])
    assert len(image.labels) == Q
    assert (image.weights == 1).all()


def test_interrupted_bank_goes_on_and_equals_an_uninterrupted_one(tmp_path, spec):
    whole = build_feature_bank(tmp_path / "whole", spec, extract, open_stream)
    seen: list[int] = []

    def failing(samples):
        if samples[0]["position"] >= 8:
            raise KeyboardInterrupt
        return extract(samples)

    with pytest.raises(KeyboardInterrupt):
        build_feature_bank(tmp_path / "cut", spec, failing, open_stream)
    with pytest.raises(ValueError, match="incomplete"):
        FeatureBank(tmp_path / "cut", spec)

    def counting(samples):
        seen.extend(entry["position"] for entry in samples)
        return extract(samples)

    resumed = build_feature_bank(tmp_path / "cut", spec, counting, open_stream)
    assert min(seen) == 8
    for a, b in zip(whole.images(range(14)), resumed.images(range(14)), strict=True):
        assert torch.equal(a, b)
    seen.clear()
    build_feature_bank(tmp_path / "cut", spec, counting, open_stream)
    assert seen == []


@pytest.mark.parametrize(
    ("change", "named"),
    [({"origin": {"segmentor": "other"}}, "segmentor"), ({"views": 3}, "views"), ({"seed": 1}, "seed")],
)
def test_stale_bank_is_refused(tmp_path, spec, change, named):
    build_feature_bank(tmp_path, spec, extract, open_stream)
    with pytest.raises(ValueError, match=f"stale.*{named}.*Delete that folder"):
        build_feature_bank(tmp_path, dataclasses.replace(spec, **change), extract, open_stream)


def test_damaged_bank_is_named(tmp_path, spec):
    build_feature_bank(tmp_path, spec, extract, open_stream)
    shard = tmp_path / "shard_00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(ValueError, match="damaged"):
        FeatureBank(tmp_path, spec)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="no manifest"):
        FeatureBank(tmp_path, spec)


def test_a_damaged_shard_is_written_again_when_it_is_deleted(tmp_path, spec):
    build_feature_bank(tmp_path, spec, extract, open_stream)
    shard = tmp_path / "shard_00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(DataError, match=r"shard_00002\.safetensors is damaged.*checksum.*delete that file"):
        build_feature_bank(tmp_path, spec, extract, open_stream)
    shard.unlink()
    with pytest.raises(MissingFileError, match=r"shard_00002\.safetensors: no such shard"):
        FeatureBank(tmp_path, spec)
    build_feature_bank(tmp_path, spec, extract, open_stream)
    assert shard.read_bytes() == whole


@pytest.mark.parametrize(
    "content", ["[]", '{"fingerprint": [], "complete": true}', '{"fingerprint": {}, "complete": 1}']
)
def test_manifest_of_another_make_is_named(tmp_path, spec, content):
    build_feature_bank(tmp_path, spec, extract, open_stream)
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json: .*It is no manifest of a feature bank; delete the folder"):
        build_feature_bank(tmp_path, spec, extract, open_stream)
    with pytest.raises(DataError, match="is no feature bank"):
        open_bank(tmp_path)


def test_manifest_with_a_number_of_another_type_is_named(tmp_path, spec):
    build_feature_bank(tmp_path, spec, extract, open_stream)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"views": 2', '"views": "2"'))
    with pytest.raises(DataError, match=r"is no feature bank.*views is '2'"):
        open_bank(tmp_path)


def test_features_that_do_not_fit_are_not_written(tmp_path, spec):
    def large(samples):
        batch = extract(samples)
        return batch._replace(embeddings=batch.embeddings + 1e5)  # float16 ends at 65504

    with pytest.raises(DataError, match=r"shard_00000\.safetensors is not written.*NaN or infinite.*DTYPE to float32"):
        build_feature_bank(tmp_path, spec, large, open_stream)
    assert not list(tmp_path.glob("shard_*"))
    build_feature_bank(tmp_path / "32", dataclasses.replace(spec, dtype="float32"), large, open_stream)


def test_bank_is_small_and_described(tmp_path, spec):
    build_feature_bank(tmp_path, spec, extract, open_stream)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["complete"]
    assert manifest["fingerprint"]["segmentor"] == "abc"
    assert len(list(tmp_path.glob("shard_*.safetensors"))) == 4


def test_stream_visits_every_image_once_per_pass(tmp_path, spec):
    bank = build_feature_bank(tmp_path, spec, extract, open_stream)
    batches = iter(FeatureStream(lambda: bank, images_per_batch=2, seed=3))
    passes = [[], []]
    for i in range(14):
        passes[i // 7] += next(batches).embeddings[:, 0].unique().tolist()
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(14))
    assert passes[0] != passes[1]


def test_stream_resumes_exactly_and_opens_its_bank_late(tmp_path, spec):
    bank = build_feature_bank(tmp_path, spec, extract, open_stream)
    opened = []

    def opening():
        opened.append(1)
        return bank

    stream = FeatureStream(opening, images_per_batch=3, seed=3)
    batches = iter(stream)
    assert opened == []
    for _ in range(4):
        next(batches)
    assert opened == [1]
    state = stream.state_dict()
    expected = [next(batches) for _ in range(6)]
    again = FeatureStream(opening, images_per_batch=3, seed=3)
    again.load_state_dict(state)
    for a, b in zip(expected, iter(again), strict=False):
        assert torch.equal(a.embeddings, b.embeddings)


def test_digest_follows_values_names_and_shapes():
    net = nn.Linear(2, 3)
    before = weights_digest([net])
    assert before == weights_digest([net])
    with torch.no_grad():
        net.bias[0] += 1e-3
    assert weights_digest([net]) != before


def test_one_process_gathers_its_own_rows():
    batch = extract([sample(3)])
    assert gather_features(batch) is batch


def test_bad_specification_is_named(spec):
    with pytest.raises(ValueError, match=r"DTYPE is 'int8'"):
        dataclasses.replace(spec, dtype="int8")
    with pytest.raises(ValueError, match="at least 1"):
        dataclasses.replace(spec, views=0)


def test_memory_does_not_grow_with_the_bank(tmp_path):
    """Reading every image of a bank of 120 MB leaves little of it in memory; pages in the file cache do not count."""
    rows, width = 100, 1024
    embeddings = torch.arange(rows * width, dtype=torch.float32).view(rows, width) % 7

    def extract_one(samples):
        batch = FeatureBatch(embeddings, torch.zeros(rows, dtype=torch.int64), torch.ones(rows))
        return concatenate([batch] * len(samples))

    spec = BankSpec(
        num_images=600,
        num_classes=K,
        views=1,
        no_object_per_image=0,
        images_per_shard=50,
        batch_size=10,
        dtype="float16",
        seed=0,
        origin={},
    )
    bank = build_feature_bank(tmp_path, spec, extract_one, open_stream)
    assert sum(path.stat().st_size for path in tmp_path.glob("shard_*")) > 120e6
    before, largest = mapped_bytes(), 0
    for position in range(600):
        image = bank.images([position])
        largest = max(largest, mapped_bytes() - before)
    torch.testing.assert_close(image.embeddings, embeddings)
    assert largest < 1.5 * RELEASE_BYTES


def mapped_bytes() -> int:
    """Resident pages of files, this process."""
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("no /proc on this system")
    line = next(line for line in status.read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) * 1024
