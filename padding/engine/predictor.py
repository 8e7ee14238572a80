# SPDX-License-Identifier: Apache-2.0
"""One image in, prediction and picture out, for every method of this project."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata

from padding.data.augmentation import View, resize_for_test
from padding.data.class_split import ClassSplit, class_split_of
from padding.data.photographs import in_channels
from padding.engine.commands import load_model
from padding.engine.label_map import scored_labels
from padding.engine.label_placement import spread_labels
from padding.engine.packing import open_packed
from padding.engine.trainer import TRAINER_REGISTRY
from padding.errors import ConfigError, MethodError

UNSEEN_MARK = "*"


def display_metadata(dataset_name: str, split: ClassSplit | None = None) -> Metadata:
    """Copy what the visualizer needs from a data set's metadata; names of unseen classes end with ``*``.

    ``split`` is shown instead of the data set's label space, for a model that knows further classes.

    Raises:
        ConfigError: if the data set is not registered with class names.
    """
    shown = Metadata(name=f"{dataset_name} (display)")
    if split is not None:
        marked, colors = _marked(split.names, split), list(split.colors)
        return shown.set(thing_classes=marked, stuff_classes=marked, thing_colors=colors, stuff_colors=colors)
    source = MetadataCatalog.get(dataset_name)
    names = source.get("stuff_classes") or source.get("thing_classes")
    if not names:
        raise ConfigError(f"data set {dataset_name!r} (DATASETS.TEST) is not registered; its class names are needed")
    marked = _marked(names, source.get("class_split"))
    shown.set(thing_classes=marked, stuff_classes=marked)
    for key in ("thing_colors", "stuff_colors"):
        if source.get(key):
            shown.set(**{key: [tuple(color) for color in source.get(key)]})
    return shown


def _marked(names: Sequence[str], split: ClassSplit | None) -> list[str]:
    unseen = split.unseen_names if split is not None else frozenset()
    return [f"{name}{UNSEEN_MARK}" if name in unseen else name for name in names]


def class_names_of(cfg: CfgNode, model: Any) -> tuple[str, ...]:
    """Names of all classes that a model predicts, added ones included."""
    split = getattr(model, "label_space", None)
    return split.names if split is not None else class_split_of(cfg.DATASETS.TEST[0]).names


class Predictor:
    """Run a trained model on single images, or on several at a time.

    Example:
        >>> predictor = Predictor(cfg)                       # doctest: +SKIP
        >>> predictor = Predictor.from_file("m.safetensors") # doctest: +SKIP
        >>> prediction = predictor(image)                    # doctest: +SKIP
        >>> picture = predictor.draw(image, prediction)      # doctest: +SKIP
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Build the model of ``cfg`` and load MODEL.WEIGHTS.

        Raises:
            ConfigError: without MODEL.WEIGHTS or DATASETS.TEST.
        """
        if not cfg.DATASETS.TEST:
            raise ConfigError("DATASETS.TEST is empty; its first data set gives the class names")
        self.cfg = cfg
        display_metadata(cfg.DATASETS.TEST[0])  # an unknown data set is reported before the model is built
        self._trainer_class = TRAINER_REGISTRY.get(cfg.TRAINER)
        self.model = load_model(cfg)
        self.restricted_to: tuple[str, ...] | None = None  # names, see ``restrict_to``
        self._show_label_space()
        self._resize = resize_for_test(min_size=cfg.INPUT.MIN_SIZE_TEST, max_size=cfg.INPUT.MAX_SIZE_TEST)

    @classmethod
    def from_file(cls, path: str | Path, opts: Sequence[str] = ()) -> "Predictor":
        """Open a model that ``python -m padding.pack`` wrote; it needs no configuration file and no data set.

        Args:
            path: of the model.
            opts: KEY, VALUE, ... of its configuration, such as MODEL.DEVICE, cpu.

        Raises:
            MissingFileError: there is no such file.
            CheckpointError: it is no packed model, or damaged.
        """
        return cls(open_packed(path, opts))

    @overload
    def __call__(self, image: npt.NDArray[np.uint8]) -> dict[str, Any]: ...

    @overload
    def __call__(self, image: Sequence[npt.NDArray[np.uint8]]) -> list[dict[str, Any]]: ...

    def __call__(
        self, image: npt.NDArray[np.uint8] | Sequence[npt.NDArray[np.uint8]]
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Segment one image, or several, see ``predict``.

        Args:
            image: (h, w, 3) uint8, RGB, or a list of such images.

        Returns:
            A Prediction (padding.data.sample) at the image's size, on the CPU; of a list one for each image.

        Raises:
            ValueError: if an array is not an RGB image.
        """
        return self.predict([image])[0] if isinstance(image, np.ndarray) else self.predict(image)

    @torch.no_grad()
    def predict(self, images: Sequence[npt.NDArray[np.uint8]], *, batch_size: int = 8) -> list[dict[str, Any]]:
        """Segment several images; those of one size pass the network together.

        No image is padded to the size of another, so that what is computed is what single images give, but for the
        order of sums: scores differ by less than 1e-4.

        Args:
            images: each (h, w, 3) uint8, RGB.
            batch_size: most images in one forward pass.

        Returns:
            A Prediction for each image, in the order of the images.

        Raises:
            ValueError: if an array is not an RGB image.
        """
        samples = [self._sample(image) for image in images]
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, sample in enumerate(samples):
            groups[tuple(sample["image"].shape)].append(index)
        predictions: list[dict[str, Any]] = [{} for _ in samples]
        for indices in groups.values():
            for start in range(0, len(indices), batch_size):
                part = indices[start : start + batch_size]
                for index, prediction in zip(part, self.model([samples[i] for i in part]), strict=True):
                    predictions[index] = {key: _to_cpu(value) for key, value in prediction.items()}
        return predictions

    def _sample(self, image: npt.NDArray[np.uint8]) -> dict[str, Any]:
        """What the model takes: ``image`` (C, H, W), resized, and the original ``height`` and ``width``."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"expected an RGB image (h, w, 3) of uint8, got {image.shape} of {image.dtype}")
        height, width = image.shape[:2]
        # Channels as the weights were trained with.
        view = View(in_channels(image, self.cfg.INPUT.FORMAT))
        # The test mapper's resize, so that a picture is segmented as in evaluation; the output has the original size.
        self._resize(view)
        tensor = torch.from_numpy(np.ascontiguousarray(view.image.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes the model can predict, added ones included, without marks."""
        return self.label_space.names

    def restrict_to(self, names: Sequence[str] | None) -> None:
        """Predict some classes only, known or added; None: all again.

        All classes still compete, and what looks like another class is left unlabelled; with MODEL.PADING.TEST.MODE
        "zsl" the listed classes have no competitors but no-object.

        Raises:
            ValueError: for an unknown name, with the nearest spelling.
            MethodError: if the model cannot be restricted.
        """
        restrict = getattr(self.model, "restrict_to", None)
        if restrict is None:
            raise MethodError(f"{type(self.model).__name__} always predicts all its classes; leave the list out")
        restrict(None if names is None else self.label_space.ids_of(names))
        self.restricted_to = None if names is None else tuple(names)

    def add_classes(self, names: Sequence[str], embeddings: Any = None, **options: Any) -> Any:
        """Teach the model new classes by their names, without images; see ``padding.extension.add_classes_to``.

        ``embeddings`` are an npz table or an (A, E) array; None: the table of the configuration. ``options``:
        ``stuff``, ``statistics``, ``refit``. ``str()`` of the report is a table.

        Raises:
            TypeError: if the model cannot learn from names.
        """
        report = self._trainer_class.add_classes(self.cfg, self.model, names, embeddings=embeddings, **options)
        self.model.eval()
        self._show_label_space()
        return report

    @property
    def grows_labels(self) -> bool:
        """Whether ``grow_labels`` is there for this model."""
        return hasattr(self._trainer_class, "grow_labels")

    def grow_labels(self, image: npt.NDArray[np.uint8], strokes: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        """Grow the labels of one image from strokes on it, as a model of scribble supervision does (PSI).

        Args:
            image: (h, w, 3) uint8, RGB.
            strokes: (h, w) int64, class ids; what is no class, such as 255, is not drawn.

        Returns:
            Labels after 0 to T steps, each (h, w) int64, 255 where nothing is known; the first are the strokes.

        Raises:
            ValueError: if an array is not an RGB image, or of another size than the strokes.
            MethodError: if labels of the model do not grow.
        """
        if not self.grows_labels:
            raise MethodError(f"labels of {type(self.model).__name__} do not grow from strokes; those of PSI do")
        if strokes.shape != image.shape[:2]:
            raise ValueError(f"strokes cover {strokes.shape}, the image is {image.shape[:2]}; resize one of them")
        states = self._trainer_class.grow_labels(self.model, self._sample(image), torch.from_numpy(strokes))
        return [np.asarray(labels.cpu()) for labels in states]

    @property
    def label_space(self) -> ClassSplit:
        """Classes that the model can predict, with their ids in the data set's files and their colours."""
        split = getattr(self.model, "label_space", None)
        return split if split is not None else class_split_of(self.cfg.DATASETS.TEST[0])

    def _show_label_space(self) -> None:
        self.metadata = display_metadata(self.cfg.DATASETS.TEST[0], getattr(self.model, "label_space", None))

    def draw(
        self, image: npt.NDArray[np.uint8], prediction: dict[str, Any], *, confidence: float = 0.5
    ) -> npt.NDArray[np.uint8]:
        """Draw a prediction over its image: the panoptic map if there is one, else instances, else semantic labels.

        Image and picture are (h, w, 3) uint8, RGB; the prediction is what calling the predictor returned.
        ``confidence`` is the least score of a drawn instance; panoptic segments are filtered by the model's own
        threshold.
        """
        from detectron2.utils.visualizer import Visualizer

        canvas = Visualizer(image, metadata=self.metadata)
        if "panoptic_seg" in prediction:
            segments, info = prediction["panoptic_seg"]
            # An empty list makes the visualizer blend the whole image with nothing.
            picture = canvas.draw_panoptic_seg(segments, info) if info else canvas.output
        elif "instances" in prediction:
            instances = prediction["instances"]
            picture = canvas.draw_instance_predictions(instances[instances.scores >= confidence])
        elif "sem_seg" in prediction:
            picture = canvas.draw_sem_seg(scored_labels(prediction["sem_seg"]))
        else:
            raise ValueError(f"nothing to draw: the prediction holds {sorted(prediction)}")
        return spread_labels(picture).get_image()


def _to_cpu(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_to_cpu(entry) for entry in value)
    return value.to("cpu") if hasattr(value, "to") else value
