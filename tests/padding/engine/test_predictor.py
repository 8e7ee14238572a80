# SPDX-License-Identifier: Apache-2.0
"""One image in, prediction and picture out; classes unseen in training are marked."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances

from padding.data.catalog import register_all
from padding.engine import Predictor, load_cfg
from padding.engine.predictor import UNSEEN_MARK, display_metadata
from tests.tiny_segmentor import write_config, write_untrained_weights


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("predictor")
    register_all(folder)
    file, weights = str(write_config(folder)), folder / "model.pth"
    write_untrained_weights(load_cfg(file, [], []), weights)
    return Predictor(load_cfg(file, ["MODEL.WEIGHTS", str(weights)], []))


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def test_prediction_has_the_size_of_the_image(predictor: Predictor, image: np.ndarray) -> None:
    prediction = predictor(image)
    segments, info = prediction["panoptic_seg"]
    assert segments.shape == (40, 56)
    assert prediction["sem_seg"].shape == (42, 40, 56)
    assert {segment["id"] for segment in info} == set(segments.unique().tolist()) - {0}
    again = predictor(image)
    assert torch.equal(again["sem_seg"], prediction["sem_seg"])


def test_channel_order_follows_the_configuration(predictor: Predictor, image: np.ndarray) -> None:
    """A model that reads BGR sees the reversed channels of the same RGB image."""
    seen = []
    handle = predictor.model.register_forward_pre_hook(lambda module, args: seen.append(args[0][0]["image"]))
    cfg = predictor.cfg.clone()
    predictor(image)
    cfg.defrost()
    cfg.INPUT.FORMAT = "BGR"
    predictor.cfg, rgb = cfg, predictor.cfg
    predictor(image)
    predictor.cfg = rgb
    handle.remove()
    assert torch.equal(seen[0].flip(0), seen[1])


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_what_is_no_rgb_image_is_refused(predictor: Predictor, wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected an RGB image \(h, w, 3\) of uint8, got"):
        predictor(wrong)


def test_unseen_classes_are_marked(predictor: Predictor) -> None:
    names = predictor.metadata.thing_classes
    split = MetadataCatalog.get("shapes_val_panoptic_zsp").class_split
    assert {name.removesuffix(UNSEEN_MARK) for name in names if name.endswith(UNSEEN_MARK)} == split.unseen_names
    assert [name.removesuffix(UNSEEN_MARK) for name in names] == list(split.names)
    # The evaluators read the same names without marks.
    assert MetadataCatalog.get("shapes_val_panoptic_zsp").thing_classes == list(split.names)


def test_every_kind_of_prediction_is_drawn(predictor: Predictor, image: np.ndarray) -> None:
    half = torch.zeros(40, 56, dtype=torch.int32)
    half[:, 28:] = 1
    instances = Instances((40, 56))
    instances.pred_masks = (half == 1)[None]
    instances.scores = torch.tensor([0.9])
    instances.pred_classes = torch.tensor([0])
    kinds = {
        "panoptic_seg": (half, [{"id": 1, "isthing": True, "category_id": 3, "score": 0.8}]),
        "instances": instances,
        "sem_seg": torch.nn.functional.one_hot(half.long(), 42).permute(2, 0, 1).float(),
    }
    for key, value in kinds.items():
        picture = predictor.draw(image, {key: value})
        assert picture.shape == (40, 56, 3)
        assert picture.dtype == np.uint8
        assert np.abs(picture[:, 28:].astype(int) - image[:, 28:]).mean() > 10, key  # something was drawn over it
    with pytest.raises(ValueError, match="nothing to draw"):
        predictor.draw(image, {})


def test_empty_predictions_leave_the_image(predictor: Predictor) -> None:
    # A ramp: matplotlib before 3.11 moves some pixels by half of one.
    image = np.stack([np.add.outer(np.arange(40), np.arange(56))] * 3, axis=-1).astype(np.uint8)
    empty = (torch.zeros(40, 56, dtype=torch.int32), [])
    np.testing.assert_allclose(predictor.draw(image, {"panoptic_seg": empty}), image, atol=1)
    instances = Instances((40, 56))
    instances.pred_masks, instances.scores = torch.ones(1, 40, 56, dtype=torch.bool), torch.tensor([0.2])
    instances.pred_classes = torch.tensor([0])
    picture = predictor.draw(image, {"instances": instances}, confidence=0.5)
    np.testing.assert_allclose(picture, image, atol=1)


def test_missing_weights_and_unknown_data_are_errors(predictor: Predictor, tmp_path: Path) -> None:
    file = str(write_config(tmp_path))
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is empty"):
        Predictor(load_cfg(file, [], []))
    with pytest.raises(ValueError, match=r"DATASETS\.TEST is empty"):
        Predictor(load_cfg(file, ["MODEL.WEIGHTS", "x.pth", "DATASETS.TEST", "()"], []))
    with pytest.raises(ValueError, match=r"'never_heard_of'.*is not registered"):
        display_metadata("never_heard_of")


def test_methods_that_cannot_learn_from_names_say_so(predictor: Predictor) -> None:
    with pytest.raises(TypeError, match=r"MaskFormer \(TRAINER Trainer\) cannot learn zebra from names alone"):
        predictor.add_classes(["zebra"])


def test_restriction_to_unknown_classes_names_the_nearest(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match=r"'red sta' \(nearest: 'red star'\)"):
        predictor.restrict_to(["red sta"])


def test_a_list_of_images_gives_what_single_images_give(predictor: Predictor) -> None:
    """Of three sizes, which are grouped; scores may differ in the order of sums."""
    rng = np.random.default_rng(1)
    sizes = [(40, 56), (56, 40), (40, 56), (40, 40), (40, 56)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    forwards = []
    handle = predictor.model.register_forward_pre_hook(lambda module, args: forwards.append(len(args[0])))
    several = predictor(images)
    predictor.predict(images, batch_size=2)
    handle.remove()
    assert forwards == [3, 1, 1, 2, 1, 1, 1]
    for image, prediction in zip(images, several, strict=True):
        single = predictor(image)
        torch.testing.assert_close(prediction["sem_seg"], single["sem_seg"], rtol=0, atol=1e-4)
    assert predictor([]) == []
