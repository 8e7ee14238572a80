# SPDX-License-Identifier: Apache-2.0
"""Loaders: an annotation file or a list of images becomes data-set entries."""
