# SPDX-License-Identifier: Apache-2.0
"""The embedded data set ``shapes``: generated panoptic scenes for zero-shot, dense, scribble and saliency tasks."""
