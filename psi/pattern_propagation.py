# SPDX-License-Identifier: Apache-2.0
"""Contextual pattern propagation as pure functions: each node gathers its neighbors on every level (PSI, Eq. 2 to 4).

A node is a cell of the destination level. On each level it sees the cells within a radius of the one that lies at its
place, and one softmax over the neighbors of all levels weights them. Four back ends compute the same numbers:

* ``dense``: all cells of the rows in reach in one product, the rest masked. Few, large operations.
* ``banded``: each row of nodes against the 2 r + 1 rows of cells in reach, all rows in one batched product.
* ``shift``: one view of the map per neighbor, slicing and elementwise operations alone; what exporters understand.
* ``unfold``: every neighbor of every node laid out, C K N numbers. Memory grows with it: the oracle of the tests.

Shape letters: B images, C channels of a value, D of a key, h w destination, h_l w_l level l, K neighbors of a node,
L levels, N = h w nodes, r reach of a window in cells.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from padding.errors import check_choice
from psi.pattern_backends import BACKENDS, Level
from psi.pattern_graph import PatternGraph

SIMILARITIES = ("inner", "cosine", "euclidean")
# Up to so many nodes one product, most of it masked, takes no longer than many small ones (measured on a CPU, C = 256).
_DENSE_NODES = 256


class Propagation(NamedTuple):
    """What the nodes gathered.

    Attributes:
        aggregates: for each level (B, C, h, w), its neighbors weighted by the joint softmax; 0 for a node without a
            neighbor, which only padding has.
        self_weight: (B, h, w), the share of the node itself; None unless observed. Without gradient.
        entropy: (B, h, w) in [0, log K], of all of the node's weights; likewise.
    """

    aggregates: tuple[Tensor, ...]
    self_weight: Tensor | None
    entropy: Tensor | None


def edge_terms(levels: Sequence[Tensor], destination: int, similarity: str = "inner") -> tuple[Tensor, list[Tensor]]:
    """Vectors whose inner products are the similarities a_ij of nodes and cells, up to a constant of each node (Eq. 4).

    Args:
        levels: for each (B, C, h_l, w_l) float; computed in float32 or better.
        destination: index of the nodes' level.
        similarity: "inner", the paper's; "cosine", the same of vectors brought to length sqrt(C), so that one scale
            fits both; "euclidean", minus the squared distance: unlike the distance it has a gradient at 0, where the
            node meets itself.

    Returns:
        Query (B, D, h, w) and the keys of each level, which are the levels themselves for "inner".

    Raises:
        ConfigError: for an unknown similarity.
    """
    check_choice("CPP.SIMILARITY", similarity, SIMILARITIES)
    if similarity == "inner":
        return levels[destination], list(levels)
    wide = [maps.to(torch.promote_types(maps.dtype, torch.float32)) for maps in levels]
    if similarity == "cosine":
        # The constant bounds the gradient where a ReLU left nothing of a cell.
        keys = [maps * (maps.square().mean(dim=1, keepdim=True) + 1e-5).rsqrt() for maps in wide]
        return keys[destination], keys
    # -|q - z|^2 = <(2 q, -1), (z, |z|^2)> - |q|^2
    keys = [torch.cat([maps, maps.square().sum(dim=1, keepdim=True)], dim=1) for maps in wide]
    nodes = wide[destination]
    return torch.cat([2 * nodes, -torch.ones_like(nodes[:, :1])], dim=1), keys


def choose_backend(num_nodes: int) -> str:
    """Name of the back end for N nodes: the one that suits the size, or what exporters understand."""
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return "shift"
    # Small maps: one product of all with all; large ones: bands of rows.
    return "dense" if num_nodes <= _DENSE_NODES else "banded"


def propagate_patterns(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    graph: PatternGraph,
    *,
    usable: Sequence[Tensor] | None = None,
    backend: str = "auto",
    observe: bool = False,
) -> Propagation:
    """Gather each node's neighbors of all levels, weighted by softmax_j <query_i, key_j> (Eq. 4 without W and b).

    Computed in float32 or better, whatever autocast says: the weights of a joint softmax span levels.

    Args:
        query: (B, D, h, w) float, of the nodes; any scale of the logits is in it.
        keys: for each level (B, D, h_l, w_l) float.
        values: for each level (B, C, h_l, w_l) float; the very tensor in ``keys`` where they are the same.
        graph: windows of the levels.
        usable: for each level (B, h_l, w_l) bool, False for cells that are nobody's neighbor (padding); None: all are.
            Places outside the map are never neighbors.
        backend: "dense", "banded", "shift", "unfold" or "auto".
        observe: also return the self weight and the entropy.

    Returns:
        What the nodes gathered, in the dtype of the computation.

    Raises:
        ConfigError: for an unknown back end or levels whose sizes do not fit the destination.
    """
    check_choice("CPP.BACKEND", backend, ("auto", *BACKENDS))
    _check_sizes(query, keys, graph)
    if backend == "auto":
        backend = choose_backend(query.shape[2] * query.shape[3])
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        query = query.to(dtype)
        levels = []
        for level, (key, value, window) in enumerate(zip(keys, values, graph.windows, strict=True)):
            wide_key = key.to(dtype)
            # Keys and values that are one tensor stay one: back ends then lay it out and read it once.
            wide_value = wide_key if value is key else value.to(dtype)
            mask = usable[level] if usable is not None else key.new_ones(key[:, 0].shape, dtype=torch.bool)
            levels.append(Level(window, wide_key, wide_value, mask))
        gathered = BACKENDS[backend](query, levels, observe)
        if not observe:
            return Propagation(gathered.aggregates, None, None)
        with torch.no_grad():
            node_level = levels[graph.destination]
            # <q_i, k_i> minus the logarithm of the denominator: the node's own share, for any back end.
            self_weight = ((query * node_level.keys).sum(dim=1) - gathered.log_normalizer).exp()
            return Propagation(gathered.aggregates, self_weight.where(node_level.usable, 0.0), gathered.entropy)


def _check_sizes(query: Tensor, keys: Sequence[Tensor], graph: PatternGraph) -> None:
    if len(keys) != len(graph.windows) or keys[graph.destination].shape != query.shape:
        raise ValueError(
            f"{len(keys)} levels with destination {tuple(keys[graph.destination].shape)} do not fit a graph of "
            f"{len(graph.windows)} levels and nodes {tuple(query.shape)}; pass every level of the graph, in its order"
        )
    for level, (key, window) in enumerate(zip(keys, graph.windows, strict=True)):
        last = [(size - 1) * window.finer // window.coarser for size in query.shape[2:]]
        if any(cell >= size for cell, size in zip(last, key.shape[2:], strict=True)):
            raise ValueError(
                f"level {level} is {tuple(key.shape[2:])} but the last of {tuple(query.shape[2:])} nodes lies at its "
                f"cell {tuple(last)}; pass maps of one image, of sizes that come from halving and rounding up"
            )
