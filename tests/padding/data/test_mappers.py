# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: NPY002  (Detectron2's augmentations draw from the global state)
"""Mappers: what samples hold, agreement with the files, crowds, void, padding, and errors that name the file."""

import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from PIL import Image

from padding.data.catalog import coco_zsp_split, register_panoptic
from padding.data.config import add_input_config
from padding.data.loaders.panoptic_json import load_panoptic
from padding.data.mappers import MAPPER_REGISTRY, InstanceMapper, PanopticMapper, build_mapper
from padding.data.masks import run_length_code
from padding.data.sets.coco_photographs import photograph_files, samples_dir
from tests.tiny_data import TinyPanoptic, write_tiny_panoptic

NAME = "tiny_for_mappers"


@pytest.fixture
def tiny(tmp_path: Path) -> TinyPanoptic:
    tiny = write_tiny_panoptic(tmp_path / "tiny")
    register_panoptic(NAME, **tiny.registration)
    return tiny


def config(mapper: str, **keys: Any) -> CfgNode:
    """Fixed-size settings for the 64 x 96 images: no scaling, no flip."""
    cfg = get_cfg()
    add_input_config(cfg)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (NAME,)
    cfg.INPUT.DATASET_MAPPER_NAME = mapper
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE = 96, 1.0, 1.0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 32
    for key, value in keys.items():
        cfg.merge_from_list([f"INPUT.{key}", value])
    return cfg


def entries_of(tiny: TinyPanoptic, **changes: Any) -> list[Any]:
    return load_panoptic(**{**tiny.registration, **changes})


def ids_in_file(path: str) -> np.ndarray:
    channels = np.asarray(Image.open(path)).astype(int)
    return channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]


def test_panoptic_sample_equals_the_file(tiny: TinyPanoptic) -> None:
    entry = entries_of(tiny)[0]
    before = copy.deepcopy(entry)
    sample = build_mapper(config("coco_panoptic_lsj"), is_train=True)(entry)
    assert entry == before
    assert sample is not None
    image = sample["image"]
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 96, 96))
    np.testing.assert_array_equal(image[:, :64].permute(1, 2, 0), np.asarray(Image.open(entry["file_name"])))
    assert (image[:, 64:] == 128).all()
    instances = sample["instances"]
    assert instances.gt_classes.tolist() == [3, 5, 0, 1]
    assert (instances.gt_masks.dtype, instances.image_size) == (torch.bool, (96, 96))
    ids = ids_in_file(entry["pan_seg_file_name"])
    for mask, segment in zip(instances.gt_masks.numpy(), entry["segments_info"], strict=True):
        np.testing.assert_array_equal(mask[:64], ids == segment["id"])
        assert not mask[64:].any()
    assert (sample["height"], sample["width"], sample["image_id"]) == (64, 96, 1)


def test_crowd_and_void_are_no_panoptic_target(tiny: TinyPanoptic) -> None:
    """Image 2: its tower (class 1) is a crowd; under "ignore_pixels" lake and gem are void as well."""
    mapper = build_mapper(config("PanopticMapper"), is_train=True)
    sample = mapper(entries_of(tiny)[1])
    assert sample is not None
    assert sample["instances"].gt_classes.tolist() == [3, 4, 0, 2]
    narrow = entries_of(tiny, class_split=tiny.class_split.seen_only(), unseen_policy="ignore_pixels")[1]
    sample = mapper(narrow)
    assert sample is not None
    assert sample["instances"].gt_classes.tolist() == [2, 0]


def test_semantic_labels_follow_the_policy(tiny: TinyPanoptic) -> None:
    narrow = tiny.class_split.seen_only()
    register_panoptic(NAME, **{**tiny.registration, "class_split": narrow}, unseen_policy="ignore_pixels")
    entry = DatasetCatalog.get(NAME)[1]
    sample = build_mapper(config("SemanticMapper"), is_train=True)(entry)
    assert sample is not None
    wide = np.asarray(Image.open(tiny.sem_seg_root / "000000000002.png"))
    # Wide box, tower, gem, sky, lake, ground are narrow box 0, tower 1, void, sky 2, void, ground 3.
    expected = np.array([0, 1, 255, 2, 255, 3] + [255] * 250)[wide]
    assert sample["sem_seg"].dtype == torch.int64
    np.testing.assert_array_equal(sample["sem_seg"], expected)
    assert sample["instances"].gt_classes.tolist() == [0, 1, 2]


def test_semantic_png_and_panoptic_png_agree(tiny: TinyPanoptic) -> None:
    mapper = build_mapper(config("SemanticMapper"), is_train=True)
    for entry in entries_of(tiny, sem_seg_root=tiny.sem_seg_root):
        from_panoptic = mapper(entry)
        plain = {key: entry[key] for key in ("file_name", "height", "width", "sem_seg_file_name")}
        from_semantic = mapper(plain)
        assert from_panoptic is not None
        assert from_semantic is not None
        torch.testing.assert_close(from_panoptic["sem_seg"], from_semantic["sem_seg"])
        torch.testing.assert_close(from_panoptic["instances"].gt_masks, from_semantic["instances"].gt_masks)
        assert from_panoptic["sem_seg"].unique().tolist()[-1] == 255


def test_semantic_masks_can_be_left_out(tiny: TinyPanoptic) -> None:
    sample = build_mapper(config("SemanticMapper", SEMANTIC_MASKS=False), is_train=True)(entries_of(tiny)[0])
    assert sample is not None
    assert "instances" not in sample


@pytest.mark.parametrize("name", ["mask_former_semantic", "mask_former_panoptic", "mask_former_instance"])
def test_padded_crops_never_become_a_class(tiny: TinyPanoptic, name: str) -> None:
    cfg = config(name, SIZE_DIVISIBILITY=80, COLOR_AUG_SSD=True)
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", (40, 72)
    entry = {**entries_of(tiny)[0], "annotations": [{"category_id": 0, "segmentation": [[0, 0, 96, 0, 96, 64, 0, 64]]}]}
    sample = build_mapper(cfg, is_train=True)(entry)
    assert sample is not None
    assert sample["image"].shape == (3, 80, 80)
    assert (sample["image"][:, 40:] == 128).all()
    assert (sample["image"][:, :, 72:] == 128).all()
    masks = sample["instances"].gt_masks
    assert masks[:, :40, :72].any()
    assert not masks[:, 40:].any()
    assert not masks[:, :, 72:].any()
    if "sem_seg" in sample:
        assert (sample["sem_seg"][40:] == 255).all()
        assert (sample["sem_seg"][:, 72:] == 255).all()


def test_crop_larger_than_the_padded_size_is_an_error(tiny: TinyPanoptic) -> None:
    entry = entries_of(tiny)[0]
    with pytest.raises(ValueError, match=r"000000000001\.png is 64 x 96 .*SIZE_DIVISIBILITY"):
        build_mapper(config("SemanticMapper", SIZE_DIVISIBILITY=80), is_train=True)(entry)


def test_masks_emptied_by_the_crop_are_dropped(tiny: TinyPanoptic) -> None:
    """Over many crops of a zoomed image all masks have pixels, and some crop loses a segment."""
    mapper = build_mapper(config("coco_panoptic_lsj", IMAGE_SIZE=32, MIN_SCALE=3.0, MAX_SCALE=3.0), is_train=True)
    entry = entries_of(tiny)[0]
    counts = set()
    for seed in range(10):
        np.random.seed(seed)
        sample = mapper(entry)
        assert sample is not None
        assert sample["instances"].gt_masks.flatten(1).any(1).all()
        counts.add(len(sample["instances"]))
    assert min(counts) < 4


def test_segments_emptied_by_the_crop_stay_if_asked_for(tiny: TinyPanoptic) -> None:
    keys = {"IMAGE_SIZE": 32, "MIN_SCALE": 3.0, "MAX_SCALE": 3.0}
    entry, emptied = entries_of(tiny)[0], 0
    for seed in range(5):
        samples = []
        for keep in (False, True):
            np.random.seed(seed)
            mapper = build_mapper(config("coco_panoptic_lsj", KEEP_EMPTY_SEGMENTS=keep, **keys), is_train=True)
            samples.append(mapper(entry)["instances"])
        dropped, kept = samples
        assert len(kept) == sum(not segment.get("iscrowd", 0) for segment in entry["segments_info"])
        visible = kept.gt_masks.flatten(1).any(1)
        assert torch.equal(kept.gt_masks[visible], dropped.gt_masks)
        assert torch.equal(kept.gt_classes[visible], dropped.gt_classes)
        emptied += int((~visible).sum())
    assert emptied > 0


def instance_entries(tiny: TinyPanoptic) -> list[Any]:
    name = "tiny_for_mappers_instances"
    entries = load_coco_json(json_file=str(tiny.json_file), image_root=str(tiny.root / "images"), dataset_name=name)
    MetadataCatalog.remove(name)
    return entries


def test_instance_masks_equal_the_panoptic_ones(tiny: TinyPanoptic) -> None:
    """The instance JSON holds the same things, as polygons and as run-length codes."""
    forms = set()
    for instance_entry, panoptic_entry in zip(instance_entries(tiny), entries_of(tiny), strict=True):
        forms |= {type(annotation["segmentation"]) for annotation in instance_entry["annotations"]}
        ours = build_mapper(config("coco_instance_lsj"), is_train=True)(instance_entry)
        panoptic = build_mapper(config("coco_panoptic_lsj"), is_train=True)(panoptic_entry)
        assert ours is not None
        assert panoptic is not None
        things = panoptic["instances"].gt_classes < 3
        torch.testing.assert_close(ours["instances"].gt_classes, panoptic["instances"].gt_classes[things])
        torch.testing.assert_close(ours["instances"].gt_masks, panoptic["instances"].gt_masks[things])
        assert "annotations" not in ours
        assert "annotations" in instance_entry
    assert forms == {list, dict}


def test_instance_masks_follow_the_flip(tiny: TinyPanoptic) -> None:
    entry = entries_of(tiny)[0]
    entry["annotations"] = [{"category_id": 2, "segmentation": [[10, 4, 30, 4, 30, 20, 10, 20]]}]
    plain = np.zeros((96, 96), bool)
    plain[4:20, 10:30] = True
    outcomes = set()
    for seed in range(8):
        np.random.seed(seed)
        sample = build_mapper(config("InstanceMapper", RANDOM_FLIP="horizontal"), is_train=True)(entry)
        assert sample is not None
        mask = sample["instances"].gt_masks[0].numpy()
        outcomes.add((np.array_equal(mask, plain), np.array_equal(mask, plain[:, ::-1])))
    assert outcomes == {(True, False), (False, True)}


@pytest.mark.parametrize("rotation", [0.0, 25.0])
def test_polygons_are_drawn_after_the_geometry(tiny: TinyPanoptic, rotation: float) -> None:
    """Polygons and the same objects as masks differ at the borders alone, by the steps of a resized mask."""
    polygons, codes = (entries_of(tiny)[0] for _ in range(2))
    corners = [[10, 4, 60.4, 8.2, 50, 55.7, 12.1, 40], [70, 20, 90, 25, 88, 58, 72, 60]]
    polygons["annotations"] = [{"category_id": i, "segmentation": [outline]} for i, outline in enumerate(corners)]
    codes["annotations"] = [
        {"category_id": i, "segmentation": run_length_code([outline], (64, 96))} for i, outline in enumerate(corners)
    ]
    keys = {"MIN_SCALE": 0.5, "MAX_SCALE": 2.0, "RANDOM_FLIP": "horizontal", "ROTATION": rotation}
    mapper = build_mapper(config("InstanceMapper", **keys), is_train=True)
    shown = differing = 0
    for seed in range(8):
        samples = []
        for entry in (polygons, codes):
            np.random.seed(seed)
            found = mapper(entry)["instances"]
            samples.append(dict(zip(found.gt_classes.tolist(), found.gt_masks.numpy().astype(np.uint8), strict=True)))
        drawn, resized = samples
        for name, mask in drawn.items():
            kernel = np.ones((7, 7), np.uint8)
            assert (cv2.erode(resized[name], kernel) <= mask).all()
            assert (mask <= cv2.dilate(resized[name], kernel)).all()
            shown, differing = shown + int(mask.sum()), differing + int((mask != resized[name]).sum())
    assert shown > 1000
    assert 0 < differing < 0.1 * shown


def test_image_without_segments_gives_no_targets(tiny: TinyPanoptic) -> None:
    entry = entries_of(tiny)[0]
    Image.new("RGB", (96, 64)).save(entry["pan_seg_file_name"])
    entry["segments_info"] = []
    sample = build_mapper(config("coco_panoptic_lsj"), is_train=True)(entry)
    assert sample is not None
    assert sample["instances"].gt_masks.shape == (0, 96, 96)


@pytest.mark.parametrize("name", ["SemanticMapper", "PanopticMapper", "InstanceMapper"])
def test_evaluation_sample_keeps_the_original_size_and_reads_no_label(tiny: TinyPanoptic, name: str) -> None:
    entry = entries_of(tiny)[0]
    Path(entry["pan_seg_file_name"]).unlink()
    sample = build_mapper(config(name), is_train=False)(entry)
    assert sample is not None
    assert sample["image"].shape == (3, 32, 48)
    assert {key: sample[key] for key in entry} == entry
    assert set(sample) - set(entry) == {"image"}


def test_extra_map_shares_crop_and_flip(tiny: TinyPanoptic) -> None:
    """A grey map equal to the image's red channel stays equal to it under every geometry."""
    entry = entries_of(tiny)[0]
    red = np.asarray(Image.open(entry["file_name"]))[..., 0]
    path = tiny.root / "saliency.png"
    Image.fromarray(red).save(path)
    entry["saliency_file_name"] = str(path)
    cfg = config(
        "PanopticMapper",
        EXTRA_MAPS=["saliency"],
        MIN_SCALE=0.4,
        MAX_SCALE=2.0,
        IMAGE_PAD_VALUE=0,
        RANDOM_FLIP="horizontal",
    )
    for seed in range(6):
        np.random.seed(seed)
        sample = build_mapper(cfg, is_train=True)(entry)
        assert sample is not None
        assert (sample["saliency"].dtype, tuple(sample["saliency"].shape)) == (torch.float32, (1, 96, 96))
        torch.testing.assert_close(sample["saliency"][0] * 255, sample["image"][0].float())


def test_extra_map_errors(tiny: TinyPanoptic) -> None:
    mapper = build_mapper(config("PanopticMapper", EXTRA_MAPS=["saliency"]), is_train=True)
    entry = entries_of(tiny)[0]
    with pytest.raises(ValueError, match=r"000000000001\.png: this data set has no 'saliency_file_name'"):
        mapper(entry)
    path = tiny.root / "s16.png"
    Image.fromarray(np.zeros((64, 96), np.uint16)).save(path)
    with pytest.raises(ValueError, match=r"s16\.png: a continuous map is an 8-bit grey image"):
        mapper({**entry, "saliency_file_name": str(path)})


def test_bgr_format_swaps_channels(tiny: TinyPanoptic) -> None:
    entry = entries_of(tiny)[0]
    rgb = build_mapper(config("PanopticMapper"), is_train=True)(entry)
    bgr = build_mapper(config("PanopticMapper", FORMAT="BGR"), is_train=True)(entry)
    assert rgb is not None
    assert bgr is not None
    torch.testing.assert_close(rgb["image"], bgr["image"].flip(0))


def test_label_out_of_range_names_file_and_value(tiny: TinyPanoptic) -> None:
    entry = entries_of(tiny)[0]
    path = tiny.root / "labels.png"
    Image.fromarray(np.full((64, 96), 6, np.uint8)).save(path)
    plain = {"file_name": entry["file_name"], "height": 64, "width": 96, "sem_seg_file_name": str(path)}
    with pytest.raises(ValueError, match=r"labels\.png: holds the label 6, but the data set has 6 classes"):
        build_mapper(config("SemanticMapper"), is_train=True)(plain)


def test_ignore_label_must_not_be_a_class(tiny: TinyPanoptic) -> None:
    register_panoptic(NAME, **tiny.registration)
    MetadataCatalog.get(NAME).__dict__["ignore_label"] = 2
    with pytest.raises(ValueError, match="ignore label 2 is one of the 6 classes"):
        build_mapper(config("SemanticMapper"), is_train=True)


def test_png_ids_missing_from_the_json(tiny: TinyPanoptic) -> None:
    entry = entries_of(tiny)[0]
    *kept, removed = entry["segments_info"]
    entry["segments_info"] = kept
    with pytest.raises(ValueError, match=rf"000000000001\.png: holds the segment ids \[{removed['id']}\]"):
        build_mapper(config("PanopticMapper"), is_train=True)(entry)


@pytest.mark.parametrize("key", ["file_name", "pan_seg_file_name"])
def test_size_mismatch_missing_and_damaged_files(tiny: TinyPanoptic, key: str) -> None:
    entry = entries_of(tiny)[0]
    mapper = build_mapper(config("PanopticMapper"), is_train=True)
    path = Path(entry[key])
    content = path.read_bytes()
    Image.new("RGB", (96, 60)).save(path)
    with pytest.raises(ValueError, match=rf"{path.parent.name}/{path.name}: the file is 60 x 96 .*say 64 x 96"):
        mapper(entry)
    path.write_bytes(content[:40])
    with pytest.raises(ValueError, match=rf"{path.name}: cannot be decoded"):
        mapper(entry)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{path.name}: no such file"):
        mapper(entry)


@pytest.mark.parametrize(
    ("mapper", "key"),
    [("PanopticMapper", "segments_info"), ("InstanceMapper", "annotations"), ("SemanticMapper", "sem_seg_file_name")],
)
def test_data_set_without_the_needed_labels(tiny: TinyPanoptic, mapper: str, key: str) -> None:
    bare = {"file_name": entries_of(tiny)[0]["file_name"]}
    with pytest.raises(ValueError, match=rf"000000000001\.png: this data set has no '{key}'"):
        build_mapper(config(mapper), is_train=True)(bare)


def test_names_and_aliases(tiny: TinyPanoptic) -> None:
    classes = {
        "coco_panoptic_lsj": PanopticMapper,
        "mask_former_instance": InstanceMapper,
    }
    for name, expected in classes.items():
        assert type(build_mapper(config(name), is_train=True)) is expected
    with pytest.raises(ValueError, match=r"DATASET_MAPPER_NAME is 'lsj'; known mappers are .*coco_panoptic_lsj"):
        build_mapper(config("lsj"), is_train=True)


def test_a_new_mapper_needs_no_change_here(tiny: TinyPanoptic) -> None:
    class OwnMapper(PanopticMapper):
        pass

    MAPPER_REGISTRY.register(OwnMapper)
    try:
        assert type(build_mapper(config("OwnMapper"), is_train=True)) is OwnMapper
    finally:
        MAPPER_REGISTRY._obj_map.pop("OwnMapper")


def test_real_coco_image() -> None:
    split = coco_zsp_split().seen_only()
    entries = load_panoptic(class_split=split, unseen_policy="ignore_pixels", **photograph_files(samples_dir(), "val"))
    entry = next(entry for entry in entries if entry["image_id"] == 1268)
    assert entry["void_segment_ids"]
    cfg = config("coco_panoptic_lsj", IMAGE_SIZE=640)
    sample = build_mapper(cfg, is_train=True)(entry)
    assert sample is not None
    ids = ids_in_file(entry["pan_seg_file_name"])
    kept = [segment for segment in entry["segments_info"] if not segment["iscrowd"]]
    assert sample["instances"].gt_classes.tolist() == [segment["category_id"] for segment in kept]
    height, width = ids.shape
    assert (height, width) == (427, 640)
    for mask, segment in zip(sample["instances"].gt_masks.numpy(), kept, strict=True):
        np.testing.assert_array_equal(mask[:height], ids == segment["id"])


def test_rotation_is_void_in_labels_mean_in_the_image_and_not_valid(tiny: TinyPanoptic) -> None:
    cfg = config("mask_former_semantic", ROTATION=10.0, VALID_MASK=True, EXTRA_MAPS=["grey"], SIZE_DIVISIBILITY=100)
    cfg.MODEL.PIXEL_MEAN = [1.4, 2.6, 3.0]
    uncovered = inner = 0
    plain = build_mapper(config("mask_former_semantic"), is_train=True)(entries_of(tiny)[0])
    void = 1.1 * int((plain["sem_seg"] == 255).sum())
    grey = tiny.root / "grey.png"
    Image.fromarray(np.full((64, 96), 255, np.uint8)).save(grey)
    for seed in range(6):
        np.random.seed(seed)
        sample = build_mapper(cfg, is_train=True)({**entries_of(tiny)[0], "grey_file_name": str(grey)})
        assert sample is not None
        valid, image = sample["valid"].numpy(), sample["image"].permute(1, 2, 0).numpy()
        assert valid.dtype == bool
        assert not valid[64:].any()
        assert not valid[:, 96:].any()
        corners = ~valid[:64, :96]
        uncovered += int(corners.sum())
        assert (sample["sem_seg"].numpy()[~valid] == 255).all()
        assert (sample["sem_seg"].numpy()[valid] == 255).sum() <= void, "the image lost labels"
        assert not sample["instances"].gt_masks.numpy()[:, ~valid].any()
        # Interpolation blends the pixels at the image's edge.
        away = corners & ~np.roll(valid, 2, 0)[:64, :96] & ~np.roll(valid, 2, 1)[:64, :96]
        away &= ~np.roll(valid, -2, 0)[:64, :96] & ~np.roll(valid, -2, 1)[:64, :96]
        inner += int(away.sum())
        assert (image[:64, :96][away] == (1, 3, 3)).all()
        assert (image[64:] == 128).all()
        assert (sample["grey"][0, :64, :96].numpy()[away] == 0).all()
    assert uncovered > 500
    assert inner > 100


@pytest.mark.parametrize("mapper", ["PanopticMapper", "InstanceMapper"])
def test_rotated_segments_do_not_reach_into_the_corners(tiny: TinyPanoptic, mapper: str) -> None:
    cfg = config(mapper, ROTATION=15.0, VALID_MASK=True)
    entry = entries_of(tiny)[0] if mapper == "PanopticMapper" else instance_entry(tiny)
    np.random.seed(1)
    sample = build_mapper(cfg, is_train=True)(entry)
    assert sample is not None
    masks, valid = sample["instances"].gt_masks.numpy(), sample["valid"].numpy()
    assert len(masks) > 1
    assert masks.any(axis=0)[valid].any()
    assert not masks[:, ~valid].any()


def instance_entry(tiny: TinyPanoptic) -> dict[str, Any]:
    objects = load_coco_json(str(tiny.json_file), str(tiny.root / "images"))[0]
    return objects


def test_valid_is_false_in_the_padding_alone_without_rotation(tiny: TinyPanoptic) -> None:
    cfg = config("mask_former_semantic", VALID_MASK=True, SIZE_DIVISIBILITY=100)
    sample = build_mapper(cfg, is_train=True)(entries_of(tiny)[0])
    assert sample is not None
    assert sample["valid"][:64, :96].all()
    assert sample["valid"].sum() == 64 * 96


def test_crops_hold_labelled_pixels(tiny: TinyPanoptic, tmp_path: Path) -> None:
    """Only one corner of the image is labelled; the sixteen-bit file is read as what it means."""
    labels = np.full((64, 96), 255, np.uint16)
    labels[:20, :20] = 1
    Image.fromarray(labels).save(tmp_path / "sparse.png")
    entry = {k: v for k, v in entries_of(tiny)[0].items() if k not in ("pan_seg_file_name", "segments_info")}
    entry["sem_seg_file_name"] = str(tmp_path / "sparse.png")
    counts: dict[int, list[int]] = {0: [], 30: []}
    for least, found in counts.items():
        cfg = config("mask_former_semantic", ROTATION=5.0)
        cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [32, 32]
        cfg.INPUT.CROP.MIN_LABELED = least
        for seed in range(20):
            np.random.seed(seed)
            sample = build_mapper(cfg, is_train=True)(entry)
            assert sample is not None
            assert set(sample["sem_seg"].unique().tolist()) <= {1, 255}
            found.append(int((sample["sem_seg"] == 1).sum()))
    assert sum(n >= 30 for n in counts[30]) > sum(n >= 30 for n in counts[0]) + 5


def test_whole_images_are_resized_whatever_their_shape(tiny: TinyPanoptic) -> None:
    cfg = config("semantic_resize")
    cfg.INPUT.CROP.SIZE = [32, 128]
    entry = entries_of(tiny)[0]
    sample, full = (
        build_mapper(cfg if name else config("mask_former_semantic"), is_train=True)(entry) for name in (True, False)
    )
    assert sample is not None
    assert full is not None
    assert sample["image"].shape == (3, 32, 128)
    assert sample["sem_seg"].shape == (32, 128)
    # Nearest neighbors: no class is made up between two others.
    assert set(sample["sem_seg"].unique().tolist()) <= set(full["sem_seg"].unique().tolist())
