# SPDX-License-Identifier: Apache-2.0
"""PSI, Progressive Segmentation Inference (scribble-supervised); importing it registers its parts with Detectron2."""

import padding  # first: the Detectron2 fixes come before anything of detectron2

# isort: split
import psi.label_store
import psi.meta_arch
import psi.trainer  # noqa: F401
from psi.config import add_psi_config

__all__ = ["add_psi_config", "padding"]
