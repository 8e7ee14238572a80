# SPDX-License-Identifier: Apache-2.0
"""The wiring of PADing: what is frozen, what each step trains, label spaces, presets, inference switches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from torch.nn import functional as F

from padding.bank.feature_bank import FeatureBatch
from padding.build import load_embeddings
from padding.config import add_padding_config
from padding.data.class_embeddings import read_class_embeddings, save_class_embeddings
from padding.data.sets.coco import coco_zsp_split
from padding.errors import DataError
from padding.losses import MmdOptions, mmd, moment_divergence, structure_alignment
from padding.meta_arch import PADing
from tests.meta_arch_contract import MaskClassificationContract
from tests.tiny_padding import EMBEDDING_WIDTH, FEATURE_WIDTH, make_sample

BuildModel = Callable[..., PADing]
PREFIX = "MODEL.PADING."
K = 6
# "gem" and "lake" of box, tower, gem, sky, lake, ground
SEEN, UNSEEN = [0, 1, 3, 5], [2, 4]
GENERATOR_PARTS = (
    "fc_projection",
    "dict_feature",
    "generator",
    "projection_related",
    "projection_unrelated",
    "decoder",
)
OFFICIAL = (
    *("MODEL.PADING.ALIGN.TARGET", "projected", "MODEL.PADING.ALIGN.DETACH", False),
    *("MODEL.PADING.ALIGN.REDUCTION", "numel", "MODEL.PADING.ALIGN.USE_REAL_SEEN", False),
    *("MODEL.PADING.DISENTANGLE.ARCH", "official", "MODEL.PADING.DISENTANGLE.RELATION", "relation_net"),
    *("MODEL.PADING.DISENTANGLE.RELATION_AMONG_ALL", False, "MODEL.PADING.DISENTANGLE.UNRELATED", "official"),
)


def features(seed: int = 0) -> FeatureBatch:
    """Six matched rows of seen classes and two unmatched ones."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 0, 1, 3, 5, 3, K, K])
    return FeatureBatch(torch.randn(8, FEATURE_WIDTH, generator=generator), labels, torch.ones(8))


def trained_parts(model: PADing, losses: dict[str, torch.Tensor]) -> set[str]:
    model.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    return {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}


class TestContract(MaskClassificationContract):
    @pytest.fixture
    def cfg(self, padding_cfg: Callable[..., CfgNode]) -> CfgNode:
        return padding_cfg("MODEL.MASK_FORMER.TEST.SEMANTIC_ON", True)

    @pytest.fixture
    def train_batch(self) -> list[dict[str, Any]]:
        return [make_sample([0, 3], 1), make_sample([1], 2)]


def test_each_step_trains_its_own_parts_and_nothing_of_the_segmentor(padding_model: BuildModel) -> None:
    model = padding_model()
    losses = model(features(), step="generator")
    assert set(losses) == {
        *("loss_mmd", "loss_consistency", "loss_align_seen", "loss_align_unseen", "loss_align_seen_unseen"),
        *("loss_relation", "loss_unrelated", "loss_reconstruction"),
    }
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert trained_parts(model, losses) == set(GENERATOR_PARTS)
    losses = model(features(), step="classifier")
    assert set(losses) == {"loss_classifier"}
    assert trained_parts(model, losses) == {"new_fc"}
    both = model([make_sample([0, 3], 1), make_sample([1], 2)])
    assert trained_parts(model, both) == {*GENERATOR_PARTS, "new_fc"}


def test_every_trainable_parameter_belongs_to_one_step_and_learns(padding_model: BuildModel) -> None:
    model = padding_model()
    by_step = [{id(p) for p in model.step_modules(step).parameters()} for step in ("generator", "classifier")]
    assert by_step[0].isdisjoint(by_step[1])
    assert by_step[0] | by_step[1] == {id(p) for p in model.parameters() if p.requires_grad}
    torch.stack(list(model(features()).values())).sum().backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert not any(p.requires_grad for part in (model.backbone, model.sem_seg_head) for p in part.parameters())


def test_segmentor_stays_in_evaluation_mode(padding_model: BuildModel) -> None:
    model = padding_model()
    assert not model.backbone.training
    model.eval().train()
    assert model.training
    assert model.generator.training
    assert not any(m.training for part in (model.backbone, model.sem_seg_head) for m in part.modules())
    before = {name: buffer.clone() for name, buffer in model.backbone.named_buffers()}
    model([make_sample([0])])
    for name, buffer in model.backbone.named_buffers():  # batch norm statistics
        torch.testing.assert_close(buffer, before[name], msg=name)


def test_features_carry_matched_labels_in_the_test_label_space(padding_model: BuildModel) -> None:
    model = padding_model("MODEL.MASK_FORMER.CLASS_WEIGHT", 0.0)
    samples = [make_sample([0, 2, 3], 1), make_sample([], 2), make_sample([1], 3)]
    batch = model.extract(samples)
    assert batch.embeddings.shape == (24, FEATURE_WIDTH)
    assert not batch.embeddings.requires_grad
    per_image = batch.labels.view(3, 8)
    # training ids box, tower, sky, ground -> test ids
    assert sorted(per_image[0][per_image[0] < K].tolist()) == [0, 3, 5]
    assert (per_image[1] == K).all()
    assert per_image[2][per_image[2] < K].tolist() == [1]
    outputs = model.predict_queries(model.preprocess(samples))
    torch.testing.assert_close(batch.embeddings, outputs["pred_embeddings"].detach().flatten(0, 1))


def test_batch_without_segments_gives_zero_generator_losses_and_gradients(padding_model: BuildModel) -> None:
    model = padding_model()
    losses = model([make_sample([], 1)])
    assert losses["loss_mmd"].item() == 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_losses_are_the_formulas_with_their_weights(padding_model: BuildModel) -> None:
    model = padding_model(
        *(PREFIX + "GENERATOR.NOISE_STD", 0.0, PREFIX + "GENERATOR.DROPOUT", 0.0),
        *(PREFIX + "DISENTANGLE.DROPOUT", 0.0, PREFIX + "LOSS_WEIGHT.STRUCTURE", 0.5),
        *(PREFIX + "LOSS_WEIGHT.CONSISTENCY", 0.25, PREFIX + "LOSS_WEIGHT.ALIGN", 3.0),
    )
    batch = features()
    losses = model(batch, step="generator")
    real, labels = batch.embeddings[:6], batch.labels[:6]
    with torch.no_grad():
        table = model.class_embeddings
        torch.testing.assert_close(table.norm(dim=1), torch.ones(K))
        fake = model.generator(model.fc_projection(table[labels]), model.dict_feature.weight)
        unseen = model.generator(model.fc_projection(table[UNSEEN]), model.dict_feature.weight)
        options = MmdOptions((2.0, 5.0, 10.0, 20.0, 40.0, 80.0), bandwidth="median")
        torch.testing.assert_close(losses["loss_mmd"], mmd(real, fake, options))
        columns = torch.tensor([SEEN.index(int(label)) for label in labels])
        consistency = F.cross_entropy(model.new_fc(fake)[:, SEEN], columns)
        torch.testing.assert_close(losses["loss_consistency"], 0.25 * consistency)
        seen = torch.cat([real, fake])
        related = model.projection_related(seen), model.projection_related(unseen)
        divergence = model.generation.structure.divergence
        align = structure_alignment(*related, table[labels.repeat(2)], table[UNSEEN], divergence)
        torch.testing.assert_close(losses["loss_align_seen_unseen"], 0.5 * 3.0 / 3 * align)
        relation = F.cross_entropy(related[0] @ table.T / 0.1, labels.repeat(2))
        relation = relation + F.cross_entropy(related[1] @ table.T / 0.1, torch.tensor(UNSEEN))
        torch.testing.assert_close(losses["loss_relation"], 0.5 * 0.2 * relation / 2)
        unrelated = sum(moment_divergence(model.projection_unrelated(x)) for x in (seen, unseen))
        torch.testing.assert_close(losses["loss_unrelated"], 0.5 * 0.5 * unrelated / 2)
        decoded = sum(
            (model.decoder(model.projection_related(x), model.projection_unrelated(x)) - x).abs().mean()
            for x in (seen, unseen)
        )
        torch.testing.assert_close(losses["loss_reconstruction"], 0.5 * 0.5 * decoded / 2)


def test_classifier_loss_weighs_unseen_and_no_object(padding_model: BuildModel) -> None:
    model = padding_model(
        *(PREFIX + "GENERATOR.NOISE_STD", 0.0, PREFIX + "GENERATOR.DROPOUT", 0.0),
        *(PREFIX + "CLASSIFIER.UNSEEN_WEIGHT", 7.0, PREFIX + "CLASSIFIER.NO_OBJECT_WEIGHT", 0.3),
        *(PREFIX + "CLASSIFIER.CLASSES_PER_ITER", 0, PREFIX + "CLASSIFIER.NUM_PER_CLASS", 2),
    )
    batch = features()
    batch = batch._replace(weights=torch.tensor([1.0, 1, 1, 1, 1, 1, 1, 4.0]))
    got = model(batch, step="classifier")["loss_classifier"]
    fake_labels = torch.tensor([2, 2, 4, 4])
    x = torch.cat([batch.embeddings, model.synthesise(fake_labels)])
    y = torch.cat([batch.labels, fake_labels])
    weights = torch.tensor([1.0] * 6 + [0.3, 1.2] + [7.0] * 4)
    losses = F.cross_entropy(model.new_fc(x), y, reduction="none")
    torch.testing.assert_close(got, (losses * weights).sum() / weights.sum())


def test_unseen_classes_are_drawn_without_repetition(padding_model: BuildModel) -> None:
    model = padding_model(PREFIX + "CLASSIFIER.CLASSES_PER_ITER", 1, PREFIX + "CLASSIFIER.NUM_PER_CLASS", 3)
    drawn = {tuple(model._draw_unseen().tolist()) for _ in range(20)}
    assert drawn == {(2, 2, 2), (4, 4, 4)}


def test_noise_makes_features_of_one_class_differ(padding_model: BuildModel) -> None:
    model = padding_model().eval()
    first, second = model.synthesise(torch.tensor([2, 2]))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    "opts",
    [
        OFFICIAL,
        (PREFIX + "GENERATOR.NAME", "primitive_paper", PREFIX + "GENERATOR.PRIMITIVE_SELF_ATTENTION", True),
        (PREFIX + "GENERATOR.PRIMITIVE_SELF_ATTENTION", True),
        (PREFIX + "DISENTANGLE.UNRELATED", "vae"),
        (PREFIX + "MMD.GROUPING", "joint", PREFIX + "MMD.UNBIASED", True, PREFIX + "MMD.SQRT", False),
        (PREFIX + "ALIGN.DIRECTION", "visual_to_semantic", PREFIX + "MMD.BANDWIDTH", "sigma"),
    ],
)
def test_options_train_every_parameter(padding_model: BuildModel, opts: tuple) -> None:
    model = padding_model(*opts)
    losses = model(features())
    assert all(torch.isfinite(loss) for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_gmmn_takes_raw_embeddings_and_has_no_primitives(padding_model: BuildModel) -> None:
    model = padding_model(
        PREFIX + "GENERATOR.NAME", "gmmn", PREFIX + "ALIGN.ENABLED", False, PREFIX + "DISENTANGLE.ENABLED", False
    )
    assert set(model.step_modules("generator")) == {"generator"}
    assert set(model(features(), step="generator")) == {"loss_mmd", "loss_consistency"}
    assert model.generator.network[0].in_features == 2 * EMBEDDING_WIDTH


def test_alignment_without_disentanglement_uses_the_features_themselves(padding_model: BuildModel) -> None:
    model = padding_model(
        *(PREFIX + "DISENTANGLE.ENABLED", False, PREFIX + "ALIGN.SPACE", "visual"),
        *(PREFIX + "GENERATOR.NOISE_STD", 0.0, PREFIX + "GENERATOR.DROPOUT", 0.0),
    )
    losses = model(features(), step="generator")
    assert "loss_relation" not in losses
    unseen = model.synthesise(torch.tensor(UNSEEN))
    table = model.class_embeddings[UNSEEN]
    expected = structure_alignment(unseen, unseen, table, table, model.generation.structure.divergence)
    torch.testing.assert_close(losses["loss_align_unseen"], 0.002 / 3 * expected)


def test_detached_targets_give_the_projection_no_alignment_gradient(padding_model: BuildModel) -> None:
    def gradient(detach: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = padding_model(*OFFICIAL, PREFIX + "ALIGN.DETACH", detach)
        torch.manual_seed(1)
        model(features(), step="generator")["loss_align_unseen"].backward()
        return model.fc_projection.weight.grad

    assert not torch.allclose(gradient(True), gradient(False), rtol=1e-3, atol=0)


def test_official_variant_has_the_published_names(padding_model: BuildModel) -> None:
    names = set(padding_model(*OFFICIAL).state_dict())
    new = {name for name in names if not name.startswith(("backbone.", "sem_seg_head.", "criterion."))}
    layer = [f"{block}.{k}" for block in ("self_attn", "multihead_attn") for k in ("in_proj_weight", "in_proj_bias")]
    layer += [f"{block}.out_proj.{k}" for block in ("self_attn", "multihead_attn") for k in ("weight", "bias")]
    layer += [f"{m}.{k}" for m in ("linear1", "linear2", "norm1", "norm2", "norm3") for k in ("weight", "bias")]
    expected = {f"generator.layers.{i}.{name}" for i in range(2) for name in layer}
    pairs = ("new_fc", "fc_projection", "generator.norm", "relation.fc1", "relation.fc2", "decoder.decoder.0")
    pairs += ("decoder.decoder.3", *(f"projection_{k}.encoder.{i}" for k in ("related", "unrelated") for i in (0, 1)))
    expected |= {f"{name}.{k}" for name in pairs for k in ("weight", "bias")} | {"dict_feature.weight"}
    assert new == expected


def test_widths_follow_the_semantic_side(padding_model: BuildModel) -> None:
    ours = padding_model()
    assert ours.projection_related.encoder[-1].out_features == EMBEDDING_WIDTH
    assert ours.decoder.decoder[0].in_features == EMBEDDING_WIDTH + FEATURE_WIDTH
    official = padding_model(*OFFICIAL)
    assert official.projection_related.encoder[1].out_features == FEATURE_WIDTH


def predict(model: PADing) -> dict[str, torch.Tensor]:
    model.eval()
    with torch.no_grad():
        outputs = model.predict_queries(model.preprocess([make_sample([0])]))
        return {"logits": model.class_logits(outputs), "embeddings": outputs["pred_embeddings"]}


def test_evaluation_uses_the_new_classifier_and_gamma_lowers_seen_classes(padding_model: BuildModel) -> None:
    model = padding_model()
    plain = predict(model)
    assert plain["logits"].shape == (1, 8, K + 1)
    torch.testing.assert_close(plain["logits"], model.new_fc(plain["embeddings"]).detach())
    model.seen_bias = 2.5
    difference = plain["logits"] - predict(model)["logits"]
    expected = torch.zeros(K + 1)
    expected[SEEN] = 2.5
    torch.testing.assert_close(difference, expected.expand(1, 8, -1), atol=1e-5, rtol=0)


def test_seen_bias_comes_from_the_configuration(padding_model: BuildModel) -> None:
    assert padding_model(PREFIX + "TEST.SEEN_BIAS", 1.5).seen_bias == 1.5


@pytest.mark.parametrize("method", ["generative", "projection"])
def test_zsl_mode_leaves_unseen_classes_and_no_object(padding_model: BuildModel, method: str) -> None:
    model = padding_model(PREFIX + "TEST.MODE", "zsl", PREFIX + "METHOD", method)
    logits = predict(model)["logits"]
    assert torch.isinf(logits[..., SEEN]).all()
    assert torch.isfinite(logits[..., [*UNSEEN, K]]).all()
    predictions = model([make_sample([0])])
    assert {s["category_id"] for s in predictions[0]["panoptic_seg"][1]} <= set(UNSEEN)


def test_supervised_method_never_scores_unseen_classes_and_has_nothing_to_train(padding_model: BuildModel) -> None:
    model = padding_model(PREFIX + "METHOD", "supervised", PREFIX + "EMBEDDINGS.PATH", "")
    logits = predict(model)["logits"]
    assert torch.isinf(logits[..., UNSEEN]).all()
    assert model.train()([make_sample([0])]) == {}
    assert not any(p.requires_grad for p in model.parameters())


def test_projection_is_cosine_over_temperature_and_learns_on_seen_classes(padding_model: BuildModel) -> None:
    model = padding_model(PREFIX + "METHOD", "projection", PREFIX + "PROJECTION.TEMPERATURE", 0.5)
    found = predict(model)
    query = model.projection.linear(found["embeddings"][0, 0])
    classes = [*model.class_embeddings, model.projection.no_object]
    expected = torch.stack([F.cosine_similarity(query, c, dim=0) / 0.5 for c in classes])
    torch.testing.assert_close(found["logits"][0, 0], expected.detach(), atol=1e-5, rtol=1e-5)
    model.train()
    batch = features()
    got = model(batch, step="classifier")["loss_classifier"]
    logits = model.classify(batch.embeddings)[:, [*SEEN, K]]
    columns = torch.tensor([[*SEEN, K].index(int(label)) for label in batch.labels])
    weight = torch.tensor([1.0] * 4 + [0.1])
    torch.testing.assert_close(got, F.cross_entropy(logits, columns, weight=weight))
    assert trained_parts(model, {"loss": got}) == {"projection"}
    assert model(batch, step="generator") == {}


def test_embeddings_are_found_by_name_and_normalised_only_if_asked(padding_model: BuildModel) -> None:
    raw = padding_model(PREFIX + "EMBEDDINGS.L2_NORMALIZE", False).class_embeddings
    torch.testing.assert_close(raw.norm(dim=1), torch.full((K,), 3.0))
    unit = padding_model().class_embeddings
    torch.testing.assert_close(unit, raw / 3.0)
    assert "class_embeddings" not in padding_model().state_dict()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("METHOD", "clip", r"METHOD is 'clip'.*supervised, projection, generative"),
        ("TEST.MODE", "open", r"TEST.MODE is 'open'.*gzsl, zsl"),
        ("GENERATOR.NAME", "gan", r"GENERATOR.NAME is 'gan'.*primitive_transformer"),
        ("ALIGN.TARGET", "text", r"ALIGN.TARGET is 'text'"),
        ("ALIGN.SPACE", "all", r"ALIGN.SPACE is 'all'"),
        ("DISENTANGLE.ENABLED", False, r"ALIGN.SPACE is 'related', but DISENTANGLE.ENABLED is False"),
        ("DISENTANGLE.RELATION", "cosine", r"RELATION is 'cosine'"),
        ("DISENTANGLE.UNRELATED", "kl", r"UNRELATED is 'kl'"),
        ("CLASSIFIER.INIT", "zeros", r"CLASSIFIER.INIT is 'zeros'"),
        ("EMBEDDINGS.PATH", "", r"EMBEDDINGS.PATH is empty"),
        ("MMD.GROUPING", "none", r"grouping is 'none'"),
    ],
)
def test_wrong_choices_are_named(padding_model: BuildModel, key: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        padding_model(PREFIX + key, value)


def test_projected_targets_need_a_projection(padding_model: BuildModel) -> None:
    with pytest.raises(ValueError, match="'gmmn' projects nothing"):
        padding_model(PREFIX + "GENERATOR.NAME", "gmmn", PREFIX + "ALIGN.TARGET", "projected")


def test_generative_method_needs_unseen_classes(padding_model: BuildModel) -> None:
    with pytest.raises(ValueError, match="needs unseen classes"):
        padding_model("DATASETS.TEST", ("tiny_padding_train",))


def test_relative_embedding_paths_start_at_the_data_root(
    padding_model: BuildModel, tiny_data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_data_root))
    model = padding_model(PREFIX + "EMBEDDINGS.PATH", "class_embeddings.npz")
    assert model.class_embeddings.shape == (K, EMBEDDING_WIDTH)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        padding_model(PREFIX + "EMBEDDINGS.PATH", "nowhere.npz")


def test_the_shipped_table_is_found_from_any_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    cfg = get_cfg()
    add_padding_config(cfg)
    cfg.MODEL.PADING.EMBEDDINGS.PATH = "embeddings/glove_50.npz"
    assert load_embeddings(cfg, coco_zsp_split()).shape == (133, 50)


def test_identical_embeddings_are_refused_unless_allowed(
    padding_model: BuildModel, tiny_data_root: Path, tmp_path: Path
) -> None:
    table = read_class_embeddings(tiny_data_root / "class_embeddings.npz")
    path = tmp_path / "same.npz"
    save_class_embeddings(path, table.names, np.ones_like(table.embeddings))
    with pytest.raises(DataError, match=f"{table.names[0]} = {table.names[1]}.*EMBEDDINGS.ALLOW_IDENTICAL"):
        padding_model(PREFIX + "EMBEDDINGS.PATH", str(path))
    model = padding_model(PREFIX + "EMBEDDINGS.PATH", str(path), PREFIX + "EMBEDDINGS.ALLOW_IDENTICAL", True)
    assert torch.equal(model.class_embeddings[0], model.class_embeddings[1])
