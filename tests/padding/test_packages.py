# SPDX-License-Identifier: Apache-2.0
"""Files of installed packages."""

from pathlib import Path

import pytest

from padding.errors import MissingFileError
from padding.packages import installed_file
from tests.fake_package import write_package


def test_a_file_is_found_by_module_and_by_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_package(tmp_path, "some-vectors", {"data/a.npy": b"a", "data/b.txt": b"b", "data/c.py": b"c"})
    monkeypatch.syspath_prepend(tmp_path)
    for name, inside in (("some_vectors", "data/a.npy"), ("some-vectors", "a.npy"), ("some-vectors", "data/a.npy")):
        assert installed_file(name, inside, ()) == folder / "data/a.npy"
    with pytest.raises(MissingFileError, match=r"files are called a.npy, b.txt$"):
        installed_file("some-vectors", "data/none.npy", (".npy", ".txt"))


def test_a_missing_package_is_named_with_its_cure() -> None:
    with pytest.raises(
        MissingFileError, match=r"'no-such-vectors' is not installed; install it once by 'pip install no-such-vectors',"
    ):
        installed_file("no-such-vectors", "a.npy", ())
