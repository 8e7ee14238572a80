# SPDX-License-Identifier: Apache-2.0
"""Weight files and lists of names, as they are published."""

import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

State = dict[str, Tensor]


def arrays(state: State) -> OrderedDict[str, np.ndarray]:
    return OrderedDict((name, tensor.numpy()) for name, tensor in state.items())


def write_pkl(path: Path, content: Any, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def published_keys(goldens: Path) -> dict[str, list[int]]:
    return {name: shape for name, (shape, _) in json.loads((goldens / "mask2former_r50_keys.json").read_text()).items()}
