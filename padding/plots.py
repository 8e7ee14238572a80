# SPDX-License-Identifier: Apache-2.0
"""``python -m padding.plots``: figures of a trained model, see ``padding.look.plots``."""

import sys

from padding.errors import run_command
from padding.look.plots import main

if __name__ == "__main__":
    sys.exit(run_command(main))
