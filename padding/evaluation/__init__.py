# SPDX-License-Identifier: Apache-2.0
"""Evaluators shared by all methods: panoptic quality, COCO instances, semantic IoU, saliency.

Start at ``build.build_evaluator``. Arithmetic (``confusion``, ``grouping``, ``panoptic_quality``, ``saliency_metrics``)
is pure numpy and knows neither files nor ranks; ``semantic``, ``panoptic``, ``instance`` and ``saliency`` wrap it in
Detectron2's evaluator protocol.
"""
