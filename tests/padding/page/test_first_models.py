# SPDX-License-Identifier: Apache-2.0
"""The small models of the first use: what they are told, and that every recipe trains, packs and is not repeated."""

from pathlib import Path

import pytest

from padding.data.catalog import register_all, shapes_split
from padding.engine.commands import METHODS
from padding.page.first_models import RECIPES, held_back_names, told_split, train_first_models
from padding.page.models import open_models
from padding.page.zero_shot import addable_names, learn_class


def test_there_is_a_recipe_for_each_method() -> None:
    assert set(RECIPES) == set(METHODS)
    assert len({recipe.name for recipe in RECIPES.values()}) == len(METHODS)


def test_some_unseen_classes_are_held_back_and_others_are_told() -> None:
    whole, told, held_back = shapes_split(), told_split(), held_back_names()
    assert set(held_back) < whole.unseen_names
    assert told.names == tuple(name for name in whole.names if name not in held_back)
    assert told.unseen_names == whole.unseen_names - set(held_back)


@pytest.mark.slow
def test_models_are_trained_once_and_learn_what_was_held_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    try:
        for _ in range(2):
            files = train_first_models(tmp_path / "out", ("padding", "psi"), images=24, iterations=2)
    finally:
        monkeypatch.undo()
        register_all()
    assert capsys.readouterr().out.count("$ python train_net.py") == 4  # three stages of PADing, one of PSI
    models = open_models(files)
    assert [model.is_zero_shot for model in models.values()] == [True, False]
    assert [model.grows_labels for model in models.values()] == [False, True]
    assert addable_names(models["zero_shot"]) == tuple(n for n in shapes_split().names if n in held_back_names())
    assert "Added 'red star'" in learn_class(models["zero_shot"], "red star")
