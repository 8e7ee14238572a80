# SPDX-License-Identifier: Apache-2.0
"""TCC, the Transformer-CNN Cohort (semi-supervised); importing it registers its parts with Detectron2."""

import padding  # first: the Detectron2 fixes come before anything of detectron2

# isort: split
import tcc.meta_arch
import tcc.trainer  # noqa: F401
from tcc.config import add_tcc_config

__all__ = ["add_tcc_config", "padding"]
