# SPDX-License-Identifier: Apache-2.0
"""``python -m padding.data.doctor``: what is wrong with the data of a run, see ``padding.engine.doctor``."""

import sys

from padding.engine.doctor import main

if __name__ == "__main__":
    sys.exit(main())
