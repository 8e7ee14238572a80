# SPDX-License-Identifier: Apache-2.0
"""``python -m padding.plan``: what a training of any method will take, see ``padding.engine.plan``."""

import sys

from padding.engine.plan import main
from padding.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
