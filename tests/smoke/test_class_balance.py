# SPDX-License-Identifier: Apache-2.0
"""Class weights from the data and the focal factor in trainings of the methods that have them."""

from pathlib import Path

import pytest
import torch

from padding.engine.commands import load_config, register_data
from padding.engine.trainer import TRAINER_REGISTRY
from padding.errors import ConfigError, MethodError
from padding.modeling.class_balance import ClassBalance

ROOT = Path(__file__).parents[2]
KEYS = ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SOLVER.MAX_ITER", "1", "SOLVER.CHECKPOINT_PERIOD", "1"]
KEYS += ["DATASETS.TEST", "()", "DATASETS.CHECK_AT_START", "False", "MODEL.CLASS_BALANCE.WEIGHTS", "inverse_log"]
KEYS += ["TEST.BEST_METRIC", ""]


def trainer_of(method: str, output: Path, *opts: str) -> torch.nn.Module:
    cfg = load_config(ROOT / "configs" / "smoke" / f"{method}.yaml", [*KEYS, "OUTPUT_DIR", str(output), *opts])
    register_data(cfg)
    return TRAINER_REGISTRY.get(cfg.TRAINER)(cfg)


@pytest.mark.parametrize(
    ("method", "opts"),
    [
        ("shapes_zsp_pretrain", ()),
        pytest.param("shapes_zsi_pretrain", (), marks=pytest.mark.slow),
        pytest.param("shapes_zss_pretrain", (), marks=pytest.mark.slow),
        ("shapes_tcc", ("MODEL.TCC.SUP.CE_WEIGHT", "1.0")),
        ("shapes_psi", ()),
    ],
)
def test_frequent_classes_weigh_less_and_the_mean_is_one(
    method: str, opts: tuple[str, ...], shapes: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(method, tmp_path, "MODEL.CLASS_BALANCE.FOCAL_GAMMA", "1.0", *opts)
    (balance,) = [module for module in trainer.module.modules() if isinstance(module, ClassBalance)]
    assert balance.gamma == 1.0
    assert bool((balance.weights > 0).all())
    assert balance.weights.unique().numel() > 2
    assert balance.weights.min() < 1 < balance.weights.max()
    trainer.resume_or_load(resume=False)
    trainer.train()
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert not [name for name in saved if "class_balance" in name]


def test_where_nothing_has_such_weights_the_key_is_an_error(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"SalSeg has no such loss; .* SalSeg has MODEL\.SALSEG\.CLASS_WEIGHTS"):
        trainer_of("shapes_salseg", tmp_path)
    with pytest.raises(ConfigError, match=r"MODEL\.TCC\.SUP\.CE_WEIGHT is 0\.0 and CE_TYPE 'ce'; set a weight"):
        trainer_of("shapes_tcc", tmp_path)
    with pytest.raises(ConfigError, match=r"MODEL\.PSI\.SLD\.TARGET is 'soft'; choose 'hard'"):
        trainer_of("shapes_psi", tmp_path, "MODEL.PSI.SLD.TARGET", "soft")
