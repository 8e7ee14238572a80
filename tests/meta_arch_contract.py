# SPDX-License-Identifier: Apache-2.0
"""What every meta-architecture of this project must satisfy; subclassed once per method, with its batch and config."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn


class MetaArchContract:
    """Subclasses give ``cfg`` and ``train_batch`` as fixtures, and ``test_batch`` with two differently sized images."""

    @pytest.fixture
    def cfg(self, tmp_path: Any) -> CfgNode:
        raise NotImplementedError

    @pytest.fixture
    def train_batch(self, cfg: CfgNode) -> list[dict[str, Any]]:
        raise NotImplementedError

    @pytest.fixture
    def test_batch(self, cfg: CfgNode) -> list[dict[str, Any]]:
        return [
            {"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8), "height": 50, "width": 75},
            {"image": torch.randint(0, 256, (3, 96, 64), dtype=torch.uint8), "height": 120, "width": 80},
        ]

    @pytest.fixture
    def model(self, cfg: CfgNode) -> nn.Module:
        torch.manual_seed(0)
        return build_model(cfg)

    @staticmethod
    def num_classes(model: nn.Module) -> int:
        """Of the predictions."""
        return model.num_classes

    @staticmethod
    def without_labels(sample: dict[str, Any]) -> dict[str, Any]:
        """A training sample in which nothing is labeled."""
        return {**sample, "sem_seg": torch.full_like(sample["sem_seg"], 255)} if "sem_seg" in sample else sample

    @staticmethod
    def losses(model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        with EventStorage(0):
            return model(batch)

    def test_one_training_step_reaches_every_trainable_parameter(
        self, model: nn.Module, train_batch: list[dict[str, Any]]
    ) -> None:
        losses = self.losses(model.train(), train_batch)
        assert losses
        assert all(name.startswith("loss_") for name in losses)
        assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in losses.values()), losses
        sum(losses.values()).backward()
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
        assert not frozen

    def test_training_is_reproducible_under_a_seed(self, cfg: CfgNode, train_batch: list[dict[str, Any]]) -> None:
        runs = []
        for _ in range(2):
            torch.manual_seed(3)
            runs.append({k: v.item() for k, v in self.losses(build_model(cfg).train(), train_batch).items()})
        assert runs[0] == runs[1]

    def test_scores_have_the_original_size_and_every_class(
        self, model: nn.Module, test_batch: list[dict[str, Any]]
    ) -> None:
        with torch.no_grad():
            predictions = model.eval()(test_batch)
        assert len(predictions) == len(test_batch)
        for prediction, sample in zip(predictions, test_batch, strict=True):
            scores = prediction["sem_seg"]
            assert scores.shape == (self.num_classes(model), sample["height"], sample["width"])
            assert scores.dtype == torch.float32
            assert torch.isfinite(scores).all()

    def test_evaluation_does_not_depend_on_the_batch(self, model: nn.Module, test_batch: list[dict[str, Any]]) -> None:
        with torch.no_grad():
            together = model.eval()(test_batch)
            alone = [model([sample])[0] for sample in test_batch]
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one["sem_seg"], other["sem_seg"], rtol=1e-4, atol=1e-5)

    def test_state_dict_round_trips(self, cfg: CfgNode, model: nn.Module, test_batch: list[dict[str, Any]]) -> None:
        torch.manual_seed(9)
        other = build_model(cfg)
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            expected, got = model.eval()(test_batch), other.eval()(test_batch)
        for one, two in zip(expected, got, strict=True):
            assert torch.equal(one["sem_seg"], two["sem_seg"])

    def test_missing_key_is_named(self, model: nn.Module, train_batch: list[dict[str, Any]]) -> None:
        key = model.required_train_keys[-1]
        broken = [{k: v for k, v in sample.items() if k != key} for sample in train_batch]
        with pytest.raises(KeyError, match=key):
            self.losses(model.train(), broken)

    def test_batch_without_a_labeled_pixel_is_finite(self, model: nn.Module, train_batch: list[dict[str, Any]]) -> None:
        losses = self.losses(model.train(), [self.without_labels(sample) for sample in train_batch])
        assert all(torch.isfinite(loss) for loss in losses.values()), losses
        sum(losses.values()).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


class MaskClassificationContract(MetaArchContract):
    """The same for models whose training samples hold ``instances``: a class and a mask for each segment."""

    def test_evaluation_does_not_depend_on_the_batch(self, model: nn.Module, test_batch: list[dict[str, Any]]) -> None:
        """Images of one size: the published decoders attend to padding as they do to the image."""
        first, second = test_batch
        super().test_evaluation_does_not_depend_on_the_batch(
            model, [first, {**second, "image": second["image"].transpose(1, 2).contiguous()}]
        )

    @staticmethod
    def num_classes(model: nn.Module) -> int:
        return model.num_test_classes

    @staticmethod
    def without_labels(sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, "instances": sample["instances"][torch.zeros(len(sample["instances"]), dtype=torch.bool)]}
