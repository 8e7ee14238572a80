# SPDX-License-Identifier: Apache-2.0
"""``python -m padding.ablation``: the tables of the paper, see ``padding.study.ablation``."""

import sys

from padding.errors import run_command
from padding.study.ablation import main

if __name__ == "__main__":
    sys.exit(run_command(main))
