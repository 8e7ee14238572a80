# SPDX-License-Identifier: Apache-2.0
"""Class-aware consistency (Eq. 3 to 7) against a loop over images and classes, worked numbers, and its laws."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cfcd import loop_consistency
from tcc.class_features import (
    ConsistencyOptions,
    PixelLabels,
    class_similarity,
    feature_consistency,
    labels_of,
    on_grid,
)

K = 5


def options(**changes: Any) -> ConsistencyOptions:
    """One cell of the grid per pixel of the labels, unless changed."""
    return ConsistencyOptions(**{"stride": 1, **changes})


def pixels(labels: Tensor, valid: Tensor | None = None) -> PixelLabels:
    return PixelLabels(labels, torch.ones_like(labels, dtype=torch.bool) if valid is None else valid)


def slow_map(features: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Per image and class: the mean of its cells, then the cosine of each with it; NaN elsewhere. In float64."""
    rows = []
    for feature, label, known in zip(features.double(), labels, valid, strict=True):
        row = torch.full(label.shape, float("nan"), dtype=torch.float64)
        for c in label[known].unique():
            mask = known & (label == c)
            own = feature[:, mask]
            row = torch.where(mask, row.masked_scatter(mask, F.cosine_similarity(own, own.mean(1, True), dim=0)), row)
        rows.append(row)
    return torch.stack(rows)


def slow_loss(maps: tuple[Tensor, Tensor]) -> Tensor:
    """Mean over the defined cells of each image, then over images."""
    squares = (maps[0] - maps[1]) ** 2
    return torch.stack([row[~row.isnan()].mean() for row in squares if not row.isnan().all()]).mean()


@dataclasses.dataclass
class Scene:
    """Features of two students of different width, and the labels each of them gives."""

    features: tuple[Tensor, Tensor]
    labels: tuple[PixelLabels, PixelLabels]

    def loss(self, **changes: Any) -> Tensor:
        return feature_consistency(self.features, self.labels, K, options(**changes))[0]

    def gradients(self, **changes: Any) -> list[Tensor]:
        return [
            torch.zeros_like(feature) if gradient is None else gradient
            for feature, gradient in zip(
                self.features,
                torch.autograd.grad(self.loss(**changes), self.features, allow_unused=True),
                strict=True,
            )
        ]


def relative(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


@pytest.fixture
def scene() -> Scene:
    """Two images; class 4 is in no label, class 3 of the second student in one cell, a corner is padding."""
    features = torch.randn(2, 16, 6, 8).relu().requires_grad_(), torch.randn(2, 4, 6, 8).requires_grad_()
    first, second = (torch.randint(0, 3, (2, 6, 8)) for _ in range(2))
    second[0, 2, 3] = 3
    valid = torch.ones(2, 6, 8, dtype=torch.bool)
    valid[0, :2, :3] = False
    return Scene(features, (pixels(first, valid), pixels(second, valid)))


# Values ---------------------------------------------------------------------------------------------------------------


def worked_example() -> Scene:
    """Four pixels; each student's labels group the features of the other one."""
    of_a = torch.tensor([[1.0, 0], [0, 1], [1, 1], [2, 0]]).T.reshape(1, 2, 1, 4)
    of_b = torch.tensor([[1.0, 1, 0], [1, -1, 0], [0, 1, 0], [0, 3, 4]]).T.reshape(1, 3, 1, 4)
    used_by_a, used_by_b = torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 1, 1, 1]]])
    return Scene((of_a, of_b), (pixels(used_by_b), pixels(used_by_a)))


def test_worked_example() -> None:
    example = worked_example()
    expected = ([0.7071, 0.7071, 0.8944, 0.9487], [1.0, -0.2774, 0.5883, 0.9806])
    for feature, used, values in zip(example.features, reversed(example.labels), expected, strict=True):
        found, defined = class_similarity(feature, used, K, options())
        assert found.flatten().tolist() == pytest.approx(values, abs=5e-5)
        assert defined.all()
    assert example.loss().item() == pytest.approx(0.2874, abs=5e-5)


def test_value_and_gradients_equal_the_loop_over_images_and_classes(scene: Scene) -> None:
    labels = scene.labels
    maps = tuple(
        slow_map(feature, peer.labels, peer.valid)
        for feature, peer in zip(scene.features, reversed(labels), strict=True)
    )
    expected = slow_loss((maps[0], maps[1]))
    assert scene.loss().item() == pytest.approx(expected.item(), rel=1e-6)
    assert relative(scene.gradients(), list(torch.autograd.grad(expected, scene.features))) < 1e-6
    for feature, peer, slow in zip(scene.features, reversed(labels), maps, strict=True):
        found, defined = class_similarity(feature, peer, K, options())
        assert torch.equal(defined, peer.valid)
        torch.testing.assert_close(found[defined].double(), slow[defined], atol=1e-6, rtol=0)


def test_without_invalid_pixels_it_equals_the_published_form() -> None:
    features = torch.randn(2, 16, 8, 8).relu().requires_grad_(), torch.randn(2, 5, 8, 8).requires_grad_()
    labels = torch.randint(0, K, (2, 32, 32)), torch.randint(0, K, (2, 32, 32))
    expected = loop_consistency(features, labels, K)
    found = feature_consistency(features, (pixels(labels[0]), pixels(labels[1])), K, options(stride=4))[0]
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert relative(*(list(torch.autograd.grad(loss, features)) for loss in (found, expected))) < 1e-6


def test_a_class_of_one_pixel_is_its_own_mean() -> None:
    features = torch.randn(1, 6, 1, 3, requires_grad=True)
    found, _ = class_similarity(features, pixels(torch.tensor([[[2, 0, 4]]])), K, options())
    assert found.flatten().tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    assert torch.autograd.grad((found * torch.randn(3)).sum(), features)[0].abs().max() < 1e-6


# Invariances ----------------------------------------------------------------------------------------------------------


def test_scale_of_features_does_not_matter() -> None:
    features, labels = torch.randn(1, 6, 2, 4), pixels(torch.randint(0, 2, (1, 2, 4)))
    before, _ = class_similarity(features, labels, K, options())
    torch.testing.assert_close(class_similarity(features * 17.0, labels, K, options())[0], before)


def test_scale_of_one_pixel_does_not_matter_where_the_center_stays() -> None:
    features, labels = torch.randn(1, 6, 1, 3), pixels(torch.zeros(1, 1, 3, dtype=torch.int64))
    before, _ = class_similarity(features, labels, K, options())
    scaled = features.clone()
    scaled[..., 0] *= 2.5
    scaled[..., 2] -= 1.5 * features[..., 0]  # the sum is what it was
    after, _ = class_similarity(scaled, labels, K, options())
    torch.testing.assert_close(after[..., :2], before[..., :2])


def test_names_of_classes_do_not_matter(scene: Scene) -> None:
    order = torch.randperm(K)
    renamed = tuple(PixelLabels(order[part.labels], part.valid) for part in scene.labels)
    again = Scene(scene.features, (renamed[0], renamed[1]))
    assert again.loss().item() == pytest.approx(scene.loss().item(), rel=1e-6)


def test_swapped_students_give_the_same_loss(scene: Scene) -> None:
    swapped = Scene(scene.features[::-1], scene.labels[::-1])
    assert swapped.loss().item() == pytest.approx(scene.loss().item(), rel=1e-6)
    torch.testing.assert_close(swapped.gradients()[::-1], scene.gradients())


def test_equal_students_agree() -> None:
    features, labels = torch.randn(1, 6, 4, 4), pixels(torch.randint(0, K, (1, 4, 4)))
    assert feature_consistency((features, features.clone()), (labels, labels), K, options())[0] == 0


def test_what_stands_in_invalid_pixels_does_not_matter(scene: Scene) -> None:
    expected = scene.loss().item()
    hidden = ~scene.labels[0].valid
    with torch.no_grad():
        for feature in scene.features:
            feature[hidden[:, None].expand_as(feature)] = 1e4
    other = tuple(PixelLabels(torch.where(part.valid, part.labels, 255), part.valid) for part in scene.labels)
    assert Scene(scene.features, (other[0], other[1])).loss().item() == pytest.approx(expected, rel=1e-6)
    assert all((g[hidden[:, None].expand_as(g)] == 0).all() for g in scene.gradients())


def test_images_without_a_valid_pixel_leave_the_mean(scene: Scene) -> None:
    valid = scene.labels[0].valid.clone()
    valid[1] = False
    halved = tuple(PixelLabels(part.labels, valid) for part in scene.labels)
    alone = Scene(
        tuple(f[:1] for f in scene.features),  # type: ignore[arg-type]
        tuple(PixelLabels(p.labels[:1], valid[:1]) for p in halved),  # type: ignore[arg-type]
    )
    assert Scene(scene.features, (halved[0], halved[1])).loss().item() == pytest.approx(alone.loss().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nothing_valid_is_a_zero_with_zero_gradients(dtype: torch.dtype) -> None:
    """Sums of these features overflow in float16."""
    features = tuple(torch.full((2, width, 4, 4), 6e4, dtype=dtype, requires_grad=True) for width in (64, 32))
    nothing = pixels(torch.zeros(2, 4, 4, dtype=torch.int64), torch.zeros(2, 4, 4, dtype=torch.bool))
    loss, seen = feature_consistency((features[0], features[1]), (nothing, nothing), K, options())
    assert loss.item() == 0
    assert all((g == 0).all() for g in torch.autograd.grad(loss, features))
    assert all(value == 0 for value in seen.values())


def test_vectors_of_zeros_have_no_similarity_and_finite_gradients() -> None:
    features = torch.randn(1, 6, 2, 4)
    features[..., 0] = 0.0
    features.requires_grad_()
    labels = torch.zeros(1, 2, 4, dtype=torch.int64)
    labels[:, :, 1] = 1
    with torch.no_grad():
        features[:, :, 1, 1] = -features[:, :, 0, 1]  # of opposite features the mean is 0
    found, defined = class_similarity(features, pixels(labels), K, options())
    assert not defined[..., :2].any()
    assert defined[..., 2:].all()
    assert (found[~defined] == 0).all()
    assert torch.isfinite(torch.autograd.grad(found.sum(), features)[0]).all()


def test_it_is_computed_in_float32_under_autocast(scene: Scene) -> None:
    expected, reference = scene.loss(), scene.gradients()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scene.loss()
    gradients = list(torch.autograd.grad(found, scene.features))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert relative(gradients, reference) < 1e-6
    halves = Scene(tuple(f.detach().bfloat16().requires_grad_() for f in scene.features), scene.labels)
    rounded = Scene(tuple(f.detach().float() for f in halves.features), scene.labels)
    for choice in ("none", "standardize"):
        assert halves.loss(normalize=choice).item() == pytest.approx(rounded.loss(normalize=choice).item(), rel=1e-6)
    assert all(torch.isfinite(g).all() for g in halves.gradients())


# Switches -------------------------------------------------------------------------------------------------------------


def test_mutual_gradient_is_that_of_two_one_way_losses(scene: Scene) -> None:
    """So a second, mirrored term would only double the loss."""
    one_way = [scene.gradients(direction=direction) for direction in ("cnn_to_vit", "vit_to_cnn")]
    assert not one_way[0][0].any()  # the CNN is the target
    assert not one_way[1][1].any()
    assert scene.loss(direction="cnn_to_vit").item() == pytest.approx(scene.loss().item())
    torch.testing.assert_close([a + b for a, b in zip(*one_way, strict=True)], scene.gradients())


def test_label_sources(scene: Scene) -> None:
    first, second = scene.labels
    valid = first.valid
    expected = {
        "own": [(first.labels, valid), (second.labels, valid)],
        "cross": [(second.labels, valid), (first.labels, valid)],
        "agree": [(first.labels, valid & (first.labels == second.labels))] * 2,
    }
    for source, groups in expected.items():
        maps = [slow_map(f, *group) for f, group in zip(scene.features, groups, strict=True)]
        assert scene.loss(label_source=source).item() == pytest.approx(slow_loss((maps[0], maps[1])).item(), rel=1e-6)
    truth = Scene(scene.features, (first, first))  # labeled images: both under the true labels
    assert truth.loss().item() == truth.loss(label_source="own").item()


def test_batch_prototypes_are_those_of_all_images_in_one(scene: Scene) -> None:
    def joined(part: Tensor) -> Tensor:
        return torch.cat(list(part), dim=-1)[None]

    for feature, used in zip(scene.features, scene.labels, strict=True):
        side_by_side = PixelLabels(joined(used.labels), joined(used.valid))
        expected, _ = class_similarity(joined(feature), side_by_side, K, options())
        for scope in ("batch", "batch_sync"):  # the same in a single process
            found, _ = class_similarity(feature, used, K, options(prototype_scope=scope))
            torch.testing.assert_close(joined(found), expected)


def test_detached_prototypes_are_fixed_centers(scene: Scene) -> None:
    feature, used = scene.features[1], scene.labels[1]
    centers = torch.stack(
        [
            torch.stack([f[:, v & (lab == c)].mean(1) if (v & (lab == c)).any() else f[:, 0, 0] for c in range(K)], 1)
            for f, lab, v in zip(feature.detach(), used.labels, used.valid, strict=True)
        ]
    )
    own = torch.stack([c[:, lab] for c, lab in zip(centers, used.labels, strict=True)])
    expected = (F.cosine_similarity(feature, own, dim=1) * used.valid).sum()
    found, _ = class_similarity(feature, used, K, options(detach_prototype=True))
    assert found.sum().item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [torch.autograd.grad(value, feature)[0] for value in (found.sum(), expected)]
    assert relative(gradients[:1], gradients[1:]) < 1e-5
    moving, _ = class_similarity(feature, used, K, options())
    assert relative([torch.autograd.grad(moving.sum(), feature)[0]], gradients[1:]) > 0.1


def test_small_classes_have_no_prototype() -> None:
    labels = torch.tensor([[[0, 0, 0, 1, 1, 2]]])
    for least, expected in ((1, 6), (2, 5), (3, 3), (4, 0)):
        _, defined = class_similarity(torch.randn(1, 4, 1, 6), pixels(labels), K, options(min_pixels=least))
        assert defined.sum() == expected
    # In the batch the class is large enough.
    twice = pixels(labels.expand(2, -1, -1))
    _, defined = class_similarity(torch.randn(2, 4, 1, 6), twice, K, options(min_pixels=2, prototype_scope="batch"))
    assert defined.all()


def test_unconfident_pixels_leave_prototypes_and_loss(scene: Scene) -> None:
    logits = torch.randn(2, K, 6, 8) * 2
    everywhere = torch.ones(2, 6, 8, dtype=torch.bool)
    found = labels_of(logits, everywhere, 0.6)
    best = logits.softmax(dim=1).max(dim=1)
    assert torch.equal(found.labels, best.indices)
    assert torch.equal(found.valid, best.values >= 0.6)
    assert 0 < found.valid.sum() < everywhere.sum()
    assert labels_of(logits, everywhere).valid.all()
    expected = slow_loss(tuple(slow_map(f, *found) for f in scene.features))  # type: ignore[arg-type]
    assert Scene(scene.features, (found, found)).loss().item() == pytest.approx(expected.item(), rel=1e-6)


def test_standardized_maps_ignore_offset_and_scale(scene: Scene) -> None:
    maps, defined = zip(
        *(class_similarity(f, p, K, options()) for f, p in zip(scene.features, scene.labels[::-1], strict=True)),
        strict=True,
    )
    both = defined[0] & defined[1]
    rows = []
    for image in range(2):
        a, b = (part[image][both[image]].double() for part in maps)
        rows.append((((a - a.mean()) / a.std(correction=0) - (b - b.mean()) / b.std(correction=0)) ** 2).mean())
    expected = torch.stack(rows).mean().item()
    assert scene.loss(normalize="standardize").item() == pytest.approx(expected, rel=1e-4)


def test_standardizing_a_constant_map_is_finite() -> None:
    """All pixels of a class alike: similarity 1 everywhere, deviation 0."""
    features = torch.ones(1, 4, 2, 2, requires_grad=True), torch.randn(1, 3, 2, 2, requires_grad=True)
    labels = pixels(torch.zeros(1, 2, 2, dtype=torch.int64))
    case = Scene(features, (labels, labels))
    assert torch.isfinite(case.loss(normalize="standardize"))
    assert all(torch.isfinite(g).all() for g in case.gradients(normalize="standardize"))


# Grids ----------------------------------------------------------------------------------------------------------------


def test_labels_of_a_coarser_grid_are_those_at_the_centers_of_its_cells() -> None:
    labels, valid = torch.randint(0, K, (2, 48, 80)), torch.rand(2, 48, 80) < 0.5
    found = on_grid(PixelLabels(labels, valid), (3, 5))
    assert torch.equal(found.labels, labels[:, 8::16, 8::16])
    assert torch.equal(found.valid, valid[:, 8::16, 8::16])
    odd = on_grid(pixels(labels), (7, 9))
    expected = F.interpolate(labels[:, None].float(), size=(7, 9), mode="nearest-exact")[:, 0].long()
    assert torch.equal(odd.labels, expected)


def test_features_of_different_size_meet_on_the_common_grid() -> None:
    features = torch.randn(1, 6, 8, 8), torch.randn(1, 4, 4, 4)
    first, second = (pixels(torch.randint(0, K, (1, 64, 64))) for _ in range(2))
    resized = F.interpolate(features[1], size=(8, 8), mode="bilinear", align_corners=False)
    expected = Scene((features[0], resized), (on_grid(first, (8, 8)), on_grid(second, (8, 8)))).loss()
    assert Scene(features, (first, second)).loss(stride=8).item() == pytest.approx(expected.item(), rel=1e-6)
    halves = tuple(feature.bfloat16() for feature in features)
    rounded = tuple(feature.float() for feature in halves)  # resized in float32, too
    found, expected = (Scene(part, (first, second)).loss(stride=8) for part in (halves, rounded))  # type: ignore[arg-type]
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_similarities_may_be_resized_instead_and_undefined_ones_do_not_leak() -> None:
    features = torch.randn(1, 6, 8, 8), torch.randn(1, 4, 4, 4)
    labels = torch.randint(0, 2, (1, 64, 64))
    valid = torch.ones(1, 64, 64, dtype=torch.bool)
    valid[..., 48:] = False
    padded = PixelLabels(labels, valid)
    coarse, defined = class_similarity(features[1], on_grid(padded, (4, 4)), K, options())
    assert torch.equal(defined[0, 0], torch.tensor([True, True, True, False]))
    fine, _ = class_similarity(features[0], on_grid(padded, (8, 8)), K, options())
    resized = F.interpolate(coarse[:, None], size=(8, 8), mode="bilinear", align_corners=False)[:, 0]
    # Of 8 columns the last two lie in the padding, and the mean of the sixth reaches into it.
    expected = (fine - resized)[..., :5].square().mean()
    case = Scene(features, (padded, padded))
    assert case.loss(stride=8, resize="similarity").item() == pytest.approx(expected.item(), rel=1e-5)


def test_observations_tell_similarity_and_agreement(scene: Scene) -> None:
    _, seen = feature_consistency(scene.features, scene.labels, K, options())
    first, second = scene.labels
    agree = [(a == b)[v].float().mean() for a, b, v in zip(first.labels, second.labels, first.valid, strict=True)]
    assert seen["label_agreement"].item() == pytest.approx(torch.stack(agree).mean().item())
    for name, feature, used in zip(("cnn", "vit"), scene.features, scene.labels[::-1], strict=True):
        rows = slow_map(feature, used.labels, used.valid)
        expected = torch.stack([row[~row.isnan()].mean() for row in rows]).mean().item()
        assert seen[f"similarity_{name}"].item() == pytest.approx(expected, rel=1e-5)
        assert not seen[f"similarity_{name}"].requires_grad


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"label_source": "peer"}, "LABEL_SOURCE is 'peer'"),
        ({"prototype_scope": "world"}, "PROTOTYPE_SCOPE is 'world'"),
        ({"direction": "both"}, "DIRECTION is 'both'"),
        ({"normalize": "l2"}, "NORMALIZE is 'l2'"),
        ({"resize": "labels"}, "RESIZE is 'labels'"),
        ({"stride": 0}, "STRIDE 0"),
        ({"min_pixels": 0}, "MIN_PIXELS 0"),
    ],
)
def test_unknown_choices_are_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        options(**changes)
