# SPDX-License-Identifier: Apache-2.0
"""``python -m padding.seen_bias``: the seen-unseen curve of a trained model, see ``padding.study.seen_bias``."""

import sys

from padding.errors import run_command
from padding.study.seen_bias import main

if __name__ == "__main__":
    sys.exit(run_command(main))
