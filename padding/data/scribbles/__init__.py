# SPDX-License-Identifier: Apache-2.0
"""Scribbles: polylines and their raster, published formats, a simulator, statistics."""
