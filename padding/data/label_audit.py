# SPDX-License-Identifier: Apache-2.0
"""``python -m padding.data.label_audit``: usual mistakes in labels, see ``padding.data.prepare.label_audit``."""

import sys

from padding.data.prepare.label_audit import main

if __name__ == "__main__":
    sys.exit(main())
