# SPDX-License-Identifier: Apache-2.0
"""The page of ``python -m padding.app``: what its buttons do, how it looks, what it may send and keep."""
