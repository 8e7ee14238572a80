# SPDX-License-Identifier: Apache-2.0
"""Networks as exporters want them: one tensor of images in, a fixed number of tensors out, no lists and no samples.

Images are (B, C, H, W) float in [0, 255] in the channel order of INPUT.FORMAT; pixels are normalised inside the graph.
H and W are multiples of ``size_divisibility``: pad on the right and below, with the mean pixel, and cut the result.
"""

from collections.abc import Mapping

import torch
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from padding.errors import MethodError
from padding.modeling.maskformer import MaskFormer

_MASK_PROB_THRESHOLD = 0.5


class Graph(nn.Module):
    """A network whose outputs, ``forward``'s tuple, have the names ``outputs``.

    Attributes:
        outputs: name -> what it is, with its shape.
        size_divisibility: of H and W.
    """

    outputs: Mapping[str, str]
    size_divisibility: int

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval()

    def normalised(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 255] -> 0 for the mean colour."""
        mean, std = self.model.pixel_mean, self.model.pixel_std
        assert isinstance(mean, Tensor)
        assert isinstance(std, Tensor)
        return (images - mean) / std


class PixelGraph(Graph):
    """A network that scores pixels: TCC, PSI, SalSeg. Without post-processing the logits as the network gives them."""

    def __init__(self, model: nn.Module, *, post_processing: bool) -> None:
        super().__init__(model)
        self.post_processing = post_processing
        plan = model.plan
        self.size_divisibility = int(getattr(plan, "size_divisibility", 1))
        outputs = {"logits": "(B, K, h, w) float class logits, to be enlarged to (H, W) bilinearly"}
        if post_processing:
            outputs = {"labels": "(B, H, W) int64 class of each pixel"}
        if getattr(model, "predict_saliency", False):
            outputs["saliency"] = "(B, 1, H, W) float saliency in [0, 1]" if post_processing else "(B, 1, H, W) logits"
        self.outputs = outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See ``outputs``."""
        logits = self.model.logits(self.normalised(images))  # type: ignore[operator]
        found = [logits["sem_seg"].float(), *(logits[name].float() for name in list(self.outputs)[1:])]
        if not self.post_processing:
            return tuple(found)
        wide = F.interpolate(found[0], size=images.shape[-2:], mode="bilinear", align_corners=False)
        return wide.argmax(dim=1), *(maps.sigmoid() for maps in found[1:])


class MaskGraph(Graph):
    """A network that predicts classified masks: MaskFormer, PADing. Without post-processing what its queries say."""

    model: MaskFormer

    def __init__(self, model: MaskFormer, *, post_processing: bool) -> None:
        super().__init__(model)
        self.post_processing, self.options = post_processing, model.inference
        self.size_divisibility = max(model.size_divisibility, 1)
        self.register_buffer("is_thing", torch.zeros(model.num_test_classes + 1, dtype=torch.bool), persistent=False)
        self.is_thing[sorted(model.thing_ids)] = True
        outputs = {
            "class_logits": "(B, Q, K+1) float, no-object last",
            "mask_logits": "(B, Q, h, w) float, to be enlarged to (H, W) bilinearly",
        }
        self.outputs = self._task_outputs() if post_processing else outputs

    is_thing: Tensor

    def _task_outputs(self) -> dict[str, str]:
        outputs = {}
        if self.options.semantic_on:
            outputs["labels"] = "(B, H, W) int64 class of each pixel"
        if self.options.panoptic_on:
            outputs["segments"] = "(B, H, W) int64, 0 for void, else 1 + the query that the segment is named after"
            outputs["segment_classes"] = "(B, Q) int64 class of each query"
            outputs["segment_scores"] = "(B, Q) float in [0, 1] of the segment named after the query, 0 for none"
        if self.options.instance_on:
            outputs["instance_scores"] = "(B, N) float in [0, 1] class probability x mean mask probability"
            outputs["instance_classes"] = "(B, N) int64"
            outputs["instance_queries"] = "(B, N) int64 whose mask it is"
            outputs["masks"] = "(B, Q, H, W) bool mask of each query"
        return outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See ``outputs``."""
        found = self.model.predict_queries(ImageList(self.normalised(images), []))
        class_logits, mask_logits = self.model.class_logits(found), found["pred_masks"].float()
        if not self.post_processing:
            return class_logits, mask_logits
        masks = F.interpolate(mask_logits, size=images.shape[-2:], mode="bilinear", align_corners=False).sigmoid()
        result: list[Tensor] = []
        if self.options.semantic_on:
            probabilities = class_logits.softmax(dim=-1)[..., :-1]
            result.append(torch.einsum("bqk,bqhw->bkhw", probabilities, masks).argmax(dim=1))
        if self.options.panoptic_on:
            result += panoptic_maps(
                class_logits,
                masks,
                is_thing=self.is_thing,
                object_mask_threshold=self.options.object_mask_threshold,
                overlap_threshold=self.options.overlap_threshold,
            )
        if self.options.instance_on:
            result += best_instances(class_logits, masks, top_k=self.options.top_k)
        return tuple(result)


def panoptic_maps(
    class_logits: Tensor, masks: Tensor, *, is_thing: Tensor, object_mask_threshold: float, overlap_threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``padding.modeling.inference.panoptic_inference`` of a batch with shapes that do not depend on the data.

    Args:
        class_logits: (B, Q, K+1) float, no-object last.
        masks: (B, Q, H, W) float mask probabilities.
        is_thing: (K+1,) bool; False for no-object.
        object_mask_threshold: probability that must be exceeded.
        overlap_threshold: share of its mask that a query must win.

    Returns:
        (B, H, W) int64 segments, 0 for void, else 1 + the first query of the segment; (B, Q) int64 classes; (B, Q)
        float score of the segment named after a query, 0 where there is none.
    """
    scores, labels = class_logits.float().softmax(dim=-1).max(dim=-1)
    taking = (labels != class_logits.shape[-1] - 1) & (scores > object_mask_threshold)
    # A query that does not take part wins no pixel.
    weight = torch.where(taking, scores, torch.full_like(scores, -1.0))
    winner = (weight[:, :, None, None] * masks).argmax(dim=1)  # (B, H, W)
    covered = masks >= _MASK_PROB_THRESHOLD
    queries = torch.arange(masks.shape[1], device=masks.device)
    won = winner[:, None] == queries[:, None, None]  # (B, Q, H, W)
    own_area, won_area, shown_area = (part.flatten(2).sum(dim=-1) for part in (covered, won, won & covered))
    kept = taking & (shown_area > 0) & (won_area >= overlap_threshold * own_area)
    # Things are named after themselves, stuff after the first kept query of its class: (B, Q, Q), row joins column.
    same = kept[:, :, None] & kept[:, None, :] & (labels[:, :, None] == labels[:, None, :])
    alone = queries[:, None] == queries
    joined = same & (alone | ~is_thing[labels][:, :, None])  # not `where`, which ONNX Runtime has not for bool
    name = joined.to(torch.int64).argmax(dim=-1)  # (B, Q)
    segment = torch.where(kept, name + 1, torch.zeros_like(name))
    best = torch.where(joined, scores[:, None, :], torch.zeros_like(scores)[:, None, :]).amax(dim=-1)
    shown = covered.gather(1, winner[:, None])[:, 0]
    segments = segment.gather(1, winner.flatten(1)).view_as(winner) * shown
    named_after_itself = kept & (name == queries)
    return segments, labels, torch.where(named_after_itself, best, torch.zeros_like(best))


def best_instances(class_logits: Tensor, masks: Tensor, *, top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best (query, class) pairs of each image; what is filtered afterwards is left to the caller.

    Args:
        class_logits: (B, Q, K+1) float, no-object last.
        masks: (B, Q, H, W) float mask probabilities.
        top_k: number of pairs, at most Q K.

    Returns:
        (B, N) scores, class ids and queries, best class probability first; (B, Q, H, W) bool masks.
    """
    num_classes = class_logits.shape[-1] - 1
    probabilities = class_logits.float().softmax(dim=-1)[..., :-1].flatten(1)
    scores, pairs = probabilities.topk(min(top_k, class_logits.shape[1] * num_classes))
    queries, labels = pairs // num_classes, pairs % num_classes
    inside = masks > _MASK_PROB_THRESHOLD
    certainty = (masks * inside).flatten(2).sum(dim=-1) / (inside.flatten(2).sum(dim=-1) + 1e-6)
    return scores * certainty.gather(1, queries), labels, queries, inside


def graph_of(model: nn.Module, *, post_processing: bool) -> Graph:
    """The graph of a trained model of any method.

    Args:
        model: with its weights; put into evaluation mode.
        post_processing: labels, segments and instances instead of logits.

    Raises:
        MethodError: the model is of another kind.
    """
    if isinstance(model, MaskFormer):
        return MaskGraph(model, post_processing=post_processing)
    if callable(getattr(model, "logits", None)) and hasattr(model, "plan"):
        return PixelGraph(model, post_processing=post_processing)
    raise MethodError(f"{type(model).__name__} cannot be exported; MaskFormer, PADing, TCC, PSI and SalSeg can")
