# SPDX-License-Identifier: Apache-2.0
"""Features of the frozen segmentor on disk, what they depend on, and what a model remembers of them."""
