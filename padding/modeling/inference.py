# SPDX-License-Identifier: Apache-2.0
"""From queries to semantic, panoptic and instance segmentation, as pure functions (MaskFormer, Sec. 3.4).

Each takes the class logits and mask logits of one image. Work over pixels is done by whole-tensor operations; decisions
over queries and segments are taken on the CPU, after one transfer of each, and what follows from them goes back without
waiting for the device.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from padding.data.best_class import best_class
from padding.modeling.batching import to_device

_MASK_PROB_THRESHOLD = 0.5
_AREA_EPS = 1e-6
_TILE = 1 << 13  # pixels


def widen_logits(logits: Tensor, class_ids: Sequence[int], num_classes: int) -> Tensor:
    """Move logits into a larger label space; classes the network does not know get -inf, probability 0.

    Args:
        logits: (..., C+1) float, no-object last.
        class_ids: (C,) ids of the C classes in the larger space, distinct, in [0, K).
        num_classes: K.

    Returns:
        (..., K+1) float, no-object last.

    Raises:
        ValueError: if the number of ids is not C.
    """
    if len(class_ids) != logits.shape[-1] - 1:
        raise ValueError(
            f"{len(class_ids)} class ids for logits of {logits.shape[-1] - 1} classes and no-object; give one "
            "id per class"
        )
    # A column for each class of the larger space, the last for no-object.
    columns = to_device(torch.tensor([*class_ids, num_classes]), logits.device)
    wide = logits.new_full((*logits.shape[:-1], num_classes + 1), float("-inf"))
    return wide.index_copy(-1, columns, logits)


def apply_seen_bias(logits: Tensor, seen_ids: Iterable[int], gamma: float) -> Tensor:
    """Subtract gamma from the logits of seen classes (calibrated stacking); unseen classes and no-object stay.

    Args:
        logits: (..., K+1) float.
        seen_ids: contiguous ids of the seen classes.
        gamma: bias; positive values favour unseen classes.

    Returns:
        (..., K+1) float.
    """
    bias = torch.zeros(logits.shape[-1], dtype=logits.dtype)
    bias[list(seen_ids)] = gamma
    return logits - to_device(bias, logits.device)


def keep_classes(logits: Tensor, class_ids: Iterable[int]) -> Tensor:
    """Leave only some classes; the probability of all others goes to no-object.

    The others still compete: a query that looks most like one of them becomes no-object, not the nearest class left.

    Args:
        logits: (..., K+1) float, no-object last.
        class_ids: contiguous ids of the classes to keep.

    Returns:
        (..., K+1) float: -inf for the other classes, the same probabilities for those kept.
    """
    others = torch.ones(logits.shape[-1], dtype=torch.bool)
    others[list(class_ids)] = False
    others = to_device(others, logits.device)
    kept = logits.masked_fill(others, float("-inf"))
    # log of the sum of their probabilities: kept ones stay what they were after the softmax.
    kept[..., -1] = logits.masked_fill(~others, float("-inf")).logsumexp(dim=-1)
    return kept


def semantic_inference(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Score of every class at every pixel: the masks summed, weighted by their class probabilities.

    Args:
        class_logits: (Q, K+1) float, no-object last.
        mask_logits: (Q, h, w) float.

    Returns:
        (K, h, w) float >= 0.
    """
    flat = mask_logits.flatten(1)
    scores = torch.empty(class_logits.shape[-1] - 1, flat.shape[1], device=flat.device)
    for tile, of_tile in _semantic_tiles(class_logits, flat):
        scores[:, tile] = of_tile
    return scores.view(-1, *mask_logits.shape[-2:])


def semantic_classes(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Class with the largest score of ``semantic_inference`` at every pixel, without all scores in memory at once.

    Args:
        class_logits: (Q, K+1) float, no-object last.
        mask_logits: (Q, h, w) float.

    Returns:
        (h, w) int64.
    """
    flat = mask_logits.flatten(1)
    labels = torch.empty(flat.shape[1], dtype=torch.int64, device=flat.device)
    for tile, of_tile in _semantic_tiles(class_logits, flat):
        labels[tile] = best_class(of_tile)
    return labels.view(mask_logits.shape[-2:])


def _semantic_tiles(class_logits: Tensor, flat: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Scores (K, tile) of some pixels of (Q, pixels) masks after the other."""
    # No-object is left out after the softmax: the classes do not share what it takes.
    weights = class_logits.float().softmax(dim=-1)[:, :-1].T
    for tile in _tiles(flat):
        yield tile, weights @ flat[:, tile].float().sigmoid()


def panoptic_queries(class_logits: Tensor, object_mask_threshold: float) -> Tensor:
    """Indices of the queries that take part in the panoptic merge: most likely a class, with enough probability.

    Args:
        class_logits: (Q, K+1) float.
        object_mask_threshold: probability in [0, 1] that must be exceeded.

    Returns:
        (M,) int64, ascending.
    """
    scores, labels = class_logits.float().softmax(dim=-1).max(dim=-1)
    keep = (labels != class_logits.shape[-1] - 1) & (scores > object_mask_threshold)
    return keep.nonzero().squeeze(1)


def panoptic_inference(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    thing_ids: frozenset[int],
    object_mask_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Give every pixel to at most one segment.

    A pixel goes to the query with the largest score x mask probability, if that mask probability is >= 0.5. A query
    that wins less than ``overlap_threshold`` of its own mask's area is dropped. Stuff of one class is one segment.

    Args:
        class_logits: (Q, K+1) float, no-object last; on the CPU or on the device of the masks.
        mask_logits: (Q, h, w) float.
        thing_ids: ids of countable classes.
        object_mask_threshold: see ``panoptic_queries``.
        overlap_threshold: won area / own area below which a query is dropped, in [0, 1].

    Returns:
        (h, w) int32 segment ids, 0 for void, and the segments in the order of their ids 1, 2, ...:
        ``{"id", "isthing", "category_id", "score"}``; the score of merged stuff is its best query's.
    """
    class_logits, device = class_logits.cpu(), mask_logits.device
    keep = panoptic_queries(class_logits, object_mask_threshold)
    num_kept = len(keep)
    if num_kept == 0 or mask_logits[0].numel() == 0:
        return torch.zeros(mask_logits.shape[-2:], dtype=torch.int32, device=device), []
    scores, labels = class_logits[keep].float().softmax(dim=-1).max(dim=-1)
    chosen = mask_logits if num_kept == len(mask_logits) else mask_logits[to_device(keep, device)]
    # (h, w): the query with the largest score x mask probability (MaskFormer, Sec. 3.4), and whether its mask is there.
    winner, inside, own_areas = _compete(to_device(scores, device), chosen)
    # (M, 2) pixels that a query won outside of its mask, and those inside, which are shown.
    won = torch.bincount((2 * winner + inside).flatten(), minlength=2 * num_kept).view(num_kept, 2)
    areas = torch.stack([own_areas, won.sum(dim=1), won[:, 1]], dim=1).tolist()
    table = [[label, score, *row] for label, score, row in zip(labels.tolist(), scores.tolist(), areas, strict=True)]
    ids, segments = assign_segments(table, thing_ids, overlap_threshold)
    # -> ids (h, w): what was dropped has the id 0, void.
    id_of_query = to_device(torch.tensor(ids, dtype=torch.int32), device)
    return id_of_query[winner] * inside, segments


def _compete(scores: Tensor, mask_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which query wins each pixel.

    Args:
        scores: (M,) float class scores, M >= 1.
        mask_logits: (M, h, w) float.

    Returns:
        (h, w) int64 index of the winner, (h, w) bool whether the pixel lies inside its mask, (M,) int64 area of each
        mask.
    """
    flat = mask_logits.flatten(1)
    winner = torch.empty(flat.shape[1], dtype=torch.int64, device=flat.device)
    inside = torch.empty(flat.shape[1], dtype=torch.bool, device=flat.device)
    own_areas = torch.zeros(len(flat), dtype=torch.int64, device=flat.device)
    for tile in _tiles(flat):
        probs = flat[:, tile].float().sigmoid()
        covered = probs >= _MASK_PROB_THRESHOLD
        own_areas += _count(covered)
        winner[tile] = (scores[:, None] * probs).max(dim=0).indices
        inside[tile] = covered.gather(0, winner[None, tile])[0]
    shape = mask_logits.shape[-2:]
    return winner.view(shape), inside.view(shape), own_areas


def _tiles(flat: Tensor) -> Iterator[slice]:
    """Parts of the pixels of (N, pixels): what is computed of a part stays in the cache of a CPU, thrice as fast."""
    size = _TILE if flat.device.type == "cpu" else max(flat.shape[1], 1)
    return (slice(start, start + size) for start in range(0, flat.shape[1], size))


def _count(inside: Tensor) -> Tensor:
    """(N,) number of True of each row of (N, pixels) bool; several times faster than their sum."""
    return inside.view(torch.uint8).sum(dim=1, dtype=torch.int32)


def assign_segments(
    table: list[list[float]], thing_ids: frozenset[int], overlap_threshold: float
) -> tuple[list[int], list[dict[str, Any]]]:
    """Segment id of each query (0: dropped) and the segments, from rows (label, score, own, won, shown area)."""
    ids: list[int] = []
    segments: list[dict[str, Any]] = []
    stuff: dict[int, dict[str, Any]] = {}
    for label, score, own_area, won_area, shown_area in table:
        category_id = int(label)
        # Mostly hidden behind others: rather void than a scrap of a segment.
        if shown_area == 0 or won_area / own_area < overlap_threshold:
            ids.append(0)
            continue
        # Things are one segment per query; stuff of a class is one segment, whose id its queries share.
        segment = stuff.get(category_id)
        if segment is None:
            is_thing = category_id in thing_ids
            segment = {"id": len(segments) + 1, "isthing": is_thing, "category_id": category_id, "score": score}
            segments.append(segment)
            if not is_thing:
                stuff[category_id] = segment
        segment["score"] = max(segment["score"], score)
        ids.append(segment["id"])
    return ids, segments


def top_pairs(class_logits: Tensor, top_k: int, keep_ids: frozenset[int] | None) -> tuple[Tensor, Tensor, Tensor]:
    """The best (query, class) pairs; filtered after the choice, as published.

    Args:
        class_logits: (Q, K+1) float, no-object last.
        top_k: number of pairs considered.
        keep_ids: classes kept of those pairs; None keeps all.

    Returns:
        (N,) class probabilities, best first, (N,) query indices and (N,) class ids.
    """
    num_classes = class_logits.shape[-1] - 1
    probs = class_logits.float().softmax(dim=-1)[:, :-1].flatten()
    # (Q K,) -> pairs: query = index // K, class = index % K.
    scores, pairs = probs.topk(min(top_k, len(probs)))
    queries, labels = pairs // num_classes, pairs % num_classes
    chosen = scores > 0  # a class the network does not know has probability 0 and is no detection
    if keep_ids is not None:
        wanted = torch.zeros(num_classes, dtype=torch.bool)
        wanted[sorted(keep_ids)] = True
        chosen &= to_device(wanted, labels.device)[labels]
    places = chosen.nonzero().squeeze(1)
    return scores[places], queries[places], labels[places]


def instance_queries(class_logits: Tensor, *, top_k: int) -> Tensor:
    """Indices of the queries among the ``top_k`` best (query, class) pairs: (M,) int64, ascending, M <= Q."""
    return top_pairs(class_logits, top_k, None)[1].unique()


def instance_inference(
    class_logits: Tensor, mask_logits: Tensor, *, top_k: int, keep_ids: frozenset[int] | None
) -> Instances:
    """The best (query, class) pairs as instances; one query may appear under several classes.

    Args:
        class_logits: (Q, K+1) float, no-object last; on the CPU or on the device of the masks.
        mask_logits: (Q, h, w) float.
        top_k: number of pairs considered.
        keep_ids: classes kept of those pairs, usually the things; None keeps all.

    Returns:
        Instances with ``pred_masks`` (N, h, w) bool, ``pred_boxes``, ``pred_classes`` (N,) int64 and ``scores`` (N,):
        class probability x mean mask probability inside the mask. Best class probability first.
    """
    class_scores, queries, labels = top_pairs(class_logits.cpu(), top_k, keep_ids)
    # Masks, their scores and boxes belong to a query: computed once however many classes it appears under.
    of_query = queries.unique(return_inverse=True)
    used, row, class_scores, labels = (
        to_device(values, mask_logits.device) for values in (*of_query, class_scores, labels)
    )
    masks, mask_scores = binary_masks(mask_logits[used])
    height, width = mask_logits.shape[-2:]
    result = Instances((height, width))
    result.pred_masks = masks[row]
    result.pred_boxes = Boxes(boxes_of_masks(masks)[row])
    result.scores = class_scores * mask_scores[row]
    result.pred_classes = labels
    return result


def binary_masks(mask_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of instances, and how sure they are.

    Args:
        mask_logits: (N, h, w) float.

    Returns:
        (N, h, w) bool, and (N,) mean probability inside each mask, 0 for an empty one.
    """
    flat = mask_logits.flatten(1)
    masks = torch.empty(flat.shape, dtype=torch.bool, device=flat.device)
    sums = torch.zeros(len(flat), device=flat.device)
    areas = torch.zeros(len(flat), dtype=torch.int64, device=flat.device)
    for tile in _tiles(flat):
        logits = flat[:, tile].float()
        inside = logits > 0  # the threshold 1/2 of the probability
        masks[:, tile] = inside
        sums += (logits.sigmoid() * inside).sum(dim=1)
        areas += _count(inside)
    return masks.view(mask_logits.shape), sums / (areas + _AREA_EPS)


def boxes_of_masks(masks: Tensor) -> Tensor:
    """Tight boxes of masks.

    Args:
        masks: (N, h, w) bool.

    Returns:
        (N, 4) float32, x0 y0 x1 y1 with x1, y1 exclusive; zeros for an empty mask.
    """
    if masks.shape[0] == 0 or masks[0].numel() == 0:
        return torch.zeros(masks.shape[0], 4, device=masks.device)
    sides = []
    for dim in (1, 2):  # columns occupied give x, rows occupied give y
        occupied = masks.view(torch.uint8).amax(dim=dim).bool()  # eight times as fast as any()
        place = torch.arange(occupied.shape[1], device=masks.device)
        # An empty axis has no first place: amin gives its length, amax gives 0, the product below zeros.
        first = torch.where(occupied, place, occupied.shape[1]).amin(dim=1)
        last = torch.where(occupied, place, -1).amax(dim=1) + 1
        sides.append((first, last))
    (x0, x1), (y0, y1) = sides
    boxes = torch.stack([x0, y0, x1, y1], dim=1).float()
    return boxes * (x1 > 0)[:, None]
