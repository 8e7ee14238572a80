# SPDX-License-Identifier: Apache-2.0
"""Tests of pattern propagation: every back end against a loop over nodes, borders, padding, precision, memory."""

import itertools
import math

import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn

from psi import pattern_backends
from psi.pattern_graph import PatternGraph
from psi.pattern_propagation import BACKENDS, Propagation, choose_backend, edge_terms, propagate_patterns

STRIDES = (4, 8, 16, 16)
RADII = (1, 1, 1, 4)


def draw(
    pixels: tuple[int, int], *, channels: int = 4, images: int = 2, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Random features of an image, by the sizes that a residual network gives them."""
    sizes = [(-(-pixels[0] // stride), -(-pixels[1] // stride)) for stride in STRIDES]
    return [torch.randn(images, channels, *size, dtype=dtype).requires_grad_() for size in sizes]


def propagate(levels: list[Tensor], graph: PatternGraph, backend: str, **options) -> Propagation:
    query = levels[graph.destination] * levels[0].shape[1] ** -0.5
    return propagate_patterns(query, levels, levels, graph, backend=backend, **options)


def with_gradients(found: Propagation, levels: list[Tensor]) -> list[Tensor]:
    """Everything that comes out, and the gradients of a fixed random functional of it."""
    generator = torch.Generator().manual_seed(1)
    probes = [torch.randn(maps.shape, generator=generator).to(maps) for maps in found.aggregates]
    observed = [maps for maps in (found.self_weight, found.entropy) if maps is not None]
    return [*found.aggregates, *observed, *torch.autograd.grad(found.aggregates, levels, probes)]


def assert_equal(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def neighbors_of(
    place: tuple[int, int], level: int, own: int, size: tuple[int, int], radius: float
) -> list[tuple[int, int, int]]:
    """Equations 2 and 3 read aloud: (level, row, column) of strict squares."""
    row, column = (math.floor(coordinate * own / STRIDES[level]) for coordinate in place)
    cells = itertools.product(range(size[0]), range(size[1]))
    return [(level, y, x) for y, x in cells if max(abs(row - y), abs(column - x)) < radius]


def loop_over_nodes(
    levels: list[Tensor], destination: int, radii: tuple[float, ...], usable: list[Tensor]
) -> Propagation:
    """Equation 4 for one node and neighbor at a time; inner product over sqrt(C)."""
    images, channels, height, width = levels[destination].shape
    aggregates = [levels[0].new_zeros(images, channels, height, width) for _ in levels]
    self_weight, entropy = (levels[0].new_zeros(images, height, width) for _ in range(2))
    for b, y, x in itertools.product(range(images), range(height), range(width)):
        around = [
            neighbors_of((y, x), level, STRIDES[destination], (maps.shape[2], maps.shape[3]), radii[level])
            for level, maps in enumerate(levels)
        ]
        neighbors = [place for places in around for place in places if usable[place[0]][b, place[1], place[2]]]
        if not neighbors:
            continue
        values = [levels[level][b, :, row, column] for level, row, column in neighbors]
        weights = (torch.stack(values) @ levels[destination][b, :, y, x] / math.sqrt(channels)).softmax(dim=0)
        entropy[b, y, x] = -(weights * weights.log()).sum().detach()
        for weight, value, neighbor in zip(weights, values, neighbors, strict=True):
            aggregates[neighbor[0]][b, :, y, x] += weight * value
            if neighbor == (destination, y, x):
                self_weight[b, y, x] = weight.detach()
    return Propagation(tuple(aggregates), self_weight, entropy)


@pytest.mark.parametrize("destination", range(4))
def test_all_back_ends_equal_the_loop(destination: int) -> None:
    levels = draw((21, 37), channels=3, images=1)
    radii = (2, 1, 1.5, 3)
    usable = [torch.rand(maps[:, 0].shape) < 0.8 for maps in levels]
    usable[destination][:, 0, 0] = False
    graph = PatternGraph.of(STRIDES, radii, destination=destination)
    wanted = with_gradients(loop_over_nodes(levels, destination, radii, usable), levels)
    for backend in BACKENDS:
        found = with_gradients(propagate(levels, graph, backend, usable=usable, observe=True), levels)
        assert_equal(found, wanted, 1e-10)


@pytest.mark.parametrize("destination", range(4))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_back_ends_agree_on_odd_sizes(destination: int, dtype: torch.dtype, tolerance: float) -> None:
    levels = draw((281, 500), dtype=dtype)
    graph = PatternGraph.of(STRIDES, RADII, destination=destination)
    wanted = with_gradients(propagate(levels, graph, "unfold", observe=True), levels)
    for backend in ("dense", "banded", "shift"):
        assert_equal(with_gradients(propagate(levels, graph, backend, observe=True), levels), wanted, tolerance)


@pytest.mark.parametrize("destination", [0, 1, 3])
@pytest.mark.parametrize(
    ("radii", "distance", "inclusive"),
    [((1, 1, 1, 4), "chebyshev", True), ((3, 2, 2, 3), "l1", False), ((5, 2, 1, 2.5), "l2", True)],
)
def test_back_ends_agree_for_every_window(
    destination: int, radii: tuple[float, ...], distance: str, inclusive: bool
) -> None:
    levels = draw((70, 43))
    graph = PatternGraph.of(STRIDES, radii, destination=destination, distance=distance, inclusive=inclusive)
    wanted = with_gradients(propagate(levels, graph, "unfold", observe=True), levels)
    for backend in ("dense", "banded", "shift"):
        assert_equal(with_gradients(propagate(levels, graph, backend, observe=True), levels), wanted, 1e-10)


@pytest.mark.parametrize("backend", ["dense", "banded"])
@pytest.mark.parametrize("destination", [0, 3])
def test_pieces_change_nothing(backend: str, destination: int, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = draw((130, 71))
    graph = PatternGraph.of(STRIDES, (1, 2, 1, 3), destination=destination)
    whole = with_gradients(propagate(levels, graph, backend, observe=True), levels)
    recomputed = []
    original = pattern_backends.checkpoint
    monkeypatch.setattr(pattern_backends, "_CHUNK_LOGITS", 500)
    monkeypatch.setattr(pattern_backends, "checkpoint", lambda f, *a, **k: recomputed.append(a) or original(f, *a, **k))
    assert_equal(with_gradients(propagate(levels, graph, backend, observe=True), levels), whole, 1e-12)
    assert len(recomputed) > 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str) -> None:
    graph = PatternGraph.of((8, 16, 32), (2, 2, 1.5), destination=1)
    inputs = [torch.randn(1, 2, *size, dtype=torch.float64).requires_grad_() for size in ((3, 4), (2, 2), (1, 1))]
    assert torch.autograd.gradcheck(lambda *maps: propagate(list(maps), graph, backend).aggregates, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_places_outside_the_image_are_no_neighbors(backend: str) -> None:
    levels = draw((16 * 9, 16 * 9))
    graph = PatternGraph.of(STRIDES, RADII, destination=3)
    # Without a preference every neighbor has the same weight: 49 + 3 inside, 16 + 3 in the corner, 28 + 3 at an edge.
    found = propagate_patterns(torch.zeros_like(levels[3]), levels, levels, graph, backend=backend, observe=True)
    for (row, column), neighbors in {(4, 4): 52, (0, 0): 19, (8, 8): 19, (4, 0): 31, (3, 4): 52, (2, 4): 45}.items():
        assert found.self_weight[0, row, column].item() == pytest.approx(1 / neighbors)
        assert found.entropy[0, row, column].item() == pytest.approx(math.log(neighbors))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_softmax_over_all_levels(backend: str) -> None:
    levels = draw((50, 61))
    graph = PatternGraph.of(STRIDES, RADII, destination=3)
    ones = [torch.ones_like(maps[:, :1]) for maps in levels]
    shares = propagate_patterns(levels[3], levels, ones, graph, backend=backend).aggregates
    torch.testing.assert_close(sum(shares), ones[3])
    order = [2, 0, 3, 1]
    permuted = PatternGraph.of([STRIDES[i] for i in order], [RADII[i] for i in order], destination=order.index(3))
    moved = propagate_patterns(levels[3], [levels[i] for i in order], [ones[i] for i in order], permuted)
    for place, level in enumerate(order):
        torch.testing.assert_close(moved.aggregates[place], shares[level])


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_changes_nothing(backend: str) -> None:
    graph = PatternGraph.of(STRIDES, (2, 1, 3, 4), destination=3)
    levels = draw((70, 100))
    alone = propagate(levels, graph, backend, observe=True)
    padded = [maps.detach() * 10 for maps in draw((112, 160))]
    usable = [torch.zeros(maps[:, 0].shape, dtype=torch.bool) for maps in padded]
    for maps, larger, mask in zip(levels, padded, usable, strict=True):
        larger[:, :, : maps.shape[2], : maps.shape[3]] = maps.detach()
        mask[:, : maps.shape[2], : maps.shape[3]] = True
    found = propagate(padded, graph, backend, usable=usable, observe=True)
    height, width = levels[3].shape[2:]
    for ours, theirs in zip(found.aggregates, alone.aggregates, strict=True):
        torch.testing.assert_close(ours[:, :, :height, :width], theirs)
    torch.testing.assert_close(found.self_weight[:, :height, :width], alone.self_weight)
    torch.testing.assert_close(found.entropy[:, :height, :width], alone.entropy)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_node_without_neighbors_gathers_nothing(backend: str) -> None:
    graph = PatternGraph.of((16, 16, 16), (2, 3, 1), destination=0)
    levels = [torch.randn(1, 3, 6, 6, dtype=torch.float64).requires_grad_() for _ in range(3)]
    usable = [torch.zeros(1, 6, 6, dtype=torch.bool) for _ in levels]
    usable[0][0, 0, 0] = True
    found = propagate(levels, graph, backend, usable=usable, observe=True)
    assert all(maps[..., 4, 4].eq(0).all() for maps in (*found.aggregates, found.self_weight, found.entropy))
    torch.testing.assert_close(found.aggregates[0][..., 1, 1], levels[0][..., 0, 0])
    for gradient in torch.autograd.grad(sum(maps.sum() for maps in found.aggregates), levels):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_logits_stay_finite(backend: str) -> None:
    levels = draw((70, 43), dtype=torch.float32)
    graph = PatternGraph.of(STRIDES, RADII, destination=3)
    query = levels[3] * 1e4
    found = propagate_patterns(query, levels, levels, graph, backend=backend, observe=True)
    assert all(maps.isfinite().all() for maps in with_gradients(found, levels))


@pytest.mark.parametrize("backend", BACKENDS)
def test_softmax_is_in_float32_under_autocast(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern_backends, "_CHUNK_LOGITS", 2000)  # what is recomputed must be as precise
    levels = draw((100, 71), channels=16, dtype=torch.float32)
    graph = PatternGraph.of(STRIDES, RADII, destination=3)
    wanted = with_gradients(propagate(levels, graph, backend, observe=True), levels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = propagate(levels, graph, backend, observe=True)
    assert_equal(with_gradients(found, levels), wanted, 1e-6)
    # Half precision from a lateral convolution is widened first: 30^2 C is beyond its largest number.
    halves = [(maps.detach() * 30).half() for maps in levels]
    found = propagate_patterns(halves[3], halves, halves, graph, backend=backend)
    assert all(maps.dtype == torch.float32 and maps.isfinite().all() for maps in found.aggregates)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_is_precise_at_full_width(backend: str) -> None:
    """Features as batch norm and ReLU leave them; a node outweighs its neighbors by about exp(5)."""
    levels = [torch.randn(1, 256, 9, 18, dtype=torch.float64).relu().requires_grad_() for _ in STRIDES]
    graph = PatternGraph.of((16, 16, 16, 16), RADII, destination=3)
    exact, single = (
        with_gradients(propagate([maps.to(dtype) for maps in levels], graph, backend), levels)
        for dtype in (torch.float64, torch.float32)
    )
    for ours, theirs in zip(single, exact, strict=True):
        assert (ours - theirs).abs().max() < 4e-6 * theirs.abs().max()


def weights_by_hand(levels: list[Tensor], similarity) -> Tensor:
    """Self weight on one level of 3 x 3 cells that all see each other."""
    nodes = levels[0][0].flatten(1).T
    scores = torch.stack([torch.stack([similarity(a, b) for b in nodes]) for a in nodes])
    return scores.softmax(dim=1).diagonal().view(1, 3, 3)


def test_similarities() -> None:
    levels = [torch.randn(1, 5, 3, 3, dtype=torch.float64)]
    graph = PatternGraph.of((16,), (3,), destination=0)
    expected = {
        "inner": lambda a, b: a @ b,
        "cosine": lambda a, b: 5 * nn.functional.cosine_similarity(a, b, dim=0),
        "euclidean": lambda a, b: -(a - b).square().sum(),
    }
    for name, similarity in expected.items():
        query, keys = edge_terms(levels, 0, name)
        found = propagate_patterns(query, keys, levels, graph, observe=True)
        torch.testing.assert_close(found.self_weight, weights_by_hand(levels, similarity), rtol=1e-4, atol=1e-4)
    assert edge_terms(levels, 0)[1][0] is levels[0]


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_similarities_have_gradients_where_a_relu_left_nothing(similarity: str) -> None:
    levels = [torch.zeros(1, 4, 3, 3, requires_grad=True)]
    query, keys = edge_terms(levels, 0, similarity)
    found = propagate_patterns(query, keys, levels, PatternGraph.of((16,), (2,), destination=0))
    assert torch.autograd.grad(found.aggregates[0].sum(), levels)[0].abs().max() < 10


def test_back_end_is_chosen_by_size() -> None:
    assert choose_backend(14 * 14) == "dense"
    assert choose_backend(32 * 32) == choose_backend(128 * 128) == "banded"
    levels = draw((281, 500), dtype=torch.float32)
    graph = PatternGraph.of(STRIDES, RADII, destination=3)
    chosen = propagate(levels, graph, "auto").aggregates
    assert all(torch.equal(a, b) for a, b in zip(chosen, propagate(levels, graph, "banded").aggregates, strict=True))


@pytest.mark.gpu
def test_accelerator_agrees_with_the_oracle() -> None:
    levels = draw((281, 500), channels=64, dtype=torch.float32)
    graph = PatternGraph.of(STRIDES, (1, 1, 2, 4), destination=3)
    wanted = with_gradients(propagate(levels, graph, "unfold", observe=True), levels)
    moved = [maps.detach().cuda().requires_grad_() for maps in levels]
    for backend in BACKENDS:
        found = with_gradients(propagate(moved, graph, backend, observe=True), moved)
        assert_equal([maps.cpu() for maps in found], wanted, 1e-4)


class Exported(nn.Module):
    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        graph = PatternGraph.of((8, 16), (1, 2), destination=1)
        return propagate_patterns(second, [first, second], [first, second], graph).aggregates


@pytest.mark.skipif(Version(torch.__version__) < Version("2.6"), reason="strict export of torch 2.4 takes no autocast")
def test_export_needs_no_products_of_views() -> None:
    inputs = (torch.randn(1, 3, 9, 11), torch.randn(1, 3, 5, 6))
    program = torch.export.export(Exported(), inputs)
    names = {str(node.target) for node in program.graph.nodes}
    assert not any("bmm" in name or "unfold" in name or "index" in name for name in names)
    for found, wanted in zip(program.module()(*inputs), Exported()(*inputs), strict=True):
        torch.testing.assert_close(found, wanted)


def kept_bytes(backend: str, levels: list[Tensor], graph: PatternGraph) -> int:
    """Memory that waits for the backward pass, inputs not counted."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = propagate(levels, graph, backend)
    inputs = {maps.untyped_storage().data_ptr() for maps in levels}
    assert found.aggregates[0].requires_grad
    return sum(size for place, size in storages.items() if place not in inputs)


def test_chosen_back_end_keeps_half_the_memory_of_unfold() -> None:
    levels = [torch.randn(1, 256, 64, 64).requires_grad_() for _ in STRIDES]
    graph = PatternGraph.of((16, 16, 16, 16), RADII, destination=3)
    assert kept_bytes("banded", levels, graph) < 0.25 * kept_bytes("unfold", levels, graph)


def test_misfits_are_named() -> None:
    levels = draw((64, 64))
    graph = PatternGraph.of(STRIDES, RADII, destination=3)
    with pytest.raises(ValueError, match=r"CPP\.BACKEND is 'fast'; expected one of auto, dense, banded"):
        propagate(levels, graph, "fast")
    with pytest.raises(ValueError, match=r"3 levels with destination .* graph of 4 levels"):
        propagate_patterns(levels[3], levels[1:], levels[1:], PatternGraph.of(STRIDES, RADII, destination=2))
    with pytest.raises(ValueError, match=r"level 0 is \(4, 4\) but the last of \(4, 4\) nodes lies at its cell \(12"):
        propagate([levels[3], *levels[1:]], graph, "auto")
    with pytest.raises(ValueError, match=r"CPP\.SIMILARITY is 'dot'"):
        edge_terms(levels, 3, "dot")
