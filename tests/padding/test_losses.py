# SPDX-License-Identifier: Apache-2.0
"""Each loss against a slow, obvious reference, hand-computed values, and its laws."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from padding.losses import (
    DivergenceOptions,
    MmdOptions,
    dot_relation,
    mmd,
    moment_divergence,
    noise_divergence,
    posterior_divergence,
    reconstruction,
    relation,
    row_divergence,
    structure_alignment,
    weighted_cross_entropy,
)

SIGMAS = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0)


def slow_mmd_squared(a: Tensor, b: Tensor, variances: tuple[float, ...], unbiased: bool = False) -> float:
    def kernel(x: Tensor, y: Tensor) -> float:
        return sum(math.exp(-float(((x - y) ** 2).sum()) / (2 * v)) for v in variances)

    def within(s: Tensor) -> float:
        n = len(s)
        pairs = [(i, j) for i in range(n) for j in range(n) if not (unbiased and n > 1 and i == j)]
        return sum(kernel(s[i], s[j]) for i, j in pairs) / len(pairs)

    across = sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))
    return within(a) + within(b) - 2 * across


@pytest.fixture
def sets() -> tuple[Tensor, Tensor]:
    return torch.randn(5, 3), torch.randn(4, 3) + 0.7


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("bandwidth", ["variance", "sigma"])
def test_mmd_matches_brute_force(sets, bandwidth, unbiased):
    real, fake = sets
    variances = SIGMAS if bandwidth == "variance" else tuple(s * s for s in SIGMAS)
    expected = slow_mmd_squared(real, fake, variances, unbiased)
    got = mmd(real, fake, MmdOptions(SIGMAS, bandwidth=bandwidth, sqrt=False, unbiased=unbiased))
    assert float(got) == pytest.approx(expected, abs=1e-5)
    root = mmd(real, fake, MmdOptions(SIGMAS, bandwidth=bandwidth, sqrt=True, unbiased=unbiased))
    assert float(root) == pytest.approx(math.sqrt(max(expected, 1e-12)), abs=1e-4)


def test_mmd_median_scales_with_the_data(sets):
    real, fake = sets
    both = torch.cat([real, fake])
    median = torch.pdist(both).square().median()
    centre = math.exp(sum(map(math.log, SIGMAS)) / len(SIGMAS))
    variances = tuple(float(median) * s / centre for s in SIGMAS)
    got = mmd(real, fake, MmdOptions(SIGMAS, bandwidth="median", sqrt=False))
    assert float(got) == pytest.approx(slow_mmd_squared(real, fake, variances), abs=1e-5)
    scaled = mmd(9 * real, 9 * fake, MmdOptions(SIGMAS, bandwidth="median", sqrt=False))
    torch.testing.assert_close(scaled, got, atol=1e-5, rtol=0)


def test_mmd_is_zero_for_identical_sets_and_symmetric(sets):
    real, fake = sets
    assert float(mmd(real, real.flip(0), MmdOptions(SIGMAS))) < 2e-3  # root of float32 rounding
    assert float(mmd(real, real.clone(), MmdOptions(SIGMAS, sqrt=False))) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(mmd(real, fake, MmdOptions(SIGMAS)), mmd(fake, real, MmdOptions(SIGMAS)))


@pytest.mark.parametrize("grouping", ["batch", "per_class", "joint"])
def test_mmd_gradient_is_finite_at_zero(grouping):
    real = torch.randn(4, 3)
    fake = real.clone().requires_grad_()
    labels = torch.tensor([0, 0, 1, 2])
    mmd(real, fake, MmdOptions(SIGMAS, grouping=grouping), real_labels=labels, fake_labels=labels).backward()
    assert torch.isfinite(fake.grad).all()


@pytest.mark.parametrize("bandwidth", ["variance", "median"])
def test_mmd_per_class_is_the_mean_of_the_blocks(bandwidth):
    real, fake = torch.randn(6, 3), torch.randn(5, 3)
    real_labels, fake_labels = torch.tensor([3, 3, 1, 1, 1, 7]), torch.tensor([1, 3, 3, 1, 8])  # 7 and 8: one side only
    if bandwidth == "variance":
        blocks = [mmd(real[real_labels == c], fake[fake_labels == c], MmdOptions(SIGMAS)) for c in (1, 3)]
    else:  # the scale comes from all rows, not from the block
        centre = math.exp(sum(map(math.log, SIGMAS)) / len(SIGMAS))
        median = float(torch.pdist(torch.cat([real, fake])).square().median())
        scaled = tuple(s * median / centre for s in SIGMAS)
        blocks = [mmd(real[real_labels == c], fake[fake_labels == c], MmdOptions(scaled)) for c in (1, 3)]
    options = MmdOptions(SIGMAS, bandwidth=bandwidth, grouping="per_class")
    got = mmd(real, fake, options, real_labels=real_labels, fake_labels=fake_labels)
    torch.testing.assert_close(got, sum(blocks) / 2, atol=1e-5, rtol=1e-4)


def test_mmd_joint_is_the_kernel_times_the_label_kernel():
    real, fake = torch.randn(6, 3), torch.randn(4, 3)
    real_labels, fake_labels = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 1, 2])

    def mean(a: Tensor, b: Tensor, la: Tensor, lb: Tensor) -> float:
        total = sum(
            math.exp(-float(((x - y) ** 2).sum()) / (2 * v))
            for x, i in zip(a, la, strict=True)
            for y, j in zip(b, lb, strict=True)
            if i == j
            for v in SIGMAS
        )
        return total / (len(a) * len(b))

    expected = (
        mean(real, real, real_labels, real_labels)
        + mean(fake, fake, fake_labels, fake_labels)
        - 2 * mean(real, fake, real_labels, fake_labels)
    )
    options = MmdOptions(SIGMAS, sqrt=False, grouping="joint")
    got = mmd(real, fake, options, real_labels=real_labels, fake_labels=fake_labels)
    assert float(got) == pytest.approx(expected, abs=1e-5)


def test_mmd_of_empty_or_disjoint_sets_is_zero_with_a_gradient():
    fake = torch.randn(0, 3, requires_grad=True)
    mmd(torch.randn(0, 3), fake, MmdOptions(SIGMAS)).backward()
    assert fake.grad is not None
    fake = torch.randn(2, 3, requires_grad=True)
    labels = torch.tensor([0, 0])
    options = MmdOptions(SIGMAS, grouping="per_class")
    loss = mmd(torch.randn(2, 3), fake, options, real_labels=labels, fake_labels=labels + 1)
    assert float(loss.detach()) == 0
    loss.backward()


def test_mmd_names_a_wrong_option():
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"'mean'.*variance, sigma, median"):
        MmdOptions(SIGMAS, bandwidth="mean")
    with pytest.raises(ValueError, match="all positive"):
        MmdOptions((2.0, 0.0))
    with pytest.raises(ValueError, match="needs the labels"):
        mmd(x, x, MmdOptions(SIGMAS, grouping="per_class"))


def test_row_divergence_of_a_hand_computed_example():
    # softmax of the logs are the probabilities themselves (temperature 1)
    target = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]).log()
    prediction = torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]]).log()
    # first row: 1/2 ln 2 + 1/4 ln 1/2 = 1/4 ln 2; second row equal
    by_row = row_divergence(prediction, target, DivergenceOptions(1.0))
    assert float(by_row) == pytest.approx(0.25 * math.log(2) / 2, abs=1e-6)
    by_entry = row_divergence(prediction, target, DivergenceOptions(1.0, reduction="numel"))
    torch.testing.assert_close(by_row, 3 * by_entry)  # the released reduction is smaller by the number of columns


def test_row_divergence_direction_swaps_the_arguments():
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    reverse = DivergenceOptions(0.5, direction="visual_to_semantic")
    forward = row_divergence(a, b, DivergenceOptions(0.5))
    backward = row_divergence(b, a, reverse)
    torch.testing.assert_close(forward, backward)
    p, t = (a / 0.5).softmax(1), (b / 0.5).softmax(1)
    torch.testing.assert_close(forward, (t * (t / p).log()).sum() / 2)
    assert abs(float(forward - row_divergence(a, b, reverse))) > 1e-4


def test_row_divergence_rejects_bad_arguments():
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match="direction"):
        DivergenceOptions(1.0, direction="forward")
    with pytest.raises(ValueError, match="reduction"):
        DivergenceOptions(1.0, reduction="mean")
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        row_divergence(x, x.T, DivergenceOptions(1.0))


def test_structure_alignment_is_zero_for_a_rotated_copy():
    options = DivergenceOptions(0.1)
    embeddings = torch.randn(5, 4)
    rotation = torch.linalg.qr(torch.randn(6, 6))[0][:4]  # 4 -> 6, keeps inner products
    features = 3.0 * embeddings @ rotation
    aligned = structure_alignment(features, features, embeddings, embeddings, options)
    assert float(aligned) == pytest.approx(0, abs=1e-5)
    other = torch.randn(5, 6)
    assert float(structure_alignment(other, other, embeddings, embeddings, options)) > 0.01


def test_structure_alignment_between_two_sets_matches_a_loop():
    rows, cols, row_e, col_e = torch.randn(3, 5), torch.randn(2, 5), torch.randn(3, 4), torch.randn(2, 4)
    total = 0.0
    for i in range(3):
        v = torch.stack([F.cosine_similarity(rows[i], cols[j], dim=0) for j in range(2)])
        s = torch.stack([F.cosine_similarity(row_e[i], col_e[j], dim=0) for j in range(2)])
        p, t = (v / 0.1).softmax(0), (s / 0.1).softmax(0)
        total += float((t * (t.log() - p.log())).sum())
    got = structure_alignment(rows, cols, row_e, col_e, DivergenceOptions(0.1))
    assert float(got) == pytest.approx(total / 3, abs=1e-5)


def test_relation_of_a_hand_computed_example():
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    classes = torch.eye(2)
    logits = dot_relation(features, classes, temperature=0.5)
    torch.testing.assert_close(logits, torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-4))) / 2
    assert float(relation(logits, torch.tensor([0, 1]))) == pytest.approx(expected, abs=1e-6)


def test_moment_divergence_against_the_closed_form_and_at_its_minimum():
    x = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # mean 0, biased variance 1
    assert float(moment_divergence(x)) == pytest.approx(0, abs=1e-6)
    y = torch.randn(7, 3)
    q = torch.distributions.Normal(y.mean(0), y.std(0, unbiased=False))
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(moment_divergence(y), expected)
    assert float(moment_divergence(torch.tensor([[2.0, 0.0]]))) == pytest.approx(1.0)
    constant = torch.ones(3, 2, requires_grad=True)
    moment_divergence(constant).backward()
    assert torch.isfinite(constant.grad).all()


def test_posterior_divergence_against_torch():
    mean, log_variance = torch.randn(4, 3), torch.randn(4, 3)
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(posterior_divergence(mean, log_variance), expected)


def test_noise_divergence_is_the_mean_over_all_entries():
    features, noise = torch.randn(3, 4), torch.randn(3, 4)
    t, p = (noise / 0.1).softmax(1), (features / 0.1).softmax(1)
    expected = (torch.special.xlogy(t, t) - t * (features / 0.1).log_softmax(1)).sum() / 12
    assert p.shape == t.shape
    torch.testing.assert_close(noise_divergence(features, noise, temperature=0.1), expected, rtol=1e-4, atol=1e-5)


def test_reconstruction_is_the_mean_absolute_difference():
    got = reconstruction(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]]))
    assert float(got) == pytest.approx(1.5)


def test_weighted_cross_entropy_equals_torch_with_class_weights():
    logits, labels, class_weights = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 3, 1]), torch.tensor([1.0, 5, 0.1, 2])
    expected = F.cross_entropy(logits, labels, weight=class_weights)
    torch.testing.assert_close(weighted_cross_entropy(logits, labels, class_weights[labels]), expected)
    assert float(weighted_cross_entropy(logits[:0], labels[:0], class_weights[:0])) == 0


@pytest.mark.parametrize(
    "loss", [moment_divergence, lambda x: posterior_divergence(x, x), lambda x: reconstruction(x, x)]
)
def test_losses_of_no_rows_are_zero_with_a_gradient(loss):
    x = torch.zeros(0, 3, requires_grad=True)
    value = loss(x)
    assert float(value.detach()) == 0
    value.backward()


def test_losses_are_finite_in_half_precision():
    x, y = torch.randn(4, 8).half() * 10, torch.randn(4, 8).half() * 10
    assert mmd(x, y, MmdOptions(SIGMAS)).dtype == torch.float32
    options = DivergenceOptions(0.1)
    assert torch.isfinite(structure_alignment(x, x, y, y, options))
