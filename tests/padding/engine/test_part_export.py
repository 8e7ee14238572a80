# SPDX-License-Identifier: Apache-2.0
"""A part of a model as a model of its own: names of files, configuration, and that weights fit it exactly."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from padding.engine import add_core_config
from padding.engine.part_export import Part, export_part
from padding.errors import CheckpointError
from padding.modeling.weights.checkpoint import read_checkpoint


@META_ARCH_REGISTRY.register()
class OneLinear(nn.Linear):
    """A layer on the device that the configuration names."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(2, 3, device=cfg.MODEL.DEVICE)


@pytest.fixture
def cfg() -> CfgNode:
    found = get_cfg()
    add_core_config(found)
    found.MODEL.META_ARCHITECTURE = "OneLinear"
    found.TEST.EXPECTED_RESULTS = [["sem_seg", "mIoU", 50.0, 1.0]]
    found.freeze()
    return found


HALF = Part("half", "a.b", "Whole", "weight", lambda whole: dict(whole), lambda _: {"TEST.BEST_METRIC": "x"})


def written(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save({"model": state, "iteration": 3}, folder / "w.pth")
    return folder / "w.pth"


def test_copy_runs_anywhere_and_the_whole_is_untouched(cfg: CfgNode) -> None:
    before = cfg.dump()
    own = HALF.cfg(cfg, Path("a/b.pth"))
    assert (own.MODEL.WEIGHTS, own.OUTPUT_DIR, own.MODEL.DEVICE) == ("a/b.pth", "a/b", "cuda")
    assert own.TEST.EXPECTED_RESULTS == []
    assert own.TEST.BEST_METRIC == "x"
    assert own.is_frozen()
    assert cfg.dump() == before


def test_weights_and_configuration_are_written_together(cfg: CfgNode, tmp_path: Path) -> None:
    weights = tmp_path / "deep" / "part.pth"
    state = {"weight": torch.rand(3, 2), "bias": torch.rand(3)}
    whole = written(tmp_path, state)
    target = export_part(cfg, whole, weights, HALF)
    assert target == tmp_path / "deep" / "part.yaml"
    assert target.read_text().startswith(f"# The half of {whole}; written by python -m a.b.\n")
    assert "META_ARCHITECTURE: OneLinear" in target.read_text()
    assert all(torch.equal(value, state[name]) for name, value in read_checkpoint(weights).items())
    assert {path.name for path in weights.parent.iterdir()} == {"part.pth", "part.yaml"}


def test_nothing_is_written_if_weights_do_not_fit(cfg: CfgNode, tmp_path: Path) -> None:
    whole = written(tmp_path, {"weight": torch.rand(3, 3), "scale": torch.rand(3)})
    message = (
        r"w\.pth does not hold the half .*: parameters 1 missing \(first: bias\), 1 unexpected \(first: scale\), "
        r"1 of another shape \(first: weight\); use the configuration"
    )
    with pytest.raises(CheckpointError, match=message):
        export_part(cfg, whole, tmp_path / "x.pth", HALF)
    with pytest.raises(CheckpointError, match=r"no parameter 'weight\*': the checkpoint holds a, c; is it Whole's\?"):
        HALF.state({"a.b": torch.rand(3), "c": torch.rand(3)})
    assert list(tmp_path.iterdir()) == [whole]


def test_names_of_files_are_checked(cfg: CfgNode, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"part\.pkl: weights are written to a \.pth file"):
        export_part(cfg, "model.pth", "part.pkl", HALF)
    with pytest.raises(ValueError, match="is the checkpoint to be read"):
        export_part(cfg, tmp_path / "model.pth", tmp_path / "x" / ".." / "model.pth", HALF)
