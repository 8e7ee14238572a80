# SPDX-License-Identifier: Apache-2.0
"""What the keys of alignment, disentanglement and consistency change, and the weights of all losses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from padding.losses import structure_alignment
from padding.meta_arch import PADing
from tests.preset_checks.common import (
    SEEN,
    UNSEEN,
    BuildModel,
    K,
    MakeCfg,
    behaviour,
    features,
    generator_losses,
    seeded,
)
from tests.tiny_padding import EMBEDDING_WIDTH, FEATURE_WIDTH

STRUCTURE = {
    "ALIGN": ("loss_align_seen", "loss_align_unseen", "loss_align_seen_unseen"),
    "RELATION": ("loss_relation",),
    "UNRELATED": ("loss_unrelated",),
    "RECONSTRUCTION": ("loss_reconstruction",),
    "CONSISTENCY": ("loss_consistency",),
}


def check_weight(name: str, scaled: set[str]) -> Callable[..., None]:
    def check(build: BuildModel, _: MakeCfg, __: Path) -> None:
        one, two = (generator_losses(build, f"LOSS_WEIGHT.{name}", value) for value in (0.25, 0.5))
        for term, value in one.items():
            torch.testing.assert_close(two[term], value * (2.0 if term in scaled else 1.0), msg=term)

    return check


for _name, _terms in STRUCTURE.items():
    behaviour(f"LOSS_WEIGHT.{_name}")(check_weight(_name, set(_terms)))
behaviour("LOSS_WEIGHT.STRUCTURE")(
    check_weight("STRUCTURE", {t for n, terms in STRUCTURE.items() if n != "CONSISTENCY" for t in terms})
)


@behaviour("ALIGN.REDUCTION")
def check_reduction(build: BuildModel, *_: Any) -> None:
    rows, entries = (generator_losses(build, "ALIGN.REDUCTION", name) for name in ("row_mean", "numel"))
    # columns: 6 real and 6 synthetic seen rows, or the unseen classes
    torch.testing.assert_close(entries["loss_align_seen"] * 12, rows["loss_align_seen"])
    for name in ("loss_align_unseen", "loss_align_seen_unseen"):
        torch.testing.assert_close(entries[name] * len(UNSEEN), rows[name])


@behaviour("ALIGN.DIRECTION")
def check_direction(build: BuildModel, *_: Any) -> None:
    common = ("DISENTANGLE.ENABLED", False, "ALIGN.SPACE", "visual", "LOSS_WEIGHT.STRUCTURE", 3.0)
    model = seeded(build, *common)
    unseen, table = model.synthesise(torch.tensor(UNSEEN)), model.class_embeddings[UNSEEN]

    def distribution(x: torch.Tensor) -> torch.Tensor:
        return (F.cosine_similarity(x[:, None], x[None], dim=2) / 0.1).softmax(1)

    v, s = distribution(unseen), distribution(table)
    expected = {"semantic_to_visual": s * (s / v).log(), "visual_to_semantic": v * (v / s).log()}
    for direction, terms in expected.items():
        got = generator_losses(build, *common, "ALIGN.DIRECTION", direction)["loss_align_unseen"]
        torch.testing.assert_close(got, terms.sum(1).mean(), rtol=1e-4, atol=1e-6)


@behaviour("ALIGN.TEMPERATURE")
def check_temperature(build: BuildModel, *_: Any) -> None:
    """Twice as warm is half as large scores in alignment and relation."""
    model = seeded(build, "ALIGN.TEMPERATURE", 0.2, "LOSS_WEIGHT.STRUCTURE", 1.0)
    losses = generator_losses(build, "ALIGN.TEMPERATURE", 0.2, "LOSS_WEIGHT.STRUCTURE", 1.0)
    unseen = model.projection_related(model.synthesise(torch.tensor(UNSEEN)))
    table = model.class_embeddings[UNSEEN]
    align = structure_alignment(unseen, unseen, table, table, model.generation.structure.divergence)
    assert model.generation.structure.divergence.temperature == 0.2
    torch.testing.assert_close(losses["loss_align_unseen"], align / 3)
    batch = features()
    seen = torch.cat([batch.embeddings[:6], model.synthesise(batch.labels[:6])])
    terms = [
        F.cross_entropy(model.projection_related(seen) @ model.class_embeddings.T / 0.2, batch.labels[:6].repeat(2)),
        F.cross_entropy(unseen @ model.class_embeddings.T / 0.2, torch.tensor(UNSEEN)),
    ]
    torch.testing.assert_close(losses["loss_relation"], 0.2 * sum(terms) / 2)


@behaviour("ALIGN.TARGET")
def check_target(build: BuildModel, *_: Any) -> None:
    raw = seeded(build)
    torch.testing.assert_close(raw._semantic_targets(raw.generation), raw.class_embeddings)
    model = seeded(build, "ALIGN.TARGET", "projected")
    torch.testing.assert_close(model._semantic_targets(model.generation), model.fc_projection(model.class_embeddings))
    widths = [m.projection_related.encoder[-1].out_features for m in (raw, model)]
    assert widths == [EMBEDDING_WIDTH, FEATURE_WIDTH]


@behaviour("ALIGN.DETACH")
def check_detach(build: BuildModel, *_: Any) -> None:
    for detach in (True, False):
        model = seeded(build, "ALIGN.TARGET", "projected", "ALIGN.DETACH", detach)
        assert model._semantic_targets(model.generation).requires_grad is not detach


@behaviour("ALIGN.USE_REAL_SEEN")
def check_real_seen(build: BuildModel, *_: Any) -> None:
    batch = features()
    other = batch._replace(embeddings=batch.embeddings.flip(1))
    for use in (True, False):
        a, b = (generator_losses(build, "ALIGN.USE_REAL_SEEN", use, batch=x) for x in (batch, other))
        assert not torch.equal(a["loss_mmd"], b["loss_mmd"])
        for name in ("loss_align_seen", "loss_relation", "loss_unrelated", "loss_reconstruction"):
            assert torch.equal(a[name], b[name]) is not use, name


def relation_of(build: BuildModel, *opts: Any) -> tuple[PADing, torch.Tensor]:
    """Model and relation loss, with synthetic features only and no weights."""
    common = ("LOSS_WEIGHT.STRUCTURE", 1.0, "LOSS_WEIGHT.RELATION", 2.0, "ALIGN.USE_REAL_SEEN", False, *opts)
    return seeded(build, *common), generator_losses(build, *common)["loss_relation"]


def related_parts(model: PADing) -> tuple[torch.Tensor, torch.Tensor]:
    labels = features().labels[:6]
    return tuple(model.projection_related(model.synthesise(ids)) for ids in (labels, torch.tensor(UNSEEN)))


@behaviour("DISENTANGLE.RELATION")
def check_relation(build: BuildModel, *_: Any) -> None:
    model, got = relation_of(build, "DISENTANGLE.RELATION", "relation_net")
    seen, unseen = related_parts(model)
    scores = [model.relation(part, model.class_embeddings) for part in (seen, unseen)]
    assert all(((score > 0) & (score < 1)).all() for score in scores)
    expected = F.cross_entropy(scores[0], features().labels[:6]) + F.cross_entropy(scores[1], torch.tensor(UNSEEN))
    torch.testing.assert_close(got, expected)
    model, got = relation_of(build)
    assert model.relation is None
    logits = [part @ model.class_embeddings.T / 0.1 for part in related_parts(model)]
    expected = F.cross_entropy(logits[0], features().labels[:6]) + F.cross_entropy(logits[1], torch.tensor(UNSEEN))
    torch.testing.assert_close(got, expected)


@behaviour("DISENTANGLE.RELATION_REDUCTION")
def check_relation_sum(build: BuildModel, *_: Any) -> None:
    model, got = relation_of(build, "DISENTANGLE.RELATION_REDUCTION", "sum")
    expected = torch.tensor(0.0)
    for part, ids in zip(related_parts(model), (features().labels[:6], torch.tensor(UNSEEN)), strict=True):
        logits = part @ model.class_embeddings.T / 0.1
        expected = expected + 2.0 * F.cross_entropy(logits, ids, reduction="sum")
    torch.testing.assert_close(got, expected)
    with pytest.raises(ValueError, match="RELATION_REDUCTION is 'max'"):
        seeded(build, "DISENTANGLE.RELATION_REDUCTION", "max")


@behaviour("DISENTANGLE.RELATION_AMONG_ALL", "DISENTANGLE.RELATION_SEEN_AMONG_ALL")
def check_relation_columns(build: BuildModel, *_: Any) -> None:
    for seen_all, unseen_all in ((True, False), (False, True), (False, False)):
        model, got = relation_of(
            build, "DISENTANGLE.RELATION_AMONG_ALL", unseen_all, "DISENTANGLE.RELATION_SEEN_AMONG_ALL", seen_all
        )
        expected = torch.tensor(0.0)
        groups = ((features().labels[:6].tolist(), SEEN, seen_all), (UNSEEN, UNSEEN, unseen_all))
        for part, (labels, own, among_all) in zip(related_parts(model), groups, strict=True):
            columns = list(range(K)) if among_all else own
            logits = part @ model.class_embeddings[columns].T / 0.1
            expected = expected + F.cross_entropy(logits, torch.tensor([columns.index(label) for label in labels]))
        torch.testing.assert_close(got, expected)


@behaviour("DISENTANGLE.UNRELATED")
def check_unrelated(build: BuildModel, *_: Any) -> None:
    common = ("LOSS_WEIGHT.STRUCTURE", 1.0, "LOSS_WEIGHT.UNRELATED", 2.0, "ALIGN.USE_REAL_SEEN", False)
    labels = (features().labels[:6], torch.tensor(UNSEEN))

    def parts(model: PADing) -> list[torch.Tensor]:
        return [model.projection_unrelated(model.synthesise(ids)) for ids in labels]

    model = seeded(build, *common)
    expected = torch.tensor(0.0)
    for part in parts(model):
        mean, variance = part.mean(0), part.var(0, unbiased=False)
        expected = expected + 0.5 * (mean**2 + variance - 1 - variance.log()).mean()
    torch.testing.assert_close(generator_losses(build, *common)["loss_unrelated"], expected)

    options = (*common, "DISENTANGLE.UNRELATED", "vae")
    expected = torch.tensor(0.0)
    for part in parts(seeded(build, *options)):
        mean, log_variance = part.chunk(2, dim=1)
        expected = expected + 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    torch.testing.assert_close(generator_losses(build, *options)["loss_unrelated"], expected)

    options = (*common, "DISENTANGLE.UNRELATED", "official")
    got = generator_losses(build, *options)["loss_unrelated"]
    model = seeded(build, *options)
    torch.manual_seed(1)
    expected = torch.tensor(0.0)
    for part in parts(model):  # the generator draws its noise, of weight 0 here, before
        target = (torch.randn_like(part) / 0.1).softmax(1)
        expected = expected + (target * (target.log() - (part / 0.1).log_softmax(1))).mean()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@behaviour("DISENTANGLE.UNRELATED_REDUCTION")
def check_unrelated_sum(build: BuildModel, *_: Any) -> None:
    """The sum over samples is the mean times the number of what it is a mean of, in each set."""
    common = ("LOSS_WEIGHT.STRUCTURE", 1.0, "LOSS_WEIGHT.UNRELATED", 1.0, "ALIGN.USE_REAL_SEEN", False)
    counts = [len(ids) * FEATURE_WIDTH for ids in (features().labels[:6], UNSEEN)]

    def both_sets(prior: str, reduction: str) -> torch.Tensor:
        options = ("DISENTANGLE.UNRELATED", prior, "DISENTANGLE.UNRELATED_REDUCTION", reduction)
        return generator_losses(build, *common, *options)["loss_unrelated"]

    for prior in ("moment", "vae", "official"):
        one_set: list[torch.Tensor] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "padding.objective._over_sets", lambda parts, _, one_set=one_set: one_set.extend(parts) or parts[0]
            )
            both_sets(prior, "mean")
        means = one_set[2:4]  # relation, then unrelated, then reconstruction: two sets each
        expected = means[0] * counts[0] + means[1] * counts[1]
        torch.testing.assert_close(both_sets(prior, "sum"), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="UNRELATED_REDUCTION is 'max'"):
        seeded(build, "DISENTANGLE.UNRELATED_REDUCTION", "max")


@behaviour("DISENTANGLE.ARCH")
def check_arch(build: BuildModel, *_: Any) -> None:
    def kinds(model: PADing, name: str) -> list[str]:
        part = getattr(model, name)
        return [type(layer).__name__ for layer in getattr(part, "encoder" if "projection" in name else "decoder")]

    ours, official = seeded(build), seeded(build, "DISENTANGLE.ARCH", "official")
    for name in ("projection_related", "projection_unrelated", "decoder"):
        assert kinds(ours, name) == ["Linear", "LeakyReLU", "Dropout", "Linear"]
    assert kinds(official, "projection_related") == ["Linear", "Linear", "LeakyReLU", "Dropout"]
    assert kinds(official, "decoder") == ["Linear", "LeakyReLU", "Dropout", "Linear", "LeakyReLU", "Dropout"]


@behaviour("DISENTANGLE.RECONSTRUCTION")
def check_reconstruction(build: BuildModel, *_: Any) -> None:
    common = ("LOSS_WEIGHT.STRUCTURE", 1.0, "LOSS_WEIGHT.RECONSTRUCTION", 2.0, "ALIGN.USE_REAL_SEEN", False)
    model = seeded(build, *common)
    differences = []
    for ids in (features().labels[:6], torch.tensor(UNSEEN)):
        x = model.synthesise(ids)
        differences.append((model.decoder(model.projection_related(x), model.projection_unrelated(x)) - x).abs())
    for reduction, reduce, weight in (("mean", torch.mean, 0.5), ("sum", torch.sum, 1.0)):
        got = generator_losses(build, *common, "DISENTANGLE.RECONSTRUCTION", reduction)["loss_reconstruction"]
        torch.testing.assert_close(got, 2.0 * weight * (reduce(differences[0]) + reduce(differences[1])))
    with pytest.raises(ValueError, match="RECONSTRUCTION is 'max'"):
        seeded(build, "DISENTANGLE.RECONSTRUCTION", "max")


@behaviour("CONSISTENCY_AMONG_ALL")
def check_consistency_columns(build: BuildModel, *_: Any) -> None:
    labels = features().labels[:6]
    for among_all, columns in ((False, SEEN), (True, list(range(K + 1)))):
        options = ("CONSISTENCY_AMONG_ALL", among_all, "LOSS_WEIGHT.CONSISTENCY", 1.0)
        model = seeded(build, *options)
        logits = model.new_fc(model.synthesise(labels))[:, columns]
        expected = F.cross_entropy(logits, torch.tensor([columns.index(label) for label in labels.tolist()]))
        torch.testing.assert_close(generator_losses(build, *options)["loss_consistency"], expected)
