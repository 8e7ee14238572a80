# SPDX-License-Identifier: Apache-2.0
"""Classes added after training: recognised, old logits untouched, and everything needed to use them in one file."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

import padding.add_classes
from padding.add_classes import extended_checkpoint, save_extended, split_names
from padding.bank.seen_statistics import FILE_NAME, SeenStatistics
from padding.checkpoint import load_padding_weights
from padding.data.class_embeddings import save_class_embeddings
from padding.engine import Predictor
from padding.errors import CheckpointError
from padding.extension import add_classes_to, extended_split, find_statistics
from padding.meta_arch import PADing
from padding.trainer import GeneratorClassifierTrainer
from tests.separable_features import (
    ADDED,
    KNOWN,
    NAMES,
    NO_OBJECT,
    SPLIT,
    TEST,
    UNSEEN,
    embeddings,
    real_features,
    separable_cfg,
    train_second_stage,
)

Trained = tuple[PADing, SeenStatistics, CfgNode]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    cfg = separable_cfg(tmp_path_factory.mktemp("separable"))
    return (*train_second_stage(cfg, iterations=150), cfg)


@pytest.fixture
def model(trained: Trained) -> PADing:
    return copy.deepcopy(trained[0])


@pytest.fixture
def saved(trained: Trained, tmp_path: Path) -> CfgNode:
    """A folder as the training leaves it, with MODEL.WEIGHTS set to its checkpoint."""
    model, statistics, cfg = trained
    torch.save({"model": model.state_dict()}, tmp_path / "model_final.pth")
    statistics.save(tmp_path / FILE_NAME)
    return with_weights(cfg, tmp_path / "model_final.pth")


def with_weights(cfg: CfgNode, path: Path, *opts: object) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(["MODEL.WEIGHTS", str(path), *opts])
    cfg.freeze()
    return cfg


def accuracy(model: PADing, name: str) -> float:
    """Share of fresh real features of a class that the whole classifier recognises."""
    features = real_features(torch.full((200,), NAMES.index(name) if name in NAMES else NO_OBJECT), seed=99)
    wanted = model.label_space.names.index(name) if name in NAMES else model.num_test_classes
    return float((model.classify(features).argmax(1) == wanted).float().mean())


def test_added_classes_are_recognised_and_old_logits_stay(trained: Trained, model: PADing) -> None:
    before, statistics, cfg = trained
    report = add_classes_to(model, cfg, ADDED, statistics=statistics)
    assert model.num_test_classes == len(NAMES)
    assert model.label_space.names == (*KNOWN, *ADDED)
    for name in ADDED:  # chance is 3 %
        assert accuracy(model, name) > 0.7, name
    # neither swamped nor swamping: who was recognised before still is
    for name in (*SPLIT.seen_only().names, *UNSEEN, "no object"):
        assert accuracy(model, name) > accuracy(before, name) - 0.05, name
    assert report.old_class_max_change == 0.0
    features = real_features(torch.arange(31).repeat(10), seed=5)
    kept = [*range(len(KNOWN)), -1]
    torch.testing.assert_close(model.classify(features)[:, kept], before.classify(features), rtol=0, atol=1e-5)
    assert torch.equal(model.new_fc.weight[kept], before.new_fc.weight)


def test_new_classes_make_the_same_trade_as_old_unseen_ones(trained: Trained, model: PADing) -> None:
    _, statistics, cfg = trained
    report = add_classes_to(model, cfg, ADDED, statistics=statistics)
    assert report.before is not None
    assert report.after is not None
    assert report.after.log_ratio == pytest.approx(report.before.log_ratio, abs=0.01)
    assert report.after.false_alarm < 0.05
    assert report.after.miss < 0.3


def test_refit_changes_old_rows_and_says_by_how_much(trained: Trained, model: PADing) -> None:
    before, statistics, cfg = trained
    report = add_classes_to(model, cfg, ADDED, statistics=statistics, refit=True)
    features = statistics.rows().embeddings
    kept = [*range(len(KNOWN)), -1]
    change = (model.classify(features)[:, kept] - before.classify(features)).detach().abs().max()
    assert 0 < report.old_class_max_change <= float(change) + 1e-4
    for name in (*ADDED, *UNSEEN, "red disk"):
        assert accuracy(model, name) > 0.7, name


def test_adding_is_repeatable_and_leaves_the_random_state_alone(trained: Trained, model: PADing) -> None:
    _, statistics, cfg = trained
    other = copy.deepcopy(model)
    state = torch.get_rng_state()
    add_classes_to(model, cfg, ADDED, statistics=statistics)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(77)
    add_classes_to(other, cfg, ADDED, statistics=statistics)
    assert torch.equal(model.new_fc.weight, other.new_fc.weight)
    assert not model.training


def test_classes_can_be_added_one_after_the_other(trained: Trained, model: PADing) -> None:
    _, statistics, cfg = trained
    for name in ADDED:
        add_classes_to(model, cfg, [name], statistics=statistics)
    assert model.label_space.names[-2:] == ADDED
    assert min(accuracy(model, name) for name in (*ADDED, *UNSEEN)) > 0.7


def test_projection_needs_embeddings_only(tmp_path: Path) -> None:
    cfg = separable_cfg(tmp_path, "MODEL.PADING.METHOD", "projection")
    model, statistics = train_second_stage(cfg, iterations=5)
    features = real_features(torch.arange(31), seed=5)
    before = model.classify(features)
    report = add_classes_to(model, cfg, ADDED, statistics=statistics)
    assert report.after is None
    kept = [*range(len(KNOWN)), -1]
    torch.testing.assert_close(model.classify(features)[:, kept], before, rtol=0, atol=1e-4)


def test_checkpoint_alone_brings_the_classes_to_another_model(trained: Trained, model: PADing, tmp_path: Path) -> None:
    _, statistics, cfg = trained
    add_classes_to(model, cfg, ADDED, statistics=statistics, stuff=["black disk"])
    save_extended(tmp_path / "new.pth", model, statistics)
    content = torch.load(tmp_path / "new.pth", weights_only=True)
    assert content["label_space"]["names"][-2:] == list(ADDED)
    loaded: PADing = build_model(cfg)
    load_padding_weights(loaded, str(tmp_path / "new.pth"), complete=True)
    assert loaded.label_space == model.label_space
    assert model.label_space.names.index("black disk") not in loaded.thing_ids
    assert loaded.label_space.unseen_names == {*UNSEEN, *ADDED}
    torch.testing.assert_close(loaded.class_embeddings, model.class_embeddings)
    features = real_features(torch.arange(31), seed=5)
    torch.testing.assert_close(loaded.classify(features), model.classify(features))
    # it can be extended again, from the statistics inside
    again = find_statistics(with_weights(cfg, tmp_path / "new.pth"), loaded)
    torch.testing.assert_close(again.rows().embeddings, statistics.rows().embeddings)
    add_classes_to(loaded, with_weights(cfg, tmp_path / "new.pth"), ["teal cone"], embeddings=embeddings()[:1])
    assert loaded.num_test_classes == len(NAMES) + 1


def test_training_from_an_extended_checkpoint_takes_the_rows_of_its_own_classes(
    trained: Trained, model: PADing, tmp_path: Path
) -> None:
    before, statistics, cfg = trained
    add_classes_to(model, cfg, ADDED, statistics=statistics)
    save_extended(tmp_path / "new.pth", model, statistics)
    start: PADing = build_model(cfg)
    load_padding_weights(start, str(tmp_path / "new.pth"), complete=False)
    assert torch.equal(start.new_fc.weight, before.new_fc.weight)
    assert torch.equal(start.new_fc.bias, before.new_fc.bias)


def test_checkpoint_of_another_label_space_is_refused(trained: Trained, model: PADing, tmp_path: Path) -> None:
    _, statistics, cfg = trained
    content = extended_checkpoint(model, statistics)
    content["label_space"]["names"][3] = "sphere"
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"has class 'sphere' where the label space .* has 'red cross'"):
        load_padding_weights(build_model(cfg), str(tmp_path / "other.pth"), complete=True)
    del content["label_space"]["colors"]
    torch.save(content, tmp_path / "damaged.pth")
    with pytest.raises(CheckpointError, match="entry 'label_space' is damaged"):
        load_padding_weights(build_model(cfg), str(tmp_path / "damaged.pth"), complete=True)


def test_new_classes_take_part_in_evaluation_as_competitors_only(
    trained: Trained, model: PADing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set without the added classes is evaluated on its own ones."""
    _, statistics, cfg = trained
    add_classes_to(model, cfg, ADDED, statistics=statistics)
    seen = []
    monkeypatch.setattr("padding.engine.trainer.evaluate", lambda cfg, model: seen.append(model.active_ids) or {})
    GeneratorClassifierTrainer.test(cfg, model)
    assert seen == [tuple(range(len(KNOWN)))]
    assert model.active_ids is None
    model.test_mode = "zsl"  # the old unseen classes among themselves
    GeneratorClassifierTrainer.test(cfg, model)
    assert seen[1] == tuple(SPLIT.unseen_ids)
    logits = torch.zeros(1, 1, model.new_fc.in_features)
    with model.limited_to(len(KNOWN)):
        assert (model.class_logits({"pred_embeddings": logits}) > -torch.inf).sum() == len(UNSEEN) + 1
    assert (model.class_logits({"pred_embeddings": logits}) > -torch.inf).sum() == len(UNSEEN) + len(ADDED) + 1


# Command line and predictor -----------------------------------------------------------------------------------------


def run(cfg: CfgNode, folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> Path:
    monkeypatch.setattr("padding.data.catalog.register_all", lambda: None)
    (folder / "config.yaml").write_text(cfg.dump())
    output = folder / "new.pth"
    arguments = ["--config-file", str(folder / "config.yaml"), "--weights", cfg.MODEL.WEIGHTS, "--output", str(output)]
    padding.add_classes.main([*arguments, *words])
    return output


def test_command_line_writes_a_model_that_knows_the_classes(
    saved: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run(saved, tmp_path, monkeypatch, "--names", " green cross,black disk ,")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["names"] == list(ADDED)
    assert result["old_class_max_change"] == 0.0
    assert 0 < result["seconds"] < 30
    predictor = Predictor(with_weights(saved, output))
    assert predictor.class_names == (*KNOWN, *ADDED)
    assert predictor.metadata.thing_classes[-2:] == ["green cross*", "black disk*"]
    assert min(accuracy(predictor.model, name) for name in ADDED) > 0.7
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    prediction = predictor(image)
    assert predictor.draw(image, prediction).shape == image.shape


@pytest.mark.parametrize(
    ("words", "stuff"), [((), []), (("--stuff",), list(ADDED)), (("--stuff", "black disk"), ["black disk"])]
)
def test_option_stuff(
    saved: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple, stuff: list
) -> None:
    output = run(saved, tmp_path, monkeypatch, "--names", ",".join(ADDED), *words)
    described = torch.load(output, weights_only=True)["label_space"]
    kinds = dict(zip(described["names"], described["is_thing"], strict=True))
    assert [name for name in ADDED if not kinds[name]] == stuff


def test_embeddings_from_another_table(saved: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_class_embeddings(tmp_path / "own.npz", ["emerald cross"], 5 * embeddings()[[NAMES.index("green cross")]])
    output = run(saved, tmp_path, monkeypatch, "--names", "emerald cross", "--embeddings", str(tmp_path / "own.npz"))
    predictor = Predictor(with_weights(saved, output))
    features = real_features(torch.full((100,), NAMES.index("green cross")), seed=3)
    assert (predictor.model.classify(features).argmax(1) == len(KNOWN)).float().mean() > 0.7


def test_predictor_adds_and_restricts(saved: CfgNode) -> None:
    predictor = Predictor(saved)
    report = predictor.add_classes(["green cross"])
    assert "green cross" in str(report)
    assert predictor.metadata.thing_classes[-1] == "green cross*"
    predictor.restrict_to(["green cross", "red disk"])
    features = real_features(torch.tensor([NAMES.index("green cross"), NAMES.index("blue disk")]), seed=3)
    logits = predictor.model.class_logits({"pred_embeddings": features[None]})[0]
    new, red_disk, no_object = len(KNOWN), 0, len(KNOWN) + 1
    assert set((logits > -torch.inf).nonzero()[:, 1].tolist()) == {red_disk, new, no_object}
    # the blue disk is no "red disk" although that is the nearest class left
    assert logits.argmax(1).tolist() == [new, no_object]
    predictor.restrict_to(None)
    assert (predictor.model.class_logits({"pred_embeddings": features[None]}) > -torch.inf).all()
    with pytest.raises(ValueError, match=r"'gren cross' \(nearest: 'green cross'\)"):
        predictor.restrict_to(["gren cross"])


def test_zsl_over_a_list_has_no_other_competitors(saved: CfgNode) -> None:
    predictor = Predictor(with_weights(saved, Path(saved.MODEL.WEIGHTS), "MODEL.PADING.TEST.MODE", "zsl"))
    predictor.add_classes(["green cross"])
    features = real_features(torch.tensor([NAMES.index("blue disk"), NAMES.index("green cross")]), seed=3)[None]
    model = predictor.model
    everything = model.class_logits({"pred_embeddings": features})[0]
    unseen = [KNOWN.index(name) for name in UNSEEN]
    assert set((everything > -torch.inf).nonzero()[:, 1].tolist()) == {*sorted(unseen), len(KNOWN), len(KNOWN) + 1}
    predictor.restrict_to(["green cross", "pink disk"])
    logits = model.class_logits({"pred_embeddings": features})[0]
    kept = [KNOWN.index("pink disk"), len(KNOWN), len(KNOWN) + 1]
    torch.testing.assert_close(logits[:, kept], model.classify(features)[0][:, kept])
    assert (logits > -torch.inf).sum(1).tolist() == [3, 3]
    with pytest.raises(ValueError, match=r"unseen classes only, but \['red disk'\] were seen"):
        predictor.restrict_to(["red disk", "green cross"])


# Errors -------------------------------------------------------------------------------------------------------------


def test_statistics_of_another_segmentor_or_none_are_errors(saved: CfgNode, trained: Trained, tmp_path: Path) -> None:
    model = trained[0]
    stale = SeenStatistics(KNOWN, per_class=2, no_object=2, origin="another")
    stale.save(tmp_path / FILE_NAME)
    with pytest.raises(ValueError, match="features of another segmentor"):
        find_statistics(saved, model)
    (tmp_path / FILE_NAME).unlink()
    with pytest.raises(ValueError, match=r"no seen statistics at .*seen_statistics\.safetensors or .*feature_bank"):
        find_statistics(saved, model)
    with pytest.raises(ValueError, match=r"no seen statistics at .*nowhere"):
        find_statistics(saved, model, tmp_path / "nowhere")


def test_statistics_can_come_from_a_feature_bank(padding_cfg: Callable[..., CfgNode], tmp_path: Path) -> None:
    cfg = padding_cfg(
        "MODEL.PADING.FEATURE_BANK.ENABLED", True, "MODEL.PADING.FEATURE_BANK.PATH", str(tmp_path / "bank")
    )
    trainer = GeneratorClassifierTrainer(cfg)
    trainer.open_feature_bank()
    model = trainer.segmentor
    statistics = find_statistics(cfg, model, tmp_path / "bank")
    assert statistics.num_images == 4
    width = model.class_embeddings.shape[1]
    report = add_classes_to(model, cfg, ["fog"], embeddings=np.ones((1, width)), stuff=["fog"], statistics=statistics)
    assert report.old_class_max_change == 0.0
    assert model.label_space.is_thing[-1] is False
    # found without being named, too
    assert find_statistics(cfg, model).num_images == 4


@pytest.mark.parametrize(
    ("names", "stuff", "message"),
    [
        ([], [], "give at least one"),
        (["wolf", " "], [], "none of them empty"),
        (["wolf", "wolf"], [], r"given twice: \['wolf'\]"),
        (["red disk"], [], r"known already: \['red disk'\]"),
        (["wolf"], ["wof"], r"--stuff names classes that are not added: 'wof' \(nearest: wolf\)"),
    ],
)
def test_wrong_names_are_refused(names: list, stuff: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extended_split(SPLIT, names, stuff)


def test_wrong_embeddings_are_refused(trained: Trained, model: PADing, tmp_path: Path) -> None:
    _, statistics, cfg = trained
    with pytest.raises(ValueError, match=r"'red dysk' \(nearest: .*red disk.*prepare_class_embeddings"):
        add_classes_to(model, cfg, ["red dysk"], statistics=statistics)
    with pytest.raises(ValueError, match="3 wide, expected 11"):
        add_classes_to(model, cfg, ["wolf"], embeddings=np.ones((1, 3)), statistics=statistics)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        add_classes_to(model, cfg, ["wolf"], embeddings=tmp_path / "nowhere.npz", statistics=statistics)
    assert model.label_space == SPLIT  # nothing was changed


def test_models_without_embeddings_are_refused(tmp_path: Path) -> None:
    cfg = separable_cfg(tmp_path, "MODEL.PADING.METHOD", "supervised")
    with pytest.raises(ValueError, match="'supervised' knows no class embeddings"):
        add_classes_to(build_model(cfg), cfg, ADDED)
    other = build_model(separable_cfg(tmp_path, "MODEL.META_ARCHITECTURE", "MaskFormer"))
    with pytest.raises(TypeError, match="extends PADing, not MaskFormer"):
        GeneratorClassifierTrainer.add_classes(cfg, other, ADDED)


def test_output_must_be_a_pth_file(saved: CfgNode, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="add the suffix"):
        padding.add_classes.main(
            ["--config-file", "x", "--weights", "y", "--names", "z", "--output", str(tmp_path / "new.ckpt")]
        )


def test_lists_of_names_are_stripped() -> None:
    assert split_names(" zebra,traffic cone ,, ") == ["zebra", "traffic cone"]
    assert MetadataCatalog.get(TEST).class_split == SPLIT
