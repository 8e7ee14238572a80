# SPDX-License-Identifier: Apache-2.0
"""Every YAML loads, builds and says how it is run; every key that this project defines is read by some code."""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone, build_model
from torch.overrides import TorchFunctionMode

import train_net
from padding.data.catalog import register_all
from padding.data.class_embeddings import random_class_embeddings, save_class_embeddings
from padding.data.class_split import class_split_of
from padding.data.folders import register_own_data
from padding.data.mappers import build_mapper
from padding.engine import TRAINER_REGISTRY, add_core_config
from padding.engine.commands import load_config, method_configs, register_data
from padding.engine.output_folder import claimed_folder
from padding.evaluation.build import build_evaluator
from padding.extension import ExtensionOptions
from padding.modeling.config import ACCEPTED_AND_IGNORED
from padding.modeling.tta import SegmentationPlan
from tcc.students import build_backbone_of
from tests.tiny_own import nothing_left, write_own_data
from tests.tiny_padding import register_tiny_data, tiny_padding_cfg
from tests.tiny_psi import tiny_psi_cfg, write_dozen_scribbled_shapes
from tests.tiny_salseg import tiny_salseg_cfg
from tests.tiny_tcc import tiny_tcc_cfg

CONFIGS = Path(__file__).parents[1] / "configs"
RUNNABLE = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "_base_")
HEADER = ("# Command:", "# Expected:", "# Hardware:")


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@functools.cache
def cfg_of(path: Path) -> CfgNode:
    """The frozen configuration of a file; GPU or not is of no interest here."""
    return load_config(path, ["MODEL.DEVICE", "cpu"])


class WithoutDraws(TorchFunctionMode):
    """Initial values are zeros: random ones of a hundred large networks take minutes."""

    DRAWS = frozenset({"normal_", "uniform_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_"})

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.__name__ in self.DRAWS:
            tensor = args[0] if args else kwargs["tensor"]
            with torch.no_grad():
                return tensor if tensor.is_meta else tensor.zero_()
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    register_all()


@pytest.mark.parametrize("path", RUNNABLE, ids=name_of)
def test_header_says_how_it_is_run_and_what_to_expect(path: Path) -> None:
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for entry in HEADER:
        assert any(line.startswith(entry) for line in comment), f"{name_of(path)} has no line '{entry}'"
    command = next(line for line in comment if line.startswith("# Command:"))
    assert f"--config-file configs/{name_of(path)}" in command


@pytest.mark.parametrize("path", RUNNABLE, ids=name_of)
def test_config_builds_its_model_optimisers_and_mapper(
    path: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Names and shapes are what is checked: initial values of a hundred large networks would take minutes.
    cfg = cfg_of(path).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu" if cfg.MODEL.PADING.EMBEDDINGS.PATH else "meta"
    if path.stem.startswith("own_"):  # the files that these name are the user's
        write_own_data(tmp_path)
        monkeypatch.chdir(tmp_path)
        forgotten = nothing_left()
        forgotten.__enter__()
        request.addfinalizer(lambda: forgotten.__exit__(None, None, None))
    register_own_data(cfg)
    if cfg.MODEL.PADING.EMBEDDINGS.PATH:
        names = class_split_of(cfg.DATASETS.TEST[0]).names
        save_class_embeddings(tmp_path / "table.npz", names, random_class_embeddings(names, 64, seed=0))
        cfg.MODEL.PADING.EMBEDDINGS.PATH = str(tmp_path / "table.npz")
    cfg.freeze()
    trainer_class = TRAINER_REGISTRY.get(cfg.TRAINER)
    with torch.device(cfg.MODEL.DEVICE), WithoutDraws():
        model = build_model(cfg)
    trainer = trainer_class.__new__(trainer_class)
    trainer.cfg, trainer.max_iter = cfg, cfg.SOLVER.MAX_ITER
    if cfg.TRAINER == "GeneratorClassifierTrainer" and cfg.MODEL.PADING.METHOD == "supervised":
        with pytest.raises(ValueError, match="--eval-only"):
            trainer.build_optimizers(cfg, model)
        return
    trainer.optimizers = trainer.build_optimizers(cfg, model)
    schedulers = trainer.build_schedulers(cfg)
    assert set(schedulers) == set(trainer.optimizers)
    trained = {id(p) for o in trainer.optimizers.values() for group in o.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}
    build_mapper(cfg, is_train=True)
    assert cfg.SOLVER.IMS_PER_BATCH >= 1
    assert str(Path("output") / Path(name_of(path)).with_suffix("")) == cfg.OUTPUT_DIR


@pytest.mark.parametrize("path", RUNNABLE, ids=name_of)
def test_fixed_crops_fit_backbones_of_every_stride(path: Path) -> None:
    """Maps of strides 16 and 32 then cover the same pixels, and no row of a crop is padding of the network."""
    cfg = cfg_of(path)
    if cfg.INPUT.DATASET_MAPPER_NAME == "semantic_scale_crop":
        assert all(size >= 32 and size % 32 == 0 for size in cfg.INPUT.CROP.SIZE)


@pytest.fixture(scope="module")
def outputs() -> set[str]:
    return {cfg_of(path).OUTPUT_DIR for path in RUNNABLE}


@pytest.mark.parametrize("path", RUNNABLE, ids=name_of)
def test_weights_come_from_another_config_or_a_model_zoo(path: Path, outputs: set[str]) -> None:
    weights = cfg_of(path).MODEL.WEIGHTS
    if not weights or "://" in weights:
        return
    assert Path(weights).name == "model_final.pth"
    assert str(Path(weights).parent) in outputs


def test_no_yaml_repeats_a_key() -> None:
    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[str, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: {keys}"
        return {k: loader.construct_object(v, deep=True) for k, (_, v) in zip(keys, node.value, strict=True)}

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    for path in CONFIGS.rglob("*.yaml"):
        assert isinstance(yaml.load(path.read_text(), Loader=Strict), dict)


class RecordingNode(CfgNode):
    """A configuration that notes the full name of every key that is looked at."""

    read: set[str] = set()  # noqa: RUF012  (shared by all nodes of a configuration on purpose)

    def __init__(self, init_dict: Any = None, key_list: Any = None, new_allowed: bool = False) -> None:
        super().__init__(init_dict, key_list, new_allowed)
        self.__dict__["_path"] = tuple(key_list or ())

    def __getattr__(self, name: str) -> Any:
        if name in self:
            self._note(name)
        return super().__getattr__(name)

    def __getitem__(self, name: str) -> Any:
        self._note(name)
        return super().__getitem__(name)

    def _note(self, name: str) -> None:
        path = self.__dict__.get("_path", ())
        RecordingNode.read.add(".".join((*path, name)))


def leaves(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def recording(cfg: CfgNode) -> RecordingNode:
    def plain(node: Any) -> Any:
        return {k: plain(v) for k, v in node.items()} if isinstance(node, CfgNode) else node

    recorded = RecordingNode(plain(cfg))
    recorded.freeze()
    return recorded


def our_keys() -> set[str]:
    """Keys added to Detectron2's by the shared core and by the methods."""
    cfg = get_cfg()
    theirs = set(leaves(cfg))
    add_core_config(cfg)
    for add_config in method_configs():
        add_config(cfg)
    return set(leaves(cfg)) - theirs


def train_tcc_one_step(output: Path) -> None:
    """Read the keys of TCC: switches that guard others are on, and each student is of both kinds in turn."""
    switches = ["CUTMIX.ENABLED", "CCD.ENABLED", "CFCD.ENABLED"]
    opts = [word for key in switches for word in (f"MODEL.TCC.{key}", True)]
    opts += ["MODEL.TCC.CUTMIX.PARTNER", "second_stream", "OUTPUT_DIR", str(output), "TEST.BEST_METRIC", "sem_seg/mIoU"]
    split = ["DATASETS.SPLIT", "shapes/4_of_12", "SOLVER.MAX_ITER", 1, "DATASETS.TEST", ()]
    for kinds in (("small_resnet", "pvt_nano"), ("pvt_nano", "small_resnet")):
        pair = ["MODEL.TCC.CNN.BACKBONE", kinds[0], "MODEL.TCC.VIT.BACKBONE", kinds[1]]
        cfg = recording(tiny_tcc_cfg(*opts, *split, *pair))
        trainer = TRAINER_REGISTRY.get(cfg.TRAINER)(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
    # A network of timm as a student has keys of its own.
    networks = recording(
        tiny_tcc_cfg("MODEL.TCC.CNN.BACKBONE", "convnext_atto", "MODEL.TCC.VIT.BACKBONE", "convnext_atto")
    )
    for name in ("CNN", "VIT"):
        build_backbone_of(networks, name)


def train_salseg_one_step(output: Path) -> None:
    """Read the keys of SalSeg, those of the published backbone, and of the other geometry of saliency images."""
    opts = ["SOLVER.MAX_ITER", 1, "DATASETS.SPLIT", "shapes/4_of_12", "DATASETS.TEST", (), "OUTPUT_DIR", str(output)]
    train_net.train(recording(tiny_salseg_cfg(*opts, "MODEL.SALSEG.CLASS_WEIGHTS.ENABLED", True)), resume=False)
    names = ["MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone", "INPUT.DATASET_MAPPER_NAME", "SaliencyMapper"]
    other = recording(tiny_salseg_cfg(*names, "INPUT.SALIENCY.MODE", "scale_crop"))
    build_mapper(other, is_train=True)
    with torch.device("meta"):
        build_backbone(other)


def train_psi_one_round(output: Path) -> None:
    """Read the keys of PSI in the mode that labels the training set between two steps."""
    opts = ["MODEL.PSI.SLD.MODE", "rounds", "MODEL.PSI.SLD.STEPS", 1, "SOLVER.MAX_ITER", 2, "DATASETS.TEST", ()]
    cfg = recording(tiny_psi_cfg(*opts, "OUTPUT_DIR", str(output)))
    TRAINER_REGISTRY.get(cfg.TRAINER)(cfg).train()


def test_every_key_of_ours_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_tiny_data(tmp_path)
    RecordingNode.read.clear()
    node, number = "MODEL.PADING.", iter(range(99))

    def cfg_with(*opts: Any) -> RecordingNode:
        return recording(tiny_padding_cfg(tmp_path, tmp_path / f"run{next(number)}", "SOLVER.MAX_ITER", 1, *opts))

    def train_one_step(*opts: Any) -> None:
        cfg = cfg_with("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.CLIP_GRADIENTS.ENABLED", True, *opts)
        TRAINER_REGISTRY.get(cfg.TRAINER)(cfg).train()

    train_one_step(node + "FEATURE_BANK.ENABLED", True, "SOLVER.GENERATOR.LR_SCHEDULER_NAME", "WarmupMultiStepLR")
    train_one_step(node + "SCHEDULE", "sequential", "SOLVER.GENERATOR.LR_SCHEDULER_NAME", "WarmupPolyLR")
    train_one_step(node + "METHOD", "projection")
    ExtensionOptions.from_config(cfg_with(), refit=False)
    SegmentationPlan.from_config(cfg_with())
    register_data(cfg_with())
    with claimed_folder(cfg_with(), resume=False):
        pass
    semantic = cfg_with("MODEL.MASK_FORMER.TEST.SEMANTIC_ON", True)
    build_evaluator(semantic, semantic.DATASETS.TEST[0])
    for mapper in ("mask_former_semantic", "coco_panoptic_lsj"):
        build_mapper(cfg_with("INPUT.DATASET_MAPPER_NAME", mapper, "INPUT.CROP.ENABLED", True), is_train=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(write_dozen_scribbled_shapes(tmp_path / "data")))
    register_all()
    train_tcc_one_step(tmp_path / "tcc")
    train_salseg_one_step(tmp_path / "salseg")
    train_psi_one_round(tmp_path / "psi")
    backbone = cfg_with("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "convnext_atto")
    build_backbone(backbone)
    # A sub-node of SOLVER is merged into a copy of SOLVER, where it is read under the name of the latter.
    merged = {f"SOLVER.{name}." for name in ("GENERATOR", "CLASSIFIER", "THRESHOLD")}
    unread = {
        key
        for key in our_keys() - set(ACCEPTED_AND_IGNORED) - RecordingNode.read
        if not any(key.startswith(p) and "SOLVER." + key.removeprefix(p) in RecordingNode.read for p in merged)
    }
    assert unread == set()
