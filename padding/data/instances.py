# SPDX-License-Identifier: Apache-2.0
"""Training targets that can be pinned: torch's loader pins tensors, and of other objects those that know how."""

from __future__ import annotations

from detectron2.structures import Instances
from torch import Tensor


class PinnableInstances(Instances):
    """Detectron2's ``Instances``; fields that are tensors go to a GPU without waiting once they are pinned."""

    def pin_memory(self) -> PinnableInstances:
        """The same with tensors in page-locked memory; called by the thread of a ``DataLoader`` that pins."""
        fields = {
            name: value.pin_memory() if isinstance(value, Tensor) else value
            for name, value in self.get_fields().items()
        }
        return PinnableInstances(self.image_size, **fields)
