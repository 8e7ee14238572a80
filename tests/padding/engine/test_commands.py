# SPDX-License-Identifier: Apache-2.0
"""Every command of the project: found by its guard, run on the config.yaml of a training, one kind of error."""

import ast
import importlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import demo
import train_net
from padding.data.prepare.command import run_preparation
from padding.engine.commands import METHODS, add_config_arguments, command_parser, load_config, method_configs, parse
from padding.errors import ConfigError, MethodError, UserError, run_command
from tests.scripts import load_script

ROOT = Path(__file__).parents[3]
CONFIGS = {
    "padding": "configs/coco_zsp.yaml",
    "tcc": "configs/shapes_tcc.yaml",
    "psi": "configs/shapes_psi.yaml",
    "salseg": "configs/shapes_salseg.yaml",
}
NOWHERE = "nowhere/model.pth"


class Command(NamedTuple):
    """How a command is called: ``method`` that it serves, "" any; words that stop it at missing data or weights."""

    words: tuple[str, ...] = ()
    method: str = ""
    pairs: tuple[str, ...] = ()


TRAINED = ("--weights", NOWHERE)
WEIGHTS = ("MODEL.WEIGHTS", NOWHERE)
WITH_CONFIG = {
    "train_net": Command(("--eval-only",), pairs=(*WEIGHTS, "OUTPUT_DIR", "out")),
    "demo": Command(("--input", "picture.png", "--output", "out"), pairs=WEIGHTS),
    "padding.seen_bias": Command((), "padding", WEIGHTS),
    "padding.plots": Command(("--output", "out"), "padding", WEIGHTS),
    "padding.add_classes": Command((*TRAINED, "--names", "zebra", "--output", "new.pth"), "padding"),
    "padding.app": Command(("--train-only",), pairs=WEIGHTS),
    "padding.pack": Command(("--output", "new.safetensors"), pairs=WEIGHTS),
    "padding.export": Command(("--format", "onnx", "--output", "new.onnx"), pairs=WEIGHTS),
    "padding.ablation": Command(("--table", "1"), "padding", WEIGHTS),
    "padding.tuning": Command(("--segmentors", NOWHERE, "--rows", "gmmn"), "padding"),
    "padding.import_weights": Command(("--from", "pading", NOWHERE, "--output", "out.pth")),
    "padding.engine.complexity": Command(("--size", "64", "64")),
    "tcc.complexity": Command(("--size", "64", "64"), "tcc"),
    "tcc.export_student": Command((*TRAINED, "--student", "cnn", "--output", "out.pth"), "tcc"),
    "tcc.label_report": Command(TRAINED, "tcc"),
    "psi.plots": Command((*TRAINED, "--output", "out.png"), "psi"),
    "psi.label_report": Command(TRAINED, "psi"),
    "salseg.plots": Command((*TRAINED, "--output", "out.png"), "salseg"),
    "salseg.export": Command((*TRAINED, "--output", "out.pth"), "salseg"),
    "salseg.complexity": Command(("--size", "64", "64"), "salseg"),
    "salseg.class_weights": Command((), "salseg"),
}
SUB_COMMAND = {"psi.plots": "strip", "salseg.plots": "strip"}
COMPLETE = {"padding.engine.complexity", "tcc.complexity", "salseg.complexity"}  # need neither data nor weights
SCRIPTS = {
    "prepare_camvid": (),
    "prepare_ccp": (),
    "prepare_coco128": (),
    "prepare_cityscapes": (),
    "prepare_class_embeddings": ("word2vec", "--vectors", "nowhere.bin", "--output", "w.npz"),
    "prepare_color_labels": ("--labels", "no/labels", "--colors", "nowhere.txt", "--output", "no/ids"),
    "prepare_coco_zsi": (),
    "prepare_coco_zsp": (),
    "prepare_coco_zss": (),
    "prepare_pascal_context": (),
    "prepare_saliency": (),
    "prepare_scribbles": ("check", "--dataset", "camvid_train_scribble"),
    "prepare_shapes": ("--num-train", "-1"),
    "prepare_splits": ("no/such/split",),
    "prepare_voc": (),
}
# Measure networks and functions of fixed configurations; their own tests run them.
BENCHMARKS = {f"benchmarks.{path.stem}" for path in (ROOT / "benchmarks").glob("[!_]*.py")}
BENCHMARKS -= {"benchmarks.generated_coco", "benchmarks.pictures"}  # what others measure and draw with
# tests/padding/engine/test_plan.py runs the plan: it needs neither data nor weights, and a while.
OTHERS = {"padding.data.label_audit", "padding.data.doctor", "padding.hub", "padding.plan", "padding.engine.plan"}


def is_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def discovered() -> Iterator[str]:
    files = [ROOT / "train_net.py", ROOT / "demo.py"]
    for folder in (*METHODS, "datasets", "benchmarks"):
        files += (ROOT / folder).rglob("*.py")
    for path in files:
        guards = [node for node in ast.parse(path.read_text()).body if is_guard(node)]
        # The scripts of datasets/ have another one for sys.path.
        if any("sys.path" not in ast.unparse(guard) for guard in guards):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_no_command_is_forgotten() -> None:
    known = {*WITH_CONFIG, *OTHERS, *BENCHMARKS, *(f"datasets.{name}" for name in SCRIPTS)}
    assert set(discovered()) == known


def test_every_command_reports_errors_of_the_user_in_one_line() -> None:
    """By its guard, or by a ``main`` that is ``run_command`` or ``run_preparation`` with its arguments bound."""
    for name in discovered():
        source = (ROOT / name.replace(".", "/")).with_suffix(".py").read_text()
        guard = next(ast.unparse(node) for node in reversed(ast.parse(source).body) if is_guard(node))
        if "run_command(" not in guard:
            bound = load_script(name.split(".")[1]).main if name.startswith("datasets.") else main_of(name)
            assert isinstance(bound, partial), name
            assert bound.func in (run_command, run_preparation), name


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Method -> the config.yaml of a training, which has the keys of all methods."""
    folder = tmp_path_factory.mktemp("trainings")
    files = {method: folder / f"{method}.yaml" for method in CONFIGS}
    for method, file in files.items():
        file.write_text(load_config(ROOT / CONFIGS[method], ["MODEL.DEVICE", "cpu"]).dump())
    return {method: str(file) for method, file in files.items()}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "picture.png").touch()
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))


def main_of(name: str) -> Callable[[Sequence[str] | None], Any]:
    if name == "train_net":
        return lambda words: train_net.start(train_net.parse_arguments(words))
    return demo.main if name == "demo" else importlib.import_module(name).main


def words_of(name: str, file: str, *more: str) -> list[str]:
    before = [SUB_COMMAND[name]] if name in SUB_COMMAND else []
    return [*before, "--config-file", file, *WITH_CONFIG[name].words, *more]


@pytest.mark.parametrize("name", WITH_CONFIG)
def test_file_that_a_training_wrote_is_accepted(name: str, dumped: dict[str, str]) -> None:
    """Every command gets past its configuration, to the weights, data or embeddings that are not there."""
    command = WITH_CONFIG[name]
    words = words_of(name, dumped[command.method or "tcc"], "--opts", *command.pairs)
    if name in COMPLETE:
        main_of(name)(words)
        return
    with pytest.raises(UserError) as caught:
        main_of(name)(words)
    assert "unknown key" not in str(caught.value)
    assert any(text in str(caught.value) for text in (NOWHERE, "class embeddings", "no such")), caught.value


@pytest.mark.parametrize("name", [name for name, command in WITH_CONFIG.items() if command.method])
def test_configuration_of_another_method_is_refused(name: str, dumped: dict[str, str]) -> None:
    other = "psi" if WITH_CONFIG[name].method != "psi" else "salseg"
    with pytest.raises(MethodError, match=r"this command (looks at|counts) ") as caught:
        main_of(name)(words_of(name, dumped[other]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spelling", ["bare", "--opts", "--"])
@pytest.mark.parametrize("name", WITH_CONFIG)
def test_key_value_pairs_have_every_spelling(name: str, spelling: str, dumped: dict[str, str]) -> None:
    pairs = ["MODEL.NO_SUCH_KEY", "-1e-3"]
    words = words_of(name, dumped[WITH_CONFIG[name].method or "psi"])
    with pytest.raises(ConfigError, match=r"command line: unknown key MODEL\.NO_SUCH_KEY"):
        main_of(name)([*words, *([] if spelling == "bare" else [spelling]), *pairs])


def parser_with_list() -> Any:
    parser = command_parser("text")
    add_config_arguments(parser)
    parser.add_argument("--input", nargs="+", default=[])
    parser.add_argument("first", nargs="?")
    return parser


@pytest.mark.parametrize(
    ("line", "opts", "inputs"),
    [
        ("a --input b c MODEL.DEVICE cpu", ["MODEL.DEVICE", "cpu"], ["b", "c"]),
        ("a --opts SEED -1 --input b", ["SEED", "-1"], ["b"]),
        ("a --input b -- SEED 1 OUTPUT_DIR x", ["SEED", "1", "OUTPUT_DIR", "x"], ["b"]),
        ("a SEED 1 --opts NO_KEY 2", ["SEED", "1", "NO_KEY", "2"], []),
        ("a sead 1", ["sead", "1"], []),
        ("a --opts SEED", ["SEED"], []),  # reported where pairs are checked
        ("a --input TEST.PNG", [], ["TEST.PNG"]),  # a file of this name
    ],
)
def test_pairs_are_told_from_other_words(line: str, opts: list[str], inputs: list[str], tmp_path: Path) -> None:
    (tmp_path / "TEST.PNG").touch()
    args = parse(parser_with_list(), ["--config-file", "c.yaml", *line.split()])
    assert (args.opts, args.input, args.first, args.config_file) == (opts, inputs, "a", "c.yaml")


def test_unknown_options_are_errors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(parser_with_list(), ["--config-file", "c.yaml", "--wrong", "1"])
    assert "unrecognized arguments: --wrong" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(command_parser("takes no pairs"), ["SEED", "1"])


def test_every_method_adds_its_node() -> None:
    assert [function.__name__ for function in method_configs()] == [f"add_{name}_config" for name in METHODS]
    assert {"PADING", "TCC", "PSI", "SALSEG"} <= set(load_config("").MODEL)


@pytest.mark.parametrize("name", ["train_net", "padding.seen_bias", "psi.plots"])
def test_error_of_the_user_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = words_of(name, "nowhere.yaml")
    assert run_command(main_of(name), words) == 1
    assert capsys.readouterr().err == "error: configuration file nowhere.yaml does not exist\n"
    assert run_command(main_of(name), [*words, "--debug"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("does not exist\n")


def test_names_that_no_registry_knows_are_errors_of_the_user(dumped: dict[str, str]) -> None:
    for key, message in (("TRAINER", "TRAINER is 'Nobody'; expected one of"), ("MODEL.META_ARCHITECTURE", "'Nobody'")):
        with pytest.raises(ConfigError, match=message):
            main_of("demo")(words_of("demo", dumped["tcc"], key, "Nobody", *WEIGHTS))


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_that_prepare_data_end_with_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_script(name).main(SCRIPTS[name]) == 2
    shown = capsys.readouterr().err.strip()
    assert shown.startswith("error: ")
    assert "\n" not in shown
    assert load_script(name).main(["--debug", *SCRIPTS[name]]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_label_audit_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert importlib.import_module("padding.data.label_audit").main(["--dataset", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: 'nothing' is no data set with semantic label files")


# ------------------------------------------------------------------------------------------------- what --help loads


def source_of(module: str) -> Path | None:
    path = ROOT / f"{module.replace('.', '/')}.py"
    return path if path.is_file() else None


def top_level_imports(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def loaded_by(path: Path) -> set[str]:
    """First names of everything that importing a file loads, through our own modules."""
    found: set[str] = set()
    waiting, seen = [path], set()
    while waiting:
        current = waiting.pop()
        seen.add(current)
        for module in top_level_imports(current):
            source = source_of(module)
            if source is None:
                found.add(module.split(".")[0])
            elif source not in seen:
                waiting.append(source)
    return found


@pytest.mark.parametrize(
    "name", ["train_net.py", "demo.py", "padding/engine/commands.py", *(f"datasets/{name}.py" for name in SCRIPTS)]
)
def test_help_needs_neither_torch_nor_detectron2(name: str) -> None:
    assert not loaded_by(ROOT / name) & {"torch", "torchvision", "detectron2", "fvcore", "scipy", "matplotlib"}


def test_a_heavy_import_would_be_found() -> None:
    assert {"torch", "detectron2"} <= loaded_by(ROOT / "padding/engine/setup.py")
    assert torch.__name__ in loaded_by(ROOT / "padding/study/seen_bias.py")
