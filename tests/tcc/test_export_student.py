# SPDX-License-Identifier: Apache-2.0
"""One student of a cohort as a model of its own: weights, configuration, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from padding.engine.commands import load_config
from padding.engine.part_export import export_part
from padding.errors import CheckpointError, ConfigError
from padding.modeling.weights.checkpoint import read_checkpoint
from tcc.export_student import main, part_of_student


class StandInCohort(nn.Module):
    """Has the children of TCC and nothing else of it."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        chosen = cfg.MODEL.TCC.STUDENTS
        for index, name in enumerate(("cnn", "vit")):
            if chosen in ("both", name):
                width = cfg.MODEL.TCC[name.upper()].HEAD.DECODER_CHANNELS
                setattr(
                    self, name, nn.ModuleDict({"backbone": nn.Linear(2, width), "head": nn.Linear(width, index + 1)})
                )
        self.averages = nn.ModuleDict()


CONFIG = """
VERSION: 2
MODEL:
  META_ARCHITECTURE: TCC
  WEIGHTS: ""
  TCC:
    CNN: {WEIGHTS: resnet.pth, HEAD: {DECODER_CHANNELS: 4}}
    VIT: {WEIGHTS: pvt.pth, HEAD: {DECODER_CHANNELS: 3}}
    EMA: {DECAY: 0.99}
TEST:
  SEM_SEG: {PARTS: [cnn, vit, ensemble], FLIP: True}
OUTPUT_DIR: output/cohort
"""


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, "TCC", StandInCohort)


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "config.yaml").write_text(CONFIG)
    return str(tmp_path / "config.yaml")


@pytest.fixture
def cohort(config: str, tmp_path: Path) -> Path:
    model = StandInCohort(load_config(config, []))
    path = tmp_path / "model_final.pth"
    torch.save({"model": model.state_dict(), "trainer": {"optimizers": {}}, "iteration": 9}, path)
    return path


def run(config: str, cohort: Path, output: Path, *words: str, student: str = "vit") -> Path:
    paths = ["--config-file", config, "--weights", str(cohort), "--output", str(output)]
    return main([*paths, "--student", student, *words])


@pytest.mark.parametrize("student", ["cnn", "vit"])
def test_weights_are_the_student_s_and_nothing_else(config: str, cohort: Path, tmp_path: Path, student: str) -> None:
    whole = read_checkpoint(cohort)
    run(config, cohort, tmp_path / "deep" / "one.pth", student=student)
    content = torch.load(tmp_path / "deep" / "one.pth", weights_only=True)
    assert set(content) == {"model"}
    assert set(content["model"]) == {name for name in whole if name.startswith(f"{student}.")}
    for name, value in content["model"].items():
        assert torch.equal(value, whole[name]), name


def test_configuration_builds_the_student_alone(config: str, cohort: Path, tmp_path: Path) -> None:
    target = run(config, cohort, tmp_path / "vit.pth", "--opts", "INPUT.MIN_SIZE_TEST", "96")
    assert target == tmp_path / "vit.yaml"
    cfg = load_config(str(target), [])
    assert (cfg.MODEL.TCC.STUDENTS, cfg.MODEL.TCC.TEST.STUDENT, cfg.TEST.SEM_SEG.PARTS) == ("vit", "vit", ())
    assert (cfg.MODEL.TCC.CNN.WEIGHTS, cfg.MODEL.TCC.VIT.WEIGHTS, cfg.MODEL.TCC.EMA.DECAY) == ("", "", 0.0)
    assert str(tmp_path / "vit.pth") == cfg.MODEL.WEIGHTS
    assert str(tmp_path / "vit") == cfg.OUTPUT_DIR  # not into the cohort's folder
    assert (cfg.TEST.SEM_SEG.FLIP, cfg.INPUT.MIN_SIZE_TEST) == (True, 96)
    StandInCohort(cfg).load_state_dict(read_checkpoint(tmp_path / "vit.pth"))
    assert "The vit student of" in target.read_text().splitlines()[0]


def test_moving_average_is_exported_where_there_is_one() -> None:
    state = {
        name: torch.tensor(float(i)) for i, name in enumerate(("cnn.a", "vit.a", "averages.cnn.a", "averages.vit.a"))
    }
    assert part_of_student("vit").state(state) == {"vit.a": torch.tensor(3.0)}
    assert part_of_student("vit").state({"cnn.a": state["cnn.a"], "vit.a": state["vit.a"]}) == {
        "vit.a": torch.tensor(1.0)
    }


def test_device_is_chosen_where_the_student_runs(config: str) -> None:
    cfg = load_config(config, ["MODEL.DEVICE", "cpu"])
    assert part_of_student("cnn").cfg(cfg, Path("a/b.pth")).MODEL.DEVICE == "cuda"
    assert cfg.MODEL.DEVICE == "cpu"
    assert cfg.MODEL.TCC.STUDENTS == "both"


def test_unknown_student_is_an_error(config: str, cohort: Path, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        run(config, cohort, tmp_path / "x.pth", student="teacher")
    assert "invalid choice: 'teacher'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="student 'teacher' is unknown; a cohort has cnn and vit"):
        part_of_student("teacher")


def test_what_does_not_fit_is_named(config: str, cohort: Path, tmp_path: Path) -> None:
    whole = read_checkpoint(cohort)
    cut = {name: value for name, value in whole.items() if name != "vit.head.bias"}
    torch.save({"model": cut}, tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match=r"cut\.pth does not hold.*1 missing \(first: vit\.head\.bias\); use the"):
        run(config, tmp_path / "cut.pth", tmp_path / "x.pth")
    torch.save({"model": {**whole, "vit.neck.weight": torch.ones(1)}}, tmp_path / "more.pth")
    with pytest.raises(CheckpointError, match=r"1 unexpected \(first: vit\.neck\.weight\)"):
        run(config, tmp_path / "more.pth", tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"3 of another shape \(first: vit\.backbone\.weight\)"):
        run(config, cohort, tmp_path / "x.pth", "--opts", "MODEL.TCC.VIT.HEAD.DECODER_CHANNELS", "5")
    torch.save({"model": {"backbone.weight": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"no parameter 'vit\.\*': the checkpoint holds backbone; is it TCC's\?"):
        run(config, tmp_path / "other.pth", tmp_path / "x.pth")
    assert not list(tmp_path.glob("x.*"))


def test_names_of_files_are_checked(config: str, cohort: Path, tmp_path: Path) -> None:
    cfg = load_config(config, [])
    with pytest.raises(ValueError, match=r"student\.pkl: weights are written to a \.pth file"):
        export_part(cfg, cohort, tmp_path / "student.pkl", part_of_student("vit"))
    with pytest.raises(ValueError, match="is the checkpoint to be read; choose another name"):
        export_part(cfg, cohort, cohort, part_of_student("vit"))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth: no such weight file"):
        export_part(cfg, tmp_path / "nowhere.pth", tmp_path / "x.pth", part_of_student("vit"))
    with pytest.raises(ConfigError, match=r"unknown key MODEL\.TCC\.STUDENT"):
        run(config, cohort, tmp_path / "x.pth", "--opts", "MODEL.TCC.STUDENT", "vit")
