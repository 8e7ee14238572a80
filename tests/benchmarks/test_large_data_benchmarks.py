# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of data of COCO's size run on little of it, on data that our readers accept."""

import json
from pathlib import Path

import pytest

from benchmarks import coco_size, evaluation
from benchmarks.generated_coco import write_instances_json, write_panoptic_json
from padding.data.coco_json import InstanceFile, PanopticFile, findings_of
from padding.data.sets.coco import coco_zsp_split
from padding.data.typed_json import read_typed_json


def test_generated_annotations_are_sound_and_of_the_stated_shape(tmp_path: Path) -> None:
    split = coco_zsp_split()
    total = write_panoptic_json(tmp_path / "panoptic.json", 100, split, segments=5)
    write_instances_json(tmp_path / "instances.json", 100, split, objects=250)
    for name, kind in (("panoptic", PanopticFile), ("instances", InstanceFile)):
        assert not findings_of(tmp_path / f"{name}.json", kind).problems
    content = read_typed_json(tmp_path / "panoptic.json", PanopticFile)
    assert len(content.images) == 100
    assert sum(len(a.segments_info) for a in content.annotations) == total
    unseen = {split.dataset_ids[i] for i in split.unseen_ids}
    kept = [a for a in content.annotations if not {s.category_id for s in a.segments_info} & unseen]
    assert len(kept) == 38  # 45,617 of 118,287
    assert len(read_typed_json(tmp_path / "instances.json", InstanceFile).annotations) == 250


def test_stages_are_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # What a process of its own does is done here: each would import torch.
    class Here:
        def __init__(self, target: object, args: tuple[object, ...]) -> None:
            self.exitcode = target(*args)

        def start(self) -> None: ...
        def join(self) -> None: ...

    class Queue(list):
        put, get = list.append, list.pop

    context = type("Context", (), {"Process": Here, "SimpleQueue": Queue})
    monkeypatch.setattr(coco_size.multiprocessing, "get_context", lambda _: context)
    monkeypatch.setattr(coco_size.logging, "disable", lambda _: None)
    coco_size.main(["--images", "60", "--objects", "90"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {key.removesuffix("_seconds") for key in result if key.endswith("_seconds")} == set(coco_size.STAGES)
    assert result["training_peak_to_file"] >= 0


@pytest.mark.usefixtures("restored_catalogs")
@pytest.mark.parametrize("options", [[], ["--scores"]])
def test_evaluation_prints_its_result(capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    evaluation.main(["--images", "4", "--size", "64", "96", "--workers", "1", *options])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["images"] == 4
    assert result["with_workers_cpu_ms"] > 0
    assert result["total_ms"] == pytest.approx(sum(result[key] for key in result if key.endswith(("s_ms", "e_ms"))))
