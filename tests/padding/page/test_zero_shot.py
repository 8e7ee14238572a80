# SPDX-License-Identifier: Apache-2.0
"""Segments with a bias of seen classes, and classes added by their names."""

from collections.abc import Mapping

import numpy as np
import pytest

from padding.data.class_embeddings import EmbeddingTable
from padding.errors import ConfigError, DataError, MethodError
from padding.page import zero_shot
from padding.page.models import PageModel
from padding.page.zero_shot import addable_names, learn_class, segment_image
from tests.separable_features import ADDED, KNOWN, UNSEEN


def test_the_bias_decides_between_seen_and_unseen(models: Mapping[str, PageModel], image: np.ndarray) -> None:
    model = models["zero_shot"]
    marked = {bias: segment_image(model, image, bias).rows for bias in (-50.0, 50.0)}
    assert marked[-50.0], "some segment is needed to tell"
    assert not any(name.endswith("*") for name, *_ in marked[-50.0])
    assert all(name.removesuffix("*") in UNSEEN for name, *_ in marked[50.0])
    with model.in_use() as predictor:
        assert predictor.model.seen_bias == 0.0


def test_pictures_are_large_enough_to_read(models: Mapping[str, PageModel], image: np.ndarray) -> None:
    picture = segment_image(models["zero_shot"], image, 0.0).picture
    assert picture.dtype == np.uint8
    assert picture.shape == (366, 512, 3)


def test_a_class_is_added_by_its_name_and_forgotten(models: Mapping[str, PageModel], image: np.ndarray) -> None:
    model = models["zero_shot"]
    assert addable_names(model) == ADDED
    line = learn_class(model, f"  {ADDED[0].upper()} ", stuff=True)
    assert line.startswith(f"Added '{ADDED[0]}' in ")
    assert "class_embeddings" in line or "zero_shot.safetensors" in line
    assert model.class_names == (*KNOWN, ADDED[0])
    with model.in_use() as predictor:
        assert predictor.label_space.is_thing[-1] is False
        assert predictor.metadata.stuff_classes[-1] == f"{ADDED[0]}*"
    assert model.added_names == (ADDED[0],)
    assert segment_image(model, image, 0.0).picture.any()
    model.reset()
    assert model.class_names == KNOWN


def test_names_that_cannot_be_added_say_why(models: Mapping[str, PageModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model = models["zero_shot"]
    for name, error, text in (
        ("", ConfigError, "1 to 60 letters"),
        ("x" * 61, ConfigError, "this one has 61"),
        (KNOWN[0], ConfigError, "known already"),
        ("green crosss", DataError, "nearest: green cross"),
    ):
        with pytest.raises(error, match=text):
            learn_class(model, name)
    monkeypatch.setattr(zero_shot, "MAX_ADDED", 1)
    learn_class(model, ADDED[0])
    with pytest.raises(ConfigError, match="reset the model"):
        learn_class(model, ADDED[1])


def test_shipped_tables_serve_models_of_their_kind_alone(
    models: Mapping[str, PageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """glove_50.npz: a model whose own table has a part of it finds the rest, another one nothing."""
    names, rows = ("person", "dog"), {}
    shipped = zero_shot.read_class_embeddings(zero_shot.splits_dir().parent / "embeddings" / "glove_50.npz")
    for name in names:
        rows[name] = 3.0 * shipped.embeddings[shipped.names.index(name)]
    own = EmbeddingTable(names, np.stack([rows[name] for name in names]))
    other = EmbeddingTable(names, np.stack([rows["dog"], rows["person"]]))
    for table, found in ((own, True), (other, False)):
        monkeypatch.setattr(zero_shot, "embedding_table", lambda _, table=table: (table, "own.npz"))
        with models["zero_shot"].in_use() as predictor:
            if found:
                assert zero_shot.find_vector(predictor, "Sofa")[::2] == ("sofa", "glove_50.npz")
            else:
                with pytest.raises(DataError, match="no table of this model's kind"):
                    zero_shot.find_vector(predictor, "sofa")


def test_other_models_have_no_unseen_classes(models: Mapping[str, PageModel], image: np.ndarray) -> None:
    with pytest.raises(MethodError, match="PSI has no unseen classes"):
        segment_image(models["scribbles"], image, 0.0)
