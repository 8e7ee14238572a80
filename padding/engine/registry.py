# SPDX-License-Identifier: Apache-2.0
"""Training loops by name."""

from typing import Any

from fvcore.common.registry import Registry

from padding.errors import ConfigError


class TrainerRegistry(Registry):
    """Training loops by name; an unknown name is an error of the configuration."""

    def get(self, name: str) -> Any:
        """The training loop that the key TRAINER names."""
        if name not in self:
            raise ConfigError(f"TRAINER is '{name}'; expected one of {', '.join(sorted(key for key, _ in self))}")
        return super().get(name)


TRAINER_REGISTRY = TrainerRegistry("TRAINER")
TRAINER_REGISTRY.__doc__ = "Training loops by the name that the key TRAINER holds."
