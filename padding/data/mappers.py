# SPDX-License-Identifier: Apache-2.0
"""Mappers: a data-set entry becomes a sample, on one read, augment, pad core.

Every task has its own label reader and target builder; everything else is shared (Mask2Former ships five mappers that
repeat it). Images are uint8 and normalised by the model, labels int64, masks bool; padding is void in all labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from fvcore.common.registry import Registry
from fvcore.transforms.transform import TransformList

from padding.data import targets
from padding.data.augmentation import (
    AugmentationPlan,
    View,
    large_scale_jitter,
    resize_and_crop,
    resize_for_test,
    resize_to,
    scale_and_crop,
    strong_colors,
    with_labeled_crops,
    with_rotation,
)
from padding.data.class_split import class_split_of
from padding.data.masks import annotation_mask, check_masks, draw_polygons
from padding.data.photographs import FORMATS, check_value_range, read_photograph
from padding.data.readers import read_label_map, read_panoptic_ids
from padding.data.sample import IGNORE_LABEL, VOID_INDEX, strong_view_names
from padding.errors import ConfigError, DataError, check_choice

MAPPER_REGISTRY = Registry("MAPPER")
MAPPER_REGISTRY.__doc__ = "Classes called with (cfg, is_train=...); their objects turn a data-set entry into a sample."

Labels = tuple[targets.LabelMap | None, targets.LabelMap | None]

# Official name -> (class, augmentation in training); a class named directly takes its own default augmentation.
_ALIASES = {
    "mask_former_semantic": ("SemanticMapper", "crop"),
    "mask_former_panoptic": ("PanopticMapper", "crop"),
    "mask_former_instance": ("InstanceMapper", "crop"),
    "coco_panoptic_lsj": ("PanopticMapper", "jitter"),
    "coco_instance_lsj": ("InstanceMapper", "jitter"),
    "semantic_scale_crop": ("SemanticMapper", "scale_crop"),
    "semantic_resize": ("SemanticMapper", "resize"),
}


def build_mapper(cfg: CfgNode, is_train: bool) -> Callable[[Mapping[str, Any]], dict[str, Any] | None]:
    """The mapper that ``INPUT.DATASET_MAPPER_NAME`` names.

    Raises:
        ConfigError: the name is neither registered nor an official alias.
    """
    name = cfg.INPUT.DATASET_MAPPER_NAME
    class_name, _ = _ALIASES.get(name, (name, ""))
    if class_name not in MAPPER_REGISTRY:
        known = sorted({mapper_name for mapper_name, _ in MAPPER_REGISTRY} | set(_ALIASES))
        raise ConfigError(f"INPUT.DATASET_MAPPER_NAME is '{name}'; known mappers are {', '.join(known)}")
    return MAPPER_REGISTRY.get(class_name)(cfg, is_train=is_train)


def augmentation_kind(cfg: CfgNode) -> str:
    """Training augmentation of the configured mapper: "jitter", "crop", "scale_crop" or "resize"."""
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name in _ALIASES:
        return _ALIASES[name][1]
    return str(MAPPER_REGISTRY.get(name).default_augmentation)


def _plan_from_config(
    cfg: CfgNode, is_train: bool, default: str, *, ignore_label: int, label_pad: int
) -> AugmentationPlan:
    """Augmentation for a mapper whose own ``default`` holds unless the configured alias says otherwise."""
    keys = cfg.INPUT
    if not is_train:
        return resize_for_test(min_size=keys.MIN_SIZE_TEST, max_size=keys.MAX_SIZE_TEST)
    _, kind = _ALIASES.get(keys.DATASET_MAPPER_NAME, ("", default))
    # In this order: the rotation goes before the crop, and a crop that is redrawn must see rotated labels.
    plan = _crop_plan(keys, kind, ignore_label)
    if keys.ROTATION:
        mean = [round(value) for value in cfg.MODEL.PIXEL_MEAN]
        plan = with_rotation(plan, degrees=keys.ROTATION, image_border=mean, label_border=label_pad)
    if keys.CROP.MIN_LABELED:
        plan = with_labeled_crops(plan, min_labeled=keys.CROP.MIN_LABELED, ignore_label=ignore_label)
    return plan


def _crop_plan(keys: CfgNode, kind: str, ignore_label: int) -> AugmentationPlan:
    """Scaling, cropping, flipping and colours of the INPUT keys."""
    if kind == "jitter":
        return large_scale_jitter(
            image_size=keys.IMAGE_SIZE, min_scale=keys.MIN_SCALE, max_scale=keys.MAX_SCALE, flip=keys.RANDOM_FLIP
        )
    if kind == "scale_crop":
        return scale_and_crop(
            factors=keys.SCALE_FACTORS,
            sampling=keys.SCALE_SAMPLING,
            crop_size=keys.CROP.SIZE,
            flip=keys.RANDOM_FLIP,
        )
    if kind == "resize":
        return resize_to(size=keys.CROP.SIZE, flip=keys.RANDOM_FLIP)
    return resize_and_crop(
        min_sizes=keys.MIN_SIZE_TRAIN,
        max_size=keys.MAX_SIZE_TRAIN,
        sampling=keys.MIN_SIZE_TRAIN_SAMPLING,
        crop_type=keys.CROP.TYPE,
        crop_size=keys.CROP.SIZE if keys.CROP.ENABLED else None,
        single_category_max_area=keys.CROP.SINGLE_CATEGORY_MAX_AREA,
        ignore_label=ignore_label,
        color_jitter_format=keys.FORMAT if keys.COLOR_AUG_SSD else None,
        flip=keys.RANDOM_FLIP,
        padded_size=keys.SIZE_DIVISIBILITY,
    )


def _checked_format(cfg: CfgNode) -> str:
    """INPUT.FORMAT, refused where colours are to be changed and there are none."""
    keys = cfg.INPUT
    check_choice("INPUT.FORMAT", keys.FORMAT, FORMATS)
    colors = [key for key in ("STRONG_VIEW", "COLOR_AUG_SSD") if keys[key]]
    if colors and keys.FORMAT not in ("RGB", "BGR"):
        raise ConfigError(f"INPUT.{colors[0]} changes colours, but INPUT.FORMAT is '{keys.FORMAT}'; use RGB or BGR")
    return str(keys.FORMAT)


class Mapper:
    """Read, augment, pad; subclasses say which labels are read and what targets they become.

    In training a sample holds the entries of the data set (without ``annotations``), ``image`` uint8 (3, H, W) and the
    targets of the subclass. Otherwise it holds the entries and the resized image: labels stay on disk, where evaluators
    read them. The random numbers come from the global states of ``random``, ``numpy`` and ``torch``.
    """

    default_augmentation = "jitter"
    label_pad = VOID_INDEX

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        plan: AugmentationPlan,
        image_format: str = "RGB",
        value_range: Sequence[float] = (),
        image_pad_value: int = 128,
        extra_maps: Sequence[str] = (),
        valid_mask: bool = False,
        strong_views: int = 0,
    ) -> None:
        """Take explicit settings, or a config that ``from_config`` reads.

        Args:
            is_train: whether targets are built.
            plan: augmentation for this use.
            image_format: channels, see ``padding.data.photographs.FORMATS``.
            value_range: what becomes black and white in images of more than 8 bits, see ``read_photograph``.
            image_pad_value: grey value of padding, 0 to 255.
            extra_maps: names of continuous grey maps; the file of "x" is the entry "x_file_name", the sample's "x" is
                float32 (1, H, W) in [0, 1], bilinearly resized with the image's geometry and 0 in the padding.
            valid_mask: add ``valid`` (H, W) bool, False where there is no image: padding and the corners of a rotation.
            strong_views: add so many of ``strong_view_names``, the same view with its colours changed.
        """
        self.is_train = is_train
        self.plan = plan
        check_value_range(value_range)
        self.image_format = image_format
        self.value_range = tuple(value_range)
        self.image_pad_value = image_pad_value
        self.extra_maps = tuple(extra_maps)
        self.valid_mask = valid_mask
        self.strong_views = strong_view_names(strong_views)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> dict[str, Any]:
        """Settings from the INPUT keys."""
        return cls._base_arguments(cfg, is_train)

    @classmethod
    def _base_arguments(
        cls, cfg: CfgNode, is_train: bool, *, ignore_label: int = IGNORE_LABEL, label_pad: int = VOID_INDEX
    ) -> dict[str, Any]:
        default = cls.default_augmentation
        return {
            "is_train": is_train,
            "plan": _plan_from_config(cfg, is_train, default, ignore_label=ignore_label, label_pad=label_pad),
            "image_format": _checked_format(cfg),
            "value_range": cfg.INPUT.VALUE_RANGE,
            "image_pad_value": cfg.INPUT.IMAGE_PAD_VALUE,
            "extra_maps": cfg.INPUT.EXTRA_MAPS,
            "valid_mask": cfg.INPUT.VALID_MASK,
            "strong_views": cfg.INPUT.STRONG_VIEWS * cfg.INPUT.STRONG_VIEW,
        }

    def __call__(self, dataset_dict: Mapping[str, Any]) -> dict[str, Any] | None:
        """Sample of one data-set entry, which is left unchanged; None if training cannot use it."""
        image = self._read_image(dataset_dict)
        sample = dict(dataset_dict)
        sample["height"], sample["width"] = image.shape[:2]
        if not self.is_train:
            return self.test_sample(sample, image)
        mapped = self.train_sample(sample, image)
        sample.pop("annotations", None)  # polygons are long, and have become masks
        return mapped

    def test_sample(self, sample: dict[str, Any], image: npt.NDArray[np.uint8]) -> dict[str, Any]:
        """Add the resized image; ``height`` and ``width`` stay the original ones."""
        view = View(image)
        self.plan(view)
        sample["image"] = _as_image_tensor(view.image)
        return sample

    def train_sample(self, sample: dict[str, Any], image: npt.NDArray[np.uint8]) -> dict[str, Any] | None:
        """Augment, pad and add the targets."""
        # Labels go through the same transforms as the image, by nearest neighbor.
        view = View(image, *self.read_labels(sample, image.shape[:2]))
        self.plan(view)
        name, size = str(sample["file_name"]), self.plan.output_size
        # Colours change after the geometry: all views show the same pixels.
        for strong in self.strong_views:
            sample[strong] = _as_image_tensor(
                targets.pad_to_size(self._recolored(view.image), size, self.image_pad_value, name=name)
            )
        view.image = targets.pad_to_size(view.image, size, self.image_pad_value, name=name)
        if self.valid_mask:
            # Rotation fills corners with the void label, so the image is marked with another number.
            mark = 1 if self.label_pad != 1 else 2
            visible = view.transforms.apply_segmentation(np.full(image.shape[:2], mark, np.uint8)) == mark
            sample["valid"] = torch.from_numpy(targets.pad_to_size(visible, size, False, name=name))
        # (h, w) labels to (H, W); padding is void in semantic maps, index 0 in segment maps.
        if view.labels is not None:
            view.labels = targets.pad_to_size(view.labels, size, self.label_pad, name=name)
        sample["image"] = _as_image_tensor(view.image)
        self.add_targets(sample, view)
        for map_name in self.extra_maps:
            sample[map_name] = self._read_extra_map(sample, map_name, image.shape[:2], view.transforms)
        return sample

    def _recolored(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The strong view of an image in the mapper's channel order; luminance is a matter of RGB."""
        order = slice(None, None, -1 if self.image_format == "BGR" else 1)
        return strong_colors(image[..., order])[..., order]

    def read_labels(self, sample: Mapping[str, Any], size: tuple[int, int]) -> Labels:
        """Label map (h, w) and, where its values are not classes, the class of each value; default: none."""
        del sample, size
        return None, None

    def add_targets(self, sample: dict[str, Any], view: View) -> None:
        """Put the training targets into ``sample``; image and labels of ``view`` are augmented and padded."""
        raise NotImplementedError

    def _read_image(self, dataset_dict: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
        path = dataset_dict["file_name"]
        cure = "the data set lists it, obtain it again"
        image = read_photograph(path, channels=self.image_format, value_range=self.value_range, cure=cure)
        targets.check_size(path, image.shape, dataset_dict)
        return image

    def _read_extra_map(
        self, sample: Mapping[str, Any], name: str, size: tuple[int, int], transforms: TransformList
    ) -> torch.Tensor:
        path = _required(sample, f"{name}_file_name")
        grey = read_label_map(path)
        targets.check_size(path, grey.shape, {"height": size[0], "width": size[1]})
        if grey.dtype != np.uint8:
            raise DataError(f"{path}: a continuous map is an 8-bit grey image, this one has {grey.dtype}; convert it")
        # The same geometry as the image, but bilinear: values are continuous.
        grey = targets.pad_to_size(transforms.apply_image(grey), self.plan.output_size, 0, name=str(path))
        return torch.from_numpy(np.ascontiguousarray(grey)).to(torch.float32).div_(255.0)[None]


@MAPPER_REGISTRY.register()
class SemanticMapper(Mapper):
    """Semantic label map ``sem_seg`` (H, W) int64 and, if asked for, one mask per class as ``instances``.

    Labels come from the panoptic PNG where the entry has one (its segments are in the label space of the data set),
    else from ``sem_seg_file_name``, whose values the metadata may renumber (``sem_seg_label_map``).
    """

    default_augmentation = "crop"

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        ignore_label: int,
        with_masks: bool,
        label_map: Mapping[int, int] | None = None,
        **settings: Any,
    ) -> None:
        """Add to the settings of ``Mapper``.

        Args:
            num_classes: K; labels are 0 to K - 1.
            ignore_label: label of void.
            with_masks: whether samples carry ``instances``.
            label_map: value in the semantic PNG -> label; None keeps the values.
            settings: see ``Mapper``.

        Raises:
            DataError: the ignore label is one of the classes.
        """
        super().__init__(**settings)
        if ignore_label < num_classes:
            raise DataError(
                f"the ignore label {ignore_label} is one of the {num_classes} classes; register the data set with "
                "an ignore_label beyond them"
            )
        self.num_classes = num_classes
        self.ignore_label = self.label_pad = ignore_label
        self.with_masks = with_masks
        self.label_map = label_map

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> dict[str, Any]:
        """Settings for the first training set, or the first test set when not training."""
        dataset_name = (cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST)[0]
        metadata = MetadataCatalog.get(dataset_name)
        ignore_label = getattr(metadata, "ignore_label", IGNORE_LABEL)
        return {
            **cls._base_arguments(cfg, is_train, ignore_label=ignore_label, label_pad=ignore_label),
            "num_classes": class_split_of(dataset_name).num_classes,
            "ignore_label": ignore_label,
            "with_masks": cfg.INPUT.SEMANTIC_MASKS,
            "label_map": getattr(metadata, "sem_seg_label_map", None),
        }

    def read_labels(self, sample: Mapping[str, Any], size: tuple[int, int]) -> Labels:
        """Semantic labels of an image, checked against the number of classes."""
        if "pan_seg_file_name" in sample:
            index = _read_segment_index(sample, size)
            return targets.semantic_labels(index, sample["segments_info"], ignore_label=self.ignore_label), None
        path = _required(sample, "sem_seg_file_name")
        labels = read_label_map(path)
        targets.check_size(path, labels.shape, {"height": size[0], "width": size[1]})
        if self.label_map is not None:
            labels = targets.translate_labels(labels, self.label_map, path=path)
        targets.check_label_range(labels, num_classes=self.num_classes, ignore_label=self.ignore_label, path=path)
        if self.ignore_label <= np.iinfo(np.uint8).max:
            labels = labels.astype(np.uint8)  # all labels are below; two bytes would be transformed apart
        return labels, None

    def add_targets(self, sample: dict[str, Any], view: View) -> None:
        """Add ``sem_seg``, the mark of a labeled sample and, if asked for, ``instances``."""
        assert view.labels is not None
        sample["is_labeled"] = True
        sample["sem_seg"] = torch.from_numpy(view.labels.astype(np.int64))
        if self.with_masks:
            sample["instances"] = targets.label_map_to_instances(view.labels, np.arange(self.num_classes))


@MAPPER_REGISTRY.register()
class UnlabeledMapper(Mapper):
    """The image alone, with ``is_labeled`` False; no label file is opened, nor need there be one."""

    default_augmentation = "crop"

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> dict[str, Any]:
        """Settings from the INPUT keys; the augmentation is the one of the labeled images.

        Raises:
            ConfigError: if that augmentation looks at labels.
        """
        crop = cfg.INPUT.CROP
        if is_train and crop.ENABLED and crop.SINGLE_CATEGORY_MAX_AREA < 1.0:
            raise ConfigError(
                "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA looks at labels, which unlabeled images do not have; set it to 1.0"
            )
        return {**cls._base_arguments(cfg, is_train), "extra_maps": ()}

    def add_targets(self, sample: dict[str, Any], view: View) -> None:
        """Mark the sample."""
        del view
        sample["is_labeled"] = False


@MAPPER_REGISTRY.register()
class PanopticMapper(Mapper):
    """One mask per segment as ``instances``; crowds, void and segments cropped out of view are no targets.

    With ``keep_empty`` (``INPUT.KEEP_EMPTY_SEGMENTS``) the last of these stay, without a pixel.
    """

    @configurable
    def __init__(self, *, keep_empty: bool = False, **settings: Any) -> None:
        """Add to the settings of ``Mapper``.

        Args:
            keep_empty: segments that the crop left without a pixel are targets too.
            settings: see ``Mapper``.
        """
        super().__init__(**settings)
        self.keep_empty = keep_empty

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> dict[str, Any]:
        """Settings from the INPUT keys."""
        return {**cls._base_arguments(cfg, is_train), "keep_empty": cfg.INPUT.KEEP_EMPTY_SEGMENTS}

    def read_labels(self, sample: Mapping[str, Any], size: tuple[int, int]) -> Labels:
        """Segment index map and the class of each index (void: the ignore label)."""
        segments = _required(sample, "segments_info")
        classes = targets.semantic_labels(
            np.arange(len(segments) + 1, dtype=np.uint16), segments, ignore_label=IGNORE_LABEL
        )
        return _read_segment_index(sample, size), classes

    def add_targets(self, sample: dict[str, Any], view: View) -> None:
        """Add ``instances``."""
        assert view.labels is not None
        # Index 0 is void: class -1, which becomes no mask.
        classes = np.append(-1, targets.instance_classes(sample["segments_info"]))
        sample["instances"] = targets.label_map_to_instances(view.labels, classes, keep_empty=self.keep_empty)


@MAPPER_REGISTRY.register()
class InstanceMapper(Mapper):
    """One mask per annotated object, given as polygons or run-length code; crowds are no targets.

    Objects may overlap, so every mask is augmented for itself: polygons as polygons, which are drawn once, after the
    crop and without the steps of a resized mask, the rest as masks.
    """

    def add_targets(self, sample: dict[str, Any], view: View) -> None:
        """Add ``instances``."""
        objects = [entry for entry in _required(sample, "annotations") if not entry.get("iscrowd", 0)]
        # Original size, of which the targets in the annotations are.
        original = (sample["height"], sample["width"])
        check_masks(objects, original, path=sample["file_name"])
        # (N, H, W), False in the padding: what is seen of an object ends where the image does.
        masks = np.zeros((len(objects), *view.image.shape[:2]), bool)
        height, width = view.size
        for mask, entry in zip(masks, objects, strict=True):
            visible = mask[:height, :width]
            if isinstance(entry["segmentation"], list):
                draw_polygons(_moved(entry["segmentation"], view.transforms), visible)
            else:
                visible[:] = view.transforms.apply_segmentation(annotation_mask(entry, original))
        classes = np.array([entry["category_id"] for entry in objects], np.int64)
        sample["instances"] = targets.masks_to_instances(masks, classes)


def _moved(polygons: Sequence[Sequence[float]], transforms: TransformList) -> list[npt.NDArray[np.float64]]:
    """Polygons (P, 2) after the geometry of an image; a crop moves their points and cuts none off."""
    points = np.concatenate([np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in polygons])
    ends = np.cumsum([len(polygon) // 2 for polygon in polygons])
    return np.split(transforms.apply_coords(points), ends[:-1])


def _read_segment_index(sample: Mapping[str, Any], size: tuple[int, int]) -> targets.LabelMap:
    path = _required(sample, "pan_seg_file_name")
    ids = read_panoptic_ids(path)
    targets.check_size(path, ids.shape, {"height": size[0], "width": size[1]})
    return targets.segment_index_map(
        ids, sample["segments_info"], void_ids=sample.get("void_segment_ids", ()), path=path
    )


def _required(sample: Mapping[str, Any], key: str) -> Any:
    if key not in sample:
        raise ConfigError(
            f"{sample['file_name']}: this data set has no '{key}', which INPUT.DATASET_MAPPER_NAME or INPUT.EXTRA_MAPS "
            f"needs (there is {sorted(sample)}); choose another mapper or data set"
        )
    return sample[key]


def _as_image_tensor(image: npt.NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
