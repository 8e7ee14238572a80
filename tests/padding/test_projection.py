# SPDX-License-Identifier: Apache-2.0
"""The projection baseline takes any number of classes and has only cosines for logits."""

import pytest
import torch

from padding.projection import ProjectionClassifier


def test_logits_are_bounded_cosines_of_any_classes() -> None:
    classifier = ProjectionClassifier(8, 5, temperature=0.01)
    queries = 100 * torch.randn(2, 3, 8)
    for num_classes in (4, 9):
        logits = classifier(queries, torch.randn(num_classes, 5))
        assert logits.shape == (2, 3, num_classes + 1)
        assert logits.abs().max() <= 100.01


def test_length_of_class_embeddings_does_not_matter() -> None:
    classifier = ProjectionClassifier(8, 5, temperature=0.1)
    queries, classes = torch.randn(3, 8), torch.randn(4, 5)
    torch.testing.assert_close(classifier(queries, classes), classifier(queries, 7 * classes))


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="TEMPERATURE is 0"):
        ProjectionClassifier(8, 5, temperature=0)
