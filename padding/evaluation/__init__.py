# SPDX-License-Identifier: Apache-2.0
"""Evaluators shared by all methods: panoptic quality, COCO instances, semantic IoU, and the seen-unseen sweep.

Start at ``build.build_evaluator``. Arithmetic (``confusion``, ``grouping``, ``panoptic_quality``, ``sweep``) is pure
numpy and knows neither files nor ranks; ``semantic``, ``panoptic`` and ``instance`` wrap it in Detectron2's evaluator
protocol.
"""
