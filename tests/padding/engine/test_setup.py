# SPDX-License-Identifier: Apache-2.0
"""From arguments to a frozen configuration: merging, and errors that name file, key and nearest known key."""

import argparse
import logging
import random
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from padding.engine.setup import load_cfg, setup_cfg, write_configuration
from padding.errors import ConfigError


def add_method_config(cfg: CfgNode) -> None:
    cfg.MODEL.METHOD_X = CfgNode({"UNSEEN_CLASS_WEIGHT": 1.0})


METHODS = (add_method_config,)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_file_base_and_command_line_merge_in_this_order(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "SOLVER:\n  BASE_LR: 0.1\n  MAX_ITER: 10\n")
    write(tmp_path / "other.yaml", "MODEL:\n  METHOD_X:\n    UNSEEN_CLASS_WEIGHT: 5.0\n")
    file = write(tmp_path / "c.yaml", "_BASE_: [base.yaml, other.yaml]\nSOLVER:\n  MAX_ITER: 20\n  STEPS: (5, 6)\n")
    cfg = load_cfg(file, ["SOLVER.STEPS", "(7,)"], METHODS)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (0.1, 20, (7,))
    assert cfg.MODEL.METHOD_X.UNSEEN_CLASS_WEIGHT == 5.0
    assert cfg.is_frozen()


@pytest.mark.parametrize(
    ("base", "file", "opts", "message"),
    [
        ("", "SOLVER:\n  BASE_LRR: 1\n", [], r"c\.yaml: unknown key SOLVER\.BASE_LRR; did you mean SOLVER\.BASE_LR\?"),
        ("SOLVRE:\n  BASE_LR: 1\n", "", [], r"base\.yaml: unknown key SOLVRE; did you mean SOLVER\?"),
        ("", "MODEL:\n  METHOD_X:\n    ZZ: 1\n", [], r"known under MODEL\.METHOD_X: UNSEEN_CLASS_WEIGHT"),
        ("", "", ["MODEL.WEIGTHS", "x"], r"command line: unknown key MODEL\.WEIGTHS; did you mean MODEL\.WEIGHTS\?"),
        ("", "", ["MODEL.WEIGHTS.PATH", "x"], r"command line: MODEL\.WEIGHTS is a value, it has no key PATH"),
        ("", "", ["MODEL.WEIGHTS"], "expected KEY VALUE pairs, got 1 words"),
        ("", "", ["SOLVER.MAX_ITER", "many"], "command line: .*Type mismatch.*SOLVER.MAX_ITER"),
        ("", "SOLVER:\n  MAX_ITER: many\n", [], r"c\.yaml.*Type mismatch.*SOLVER\.MAX_ITER"),
        ("", "just words", [], r"c\.yaml holds no keys"),
        ("", "A: [1\n", [], r"c\.yaml is not plain YAML"),
        (
            "",
            "SEED: 1\nMODEL: {MASK_ON: True}\nMODEL: {}\n",
            [],
            r"c\.yaml is not .*MODEL stands twice, first in line 3",
        ),
        ("SOLVER: {MAX_ITER: 1, MAX_ITER: 2}\n", "", [], r"base\.yaml is not .*MAX_ITER stands twice"),
        ("", "MODEL: 5\n", [], r"c\.yaml: MODEL is 5, but it holds keys: LOAD_PROPOSALS"),
        ("", "MODEL:\nSEED: 2\n", [], r"c\.yaml: MODEL is None, but it holds keys"),
        ("", "SOLVER:\n  MAX_ITER:\n", [], r"c\.yaml: SOLVER.MAX_ITER has no value; write one"),
        ("", "", ["SOLVER.MAX_ITER", "None"], "SOLVER.MAX_ITER is None; expected 0 or more"),
        ("_BASE_: c.yaml\n", "", [], r"c\.yaml is based on itself: c\.yaml -> base\.yaml -> c\.yaml"),
        ("_BASE_: 7\n", "", [], r"base\.yaml: _BASE_ is 7; expected a file or a list of files"),
        ("_BASE_: .\n", "", [], r"a folder, expected a text file"),
        ("", "", ["SOLVER.MAX_ITER", "-5"], "SOLVER.MAX_ITER is -5; expected 0 or more"),
        ("", "SOLVER: {LOG_PERIOD: 0}\n", [], "SOLVER.LOG_PERIOD is 0; expected 1 or more"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, base: str, file: str, opts: list[str], message: str) -> None:
    write(tmp_path / "base.yaml", base or "SEED: 1\n")
    path = write(tmp_path / "c.yaml", file if file in ("just words",) else "_BASE_: base.yaml\n" + file)
    with pytest.raises(ConfigError, match=message):
        load_cfg(path, opts, METHODS)


def test_a_file_of_windows_is_read_and_utf_16_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes("SOLVER:\r\n  MAX_ITER: 20\r\n".encode("utf-8-sig"))
    assert load_cfg(str(tmp_path / "c.yaml"), [], METHODS).SOLVER.MAX_ITER == 20
    for encoding, found in (("utf-16", "UTF-16"), ("latin-1", r"no UTF-8 \(byte 3\)")):
        (tmp_path / "d.yaml").write_bytes("# \xc4 comment\nSEED: 1\n".encode(encoding))
        with pytest.raises(ConfigError, match=rf"d\.yaml: the text is {found if encoding == 'utf-16' else 'no UTF-8'}"):
            load_cfg(str(tmp_path / "d.yaml"), [], METHODS)


def test_a_key_without_effect_is_named(caplog: pytest.LogCaptureFixture) -> None:
    load_cfg("", ["MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "255"], METHODS)
    assert not caplog.records
    load_cfg("", ["MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "0"], METHODS)
    assert "IGNORE_VALUE 0 has no effect: the value of void belongs to the data, 255" in caplog.text


def test_value_of_another_type_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"d\.yaml: Type mismatch.*SOLVER\.MAX_ITER"):
        load_cfg(write(tmp_path / "d.yaml", "SOLVER: {MAX_ITER: many}"), [], METHODS)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml does not exist"):
        load_cfg(str(tmp_path / "nowhere.yaml"), [], METHODS)
    file = write(tmp_path / "c.yaml", "_BASE_: nowhere.yaml\n")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml, named by _BASE_, does not exist"):
        load_cfg(file, [], METHODS)


def test_a_file_cannot_run_code(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    file = write(tmp_path / "c.yaml", f"SEED: !!python/object/apply:os.mkdir ['{mark}']\n")
    with pytest.raises(ConfigError, match="Python expressions are not executed"):
        load_cfg(file, [], METHODS)
    assert not mark.exists()


def test_without_a_gpu_the_device_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_cfg("", [], METHODS).MODEL.DEVICE == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load_cfg("", [], METHODS).MODEL.DEVICE == "cuda"
    assert load_cfg("", ["MODEL.DEVICE", "cpu"], METHODS).MODEL.DEVICE == "cpu"


def test_setup_seeds_logs_and_writes_the_configuration(tmp_path: Path) -> None:
    def setup(folder: str) -> tuple[CfgNode, float]:
        opts = ["OUTPUT_DIR", str(tmp_path / folder), "SEED", "7"]
        cfg = setup_cfg(argparse.Namespace(config_file="", opts=opts, eval_only=False), METHODS)
        return cfg, random.random() + float(torch.rand(1))

    (cfg, first), (_, second) = setup("a"), setup("b")
    assert first == second
    assert (tmp_path / "a" / "config.yaml").read_text() == cfg.dump()
    # One process, two trainings: each has its own log, and a message is not repeated.
    logging.getLogger("padding.engine").info("to the second log")
    assert "to the second log" not in (tmp_path / "a" / "log.txt").read_text()
    assert (tmp_path / "b" / "log.txt").read_text().count("to the second log") == 1


def test_the_configuration_of_an_older_training_stays_until_its_checkpoint_fits(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("of the training that lies here")
    opts = ["OUTPUT_DIR", str(tmp_path), "SEED", "7"]
    cfg = setup_cfg(argparse.Namespace(config_file="", opts=opts, eval_only=False), METHODS)
    assert path.read_text() == "of the training that lies here"
    write_configuration(cfg)
    assert path.read_text() == cfg.dump()


def test_a_replaced_key_says_what_to_write(tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    file.write_text("SOLVER: {HEAD_MULTIPLIER: 10.0}")
    with pytest.raises(ConfigError, match=r"old.yaml: SOLVER.HEAD_MULTIPLIER is no key any more: .*BASE_LR is the"):
        load_cfg(str(file), [], [])
    with pytest.raises(ConfigError, match="is no key any more"):
        load_cfg("", ["SOLVER.HEAD_MULTIPLIER", "10.0"], [])
