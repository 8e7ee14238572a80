# SPDX-License-Identifier: Apache-2.0
"""Small models for the first use of the page, one per method: trained on the embedded data in minutes, and packed.

Not models to report numbers of: trainings are a fraction of those behind ``configs/README.md``. A finished one is not
repeated, an interrupted one goes on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from padding.data.catalog import register_all, shapes_split
from padding.data.class_split import ClassSplit, read_name_list
from padding.data.registration import register_panoptic
from padding.data.roots import data_root, splits_dir
from padding.data.sets.scribbles import SCRIBBLE_SETS, scribble_tags
from padding.data.shapes.classes import ShapesConfig
from padding.data.shapes.write import write_missing_shapes
from padding.engine.commands import METHODS, load_model, open_config
from padding.engine.packing import SUFFIX, pack_model
from padding.study.table_rows import run_once

HELD_BACK_FILE = "shapes_held_back.txt"
_ZERO_SHOT_SET = "shapes_page_panoptic_zsp"
_SCRIBBLES = "shapes_train_scribble_coarse"


@dataclass(frozen=True)
class FirstModel:
    """How the model of one method is trained: stages in turn, each from the weights of the one before.

    Attributes:
        name: of its file.
        stages: configuration and iterations.
        options: KEY, VALUE, ... of the last stage.
        prepare: what it needs beside the images.
    """

    name: str
    stages: tuple[tuple[str, int], ...]
    options: tuple[str, ...] = ()
    prepare: Callable[[], None] = lambda: None


def held_back_names() -> tuple[str, ...]:
    """Unseen classes of the embedded data that the zero-shot model is not told of; they can be added to it."""
    return read_name_list(splits_dir() / HELD_BACK_FILE)


def told_split() -> ClassSplit:
    """Classes of the embedded data without those held back."""
    split, held_back = shapes_split(), held_back_names()
    split.ids_of(held_back)  # a misspelt name would hold nothing back
    return split.restricted_to([name for name in split.names if name not in held_back])


def _register_told_classes() -> None:
    folder = data_root() / "shapes"
    register_panoptic(
        _ZERO_SHOT_SET,
        class_split=told_split(),
        image_root=folder / "images" / "val",
        panoptic_root=folder / "panoptic" / "val",
        panoptic_json=folder / "annotations" / "panoptic_val.json",
        unseen_policy="ignore_pixels",
    )


def _simulate_strokes() -> None:
    from padding.data.prepare.scribbles import simulate_files, tasks_of_dataset
    from padding.data.scribbles.folder import ScribbleFolder
    from padding.data.scribbles.simulator import SimulatorConfig

    one = SCRIBBLE_SETS[_SCRIBBLES]
    folder = ScribbleFolder(data_root() / one.folder)
    written = folder.content()
    if written is None or written.statistics is None:
        simulate_files(*tasks_of_dataset(one.dense, scribble_tags(one.dense)), SimulatorConfig(**one.simulator), folder)


RECIPES = {
    "padding": FirstModel(
        "zero_shot",
        (
            ("configs/shapes_backbone.yaml", 1200),
            ("configs/shapes_zsp_pretrain.yaml", 1000),
            ("configs/shapes_zsp.yaml", 500),
        ),
        ("DATASETS.TEST", f"('{_ZERO_SHOT_SET}',)"),
        _register_told_classes,
    ),
    "psi": FirstModel("scribbles", (("configs/shapes_psi.yaml", 600),), prepare=_simulate_strokes),
    "tcc": FirstModel("semi_supervised", (("configs/shapes_tcc.yaml", 300),)),
    "salseg": FirstModel("saliency", (("configs/shapes_salseg.yaml", 400),)),
}


def train_first_models(
    output: Path, methods: Sequence[str] = METHODS, *, images: int | None = None, iterations: int | None = None
) -> list[Path]:
    """Train and pack the models that are not there yet.

    Args:
        output: folder of the trainings and, in ``models``, of the packed files.
        methods: of ``RECIPES``.
        images: training images of the embedded data, where it has to be written; None: its usual number, which the
            lists of labeled images of TCC and SalSeg need.
        iterations: of every stage, for tests; None: those of the recipes.

    Returns:
        The packed files, in the order of the methods.
    """
    packed = [output / "models" / f"{RECIPES[method].name}{SUFFIX}" for method in methods]
    missing = [method for method, path in zip(methods, packed, strict=True) if not path.is_file()]
    if missing:
        register_all()
        write_missing_shapes(
            data_root(), ShapesConfig() if images is None else ShapesConfig(num_train=images, num_val=4)
        )
    for method in missing:
        _train(RECIPES[method], output, iterations)
    return packed


def _train(recipe: FirstModel, output: Path, iterations: int | None) -> None:
    recipe.prepare()
    weights = ""
    for config, usual in recipe.stages:
        last = config == recipe.stages[-1][0]
        options = ("SOLVER.MAX_ITER", str(iterations or usual), *(recipe.options if last else ()))
        start = ("MODEL.WEIGHTS", weights) if weights else ()
        weights = run_once(config, (*options, *start), output / recipe.name / Path(config).stem)
    cfg = open_config(config, options, weights=weights)
    pack_model(cfg, load_model(cfg), output / "models" / f"{recipe.name}{SUFFIX}")
