# SPDX-License-Identifier: Apache-2.0
"""PADing and the core that the other methods share; ``add_padding_config`` registers both with Detectron2.

The package by itself only arranges the fixes that Detectron2 needs; everything else is imported when it is used.
"""

import padding.compat  # noqa: F401  (first: the fixes come before anything of detectron2)

# isort: split
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from padding.config import add_padding_config

__all__ = ["add_padding_config"]


def __getattr__(name: str) -> Any:
    if name == "add_padding_config":
        from padding.config import add_padding_config

        return add_padding_config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
