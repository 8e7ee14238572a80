# SPDX-License-Identifier: Apache-2.0
"""One image in, prediction and picture out, for every method of this project."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.utils.visualizer import Visualizer

from padding.data.augmentation import View, resize_for_test
from padding.engine.trainer import TRAINER_REGISTRY

__all__ = ["UNSEEN_MARK", "Predictor", "display_metadata"]

UNSEEN_MARK = "*"


def display_metadata(dataset_name: str) -> Metadata:
    """Copy what the visualizer needs from a data set's metadata; names of unseen classes end with ``*``.

    Raises:
        ValueError: if the data set is not registered with class names.
    """
    source = MetadataCatalog.get(dataset_name)
    names = source.get("stuff_classes") or source.get("thing_classes")
    if not names:
        raise ValueError(f"data set {dataset_name!r} (DATASETS.TEST) is not registered; its class names are needed")
    split = source.get("class_split")
    unseen = split.unseen_names if split is not None else frozenset()
    marked = [f"{name}{UNSEEN_MARK}" if name in unseen else name for name in names]
    shown = Metadata(name=f"{dataset_name} (display)")
    shown.set(thing_classes=marked, stuff_classes=marked)
    for key in ("thing_colors", "stuff_colors"):
        if source.get(key):
            shown.set(**{key: [tuple(color) for color in source.get(key)]})
    return shown


class Predictor:
    """Run a trained model on single images.

    Example:
        >>> predictor = Predictor(cfg)                       # doctest: +SKIP
        >>> prediction = predictor(image)                    # doctest: +SKIP
        >>> picture = predictor.draw(image, prediction)      # doctest: +SKIP
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Build the model of ``cfg`` and load MODEL.WEIGHTS.

        Raises:
            ValueError: without MODEL.WEIGHTS or DATASETS.TEST.
        """
        if not cfg.MODEL.WEIGHTS:
            raise ValueError("MODEL.WEIGHTS is empty; set it to a trained checkpoint, for example model_final.pth")
        if not cfg.DATASETS.TEST:
            raise ValueError("DATASETS.TEST is empty; its first data set gives the class names")
        trainer_class = TRAINER_REGISTRY.get(cfg.TRAINER)
        self.cfg = cfg
        self.metadata = display_metadata(cfg.DATASETS.TEST[0])
        self.model = trainer_class.build_model(cfg)
        trainer_class.load_weights(self.model, cfg.MODEL.WEIGHTS, complete=True)
        self.model.eval()
        self._resize = resize_for_test(min_size=cfg.INPUT.MIN_SIZE_TEST, max_size=cfg.INPUT.MAX_SIZE_TEST)

    @torch.no_grad()
    def __call__(self, image: npt.NDArray[np.uint8]) -> dict[str, Any]:
        """Segment one image.

        Args:
            image: (h, w, 3) uint8, RGB.

        Returns:
            A Prediction (padding.data.sample) at the image's size, on the CPU.

        Raises:
            ValueError: if the array is not an RGB image.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"expected an RGB image (h, w, 3) of uint8, got {image.shape} of {image.dtype}")
        height, width = image.shape[:2]
        view = View(image)
        self._resize(view)
        resized = view.image
        if self.cfg.INPUT.FORMAT == "BGR":
            resized = resized[:, :, ::-1]
        tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        prediction = self.model([{"image": tensor, "height": height, "width": width}])[0]
        return {key: _to_cpu(value) for key, value in prediction.items()}

    def draw(
        self, image: npt.NDArray[np.uint8], prediction: dict[str, Any], *, confidence: float = 0.5
    ) -> npt.NDArray[np.uint8]:
        """Draw a prediction over its image: the panoptic map if there is one, else instances, else semantic labels.

        Args:
            image: (h, w, 3) uint8, RGB.
            prediction: what calling the predictor returned.
            confidence: least score of a drawn instance; panoptic segments are filtered by the model's own threshold.

        Returns:
            (h, w, 3) uint8, RGB.
        """
        canvas = Visualizer(image, metadata=self.metadata)
        if "panoptic_seg" in prediction:
            segments, info = prediction["panoptic_seg"]
            # An empty list makes the visualizer blend the whole image with nothing.
            picture = canvas.draw_panoptic_seg(segments, info) if info else canvas.output
        elif "instances" in prediction:
            instances = prediction["instances"]
            picture = canvas.draw_instance_predictions(instances[instances.scores >= confidence])
        elif "sem_seg" in prediction:
            picture = canvas.draw_sem_seg(prediction["sem_seg"].max(dim=0).indices)
        else:
            raise ValueError(f"nothing to draw: the prediction holds {sorted(prediction)}")
        return picture.get_image()


def _to_cpu(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_to_cpu(entry) for entry in value)
    return value.to("cpu") if hasattr(value, "to") else value
