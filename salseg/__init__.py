# SPDX-License-Identifier: Apache-2.0
"""SalSeg, segmentation assisted by saliency; importing it registers its parts with Detectron2."""

import padding  # first: the Detectron2 fixes come before anything of detectron2

# isort: split
import salseg.meta_arch
import salseg.trainer  # noqa: F401
from salseg.config import add_salseg_config

__all__ = ["add_salseg_config", "padding"]
