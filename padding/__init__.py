# SPDX-License-Identifier: Apache-2.0
"""PADing and the core that the other methods share; importing it registers both with Detectron2."""

import padding.compat  # first: the fixes come before anything of detectron2

# isort: split
import padding.data.mappers
import padding.meta_arch
import padding.modeling
import padding.trainer  # noqa: F401
from padding.config import add_padding_config

__all__ = ["add_padding_config"]
