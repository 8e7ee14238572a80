# SPDX-License-Identifier: Apache-2.0
"""Home of the method SalSeg (segmentation with saliency); not part of this release yet."""

import padding  # noqa: F401  (the Detectron2 fixes come before anything of detectron2)
