# SPDX-License-Identifier: Apache-2.0
"""Splits: reading and its errors, selection of entries, and every shipped list against its protocol and its hash."""

import hashlib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from padding.data.loaders.listed_images import read_id_list
from padding.data.roots import splits_dir
from padding.data.semi_splits import read_semi_split, select_entries, shipped_splits

SPLITS = splits_dir()
RATIOS = ("1_16", "1_8", "1_4", "1_2")
BLENDER = dict(zip(RATIOS, ((662, 9920), (1323, 9259), (2646, 7936), (5291, 5291)), strict=True))
CITYSCAPES = dict(zip(RATIOS, ((186, 2789), (372, 2603), (744, 2231), (1488, 1487)), strict=True))
FEW = dict(zip(RATIOS, ((92, 1372), (183, 1281), (366, 1098), (732, 732)), strict=True))
CLASSIC = {str(n): (n, 10582 - n) for n in (92, 183, 366, 732, 1464)}
# Published counts, labeled and unlabeled; CamVid and shapes are ours.
PROTOCOLS: dict[str, Mapping[str, tuple[int, int]]] = {
    "voc/cps_blender": BLENDER,
    "voc/u2pl_blender": BLENDER,
    "voc/pseudoseg_1464": FEW,
    "voc/classic": CLASSIC,
    "cityscapes/cps": CITYSCAPES,
    "cityscapes/u2pl": CITYSCAPES,
    "cityscapes/stpp": {"1_30": (100, 2875)},
    "camvid": {"12": (12, 355), "23": (23, 344), "1_8": (46, 321), "1_4": (92, 275), "1_2": (184, 183)},
    "ccp": {"50": (50, 1094), "200": (200, 1094), "all": (804, 1094)},
    "shapes": {"24": (24, 2976), "48": (48, 2952), "96": (96, 2904), "4_of_12": (4, 8)},
}
COUNTS = {f"{protocol}/{ratio}": n for protocol, ratios in PROTOCOLS.items() for ratio, n in ratios.items()}
POOLS = {"voc/train.txt": 1464, "voc/train_aug.txt": 10582, "voc/val.txt": 1449}
POOLS |= {"ccp/val.txt": 200}
POOLS |= {"cityscapes/train.txt": 2975, "cityscapes/val.txt": 500}


def labeled(name: str) -> set[str]:
    return set(read_semi_split(name).labeled)


def pool_of(name: str) -> set[str] | None:
    """Ids the lists of a split must add up to; None for data whose images are not listed here."""
    if name.startswith("voc/"):
        return set(read_id_list(SPLITS / "voc" / ("train.txt" if "pseudoseg" in name else "train_aug.txt")))
    if name.startswith("cityscapes/"):
        return set(read_id_list(SPLITS / "cityscapes" / "train.txt"))
    if name.startswith("shapes/"):
        return {f"{index:012d}" for index in range(1, 13 if name == "shapes/4_of_12" else 3001)}
    return None


# Reading ------------------------------------------------------------------------------------------------------------


def write_lists(folder: Path, labeled_text: str, unlabeled_text: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labeled.txt").write_text(labeled_text)
    (folder / "unlabeled.txt").write_text(unlabeled_text)
    return str(folder)


def test_lists_of_any_folder(tmp_path: Path) -> None:
    name = write_lists(tmp_path / "mine", "# drawn by hand\nb\na\n\n", "c\r\nd\r\n")
    split = read_semi_split(name)
    assert (split.labeled, split.unlabeled) == (("b", "a"), ("c", "d"))
    digest = hashlib.sha256(b"# drawn by hand\nb\na\n\nc\r\nd\r\n").hexdigest()[:16]
    assert str(split) == f"{name}: 2 labeled, 2 unlabeled, lists {digest}"


def test_a_change_of_a_list_changes_the_digest(tmp_path: Path) -> None:
    one = read_semi_split(write_lists(tmp_path / "one", "a\n", "b\nc\n"))
    other = read_semi_split(write_lists(tmp_path / "other", "b\n", "a\nc\n"))
    assert one.digest != other.digest


def test_an_image_in_both_lists_is_an_error(tmp_path: Path) -> None:
    name = write_lists(tmp_path, "a\nb\nc\n", "c\nd\nb\n")
    with pytest.raises(ValueError, match=r"2 images are in both lists, first b; remove them from unlabeled\.txt"):
        read_semi_split(name)


def test_an_unknown_split_names_those_of_the_same_data() -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"SPLIT is 'camvid/1_3'.*camvid/1_2, camvid/1_4, camvid/1_8, camvid/23; .*prepare_splits",
    ):
        read_semi_split("camvid/1_3")
    with pytest.raises(FileNotFoundError, match=r"shipped are camvid/\.\.\., ccp/.*, voc/\.\.\.;"):
        read_semi_split("nothing/here")


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "labeled.txt").write_text("a\n")
    with pytest.raises(FileNotFoundError, match=r"unlabeled\.txt: no such list"):
        read_semi_split(str(tmp_path))


# Selection ----------------------------------------------------------------------------------------------------------


def entry(image_id: Any, file_name: str) -> dict[str, Any]:
    return {"image_id": image_id, "file_name": file_name}


def test_entries_come_in_the_order_of_the_ids() -> None:
    entries = [entry(name, f"i/{name}.jpg") for name in "abcd"]
    assert select_entries(entries, ("d", "b"), split="s", data=("set",)) == [entries[3], entries[1]]


def test_entries_are_found_by_id_and_by_file_name() -> None:
    entries = [entry("aachen_1", "i/aachen_1_leftImg8bit.png"), entry(7, "i/000000000007.png")]
    ids = ("000000000007", "aachen_1_leftImg8bit", "7", "aachen_1")
    assert select_entries(entries, ids, split="s", data=("set",)) == [entries[i] for i in (1, 0, 1, 0)]
    without_id = [{"file_name": "i/a.jpg"}]
    assert select_entries(without_id, ("a",), split="s", data=("set",)) == without_id


def test_ids_without_an_image_are_an_error() -> None:
    entries = [entry(name, f"i/{name}.jpg") for name in "ab"]
    message = (
        r"2 of 3 images of the split 's' are not in one, two \(2 images\), first x, y; choose another DATASETS.SPLIT"
    )
    with pytest.raises(ValueError, match=message):
        select_entries(entries, ("a", "x", "y"), split="s", data=("one", "two"))


def test_an_id_of_two_images_is_an_error() -> None:
    entries = [entry("a", "one/a.jpg"), entry("a", "two/a.jpg"), entry("b", "two/b.jpg")]
    assert select_entries(entries, ("b",), split="s", data=("one", "two")) == [entries[2]]
    with pytest.raises(ValueError, match="1 image ids of the split 's' name several images of one, two, first a"):
        select_entries(entries, ("a", "b"), split="s", data=("one", "two"))
    # The same set named twice is no contradiction.
    assert select_entries([entries[0]] * 2, ("a",), split="s", data=("one", "one")) == [entries[0]]


# Shipped lists ------------------------------------------------------------------------------------------------------


def test_every_shipped_split_belongs_to_a_protocol() -> None:
    assert set(shipped_splits()) == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_shipped_split_has_the_counts_and_the_pool_of_its_protocol(name: str) -> None:
    split = read_semi_split(name)
    assert (len(split.labeled), len(split.unlabeled)) == COUNTS[name]
    assert not set(split.labeled) & set(split.unlabeled)
    pool = pool_of(name)
    if pool is not None:
        assert set(split.labeled) | set(split.unlabeled) == pool


@pytest.mark.parametrize(("name", "count"), POOLS.items())
def test_pools(name: str, count: int) -> None:
    assert len(read_id_list(SPLITS / name)) == count


def test_training_and_validation_share_no_image() -> None:
    for data, train in (("voc", "train_aug"), ("voc", "train"), ("cityscapes", "train")):
        parts = [set(read_id_list(SPLITS / data / f"{part}.txt")) for part in (train, "val")]
        assert not parts[0] & parts[1]
    assert set(read_id_list(SPLITS / "voc" / "train.txt")) < set(read_id_list(SPLITS / "voc" / "train_aug.txt"))


@pytest.mark.parametrize("protocol", ["voc/cps_blender", "cityscapes/cps", "camvid", "ccp", "shapes"])
def test_nested_protocols(protocol: str) -> None:
    ratios = {"camvid": ("12", "23", "1_8", "1_4", "1_2"), "ccp": ("50", "200", "all"), "shapes": ("24", "48", "96")}
    sets = [labeled(f"{protocol}/{ratio}") for ratio in ratios.get(protocol, RATIOS)]
    assert all(small < large for small, large in pairwise(sets))


def test_protocols_of_one_ratio_are_told_apart() -> None:
    """The facts behind the warning not to compare numbers across protocols."""
    fine = set(read_id_list(SPLITS / "voc" / "train.txt"))
    assert [len(labeled(f"voc/cps_blender/{ratio}") & fine) for ratio in RATIOS] == [93, 193, 388, 742]
    assert [len(labeled(f"voc/u2pl_blender/{ratio}") & fine) for ratio in RATIOS] == [662, 1323, 1464, 1464]
    common = [len(labeled(f"cityscapes/cps/{r}") & labeled(f"cityscapes/u2pl/{r}")) for r in RATIOS]
    assert common == [8, 48, 182, 720]
    for ratio, count in (("1_16", "92"), ("1_8", "183"), ("1_4", "366")):
        assert labeled(f"voc/pseudoseg_1464/{ratio}") == labeled(f"voc/classic/{count}")
    assert len(labeled("voc/pseudoseg_1464/1_2") - labeled("voc/classic/732")) == 361


def test_camvid_eighth_and_its_parts_are_drawn_as_described() -> None:
    split = read_semi_split("camvid/1_8")
    pool = sorted({*split.labeled, *split.unlabeled})
    drawn = np.random.RandomState(0).choice(pool, 46, replace=False).tolist()
    assert set(split.labeled) == set(drawn)
    assert len(pool) == 367
    for count in (12, 23):
        part = read_semi_split(f"camvid/{count}")
        assert list(part.labeled) == sorted(drawn[:count])
        assert list(part.unlabeled) == sorted(set(pool) - set(drawn[:count]))


def test_lists_of_ccp_are_drawn_as_described() -> None:
    annotated = [f"{i:04d}" for i in range(1, 1005)]
    val = np.random.RandomState(0).choice(annotated, 200, replace=False).tolist()
    assert list(read_id_list(SPLITS / "ccp" / "val.txt")) == sorted(val)
    others = sorted(set(annotated) - set(val))
    assert list(read_semi_split("ccp/all").labeled) == others
    for count in (50, 200):
        split = read_semi_split(f"ccp/{count}")
        assert list(split.labeled) == sorted(np.random.RandomState(0).choice(others, count, replace=False).tolist())
        assert list(split.unlabeled) == [f"{i:04d}" for i in range(1005, 2099)]


@pytest.mark.data
def test_camvid_lists_name_the_images_on_disk(real_data: Path) -> None:
    on_disk = {path.stem for path in (real_data / "camvid" / "images" / "train").glob("*.jpg")}
    for ratio in ("12", "23", "1_8", "1_4", "1_2"):
        split = read_semi_split(f"camvid/{ratio}")
        assert {*split.labeled, *split.unlabeled} == on_disk
