# SPDX-License-Identifier: Apache-2.0
"""Tests of supervision: slots for the classes present, and what counts as a label."""

import torch

from psi.supervision import EMPTY_SLOT, PixelSupervision, Supervision

VOID = 255


def test_slots_hold_the_classes_present_in_each_image() -> None:
    labels = torch.tensor([[[3, VOID, 1]], [[VOID, 4, 254]], [[VOID, VOID, VOID]]])
    supervision = Supervision.of_labels(labels, num_classes=6)
    assert supervision.classes.tolist() == [[1, 3], [4, EMPTY_SLOT], [EMPTY_SLOT, EMPTY_SLOT]]
    assert supervision.targets[0].tolist() == [[[0, 0, 1]], [[1, 0, 0]]]
    assert not supervision.targets[2].any()
    # 254, the padding of some tools, is as void as 255
    assert torch.equal(supervision.labels, labels.masked_fill(labels == 254, VOID))
    assert torch.equal(supervision.region, supervision.scribbles)


def test_labels_survive_the_way_through_slots() -> None:
    labels = torch.randint(-2, 9, (4, 11, 7))  # -2, -1, 7 and 8 are no classes
    known = (labels >= 0) & (labels < 7)
    weights = torch.rand(4, 11, 7) * 0.9 + 0.05
    supervision = Supervision.of_labels(labels, num_classes=7, weights=weights)
    assert torch.equal(supervision.labels, labels.masked_fill(~known, VOID))
    torch.testing.assert_close(supervision.weights, weights * known)


def test_diffused_labels_are_no_scribbles() -> None:
    labels = torch.tensor([[[0, 1, VOID]]])
    drawn = torch.tensor([[[True, False, True]]])
    supervision = Supervision.of_labels(labels, num_classes=2, scribbles=drawn)
    assert supervision.scribbles.tolist() == [[[True, False, False]]]
    assert supervision.region.tolist() == [[[True, True, False]]]


def test_nothing_drawn_leaves_one_empty_slot() -> None:
    supervision = Supervision.of_labels(torch.full((2, 3, 3), VOID), num_classes=4)
    assert supervision.classes.tolist() == [[EMPTY_SLOT], [EMPTY_SLOT]]
    assert (supervision.labels == VOID).all()


def test_scribbles_alone_have_weight_one() -> None:
    scribbles = torch.tensor([[[2, VOID, 254, 0]]])
    pixels = PixelSupervision.of_scribbles(scribbles, num_classes=3)
    assert pixels.labels.tolist() == [[[2, VOID, VOID, 0]]]
    assert pixels.weights.tolist() == [[[1, 0, 0, 1]]]
    assert pixels.scribbles.tolist() == [[[True, False, False, True]]]


def test_stored_labels_yield_to_scribbles_and_need_a_weight() -> None:
    scribbles = torch.tensor([[[2, VOID, VOID, VOID]]])
    labels, weights = torch.tensor([[[0, 1, 1, VOID]]]), torch.tensor([[[0.5, 0.25, 0.0, 0.75]]])
    pixels = PixelSupervision.of_stored(scribbles, labels, weights, num_classes=3)
    assert pixels.labels.tolist() == [[[2, 1, VOID, VOID]]]
    assert pixels.weights.tolist() == [[[1.0, 0.25, 0.0, 0.0]]]
    assert pixels.scribbles.tolist() == [[[True, False, False, False]]]
