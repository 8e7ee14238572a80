# SPDX-License-Identifier: Apache-2.0
"""Models by name: what each can do, one request at a time, back to what it was."""

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from padding.errors import ConfigError, MissingFileError
from padding.page.models import PageModel, open_models


def test_models_are_known_by_what_they_can_do(models: Mapping[str, PageModel]) -> None:
    assert list(models) == ["zero_shot", "scribbles", "saliency"]
    assert [model.is_zero_shot for model in models.values()] == [True, False, False]
    assert [model.grows_labels for model in models.values()] == [False, True, False]
    assert [len(model.class_names) for model in models.values()] == [28, 17, 17]
    assert models["zero_shot"].seen_bias == 0.0


def test_equal_names_get_a_number_and_pairs_reach_the_configuration(packed_models: list[Path]) -> None:
    found = open_models([packed_models[0]] * 2, opts=["MODEL.PADING.TEST.SEEN_BIAS", "1.5"])
    assert list(found) == ["zero_shot", "zero_shot (2)"]
    assert found["zero_shot (2)"].seen_bias == 1.5


def test_nothing_and_missing_files_are_errors_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model is named"):
        open_models([])
    with pytest.raises(MissingFileError):
        open_models([tmp_path / "nowhere.safetensors"])


def test_a_model_serves_one_thread_at_a_time(models: Mapping[str, PageModel]) -> None:
    model, entered = models["scribbles"], threading.Event()

    def enter() -> None:
        with model.in_use():
            entered.set()

    with model.in_use():
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.05)
    assert entered.wait(10)
    thread.join()
