# SPDX-License-Identifier: Apache-2.0
"""PADing and the core that the other methods share."""

import padding.compat  # noqa: F401  (before anything of detectron2)
