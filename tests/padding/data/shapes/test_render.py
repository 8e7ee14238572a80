# SPDX-License-Identifier: Apache-2.0
"""Classes, embeddings and scenes of the embedded data set, without files."""

from collections import Counter

import numpy as np
import pytest

from padding.data.shapes.classes import COARSE_NAMES, ShapesConfig, class_table, coarse_ids, embed_classes, shapes_split
from padding.data.shapes.render import RenderedImage, render_image
from padding.data.shapes.textures import coverage, jitter_colours, signed_distance, smooth_field

SMALL = ShapesConfig(size=64, radius_px=(8.0, 14.0))


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[RenderedImage]]:
    return {split: [render_image(SMALL, split, i) for i in range(60)] for split in ("train", "val")}


def test_class_table_has_30_things_and_12_stuff_with_readable_unique_names_and_colours():
    table = class_table()
    assert [entry["id"] for entry in table] == [*range(1, 31), *range(101, 113)]
    assert [entry["isthing"] for entry in table] == [1] * 30 + [0] * 12
    assert len({entry["name"] for entry in table}) == len({tuple(entry["color"]) for entry in table}) == 42
    assert {"red star", "striped ring", "teal hatch"} <= {entry["name"] for entry in table}
    assert all(0 <= channel <= 255 for entry in table for channel in entry["color"])


def test_class_table_cannot_be_changed_through_its_result():
    class_table()[0]["color"][0] = -1
    class_table()[0]["name"] = "broken"
    assert class_table()[0]["name"] == "red disk"
    assert class_table()[0]["color"][0] >= 0


def test_unseen_classes_are_seven_and_every_attribute_value_stays_seen():
    split = shapes_split()
    table = class_table()
    unseen = [table[i] for i in split.unseen_ids]
    for key, expected in (("shape", 5), ("look", 5), ("colour", 2), ("pattern", 2)):
        values = [entry[key] for entry in unseen if key in entry]
        assert len(values) == len(set(values)) == expected
    seen = [table[i] for i in split.seen_ids]
    for key, (num_values, least) in {"shape": (6, 4), "look": (5, 4), "colour": (4, 2), "pattern": (3, 3)}.items():
        counts = Counter(entry[key] for entry in seen if key in entry)
        assert len(counts) == num_values
        assert min(counts.values()) >= least


def test_coarse_labels_keep_the_look_of_things_and_the_whole_stuff_class():
    assert len(COARSE_NAMES) == 17
    for entry, coarse in zip(class_table(), coarse_ids(), strict=True):
        assert COARSE_NAMES[coarse] == (entry["look"] if entry["isthing"] else entry["name"])


def test_embedding_similarity_counts_shared_attributes():
    embeddings = embed_classes(ShapesConfig())
    assert embeddings.shape == (42, 64)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    table, cosine = class_table(), embeddings @ embeddings.T
    for i, first in enumerate(table):
        for j, second in enumerate(table[:i]):
            keys = ("isthing", "shape", "look", "colour", "pattern")
            shared = sum(first.get(key) == second.get(key) for key in keys if key in first and key in second)
            # Both have three attributes, so the noise-free cosine is the shared number over three.
            assert abs(cosine[i, j] - shared / 3) < 0.13


def test_embeddings_without_noise_are_orthogonal_where_nothing_is_shared():
    cosine = (rows := embed_classes(ShapesConfig(embedding_noise=0.0))) @ rows.T
    np.testing.assert_allclose(cosine[:30, 30:], 0, atol=1e-6)
    assert not np.array_equal(rows, embed_classes(ShapesConfig(embedding_noise=0.0, seed=1)))


def test_training_images_show_no_unseen_pixel_and_all_seen_classes(scenes):
    shown = np.unique([np.bincount(scene.semantic.ravel(), minlength=42) > 0 for scene in scenes["train"]], axis=0)
    assert set(np.flatnonzero(shown.any(axis=0))) == set(shapes_split().seen_ids)


def test_thirty_validation_images_show_every_class(scenes):
    shown = Counter(segment.class_id for scene in scenes["val"][:30] for segment in scene.segments)
    assert set(shown) == set(range(42))


def test_labels_of_a_scene_agree_with_each_other(scenes):
    split = shapes_split()
    for scene in scenes["train"] + scenes["val"]:
        assert {segment.id for segment in scene.segments} == set(np.unique(scene.panoptic_ids).tolist())
        for segment in scene.segments:
            mask = scene.panoptic_ids == segment.id
            rows, columns = np.nonzero(mask)
            x, y, width, height = segment.bbox
            assert (x, y, x + width - 1, y + height - 1) == (columns.min(), rows.min(), columns.max(), rows.max())
            assert segment.area == mask.sum()
            assert split.contiguous_id[segment.category_id] == segment.class_id
            assert set(scene.semantic[mask]) == {segment.class_id}
        assert np.array_equal(scene.coarse, np.array(coarse_ids())[scene.semantic])
        assert np.array_equal(scene.saliency >= 128, np.isin(scene.semantic, list(split.thing_ids)))


def test_scenes_have_one_to_five_things_and_one_or_two_different_backgrounds(scenes):
    kinds = [Counter(segment.isthing for segment in scene.segments) for scene in scenes["train"] + scenes["val"]]
    assert {count[True] for count in kinds} == {1, 2, 3, 4, 5}
    assert {count[False] for count in kinds} == {1, 2}
    for scene in scenes["val"]:
        stuff = [segment.class_id for segment in scene.segments if not segment.isthing]
        assert len(stuff) == len(set(stuff))


def test_at_most_half_of_a_thing_is_hidden_and_crowded_scenes_reach_the_limit():
    config = ShapesConfig(size=64, radius_px=(10.0, 14.0))
    segments = [s for i in range(60) for s in render_image(config, "val", i).segments]
    visible = [segment.area / segment.full_area for segment in segments if segment.isthing]
    assert min(visible) >= 0.5
    assert min(visible) < 0.75  # the limit is at work
    assert min(s.area / s.full_area for s in segments if not s.isthing) >= 1 - config.max_region_covered_frac


def test_an_image_depends_on_seed_split_and_index_and_not_on_counts():
    image = render_image(SMALL, "val", 5).image
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    same = ShapesConfig(size=64, radius_px=(8.0, 14.0), num_train=1, num_val=6)
    assert np.array_equal(image, render_image(same, "val", 5).image)
    others = [render_image(SMALL, "val", 6), render_image(SMALL, "train", 5)]
    others.append(render_image(ShapesConfig(size=64, radius_px=(8.0, 14.0), seed=1), "val", 5))
    assert all(not np.array_equal(image, other.image) for other in others)


def test_camouflage_mixes_the_mean_background_colour_into_things_only():
    plain = {"noise_sigma": 0.0, "correlated_sigma": 0.0, "lighting": 0.0, "shadow": 0.0, "size": 64}
    scene = render_image(ShapesConfig(**plain, radius_px=(8.0, 14.0)), "val", 3)
    clipped = ((scene.image == 0) | (scene.image == 255)).any(axis=-1)
    inside, outside = (scene.saliency == 255) & ~clipped, scene.saliency == 0
    assert np.array_equal(scene.image[outside], scene.camouflaged[outside])
    residual = scene.camouflaged[inside] - 0.6 * scene.image[inside]
    # What is left is 40 % of one colour; edges between two things mix as well, so this holds for all pixels.
    assert np.ptp(residual, axis=0).max() <= 2.0
    total = render_image(ShapesConfig(**plain, radius_px=(8.0, 14.0), camouflage_frac=1.0), "val", 3)
    assert np.ptp(total.camouflaged[inside].astype(int), axis=0).max() <= 1


@pytest.mark.parametrize("shape", ["disk", "square", "triangle", "star", "plus", "ring"])
def test_coverage_of_an_outline_equals_its_supersampled_area(shape):
    def area(step: float) -> float:
        line = np.arange(-24 + step / 2, 24, step, dtype=np.float32)
        u, v = np.meshgrid(line, line)
        distance = signed_distance(shape, u, v, 18.0)
        outermost = np.hypot(u, v)[distance <= 0].max()
        assert outermost <= 1.15 * 18.0 + step
        return float(coverage(distance).sum() if step == 1 else (distance <= 0).sum() * step**2)

    assert area(1.0) == pytest.approx(area(0.1), rel=0.02)


def test_hue_jitter_keeps_greys_and_the_sum_of_the_channels():
    colours = np.array([[0.5, 0.5, 0.5], [0.9, 0.2, 0.1]])
    turned = jitter_colours(colours, 1.0, 0.1)
    np.testing.assert_allclose(turned[0], colours[0], atol=1e-6)
    np.testing.assert_allclose(turned.sum(axis=1), colours.sum(axis=1), atol=1e-6)
    np.testing.assert_allclose(jitter_colours(colours, 1.0, 1 / 3)[1], [0.1, 0.9, 0.2], atol=1e-6)


def test_noise_has_the_asked_deviation():
    rng = np.random.default_rng(0)
    field = np.stack([smooth_field(rng, 64, 4.0, channels=2) for _ in range(30)])
    assert field.std() == pytest.approx(1, abs=0.15)
    quiet = render_image(ShapesConfig(noise_sigma=0.0, correlated_sigma=0.0), "val", 0).image.astype(float)
    noisy = render_image(ShapesConfig(correlated_sigma=0.0), "val", 0).image.astype(float)
    middle = (quiet > 45) & (quiet < 210)  # nothing is clipped there
    assert (noisy - quiet)[middle].std() == pytest.approx(0.05 * 255, rel=0.05)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="'test'"):
        render_image(SMALL, "test", 0)
    with pytest.raises(ValueError, match="-1"):
        render_image(SMALL, "train", -1)
    with pytest.raises(ValueError, match="radius_px"):
        ShapesConfig(size=32)
    with pytest.raises(ValueError, match="seed"):
        ShapesConfig(seed=-1)
    with pytest.raises(ValueError, match="num_train"):
        ShapesConfig(num_train=-1)
    with pytest.raises(ValueError, match="max_objects"):
        ShapesConfig(max_objects=0)
    with pytest.raises(ValueError, match="embedding_width"):
        ShapesConfig(embedding_width=8)
