# SPDX-License-Identifier: Apache-2.0
"""Which primitives a class calls up: the generator's attention over its primitives, layer by layer.

The weights are read while the generator runs, from the inputs of its attention modules, so that they are those of the
generation itself. Noise is left on and averaged out.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from padding.generator import PrimitivePaper, PrimitiveTransformer
from padding.meta_arch import PADing


@torch.no_grad()
def primitive_activations(model: PADing, *, samples: int) -> Tensor:
    """Mean attention of every class to every primitive.

    Args:
        model: METHOD "generative" with a generator that has primitives; its mode is left as it is.
        samples: features generated of each class.

    Returns:
        (layers, K, P) float32, rows sum to 1; heads are averaged.

    Raises:
        ValueError: if the model has no primitives.
    """
    generator = getattr(model, "generator", None)
    if not isinstance(generator, PrimitiveTransformer | PrimitivePaper):
        name = "none" if generator is None else type(generator).__name__
        raise ValueError(f"primitive activations need a generator with primitives; this model's generator is {name}")
    num_classes = len(model.class_embeddings)
    labels = torch.arange(num_classes, device=model.class_embeddings.device).repeat_interleave(samples)
    was_training = generator.training
    generator.eval()  # dropout would hide primitives at random
    try:
        attention = _transformer_attention if isinstance(generator, PrimitiveTransformer) else _paper_attention
        weights = torch.stack(attention(generator, lambda: model.synthesise(labels)))  # (layers, K * samples, P)
    finally:
        generator.train(was_training)
    return weights.float().cpu().unflatten(1, (num_classes, samples)).mean(dim=2)


def _transformer_attention(generator: Any, generate: Callable[[], Any]) -> list[Tensor]:
    """(n, P) of each layer, the mean over its heads; the layers themselves ask for no weights."""
    attentions = [layer.multihead_attn for layer in generator.layers]
    inputs: list[tuple[Tensor, ...]] = []
    hooks = [module.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments)) for module in attentions]
    _run_with(hooks, generate)
    return [module(*arguments, need_weights=True)[1] for module, arguments in zip(attentions, inputs, strict=True)]


def _paper_attention(generator: Any, generate: Callable[[], Any]) -> list[Tensor]:
    """(n, P) of each layer from its queries (n, D) and keys (P, D), as Eq. 1 combines them."""
    outputs: dict[str, list[Tensor]] = {"queries": [], "keys": []}
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, kept=kept: kept.append(output))
        for name, kept in outputs.items()
        for module in getattr(generator, name)
    ]
    _run_with(hooks, generate)
    pairs = zip(outputs["queries"], outputs["keys"], strict=True)
    return [(queries @ keys.T * queries.shape[1] ** -0.5).softmax(dim=1) for queries, keys in pairs]


def _run_with(hooks: Sequence[RemovableHandle], generate: Callable[[], Any]) -> None:
    try:
        generate()
    finally:
        for hook in hooks:
            hook.remove()


def characteristic_primitives(weights: Tensor, count: int) -> Tensor:
    """Primitives that tell the classes apart: those whose weight varies most from class to class.

    Args:
        weights: (K, P).
        count: how many at most.

    Returns:
        (count,) int64, ordered by the class that uses each most, so that a heat map shows blocks.
    """
    chosen = weights.std(dim=0).topk(min(count, weights.shape[1])).indices
    owner = weights[:, chosen].argmax(dim=0)
    strength = weights[owner, chosen]
    order = sorted(range(len(chosen)), key=lambda i: (int(owner[i]), -float(strength[i])))
    return chosen[order]
