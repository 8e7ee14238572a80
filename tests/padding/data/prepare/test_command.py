# SPDX-License-Identifier: Apache-2.0
"""The frame of the scripts that prepare data: options, the last line, the exit status."""

from pathlib import Path

import pytest

from padding.data.prepare.command import add_options, preparation_parser, report, run_preparation
from padding.errors import PreparationError


def test_common_options_have_one_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    parser = preparation_parser("text", root="COCO folder", below="coco")
    add_options(parser, "--num-workers", "--check", check="write nothing at all")
    args = parser.parse_args([])
    assert (args.root, args.num_workers, args.check) == (Path("/data/coco"), 2, False)
    assert "write nothing at all" in parser.format_help()
    assert not hasattr(preparation_parser("text").parse_args([]), "root")


def test_report_counts_kinds_or_single_problems(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(["a", "b"], ["before"]) == 1
    assert capsys.readouterr().out.splitlines() == ["before", "problem: a", "problem: b", "2 kinds of problems"]
    assert report([]) == 0
    assert capsys.readouterr().out == "0 kinds of problems\n"
    assert report([str(i) for i in range(30)], sound="all is well") == 1
    shown = capsys.readouterr().out.splitlines()
    assert (len(shown), shown[-1]) == (21, "30 problems")
    assert report([], sound="all is well") == 0
    assert capsys.readouterr().out == "all is well\n"


def test_status_of_errors_and_interruptions(capsys: pytest.CaptureFixture[str]) -> None:
    def action(error: BaseException) -> int:
        raise error

    parser = preparation_parser("text")
    for error, status, text in (
        (PreparationError("no folder"), 2, "error: no folder"),
        (KeyboardInterrupt(), 130, "interrupted; what is written stays valid"),
    ):
        assert run_preparation(lambda _, error=error: action(error), parser.parse_args, []) == status  # type: ignore[misc]
        assert capsys.readouterr().err.startswith(text)
