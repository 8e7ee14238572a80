# SPDX-License-Identifier: Apache-2.0
"""Pixel decoder and transformer decoder as one Detectron2 segmentation head (Mask2Former, figure 2)."""

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from padding.errors import ConfigError
from padding.modeling.label_space import num_learned_classes
from padding.modeling.pixel_decoder import DeformableEncoder, PixelDecoder
from padding.modeling.transformer_decoder import MaskedTransformerDecoder

# Published configs name these parts; only one of each exists here.
_FIXED_CHOICES = {
    ("SEM_SEG_HEAD", "PIXEL_DECODER_NAME"): "MSDeformAttnPixelDecoder",
    ("MASK_FORMER", "TRANSFORMER_DECODER_NAME"): "MultiScaleMaskedTransformerDecoder",
    ("MASK_FORMER", "TRANSFORMER_IN_FEATURE"): "multi_scale_pixel_decoder",
}


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """Backbone maps in, per-query classes, masks and embeddings out.

    Args:
        pixel_decoder: makes mask features and attended maps.
        predictor: makes predictions from both.
    """

    @configurable
    def __init__(self, *, pixel_decoder: PixelDecoder, predictor: MaskedTransformerDecoder) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """Build both parts from ``MODEL.SEM_SEG_HEAD`` and ``MODEL.MASK_FORMER``.

        Raises:
            ConfigError: if a key names a part or a backbone map that does not exist.
        """
        for (node, key), only in _FIXED_CHOICES.items():
            if cfg.MODEL[node][key] != only:
                raise ConfigError(f"MODEL.{node}.{key} is {cfg.MODEL[node][key]!r}, expected {only!r}: set it to that")
        pixel_decoder = _build_pixel_decoder(cfg.MODEL.SEM_SEG_HEAD, input_shape, dropout=cfg.MODEL.MASK_FORMER.DROPOUT)
        return {"pixel_decoder": pixel_decoder, "predictor": _build_predictor(cfg, num_levels=pixel_decoder.num_maps)}

    def forward(self, features: Mapping[str, Tensor], *, with_aux: bool, as_products: bool = False) -> dict[str, Any]:
        """Predict from backbone maps.

        Args:
            features: name -> (B, C, H, W) float.
            with_aux: also return the predictions of the intermediate layers; they cost full-size masks.
            as_products: masks are multiplied out where they are read, which saves those that are not.

        Returns:
            See ``MaskedTransformerDecoder.forward``.
        """
        # The pixel decoder computes in float32 whatever autocast says; the predictor follows the caller.
        mask_features, maps = self.pixel_decoder(features)
        return self.predictor(maps, mask_features, with_aux=with_aux, as_products=as_products)


def _build_pixel_decoder(node: CfgNode, input_shape: Mapping[str, ShapeSpec], *, dropout: float) -> PixelDecoder:
    in_features, encoder_features = node.IN_FEATURES, node.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES
    _check_names("IN_FEATURES", in_features, offered=list(input_shape), by="the backbone")
    _check_names("DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", encoder_features, offered=in_features, by="IN_FEATURES")
    return PixelDecoder(
        {name: input_shape[name] for name in in_features},
        transformer=DeformableEncoder(
            node.CONVS_DIM,
            num_levels=len(encoder_features),
            num_layers=node.TRANSFORMER_ENC_LAYERS,
            num_heads=node.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS,
            num_points=node.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
            dim_feedforward=node.TRANSFORMER_ENC_DIM_FEEDFORWARD,
            dropout=dropout,
            formulation=node.DEFORMABLE_ATTENTION,
        ),
        transformer_in_features=encoder_features,
        mask_dim=node.MASK_DIM,
        norm=node.NORM,
        common_stride=node.COMMON_STRIDE,
    )


def _build_predictor(cfg: CfgNode, *, num_levels: int) -> MaskedTransformerDecoder:
    node = cfg.MODEL.MASK_FORMER
    if node.DEC_LAYERS < 1:
        raise ConfigError(
            f"MODEL.MASK_FORMER.DEC_LAYERS is {node.DEC_LAYERS}, expected >= 1: it counts predictions, that is the "
            "layers plus one for the prediction before the first layer"
        )
    return MaskedTransformerDecoder(
        in_channels=cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM,
        mask_dim=cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
        num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES or num_learned_classes(cfg),
        hidden_dim=node.HIDDEN_DIM,
        num_queries=node.NUM_OBJECT_QUERIES,
        num_heads=node.NHEADS,
        dim_feedforward=node.DIM_FEEDFORWARD,
        # DEC_LAYERS counts predictions: one before the first layer and one after each.
        num_layers=node.DEC_LAYERS - 1,
        num_levels=num_levels,
        pre_norm=node.PRE_NORM,
        project_input=node.ENFORCE_INPUT_PROJ,
    )


def _check_names(key: str, names: list[str], *, offered: list[str], by: str) -> None:
    unknown = [name for name in names if name not in offered]
    if unknown or not names:
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.{key} is {list(names)}, expected at least one of {list(offered)}, which {by} offers: "
            f"remove {unknown} or add them there"
        )
