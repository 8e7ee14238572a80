# SPDX-License-Identifier: Apache-2.0
"""train_net.py with a pause after each iteration, so that a signal finds it where it is meant to: PAUSE seconds."""

import os
import sys
import time

import train_net
from padding.errors import run_command


def main(words: list[str]) -> None:
    from padding.engine.trainer import Trainer

    finish = Trainer.after_step

    def after_step(self: Trainer) -> None:
        finish(self)
        time.sleep(float(os.environ["PAUSE"]))

    Trainer.after_step = after_step  # type: ignore[method-assign]
    train_net.start(train_net.parse_arguments(words))


if __name__ == "__main__":
    sys.exit(run_command(main))
