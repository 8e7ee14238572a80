# SPDX-License-Identifier: Apache-2.0
import argparse
from pathlib import Path

import pytest

from padding.engine.trained import add_strip_command, positive, trained_cfg
from tcc.config import add_tcc_config

SHAPES_TCC = Path(__file__).parents[3] / "configs" / "shapes_tcc.yaml"


def test_configuration_of_the_method_with_its_weights() -> None:
    opts = ("DATALOADER.NUM_WORKERS", "0")
    cfg = trained_cfg(SHAPES_TCC, "model.pth", opts, add_tcc_config, meta_architecture="TCC")
    assert (cfg.MODEL.WEIGHTS, cfg.DATALOADER.NUM_WORKERS) == ("model.pth", 0)


def test_another_method_is_refused() -> None:
    with pytest.raises(TypeError, match=r"shapes_tcc\.yaml configures TCC; this command looks at PSI alone"):
        trained_cfg(SHAPES_TCC, "model.pth", (), add_tcc_config, meta_architecture="PSI")


def test_strip_takes_a_number_of_images_or_their_ids() -> None:
    parser = argparse.ArgumentParser()
    add_strip_command(parser.add_subparsers(), "images")
    model = ["strip", "--config-file", "c.yaml", "--weights", "w.pth"]
    assert parser.parse_args(model).images == 4
    assert parser.parse_args([*model, "--ids", "a", "b"]).ids == ["a", "b"]
    with pytest.raises(SystemExit):
        parser.parse_args([*model, "--images", "2", "--ids", "a"])


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_a_number_of_things_is_at_least_one(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
        positive(text)
