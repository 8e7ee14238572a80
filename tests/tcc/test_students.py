# SPDX-License-Identifier: Apache-2.0
"""Students: one interface for every backbone, output strides, seeds, published sizes, nothing unused."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from padding.engine import load_cfg
from tcc.config import add_tcc_config
from tcc.students import Student, build_resnet, build_student, seeded_torch

TINY_HEAD = [
    part
    for name in ("CNN", "VIT")
    for key, value in (("PROJECT", 4), ("ASPP", 8), ("DECODER", 8))
    for part in (f"MODEL.TCC.{name}.HEAD.{key}_CHANNELS", value)
]
SMALL_RESNET = ["MODEL.TCC.CNN.BACKBONE", "small_resnet", "MODEL.TCC.CNN.OUTPUT_STRIDE", 32]
PVT_NANO = ["MODEL.TCC.VIT.BACKBONE", "pvt_nano", "MODEL.TCC.VIT.DROP_PATH", 0.0]
OUTSIDE = ["MODEL.TCC.VIT.BACKBONE", "TwoMapsForStudents", "MODEL.TCC.VIT.OUTPUT_STRIDE", 16]


def tcc_cfg(*options: Any) -> CfgNode:
    return load_cfg("", ["MODEL.DEVICE", "cpu", "SEED", 3, *options], [add_tcc_config])


def tiny_cfg(*options: Any) -> CfgNode:
    return tcc_cfg(*TINY_HEAD, *SMALL_RESNET, *PVT_NANO, *options)


def num_parameters(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@BACKBONE_REGISTRY.register()
class TwoMapsForStudents(Backbone):
    """A backbone from outside, with names of its own."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        self.fine = nn.Conv2d(input_shape.channels, 3, 4, stride=4)
        self.coarse = nn.Conv2d(3, 5, 4, stride=4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine = self.fine(images)
        coarse = self.coarse(fine)
        return {"fine": fine, "coarse": coarse, "deeper": coarse}

    def output_shape(self) -> dict[str, ShapeSpec]:
        shapes = {"fine": ShapeSpec(channels=3, stride=4), "coarse": ShapeSpec(channels=5, stride=16)}
        return {**shapes, "deeper": ShapeSpec(channels=5, stride=16)}


# Origin: the specification of TCC, Sec. 1.2 (with a head of 256 channels, dilations (6, 12, 18) and 21 classes).
@pytest.mark.parametrize(
    ("backbone", "output_stride", "backbone_millions", "head_millions"),
    [
        ("resnet50", 16, 23.5, 16.8),
        ("resnet50", 8, 23.5, 16.8),
        ("resnet101", 16, 42.5, 16.8),
        ("pvt_small", 32, 24.0, 5.4),
        ("pvt_medium", 32, 43.7, 5.4),
        ("convnext_small", 32, 49.5, 7.3),
        ("convnext_small", 16, 49.5, 7.3),
    ],
)
def test_sizes_are_the_published_ones(
    backbone: str, output_stride: int, backbone_millions: float, head_millions: float
) -> None:
    cfg = tcc_cfg("MODEL.TCC.VIT.BACKBONE", backbone, "MODEL.TCC.VIT.OUTPUT_STRIDE", output_stride)
    with torch.device("meta"):
        student = build_student(cfg, "VIT", 21).eval()
        outputs = student(torch.empty(1, 3, 64, 96))
    assert num_parameters(student.backbone) == pytest.approx(backbone_millions, abs=0.051)
    assert num_parameters(student.head) == pytest.approx(head_millions, abs=0.051)
    assert outputs["backbone"].shape[-2:] == (64 // output_stride, 96 // output_stride)


@pytest.mark.parametrize("name", ["CNN", "VIT"])
def test_every_output_has_its_size(name: str) -> None:
    student = build_student(tiny_cfg(), name, 7)
    outputs = student(torch.randn(2, 3, 64, 96))
    last = {"CNN": 96, "VIT": 128}[name]
    assert {key: tuple(value.shape) for key, value in outputs.items()} == {
        "logits": (2, 7, 16, 24),
        "decoder": (2, 8, 16, 24),
        "aspp": (2, 8, 2, 3),
        "backbone": (2, last, 2, 3),
        "low_level": (2, 24, 16, 24),
    }


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["MODEL.TCC.VIT.OUTPUT_STRIDE", 16],
        ["MODEL.TCC.VIT.BACKBONE", "convnext_atto"],
        ["MODEL.TCC.VIT.BACKBONE", "small_resnet"],
        OUTSIDE,
    ],
)
def test_every_parameter_gets_a_gradient_from_the_logits_alone(options: list[Any]) -> None:
    student = build_student(tiny_cfg(*options), "VIT", 3).train()
    student(torch.randn(2, 3, 64, 64))["logits"].square().sum().backward()
    assert [name for name, p in student.named_parameters() if p.grad is None or not p.requires_grad] == []


def test_maps_of_a_registered_backbone_are_chosen_by_name() -> None:
    assert build_student(tiny_cfg(*OUTSIDE), "VIT", 3).head.high_name == "deeper"
    cfg = tiny_cfg(*OUTSIDE, "MODEL.TCC.VIT.HEAD.IN_FEATURES", ["fine", "coarse"])
    head = build_student(cfg, "VIT", 3).head
    assert (head.low_name, head.high_name) == ("fine", "coarse")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["MODEL.TCC.VIT.BACKBONE", "pvt_v3"],
            r"MODEL.TCC.VIT.BACKBONE is 'pvt_v3'; there are resnet50.*network of timm",
        ),
        (["MODEL.TCC.VIT.FREEZE_AT", 2], "MODEL.TCC.VIT.FREEZE_AT is 2: no part of pvt_nano can be kept"),
        (
            ["MODEL.TCC.VIT.PIXEL_MEAN", [127.5] * 3],
            r"VIT.PIXEL_MEAN \(127.5, 127.5, 127.5\) and PIXEL_STD \(\) belong",
        ),
        (["MODEL.TCC.VIT.BACKBONE", "small_resnet", "MODEL.TCC.VIT.OUTPUT_STRIDE", 16], "'res5' of small_resnet has s"),
        (["MODEL.TCC.VIT.BACKBONE", "resnet50", "MODEL.TCC.VIT.OUTPUT_STRIDE", 4], "of resnet50 is 4; expected 8, 16"),
        (["MODEL.TCC.VIT.HEAD.IN_FEATURES", ["res2", "res6"]], r"IN_FEATURES is \('res2', 'res6'\).* gives res2, res3"),
        (["MODEL.TCC.VIT.HEAD.IN_FEATURES", ["res5"]], r"expected a low-level and a last map"),
        (
            [*OUTSIDE, "MODEL.TCC.VIT.CHECKPOINT_ACTIVATIONS", True],
            "MODEL.TCC.VIT.CHECKPOINT_ACTIVATIONS: TwoMapsForStudents has no blocks",
        ),
    ],
)
def test_wrong_keys_are_refused(options: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_student(tiny_cfg(*options), "VIT", 3)


def conv_of(student: Student) -> Tensor:
    return student.backbone.stem.conv1.weight


def test_the_same_backbone_twice_differs_and_each_is_reproducible() -> None:
    cfg = tiny_cfg("MODEL.TCC.VIT.BACKBONE", "small_resnet")
    cnn, vit = (build_student(cfg, name, 3) for name in ("CNN", "VIT"))
    for name in ("backbone.stem.conv1.weight", "head.aspp.project.weight", "head.decoder.predictor.weight"):
        assert not torch.allclose(cnn.get_parameter(name), vit.get_parameter(name)), name
    torch.manual_seed(99)
    again = build_student(cfg, "VIT", 3)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in vit.state_dict().items())
    other_seed = build_student(tiny_cfg("MODEL.TCC.VIT.BACKBONE", "small_resnet", "SEED", 4), "VIT", 3)
    assert not torch.allclose(conv_of(other_seed), conv_of(vit))
    equal = build_student(tiny_cfg("MODEL.TCC.CNN.SEED_OFFSET", 1), "CNN", 3)
    assert torch.equal(conv_of(equal), conv_of(vit))


def test_without_a_seed_the_initial_values_follow_torchs() -> None:
    cfg = tiny_cfg("SEED", -1)
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(conv_of(build_student(cfg, "CNN", 3)))
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])


def test_the_global_random_state_is_untouched() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    build_student(tiny_cfg(), "VIT", 3)
    assert torch.equal(torch.rand(3), expected)
    with seeded_torch(2**70):  # any integer
        first = torch.rand(1)
    with seeded_torch(2**70):
        assert torch.equal(torch.rand(1), first)


def test_channel_dropout_drops_whole_channels_before_the_head_and_nothing_else() -> None:
    student = build_student(tiny_cfg(), "CNN", 3).train()
    seen: dict[str, Tensor] = {}
    student.head.register_forward_pre_hook(lambda _, inputs: seen.update(inputs[0]))
    images = torch.randn(2, 3, 64, 64)
    outputs = student(images, feature_dropout=0.5)
    for name, key in (("res2", "low_level"), ("res5", "backbone")):
        kept = seen[name].flatten(2).any(dim=2)
        assert 0.2 < kept.float().mean() < 0.8
        doubled = outputs[key] * 2 * kept[..., None, None]
        torch.testing.assert_close(seen[name], doubled)
    for mode, probability in ((True, 0.0), (False, 0.5)):
        outputs = student.train(mode)(images, feature_dropout=probability)
        assert seen["res5"] is outputs["backbone"]
        assert seen["res2"] is outputs["low_level"]


@pytest.mark.parametrize(
    "options", [[], ["MODEL.TCC.VIT.BACKBONE", "small_resnet"], ["MODEL.TCC.VIT.BACKBONE", "convnext_atto"]]
)
def test_recomputed_activations_change_nothing(options: list[Any]) -> None:
    images = torch.randn(2, 3, 64, 64)
    results = []
    for recompute in (False, True):
        cfg = tiny_cfg("MODEL.TCC.VIT.CHECKPOINT_ACTIVATIONS", recompute, *options)
        student = build_student(cfg, "VIT", 3).train()
        torch.manual_seed(5)  # of the dropout
        student(images)["logits"].square().sum().backward()
        results.append((student.state_dict(), [p.grad for p in student.parameters()]))
    (plain, gradients), (recomputed, gradients_again) = results
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)  # running statistics too
    assert all(torch.equal(one, two) for one, two in zip(gradients, gradients_again, strict=True))


def test_resnet_is_dilated_where_it_keeps_the_resolution() -> None:
    def stages_of(output_stride: int) -> list[tuple[int, int, int]]:
        """Stride and dilation of each stage's first 3x3 convolution, dilation of its last."""
        network = build_resnet("resnet50", output_stride=output_stride)
        convs = [[block.conv2 for block in stage] for stage in network.stages]
        assert all(conv.padding == conv.dilation for stage in convs for conv in stage)
        assert all(block.conv1.stride == (1, 1) for stage in network.stages for block in stage)
        return [(stage[0].stride[0], stage[0].dilation[0], stage[-1].dilation[0]) for stage in convs]

    with torch.device("meta"):
        assert stages_of(32) == [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]
        assert stages_of(16) == [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 2, 2)]
        assert stages_of(8) == [(1, 1, 1), (2, 1, 1), (1, 2, 2), (1, 4, 4)]


def test_norm_is_chosen_for_the_backbone_and_nothing_is_frozen() -> None:
    with torch.device("meta"):
        trained = build_resnet("resnet50", output_stride=16)
        frozen = build_resnet("resnet50", output_stride=16, norm="FrozenBN")
    assert sum(isinstance(m, nn.BatchNorm2d) for m in trained.modules()) == 53
    assert all(p.requires_grad for p in trained.parameters())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    small = build_student(tiny_cfg("MODEL.TCC.CNN.NORM", "FrozenBN"), "CNN", 3).backbone
    assert not any(isinstance(m, nn.BatchNorm2d) for m in small.modules())
    assert all(p.requires_grad for p in small.parameters())


LITE = ["MODEL.TCC.CNN.BACKBONE", "tf_efficientnet_lite0", "MODEL.TCC.CNN.OUTPUT_STRIDE", 32]


def test_a_student_is_any_network_of_timm_with_its_own_norms_and_kept_parts() -> None:
    options = ["MODEL.TCC.CNN.NORM", "FrozenBN", "MODEL.TCC.CNN.FREEZE_AT", 2, "MODEL.TCC.CNN.CHANNELS_LAST", True]
    student = build_student(tiny_cfg(*LITE, *options), "CNN", 3)
    network = student.backbone.network
    assert student(torch.randn(2, 3, 64, 64))["logits"].shape == (2, 3, 16, 16)
    assert not any(p.requires_grad for p in network.blocks[1].parameters())
    assert all(p.requires_grad for p in network.blocks[2].parameters())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert network.conv_stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_freeze_at_keeps_a_resnets_stem() -> None:
    backbone = build_student(tiny_cfg(*SMALL_RESNET, "MODEL.TCC.CNN.FREEZE_AT", 1), "CNN", 3).backbone
    assert {n.split(".")[0] for n, p in backbone.named_parameters() if p.requires_grad} == {
        "res2",
        "res3",
        "res4",
        "res5",
    }


def test_each_student_sees_its_own_normalisation() -> None:
    """The maps of a student that renormalises are those of its backbone on images normalised for it."""
    cfg = tiny_cfg(*LITE, "MODEL.TCC.CNN.PIXEL_MEAN", [127.5] * 3, "MODEL.TCC.CNN.PIXEL_STD", [127.5] * 3)
    student, peer = build_student(cfg, "CNN", 3).eval(), build_student(cfg, "VIT", 3)
    pixels = torch.randint(0, 256, (1, 3, 64, 64)).float()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    with torch.no_grad():
        expected = student.backbone((pixels - 127.5) / 127.5)["res5"]
        torch.testing.assert_close(student((pixels - mean) / std)["backbone"], expected, rtol=1e-3, atol=1e-4)
    assert peer.pixels is None
    assert not [name for name in student.state_dict() if name.startswith("pixels")]
