# SPDX-License-Identifier: Apache-2.0
"""What the keys of the generator and of its discrepancy change."""

from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from padding.bank.feature_bank import FeatureBatch
from padding.data.mappers import build_mapper
from padding.generator import Gmmn, PrimitivePaper, PrimitiveTransformer
from padding.trainer import GeneratorClassifierTrainer
from tests.preset_checks.common import (
    PRINTED,
    SEEN,
    UNSEEN,
    ZS3,
    BuildModel,
    K,
    MakeCfg,
    behaviour,
    features,
    generator_losses,
    seeded,
)
from tests.tiny_padding import EMBEDDING_WIDTH, FEATURE_WIDTH, make_sample


def real_and_synthetic(build: BuildModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch = features()
    with torch.no_grad():
        return batch.embeddings[:6], seeded(build).synthesise(batch.labels[:6]), batch.labels[:6]


def kernel_sums(real: torch.Tensor, fake: torch.Tensor, variances: Any) -> list[list[torch.Tensor]]:
    """Kernel values of all pairs, pair by pair: within real, within synthetic, between."""

    def block(a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
        return [sum(torch.exp(-(x - y).square().sum() / (2 * v)) for v in variances) for x in a for y in b]

    return [block(real, real), block(fake, fake), block(real, fake)]


def mean_discrepancy(real: torch.Tensor, fake: torch.Tensor, variances: Any) -> torch.Tensor:
    rr, ff, rf = (torch.stack(block).mean() for block in kernel_sums(real, fake, variances))
    return rr + ff - 2 * rf


@behaviour("MMD.SIGMAS")
def check_sigmas(build: BuildModel, *_: Any) -> None:
    real, fake, _ = real_and_synthetic(build)
    for sigmas in (ZS3, PRINTED):
        got = generator_losses(build, "MMD.SIGMAS", sigmas, "MMD.BANDWIDTH", "variance", "MMD.SQRT", False)["loss_mmd"]
        torch.testing.assert_close(got, mean_discrepancy(real, fake, sigmas), atol=1e-5, rtol=1e-4)


@behaviour("MMD.BANDWIDTH")
def check_bandwidth(build: BuildModel, *_: Any) -> None:
    real, fake, _ = real_and_synthetic(build)
    got = {
        name: generator_losses(build, "MMD.BANDWIDTH", name, "MMD.SQRT", False)["loss_mmd"]
        for name in ("variance", "sigma", "median")
    }
    torch.testing.assert_close(got["variance"], mean_discrepancy(real, fake, ZS3), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got["sigma"], mean_discrepancy(real, fake, [s * s for s in ZS3]), atol=1e-5, rtol=1e-4)
    rows = torch.cat([real, fake])
    distances = torch.cdist(rows, rows).square()[torch.ones(12, 12, dtype=torch.bool).triu(1)]
    mean_of_sigmas = torch.tensor(ZS3).log().mean().exp()
    relative = [float(distances.median() * s / mean_of_sigmas) for s in ZS3]
    torch.testing.assert_close(got["median"], mean_discrepancy(real, fake, relative), atol=1e-5, rtol=1e-4)


@behaviour("MMD.SQRT")
def check_sqrt(build: BuildModel, *_: Any) -> None:
    root, square = (generator_losses(build, "MMD.SQRT", value)["loss_mmd"] for value in (True, False))
    torch.testing.assert_close(root.square(), square)


@behaviour("MMD.NORMALIZE")
def check_plain_sums(build: BuildModel, *_: Any) -> None:
    means, sums = (
        generator_losses(build, "MMD.NORMALIZE", value, "MMD.SQRT", False)["loss_mmd"] for value in (True, False)
    )
    torch.testing.assert_close(sums, means * 6 * 6, rtol=1e-4, atol=1e-5)  # six real and six synthetic rows
    for grouping in ("per_class", "joint"):
        options = ("MMD.NORMALIZE", False, "MMD.SQRT", False, "MMD.BANDWIDTH", "sigma", "MMD.GROUPING", grouping)
        got = generator_losses(build, *options)["loss_mmd"]
        real, fake, labels = real_and_synthetic(build)
        of_class = [mean_discrepancy(real[labels == c], fake[labels == c], [s * s for s in ZS3]) for c in (0, 1, 3, 5)]
        expected = sum(d * (labels == c).sum() ** 2 for d, c in zip(of_class, (0, 1, 3, 5), strict=True))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@behaviour("MMD.UNBIASED")
def check_unbiased(build: BuildModel, *_: Any) -> None:
    real, fake, _ = real_and_synthetic(build)
    options = ("MMD.UNBIASED", True, "MMD.SQRT", False, "MMD.BANDWIDTH", "sigma")
    got = generator_losses(build, *options)["loss_mmd"]
    rr, ff, rf = (torch.stack(block).sum() for block in kernel_sums(real, fake, [s * s for s in ZS3]))
    diagonal = 6 * len(ZS3)  # each kernel of a row with itself is 1
    torch.testing.assert_close(got, (rr - diagonal + ff - diagonal) / 30 - 2 * rf / 36, rtol=1e-4, atol=1e-5)


@behaviour("MMD.GROUPING")
def check_grouping(build: BuildModel, *_: Any) -> None:
    real, fake, labels = real_and_synthetic(build)
    common = ("MMD.BANDWIDTH", "sigma", "MMD.SQRT", False)

    def got(grouping: str, *more: Any) -> torch.Tensor:
        return generator_losses(build, *common, "MMD.GROUPING", grouping, *more)["loss_mmd"]

    variances = [s * s for s in ZS3]
    by_class = torch.stack([mean_discrepancy(real[labels == c], fake[labels == c], variances) for c in (0, 1, 3, 5)])
    torch.testing.assert_close(got("batch"), mean_discrepancy(real, fake, variances), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got("per_class"), by_class.mean(), rtol=1e-4, atol=1e-5)
    sizes = torch.tensor([2.0, 1, 2, 1])
    torch.testing.assert_close(got("joint"), (by_class * sizes.square()).sum() / 36, rtol=1e-4, atol=1e-5)
    assert got("auto") == got("batch")
    assert got("auto", "FEATURE_BANK.ENABLED", True) == got("per_class")


@behaviour("MMD.ROWS_PER_CLASS")
def check_rows_per_class(_: BuildModel, make_cfg: MakeCfg, *__: Any) -> None:
    def seen_by_steps(rows: int) -> dict[str, FeatureBatch]:
        trainer = GeneratorClassifierTrainer(make_cfg("MODEL.PADING.MMD.ROWS_PER_CLASS", rows))
        found: dict[str, FeatureBatch] = {}
        trainer.model.register_forward_pre_hook(
            lambda _, args, kwargs: found.update({kwargs["step"]: args[0]}), with_kwargs=True
        )
        trainer._next_features = features
        trainer.iter = 0
        trainer.run_step()
        return found

    assert len(seen_by_steps(0)["generator"].labels) == 8
    found = seen_by_steps(3)
    assert len(found["classifier"].labels) == 8
    wider = found["generator"]
    assert wider.labels.bincount().tolist() == [3, 3, 0, 3, 0, 3, 2]
    assert torch.equal(wider.embeddings[:8], features().embeddings)
    # Rows of classes 0 and 3 vary around their two real ones; of the others one row says nothing of a variance.
    assert torch.equal(wider.embeddings[8:][wider.labels[8:] == 1], features().embeddings[2:3].expand(2, -1))
    with pytest.raises(ValueError, match="ROWS_PER_CLASS is -1"):
        seen_by_steps(-1)


@behaviour("GENERATOR.PRIMITIVE_SELF_ATTENTION")
def check_primitive_graph(build: BuildModel, *_: Any) -> None:
    assert seeded(build).generator.graph is None
    model = seeded(build, "GENERATOR.PRIMITIVE_SELF_ATTENTION", True).eval()
    with_graph = model.synthesise(torch.tensor(UNSEEN))
    model.generator.graph = None
    assert not torch.allclose(with_graph, model.synthesise(torch.tensor(UNSEEN)))


@behaviour("GENERATOR.NAME")
def check_generators(build: BuildModel, *_: Any) -> None:
    assert EMBEDDING_WIDTH != FEATURE_WIDTH
    kinds = {"primitive_transformer": PrimitiveTransformer, "primitive_paper": PrimitivePaper, "gmmn": Gmmn}
    for name, kind in kinds.items():
        model = seeded(build, "GENERATOR.NAME", name).eval()
        assert type(model.generator) is kind
        assert model.synthesise(torch.tensor([*UNSEEN, 2])).shape == (3, FEATURE_WIDTH)
    # Eq. 1 with an embedding of another width: its projection is the source of the query and the residual.
    paper = seeded(build, "GENERATOR.NAME", "primitive_paper", "GENERATOR.NUM_LAYERS", 1).eval()
    nn.init.zeros_(paper.generator.values[0].weight)
    nn.init.zeros_(paper.generator.values[0].bias)
    projected = paper.fc_projection(paper.class_embeddings[UNSEEN])
    torch.testing.assert_close(paper.synthesise(torch.tensor(UNSEEN)), paper.generator.outputs[0](projected))


@behaviour("GENERATOR.NOISE_STD")
def check_noise(build: BuildModel, *_: Any) -> None:
    labels = torch.tensor([2] * 50)
    quiet, noisy = (seeded(build, "GENERATOR.NOISE_STD", std).eval().synthesise(labels) for std in (0.0, 1.0))
    assert quiet.var(0).max() < 1e-10
    assert noisy.var(0).mean() > 1e-2


@behaviour("GENERATOR.NUM_LAYERS")
def check_layers(build: BuildModel, *_: Any) -> None:
    assert len(seeded(build, "GENERATOR.NUM_LAYERS", 4).generator.layers) == 4
    paper = seeded(build, "GENERATOR.NUM_LAYERS", 4, "GENERATOR.NAME", "primitive_paper")
    assert len(paper.generator.outputs) == 4


@behaviour("GENERATOR.EQUAL_LAYERS")
def check_equal_layers(build: BuildModel, *_: Any) -> None:
    for equal in (False, True):
        first, *others = seeded(build, "GENERATOR.NUM_LAYERS", 3, "GENERATOR.EQUAL_LAYERS", equal).generator.layers
        for other in others:
            same = [torch.equal(p, other.state_dict()[name]) for name, p in first.state_dict().items()]
            assert all(same) is equal
            assert other.linear1.weight.data_ptr() != first.linear1.weight.data_ptr()


@behaviour("INPUT.KEEP_EMPTY_SEGMENTS")
def check_empty_segments(_: BuildModel, make_cfg: MakeCfg, *__: Any) -> None:
    """A mapper keeps what the crop emptied (tests/padding/data/test_mappers.py), and queries are matched to it."""
    sample = make_sample([0, 3])
    sample["instances"].gt_masks[1] = False
    for keep, expected in ((False, [SEEN[0]]), (True, [SEEN[0], SEEN[3]])):
        cfg = make_cfg("INPUT.KEEP_EMPTY_SEGMENTS", keep)
        assert build_mapper(cfg, is_train=True).keep_empty is keep
        model = build_model(cfg)
        labels = model.extract([sample]).labels
        assert sorted(labels[labels < K].tolist()) == expected
        segmentor = build_model(make_cfg("INPUT.KEEP_EMPTY_SEGMENTS", keep, "MODEL.META_ARCHITECTURE", "MaskFormer"))
        assert all(torch.isfinite(loss) for loss in segmentor([sample]).values())


@behaviour("GENERATOR.NUM_PRIMITIVES")
def check_primitives(build: BuildModel, *_: Any) -> None:
    assert seeded(build, "GENERATOR.NUM_PRIMITIVES", 7).dict_feature.weight.shape == (7, FEATURE_WIDTH)


@behaviour("GENERATOR.DROPOUT")
def check_generator_dropout(build: BuildModel, *_: Any) -> None:
    generator = seeded(build, "GENERATOR.DROPOUT", 0.3).generator
    rates = {m.p for m in generator.modules() if isinstance(m, nn.Dropout)}
    assert rates | {m.dropout for m in generator.modules() if isinstance(m, nn.MultiheadAttention)} == {0.3}


@behaviour("DISENTANGLE.DROPOUT")
def check_encoder_dropout(build: BuildModel, *_: Any) -> None:
    model = seeded(build, "DISENTANGLE.DROPOUT", 0.2)
    parts = (model.projection_related, model.projection_unrelated, model.decoder)
    assert [[m.p for m in part.modules() if isinstance(m, nn.Dropout)] for part in parts] == [[0.2]] * 3
