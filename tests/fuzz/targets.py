# SPDX-License-Identifier: Apache-2.0
"""All readers under attack; a new one is a line here."""

from __future__ import annotations

import padding.compat  # noqa: F401  (before Detectron2)
from tests.fuzz import annotations, damage, inputs, preparation, scribbles
from tests.fuzz.harness import Target

TARGETS: dict[str, Target] = {
    target.name: target for module in (annotations, damage, inputs, preparation, scribbles) for target in module.TARGETS
}
