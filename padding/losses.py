# SPDX-License-Identifier: Apache-2.0
"""The losses of PADing as pure functions (He et al., CVPR 2023, sections 3.2 to 3.4).

Every function takes and returns tensors, computes in float32 whatever the caller's precision, returns a scalar, and is
zero (with a gradient path) for an empty set of rows. Weights are applied by the caller.

Shape letters: M real features, N synthetic features, D their width, E width of class embeddings, C classes scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from padding.errors import ConfigError, check_choice

BANDWIDTHS = ("variance", "sigma", "median")
GROUPINGS = ("batch", "per_class", "joint")
DIRECTIONS = ("semantic_to_visual", "visual_to_semantic")
REDUCTIONS = ("row_mean", "numel")
# Below this a square root or a logarithm has no useful gradient; far above float32's smallest normal number.
EPSILON = 1e-12


@dataclass(frozen=True)
class MmdOptions:
    """How the maximum mean discrepancy is measured.

    Attributes:
        sigmas: kernel widths, > 0; ``bandwidth`` says what they mean.
        bandwidth: ``variance``, ``sigma`` or ``median`` (see ``_kernel_variances``).
        sqrt: take the root of the sum over kernels, its argument clamped at 1e-12.
        unbiased: leave the diagonals out of the two within-set means (the sum may become negative).
        grouping: ``batch`` compares all rows at once; ``per_class`` is the mean of one discrepancy per class found on
            both sides; ``joint`` multiplies the kernel by [same class], i.e. compares the joint distributions.
        normalize: means over pairs of rows; without, their plain sums, over all groups.

    Raises:
        ConfigError: for an unknown option or widths that are not positive.
    """

    sigmas: tuple[float, ...]
    bandwidth: str = "variance"
    sqrt: bool = True
    unbiased: bool = False
    grouping: str = "batch"
    normalize: bool = True

    def __post_init__(self) -> None:
        check_choice("MMD bandwidth", self.bandwidth, BANDWIDTHS)
        check_choice("MMD grouping", self.grouping, GROUPINGS)
        if not self.sigmas or min(self.sigmas) <= 0:
            raise ConfigError(f"MMD sigmas are {self.sigmas}; expected at least one, all positive.")


@dataclass(frozen=True)
class DivergenceOptions:
    """How two score matrices are compared row by row.

    Attributes:
        temperature: divisor of both, > 0; the paper writes tau.
        direction: ``semantic_to_visual`` is KL(semantic || visual), ``visual_to_semantic`` the reverse.
        reduction: ``row_mean`` divides the sum by the number of rows, ``numel`` by that of entries (as released).

    Raises:
        ValueError: for an unknown option.
    """

    temperature: float
    direction: str = "semantic_to_visual"
    reduction: str = "row_mean"

    def __post_init__(self) -> None:
        check_choice("KL direction", self.direction, DIRECTIONS)
        check_choice("KL reduction", self.reduction, REDUCTIONS)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(m, D), (n, D) -> (m, n) squared Euclidean distances, >= 0."""
    # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b: one product in place of (m, n, D) differences. Rounding may leave it below 0.
    products = a.square().sum(1)[:, None] + b.square().sum(1)[None, :] - 2.0 * a @ b.T
    return products.clamp_min(0.0)


def _kernel_variances(distances: Tensor, sigmas: Sequence[float], bandwidth: str) -> list[Tensor | float]:
    """Variances v of exp(-d / 2v), one for each entry of ``sigmas``.

    ``variance`` takes the entries as v (released code), ``sigma`` squares them (paper), ``median`` uses only their
    ratios: it scales them so that their geometric mean is the median squared distance between distinct rows.
    """
    if bandwidth == "variance":
        return list(sigmas)
    if bandwidth == "sigma":
        return [sigma * sigma for sigma in sigmas]
    n = len(distances)
    # Distinct rows only: the zeros of the diagonal would pull the median down.
    pairs = distances.detach()[torch.ones(n, n, dtype=torch.bool, device=distances.device).triu(1)]
    # Two samples at least: one real and one synthetic row always form a pair.
    median = pairs.median().clamp_min(EPSILON)
    logs = torch.tensor(sigmas, dtype=torch.float64).log()
    return [median * float(scale) for scale in (logs - logs.mean()).exp()]


def _normalised_blocks(
    kernel: Tensor, groups_a: Tensor, groups_b: Tensor, *, within: bool, unbiased: bool
) -> tuple[Tensor, Tensor]:
    """Sum and number of the kernel's entries inside each group.

    Args:
        kernel: (m, n) kernel values.
        groups_a: (m, G) one-hot float membership of the rows.
        groups_b: (n, G) one-hot float membership of the columns.
        within: rows and columns are the same samples.
        unbiased: leave the diagonal out, except in groups of one sample, which have nothing else.

    Returns:
        (G,) sums and (G,) counts of pairs.
    """
    # (m, G) * ((m, n) @ (n, G)): entry (i, g) is the kernel's sum from row i to the columns of its group.
    sums = (groups_a * (kernel @ groups_b)).sum(0)
    sizes_a, sizes_b = groups_a.sum(0), groups_b.sum(0)
    counts = sizes_a * sizes_b
    if within and unbiased:
        diagonal = (groups_a * kernel.diagonal()[:, None]).sum(0)
        several = (sizes_a > 1).to(kernel.dtype)
        sums = sums - several * diagonal
        counts = counts - several * sizes_a
    return sums, counts


def _memberships(
    real_labels: Tensor | None, fake_labels: Tensor | None, real: Tensor, fake: Tensor, grouping: str
) -> tuple[Tensor, Tensor]:
    """One-hot membership of real and synthetic rows in the groups that hold both; one group for ``batch``."""
    if grouping == "batch":
        return real.new_ones(len(real), 1), fake.new_ones(len(fake), 1)
    if real_labels is None or fake_labels is None:
        raise ValueError(f"Grouping '{grouping}' needs the labels of the real and of the synthetic features; got None.")
    classes = torch.unique(real_labels)
    # Groups that only one side has say nothing about the distance of the two.
    classes = classes[torch.isin(classes, fake_labels)]
    real_groups = (real_labels[:, None] == classes).to(real.dtype)
    fake_groups = (fake_labels[:, None] == classes).to(fake.dtype)
    return real_groups, fake_groups


def mmd(
    real: Tensor,
    fake: Tensor,
    options: MmdOptions,
    *,
    real_labels: Tensor | None = None,
    fake_labels: Tensor | None = None,
) -> Tensor:
    """Maximum mean discrepancy between real and synthetic features (PADing, Eq. 2), summed over Gaussian kernels.

    Args:
        real: (M, D) float.
        fake: (N, D) float.
        options: kernels, form and grouping.
        real_labels: (M,) int64, needed unless the grouping is ``batch``.
        fake_labels: (N,) int64, likewise.

    Returns:
        Scalar; 0 for identical sets (1e-6 with ``sqrt``, the root of the clamp) and for empty ones.

    Raises:
        ValueError: when the grouping needs labels and there are none.
    """
    real, fake = real.float(), fake.float()
    if len(real) == 0 or len(fake) == 0:
        # A sum over nothing keeps the step's graph connected: every parameter gets a gradient, of 0.
        return real.sum() * 0.0 + fake.sum() * 0.0
    real_groups, fake_groups = _memberships(real_labels, fake_labels, real, fake, options.grouping)
    if real_groups.shape[1] == 0:
        return fake.sum() * 0.0
    # Matrix products of squares lose digits in half precision, also under the caller's autocast.
    with torch.autocast(real.device.type, enabled=False):
        # (m + n, m + n) kernel of real and synthetic rows together, the sum over all widths.
        everything = torch.cat([real, fake])
        distances = _squared_distances(everything, everything)
        variances = _kernel_variances(distances, options.sigmas, options.bandwidth)
        kernel = sum((torch.exp(distances / (-2.0 * v)) for v in variances), torch.zeros_like(distances))
        m, unbiased = len(real), options.unbiased
        # E[k(x, x')], E[k(y, y')] and E[k(x, y)] of Eq. 2, each as sums (G,) and counts (G,).
        parts = [
            _normalised_blocks(kernel[:m, :m], real_groups, real_groups, within=True, unbiased=unbiased),
            _normalised_blocks(kernel[m:, m:], fake_groups, fake_groups, within=True, unbiased=unbiased),
            _normalised_blocks(kernel[:m, m:], real_groups, fake_groups, within=False, unbiased=unbiased),
        ]
        if not options.normalize:
            terms = [sums.sum()[None] for sums, _ in parts]
        elif options.grouping == "joint":
            # Pairs of different classes have the kernel 0 and still count.
            totals = (m * m, len(fake) ** 2, m * len(fake))
            terms = [sums.sum()[None] / total for (sums, _), total in zip(parts, totals, strict=True)]
        else:
            terms = [sums / counts for sums, counts in parts]
        squared = terms[0] + terms[1] - 2.0 * terms[2]
        # The slope of the root is unbounded at 0, hence the clamp.
        return (squared.clamp_min(EPSILON).sqrt() if options.sqrt else squared).mean()


def row_divergence(visual: Tensor, semantic: Tensor, options: DivergenceOptions) -> Tensor:
    """KL divergence between the row-wise softmax distributions of two score matrices (D_KL of PADing, Eq. 6).

    Args:
        visual: (n, m) float scores.
        semantic: (n, m) float scores, the target; the caller detaches it if it shall not move.
        options: temperature, direction and reduction.

    Returns:
        Scalar >= 0; 0 iff all rows agree up to a constant.

    Raises:
        ValueError: if the shapes differ.
    """
    if visual.shape != semantic.shape:
        raise ValueError(f"Row divergence got scores of shapes {tuple(visual.shape)} and {tuple(semantic.shape)}.")
    if visual.numel() == 0:
        return visual.float().sum() * 0.0
    # Softmax over columns: each row is a distribution, tau its sharpness.
    log_visual = F.log_softmax(visual.float() / options.temperature, dim=1)
    log_semantic = F.log_softmax(semantic.float() / options.temperature, dim=1)
    source, target = (log_visual, log_semantic)
    if options.direction == "visual_to_semantic":
        source, target = target, source
    # kl_div(input, target) is KL(target || input), both as logarithms.
    total = F.kl_div(source, target, reduction="sum", log_target=True)
    return total / (len(visual) if options.reduction == "row_mean" else visual.numel())


def structure_alignment(
    row_features: Tensor,
    col_features: Tensor,
    row_embeddings: Tensor,
    col_embeddings: Tensor,
    options: DivergenceOptions,
) -> Tensor:
    """Semantic-related alignment (PADing, Eq. 6): visual similarities follow the semantic ones, row by row.

    Features and embeddings need not have the same width: only their cosine similarities meet.

    Args:
        row_features: (n, D) float, need not be normalised.
        col_features: (m, D) float.
        row_embeddings: (n, E) float, class embeddings of the rows.
        col_embeddings: (m, E) float, class embeddings of the columns.
        options: temperature, direction and reduction.

    Returns:
        Scalar >= 0; 0 iff both similarity structures agree.
    """
    with torch.autocast(row_features.device.type, enabled=False):
        # (n, m) cosines of each side: the rows become distributions over the columns.
        visual = F.normalize(row_features.float(), dim=1) @ F.normalize(col_features.float(), dim=1).T
        semantic = F.normalize(row_embeddings.float(), dim=1) @ F.normalize(col_embeddings.float(), dim=1).T
        return row_divergence(visual, semantic, options)


def dot_relation(features: Tensor, embeddings: Tensor, *, temperature: float) -> Tensor:
    """Logits of the relation loss by inner products (PADing, Eq. 3): (n, E), (C, E) -> (n, C)."""
    with torch.autocast(features.device.type, enabled=False):
        # float32 under autocast too: at half precision the sum over E loses digits.
        return features.float() @ embeddings.float().T / temperature


def relation(logits: Tensor, columns: Tensor, *, reduction: str = "mean") -> Tensor:
    """Cross-entropy of features among classes, L_R (PADing, Eq. 3).

    Args:
        logits: (n, C) float scores of n features for C classes.
        columns: (n,) int64, the column of the true class of each row.
        reduction: ``mean`` over rows, or their ``sum``.

    Returns:
        Scalar >= 0.
    """
    mean = weighted_cross_entropy(logits, columns, torch.ones_like(columns, dtype=torch.float32))
    return mean * len(columns) if reduction == "sum" else mean


def moment_divergence(features: Tensor, *, reduction: str = "mean") -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) of each channel over the batch; L_U as in the paper's text (Eq. 4).

    Args:
        features: (n, D) float. One row alone has no variance: only its mean is then pulled to zero.
        reduction: ``mean`` over channels; ``sum`` over channels, once for each row, as Eq. 4 adds up samples.

    Returns:
        Scalar >= 0; 0 iff each channel has mean 0 and (biased) variance 1.
    """
    features = features.float()
    if len(features) == 0:
        return features.sum() * 0.0
    mean = features.mean(0)
    if len(features) == 1:
        divergence = 0.5 * mean.square()
    else:
        # KL(N(m, v) || N(0, 1)) = (m^2 + v - 1 - log v) / 2 of each channel.
        variance = features.var(0, unbiased=False)
        divergence = 0.5 * (mean.square() + variance - 1.0 - variance.clamp_min(EPSILON).log())
    return divergence.sum() * len(features) if reduction == "sum" else divergence.mean()


def posterior_divergence(mean: Tensor, log_variance: Tensor, *, reduction: str = "mean") -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) of each entry; L_U in its variational form.

    Args:
        mean: (n, D) float.
        log_variance: (n, D) float.
        reduction: ``mean`` over all entries, or their ``sum``.
    """
    mean, log_variance = mean.float(), log_variance.float()
    if mean.numel() == 0:
        return mean.sum() * 0.0
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
    return divergence.sum() if reduction == "sum" else divergence.mean()


def noise_divergence(features: Tensor, noise: Tensor, *, temperature: float, reduction: str = "mean") -> Tensor:
    """L_U as released: each row's softmax over channels against that of a random vector.

    Args:
        features: (n, D) float.
        noise: (n, D) float, drawn from N(0, 1) by the caller.
        temperature: divisor of both.
        reduction: ``mean`` over all entries, or their ``sum``.
    """
    mean = row_divergence(features, noise, DivergenceOptions(temperature, "semantic_to_visual", "numel"))
    return mean * features.numel() if reduction == "sum" else mean


def reconstruction(features: Tensor, decoded: Tensor, *, reduction: str = "mean") -> Tensor:
    """Absolute difference of (n, D) features and their reconstruction, L_recon (PADing, Eq. 5).

    Args:
        features: (n, D) float.
        decoded: (n, D) float.
        reduction: ``mean`` over all entries, or their ``sum``.
    """
    if features.numel() == 0:
        return decoded.float().sum() * 0.0
    return F.l1_loss(decoded.float(), features.float(), reduction=reduction)


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy with one weight for each row, divided by the sum of the weights.

    Args:
        logits: (n, C) float; -inf for classes out of reach.
        labels: (n,) int64 in [0, C).
        weights: (n,) float >= 0.

    Returns:
        Scalar >= 0; 0 when there is no row or no weight.
    """
    logits = logits.float()
    if len(logits) == 0:
        return logits.sum() * 0.0
    losses = F.cross_entropy(logits, labels, reduction="none")
    return (losses * weights).sum() / weights.sum().clamp_min(EPSILON)
