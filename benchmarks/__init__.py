# SPDX-License-Identifier: Apache-2.0
"""One module per measured claim: ``python -m benchmarks.<name>``, the last line is one JSON object."""

import padding  # first: the Detectron2 fixes come before anything of detectron2

__all__ = ["padding"]
