# SPDX-License-Identifier: Apache-2.0
"""What the keys of the classifier, the schedule, the optimisers and the embeddings change."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

from padding.checkpoint import HEAD, load_padding_weights
from padding.trainer import GeneratorClassifierTrainer
from tests.preset_checks.common import PREFIX, SEEN, UNSEEN, BuildModel, K, MakeCfg, behaviour, features, seeded
from tests.tiny_padding import FEATURE_WIDTH, make_sample


@behaviour("SCHEDULE")
def check_schedule(_: BuildModel, make_cfg: MakeCfg, __: Path) -> None:
    def active(schedule: str) -> list[list[str]]:
        cfg = make_cfg(PREFIX + "SCHEDULE", schedule, PREFIX + "GENERATOR_SHARE", 0.5, "SOLVER.MAX_ITER", 4)
        trainer = GeneratorClassifierTrainer(cfg)
        found = []
        for trainer.iter in range(4):
            found.append(trainer._active_steps())
        return found

    assert active("interleaved") == [["generator", "classifier"]] * 4
    assert active("sequential") == [["generator"]] * 2 + [["classifier"]] * 2


@behaviour("CLASSIFIER.CLASSES_PER_ITER", "CLASSIFIER.NUM_PER_CLASS")
def check_drawn(build: BuildModel, *_: Any) -> None:
    for wanted, per_class, counts in ((1, 3, {3}), (0, 2, {4}), (5, 1, {2})):
        model = seeded(build, "CLASSIFIER.CLASSES_PER_ITER", wanted, "CLASSIFIER.NUM_PER_CLASS", per_class)
        drawn = [model._draw_unseen() for _ in range(20)]
        assert {len(labels) for labels in drawn} == counts
        assert {int(label) for labels in drawn for label in labels} == set(UNSEEN)


@behaviour("CLASSIFIER.UNSEEN_WEIGHT", "CLASSIFIER.NO_OBJECT_WEIGHT")
def check_class_weights(build: BuildModel, *_: Any) -> None:
    model = seeded(build, "CLASSIFIER.UNSEEN_WEIGHT", 7.0, "CLASSIFIER.NO_OBJECT_WEIGHT", 0.3)
    torch.testing.assert_close(model.class_weight, torch.tensor([1.0, 1, 7, 1, 7, 1, 0.3]))
    batch = features()
    torch.manual_seed(1)
    got = model(batch, step="classifier")["loss_classifier"]
    labels = torch.cat([batch.labels, torch.tensor(UNSEEN)])
    logits = model.new_fc(torch.cat([batch.embeddings, model.synthesise(torch.tensor(UNSEEN))]))
    torch.testing.assert_close(got, F.cross_entropy(logits, labels, weight=model.class_weight))


def segmentor_file(make_cfg: MakeCfg, folder: Path, *, rows: int) -> Path:
    """A segmentor whose class head has ``rows`` rows; its bias counts from 10."""
    torch.manual_seed(5)
    state = build_model(make_cfg("MODEL.META_ARCHITECTURE", "MaskFormer")).state_dict()
    state[f"{HEAD}.weight"] = torch.randn(rows, FEATURE_WIDTH)
    state[f"{HEAD}.bias"] = 10.0 + torch.arange(float(rows))
    torch.save({"model": state}, folder / f"segmentor{rows}.pth")
    return folder / f"segmentor{rows}.pth"


@behaviour("CLASSIFIER.INIT")
def check_init(build: BuildModel, make_cfg: MakeCfg, folder: Path) -> None:
    path = segmentor_file(make_cfg, folder, rows=5)
    for init in ("pretrained", "random"):
        model = seeded(build, "CLASSIFIER.INIT", init)
        load_padding_weights(model, str(path), complete=False)
        found = model.new_fc.bias[[*SEEN, K]].tolist()
        assert found == ([10, 11, 12, 13, 14] if init == "pretrained" else [0] * 5)


@behaviour("CLASSIFIER.UNSEEN_INIT")
def check_unseen_init(build: BuildModel, make_cfg: MakeCfg, folder: Path) -> None:
    narrow, wide = (segmentor_file(make_cfg, folder, rows=rows) for rows in (5, 7))

    def rows(init: str, path: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        model = seeded(build, "CLASSIFIER.UNSEEN_INIT", init)
        before = model.new_fc.weight[UNSEEN].detach().clone()
        load_padding_weights(model, str(path), complete=False)
        assert model.new_fc.bias[0] == 10
        assert model.new_fc.bias[K] == (14 if path == narrow else 16)
        return before, model.new_fc.weight[UNSEEN].detach(), model.new_fc.bias[UNSEEN].detach()

    for path in (narrow, wide):
        _, weight, bias = rows("zeros", path)
        assert not weight.any()
        assert not bias.any()
        before, weight, bias = rows("random", path)
        assert torch.equal(weight, before)
        assert not bias.any()
    before, weight, _ = rows("pretrained", narrow)
    assert torch.equal(weight, before)
    assert rows("pretrained", wide)[2].tolist() == [12, 14]
    with pytest.raises(ValueError, match="UNSEEN_INIT is 'ones'"):
        seeded(build, "CLASSIFIER.UNSEEN_INIT", "ones")


@behaviour("COMPAT.OFFICIAL_HEAD_PAD")
def check_head_pad(build: BuildModel, make_cfg: MakeCfg, folder: Path) -> None:
    narrow = segmentor_file(make_cfg, folder, rows=5)
    state = torch.load(narrow, weights_only=True)["model"]
    padded = {**state, f"{HEAD}.weight": torch.zeros(7, FEATURE_WIDTH), f"{HEAD}.bias": torch.zeros(7)}
    for name in (f"{HEAD}.weight", f"{HEAD}.bias"):
        padded[name][:5] = state[name]
    torch.save({"model": padded}, folder / "converted.pth")
    for path in (narrow, folder / "converted.pth"):
        model = seeded(build, "COMPAT.OFFICIAL_HEAD_PAD", True)
        load_padding_weights(model, str(path), complete=False)
        misplaced, last = model.new_fc.bias[UNSEEN[0]].item(), model.new_fc.bias[K].item()
        assert (misplaced, last) == (14.0, 0.0)
        assert not model.new_fc.weight[K].any()
        sound = seeded(build)
        load_padding_weights(sound, str(path), complete=False)
        assert sound.new_fc.bias[K] == 14.0
    # The zero rows take part in the matching.
    seen: list[torch.Tensor] = []
    for pad in (False, True):
        model = seeded(build, "COMPAT.OFFICIAL_HEAD_PAD", pad)
        model.criterion.matcher.register_forward_pre_hook(lambda _, args: seen.append(args[0]["pred_logits"]))
        model.extract([make_sample([0, 3])])
    assert [logits.shape[2] for logits in seen] == [5, 7]
    assert torch.equal(seen[1][..., :5], seen[0])
    assert not seen[1][..., 5:].any()


@behaviour(
    "SOLVER.GENERATOR.BASE_LR",
    *(f"SOLVER.CLASSIFIER.{key}" for key in ("OPTIMIZER", "BASE_LR", "MOMENTUM", "WEIGHT_DECAY")),
)
def check_optimisers(_: BuildModel, make_cfg: MakeCfg, __: Path) -> None:
    cfg = make_cfg(
        *("SOLVER.GENERATOR.BASE_LR", 0.03, "SOLVER.CLASSIFIER.BASE_LR", 0.02, "SOLVER.CLASSIFIER.MOMENTUM", 0.5),
        *("SOLVER.CLASSIFIER.WEIGHT_DECAY", 0.25, "SOLVER.BASE_LR", 7.0, "SOLVER.WEIGHT_DECAY", 7.0),
    )
    optimizers = GeneratorClassifierTrainer(cfg).optimizers
    assert {group["lr"] for group in optimizers["generator"].param_groups} == {0.03}
    group = optimizers["classifier"].param_groups[0]
    assert isinstance(optimizers["classifier"], torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.02, 0.5, 0.25)
    other = GeneratorClassifierTrainer(make_cfg("SOLVER.CLASSIFIER.OPTIMIZER", "ADAMW")).optimizers["classifier"]
    assert isinstance(other, torch.optim.AdamW)


@behaviour("EMBEDDINGS.L2_NORMALIZE")
def check_normalised(build: BuildModel, *_: Any) -> None:
    unit, raw = (seeded(build, "EMBEDDINGS.L2_NORMALIZE", value).class_embeddings for value in (True, False))
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(K))
    torch.testing.assert_close(raw.norm(dim=1), torch.full((K,), 3.0))


@behaviour("MODEL.MASK_FORMER.CLASS_WEIGHT")
def check_matching_cost(build: BuildModel, *_: Any) -> None:
    assert build("MODEL.MASK_FORMER.CLASS_WEIGHT", 5.0).criterion.matcher.cost_class == 5.0
