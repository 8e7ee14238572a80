# SPDX-License-Identifier: Apache-2.0
"""Images with saliency: maps, mappers and the stream beside images with class labels."""
