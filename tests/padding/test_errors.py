# SPDX-License-Identifier: Apache-2.0
"""Errors of the user are also the built-in errors that fit, and a command shows them as one line."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from padding import errors
from padding.data.prepare.json_stream import JsonStreamError
from padding.errors import DEBUG_VARIABLE, UserError, run_command


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ConfigError", ValueError),
        ("MethodError", TypeError),
        ("DeviceError", RuntimeError),
        ("DataError", ValueError),
        ("PreparationError", ValueError),
        ("EmptyDataError", RuntimeError),
        ("SampleError", KeyError),
        ("CheckpointError", ValueError),
        ("MissingFileError", FileNotFoundError),
        ("ExistingFileError", FileExistsError),
    ],
)
def test_each_is_a_built_in_error_and_shows_its_message(name: str, builtin: type[Exception]) -> None:
    error = getattr(errors, name)("the 'file' is gone")
    assert isinstance(error, UserError)
    assert isinstance(error, builtin)
    assert str(error) == "the 'file' is gone"
    assert issubclass(JsonStreamError, UserError)


def failing(error: BaseException):
    def main(_: Sequence[str]) -> None:
        raise error

    return main


def test_error_is_one_line_and_its_traceback_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main = failing(UserError("mend it"))
    assert run_command(main, ["x"], failure=2) == 2
    assert capsys.readouterr().err == "error: mend it\n"
    assert run_command(main, ["x", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    for value, shown in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv(DEBUG_VARIABLE, value)
        run_command(main, [])
        assert ("Traceback" in capsys.readouterr().err) is shown


def test_files_that_cannot_be_used_are_errors_of_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, message in ((tmp_path / "nowhere", "No such file or directory"), (tmp_path, "Is a directory")):
        assert run_command(lambda _, path=path: path.read_text(), []) == 1
        assert message in capsys.readouterr().err


def test_bugs_keep_their_traceback() -> None:
    for error in (ValueError("wrong shape"), OSError("no file name"), KeyError("x")):
        with pytest.raises(type(error)):
            run_command(failing(error), [])


def test_status_and_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    given: list[Sequence[str]] = []
    assert run_command(lambda words: given.append(words), ["a", "--debug", "b"]) == 0
    assert given == [["a", "b"]]
    assert run_command(lambda _: 3, []) == 3
    assert run_command(lambda _: {"metrics": 1}, []) == 0
    assert run_command(failing(KeyboardInterrupt()), [], interrupted="go on later") == 130
    assert capsys.readouterr().err == "go on later\n"


def test_an_interrupt_that_a_library_hides_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    def hidden(_: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("the file is half written")  # noqa: B904

    assert run_command(hidden, []) == 130
    assert capsys.readouterr().err == "interrupted\n"

    def plain(_: object) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_command(plain, [])
