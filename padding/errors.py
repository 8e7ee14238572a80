# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can cause and mend, and how a command reports them: one line instead of a traceback.

Each class is also the built-in error that fits, so that callers may catch either. What only a bug in code can cause is
an ordinary ``ValueError``, ``TypeError`` or ``RuntimeError``, and keeps its traceback.
"""

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence

DEBUG_OPTION, DEBUG_VARIABLE = "--debug", "SEGMENTATION_DEBUG"


class UserError(Exception):
    """Something that whoever runs a command can mend; its message says how."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # a KeyError would show its message in quotes


class ConfigError(UserError, ValueError):
    """A configuration file, a KEY VALUE pair or an argument of the command line is wrong."""


class MethodError(ConfigError, TypeError):
    """The configuration or the model is of another method than what was asked of it."""


class DeviceError(ConfigError, RuntimeError):
    """The machine has not the devices that were asked for."""


class DataError(UserError, ValueError):
    """A data set, a list of images or classes, or one of their files does not hold what it should."""


class PreparationError(DataError):
    """The original files are not as expected; the message names the file and the cure."""


class EmptyDataError(DataError, RuntimeError):
    """Training data whose images hold nothing to learn from."""


class SampleError(DataError, KeyError):
    """A sample lacks an entry that the model trains on; the configuration names a mapper that does not make it."""


class CheckpointError(UserError, ValueError):
    """A weight file cannot be read, or does not fit the network."""


class ExistingFileError(UserError, FileExistsError):
    """A file is in the way of one that would be written."""


class WriteError(UserError, OSError):
    """A file cannot be written: no space, no permission, a limit on its size, or a disk that fails."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that was named, or that a data set lists, does not exist."""


def check_choice(key: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a value of a configuration key that is none of some.

    Raises:
        ConfigError: names the key, the value and the choices.
    """
    if value not in (known := tuple(choices)):
        raise ConfigError(f"{key} is '{value}'; expected one of {', '.join(map(str, known))}")


def interrupt_behind(error: BaseException) -> BaseException | None:
    """The Ctrl-C or the exit that an error follows from: libraries put errors of their own in its place."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt | SystemExit):
        cause = cause.__cause__ or cause.__context__
    return cause


def run_command(
    main: Callable[[Sequence[str]], object],
    arguments: Sequence[str] | None = None,
    *,
    failure: int = 1,
    interrupted: str = "interrupted",
) -> int:
    """Run the main function of a command; an error of the user becomes one line.

    ``--debug`` among the arguments, or SEGMENTATION_DEBUG=1 in the environment, shows the traceback as well.

    Args:
        main: takes the arguments; an integer that it returns is the exit status, anything else means success.
        arguments: of the command line; None: those of this process.
        failure: exit status after a ``UserError``, or an ``OSError`` that names a file.
        interrupted: what to say after Ctrl-C.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = DEBUG_OPTION in words or os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")
    try:
        result = main([word for word in words if word != DEBUG_OPTION])
    except (Exception, KeyboardInterrupt) as error:
        stopped = interrupt_behind(error) is not None
        of_file = isinstance(error, OSError) and error.filename is not None
        if not (stopped or of_file or isinstance(error, UserError)):
            raise
        if debug:
            traceback.print_exc()
        print(interrupted if stopped else f"error: {error}", file=sys.stderr)  # noqa: T201  (the command's result)
        return 130 if stopped else failure
    return result if isinstance(result, int) else 0
