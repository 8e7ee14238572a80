# SPDX-License-Identifier: Apache-2.0
"""A wheel away from the checkout: it has configurations, lists and tables with it, and trains by console commands."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def call(*words: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder that is not the checkout, with nothing of this process's paths."""
    hidden = ("PYTHONPATH", "DETECTRON2_DATASETS", "SEGMENTATION_TEST_DATA")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools leaves build folders in its source
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("needs git and a clone: what is tracked is what is built")
    for name in filter(None, listed.stdout.split("\0")):
        if not name.startswith(("tests/", "benchmarks/", "docs/")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    options = ("--no-deps", "--no-build-isolation", "--quiet")
    call(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, source, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the commands of a fresh environment; dependencies are borrowed, the project itself is not."""
    folder = tmp_path_factory.mktemp("fresh")
    call(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    commands = folder / "venv" / "bin"
    own = Path(
        call(commands / "python", "-c", "import site; print(site.getsitepackages()[0])", cwd=folder).stdout.strip()
    )
    # A .pth adds the folder without the .pth files inside it, an editable installation of this project among them.
    borrowed = {sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]}
    (own / "borrowed.pth").write_text("".join(f"{path}\n" for path in sorted(borrowed)))
    options = ("--no-deps", "--no-index", "--quiet", "--force-reinstall", "--ignore-installed")
    call(commands / "python", "-m", "pip", "install", *options, wheel, cwd=folder)
    return commands


@pytest.mark.slow
def test_wheel_holds_each_shipped_file_once(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert len(names) == len(set(names))
    tracked = [
        path for folder in ("configs", "datasets/splits", "datasets/embeddings") for path in (ROOT / folder).rglob("*")
    ]
    missing = {path.relative_to(ROOT).as_posix() for path in tracked if path.is_file() and path.suffix != ".md"} - {
        name.removeprefix("padding/shipped/") for name in names
    }
    assert not missing
    assert not any(name.startswith(("tests/", "benchmarks/", "configs/", "datasets/")) for name in names)


@pytest.mark.slow
def test_installed_wheel_prepares_trains_and_draws_in_another_folder(environment: Path, tmp_path: Path) -> None:
    place = call(environment / "python", "-c", "import padding; print(padding.__file__)", cwd=tmp_path).stdout.strip()
    assert Path(place).is_relative_to(environment.parent)
    call(environment / "mss-prepare", "shapes", "--num-train", "12", "--num-val", "4", "--workers", "1", cwd=tmp_path)
    assert (tmp_path / "datasets/shapes/manifest.json").is_file()
    opts = ("MODEL.DEVICE", "cpu", "OUTPUT_DIR", "out", "SOLVER.MAX_ITER", "2")
    call(environment / "mss-train", "--config-file", "configs/smoke/shapes_zsp.yaml", *opts, cwd=tmp_path)
    assert (tmp_path / "out/model_final.pth").is_file()
    picture = next((tmp_path / "datasets/shapes/images/val").iterdir())
    words = (
        "--config-file",
        "out/config.yaml",
        "--input",
        picture,
        "--output",
        "pictures",
        "--weights",
        "out/model_final.pth",
    )
    call(environment / "mss-demo", *words, cwd=tmp_path)
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 1


@pytest.mark.slow
def test_installed_commands_say_what_is_wrong_in_one_line(environment: Path, tmp_path: Path) -> None:
    done = call(environment / "mss-prepare", "shape", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "'shape' is not known" in done.stderr
    assert "shapes" in done.stderr
    done = call(environment / "mss-train", "--config-file", "configs/none.yaml", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "error: configuration file configs/none.yaml does not exist"
