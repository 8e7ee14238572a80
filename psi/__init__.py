# SPDX-License-Identifier: Apache-2.0
"""PSI, Progressive Segmentation Inference (scribble-supervised); importing it registers its parts with Detectron2."""

import padding  # first: the Detectron2 fixes come before anything of detectron2

# isort: split
from psi.config import add_psi_config
from psi.label_store import StoredLabelMapper

__all__ = ["StoredLabelMapper", "add_psi_config", "padding"]
