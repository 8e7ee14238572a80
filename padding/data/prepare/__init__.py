# SPDX-License-Identifier: Apache-2.0
"""Preparation of data: what ``datasets/prepare_*.py`` and the audits do, and no training reaches."""
