# SPDX-License-Identifier: Apache-2.0
"""Weight files: one safe reader, the layouts of published files, and their way into a model."""
