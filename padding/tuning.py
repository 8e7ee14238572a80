# SPDX-License-Identifier: Apache-2.0
"""``python -m padding.tuning``: every row of Table 1 tuned equally, see ``padding.study.tuning``."""

import sys

from padding.errors import run_command
from padding.study.tuning import main

if __name__ == "__main__":
    sys.exit(run_command(main))
