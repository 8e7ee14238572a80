# SPDX-License-Identifier: Apache-2.0
"""Labels of whole images: what grow_labels keeps, how it scales, and the numbers that quality_of reads off."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from padding.data.catalog import register_all
from padding.data.streams import load_training_entries
from padding.engine import TRAINER_REGISTRY
from padding.modeling.batching import normalize_image
from psi.color_affinity import AffinityOptions
from psi.grid import supervision_at_pixels, supervision_on_grid
from psi.label_diffusion import DiffusionOptions, diffuse
from psi.labeling import GrownLabels, SupervisionReader, grow_labels, quality_of
from psi.meta_arch import PSI
from psi.supervision import PixelSupervision
from tests.tiny_psi import tiny_psi_cfg, write_dozen_scribbled_shapes

VOID, CLASSES = 255, 17


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dozen_scribbled_shapes(tmp_path_factory.mktemp("data"))


class ByColor(nn.Module):
    """A network whose class is a matter of color: bright red is 1, bright green is 2, else 0; logits at stride 4."""

    def forward(self, images: Tensor, valid: Tensor | None = None) -> Tensor:
        logits = images.new_full((len(images), CLASSES, *images.shape[-2:]), -4.0)
        logits[:, 0], logits[:, 1:3] = 0.0, 3.0 * images[:, :2]
        return F.avg_pool2d(logits, 4, ceil_mode=True)


@pytest.fixture
def model() -> PSI:
    """Grows in two steps of 8 and 16 pixels."""
    cfg = tiny_psi_cfg("MODEL.PSI.SLD.RADIUS", 8)
    built = TRAINER_REGISTRY.get(cfg.TRAINER).build_model(cfg)
    assert isinstance(built, PSI)
    built.network = ByColor()  # type: ignore[assignment]
    return built


def scene(size: int = 64, scale: int = 1) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Left half red, right half green, one short line in each: sample at 1/scale, scribbles and truth."""
    truth = torch.ones(size, size, dtype=torch.int64)
    truth[:, size // 2 :] = 2
    colors = torch.tensor([[0, 0, 0], [255, 0, 0], [0, 255, 0]], dtype=torch.uint8)
    image = colors[truth].permute(2, 0, 1)[:, ::scale, ::scale].contiguous()
    scribbles = torch.full((size, size), VOID)
    scribbles[30:33, 8:20] = 1
    scribbles[30:33, 44:56] = 2
    return {"image": image, "height": size, "width": size}, scribbles, truth


def same(first: PixelSupervision, second: PixelSupervision) -> bool:
    return torch.equal(first.labels, second.labels) and torch.equal(first.scribbles, second.scribbles)


def test_scribbles_stay_and_regions_grow(model: PSI) -> None:
    sample, scribbles, truth = scene()
    grown = grow_labels(model, sample, scribbles)
    assert len(grown.states) == 3
    drawn = scribbles != VOID
    previous = torch.zeros_like(drawn)
    for state in grown.states:
        assert torch.equal(state.scribbles[0], drawn)
        assert torch.equal(state.labels[0][drawn], scribbles[drawn])
        assert torch.equal(state.weights[0][drawn], torch.ones(int(drawn.sum())))
        labeled = state.labels[0] != VOID
        assert torch.equal(labeled, state.weights[0] > 0)
        assert bool((labeled | ~previous).all())
        assert int(labeled.sum()) > int(previous.sum())
        previous = labeled
    assert torch.equal(grown.states[0].labels[0], scribbles)
    assert bool((grown.states[-1].labels[0][previous] == truth[previous]).all())


def test_same_as_the_parts_put_together_by_hand(model: PSI) -> None:
    sample, scribbles, _ = scene()
    assert model.threshold_net is not None
    with torch.no_grad():
        logits = model.network(normalize_image(sample["image"], model.pixel_mean, model.pixel_std)[None])
        full = F.interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False).softmax(dim=1)
        valid = torch.ones(1, 64, 64, dtype=torch.bool)
        start, cells = supervision_on_grid(scribbles[None], valid, num_classes=CLASSES, stride=4)
        options = DiffusionOptions(radii=(2, 4))
        # Mean of the sixteen pixels of a cell.
        means = full.unflatten(3, (16, 4)).unflatten(2, (16, 4)).mean(dim=(3, 5))
        steps = diffuse(means, start, cells, threshold_net=model.threshold_net, options=options)
    grown = grow_labels(model, sample, scribbles)
    torch.testing.assert_close(grown.scores, full[0])
    for step, state in zip(steps, grown.states[1:], strict=True):
        expected = supervision_at_pixels(step.supervision, scribbles[None], valid, stride=4, num_classes=CLASSES)
        assert same(state, expected)
        torch.testing.assert_close(state.weights, expected.weights)


def test_labels_are_those_of_the_moving_average(model: PSI) -> None:
    sample, scribbles, _ = scene()
    expected = grow_labels(model, sample, scribbles)
    model.average, model.network = model.network, nn.Identity()  # type: ignore[assignment]
    assert same(grow_labels(model, sample, scribbles).states[-1], expected.states[-1])


@pytest.mark.parametrize("scale", [1, 2])
def test_colors_of_the_image_keep_labels_in(model: PSI, scale: int) -> None:
    """A network that knows no border: with an affinity labels stop where red ends, whatever size it sees."""
    sample, scribbles, truth = scene(scale=scale)
    scribbles[:, 32:] = VOID

    class Unsure(nn.Module):
        def forward(self, images: Tensor, valid: Tensor | None = None) -> Tensor:
            logits = images.new_zeros(len(images), CLASSES, images.shape[-2] // 4, images.shape[-1] // 4)
            logits[:, 1] = 1.0 + torch.rand(logits.shape[-2:], generator=torch.Generator().manual_seed(0))
            return logits

    model.network = Unsure()  # type: ignore[assignment]
    wrong = grow_labels(model, sample, scribbles).states[-1].labels[0]
    assert (wrong[truth == 2] == 1).any()
    options = replace(model.growth.diffusion, affinity=AffinityOptions(mode="gate"))
    model.growth = replace(model.growth, diffusion=options)
    found = grow_labels(model, sample, scribbles).states[-1].labels[0]
    assert not (found[truth == 2] == 1).any()
    assert (found == 1).sum() > (scribbles == 1).sum()


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_weights_are_left_alone(training: bool) -> None:
    cfg = tiny_psi_cfg()
    built = TRAINER_REGISTRY.get(cfg.TRAINER).build_model(cfg).train(training)
    before = {name: value.clone() for name, value in built.state_dict().items()}
    sample, scribbles, _ = scene()
    first, second = (grow_labels(built, sample, scribbles) for _ in range(2))
    assert all(module.training is training for module in built.modules())
    assert all(torch.equal(value, before[name]) for name, value in built.state_dict().items())
    assert torch.equal(first.scores, second.scores)  # running statistics and no dropout, whatever the mode
    assert not first.scores.requires_grad


def test_a_smaller_input_gives_labels_at_the_size_of_the_image(model: PSI) -> None:
    """Half the size for the network: the same scene grows to nearly the same labels, with windows twice as wide."""
    sample, scribbles, truth = scene(scale=2)
    grown, whole = grow_labels(model, sample, scribbles), grow_labels(model, scene()[0], scribbles)
    assert grown.scores.shape == (CLASSES, 64, 64)
    for state, step in zip(grown.states, (None, *grown.steps), strict=True):
        assert state.labels.shape == (1, 64, 64)
        if step is not None:
            assert step.scores.shape[-2:] == (16, 16)
    last = grown.states[-1].labels[0]
    assert bool((last[last != VOID] == truth[last != VOID]).all())
    # Rows 30 to 32 lie in cells 7 and 8. Radius of the first step: 2 cells of the whole image, 4 of the halved one.
    rows = [step.window[0, 0].any(dim=1).nonzero().flatten() for step in (whole.steps[0], grown.steps[0])]
    assert [(int(r.min()), int(r.max())) for r in rows] == [(5, 10), (3, 12)]


def test_stored_labels_go_on(model: PSI) -> None:
    """Round by round is all at once: y_2 grown from a stored y_1 is y_2 grown from the scribbles."""
    sample, scribbles, _ = scene()
    whole = grow_labels(model, sample, scribbles)
    first = grow_labels(model, sample, scribbles, steps=[0])
    assert len(first.states) == 2
    assert same(first.states[-1], whole.states[1])
    second = grow_labels(model, sample, scribbles, stored=first.states[-1], steps=[1])
    assert same(second.states[0], first.states[-1])
    assert same(second.states[-1], whole.states[2])
    torch.testing.assert_close(second.states[-1].weights, whole.states[2].weights)


def test_a_model_without_steps_is_refused() -> None:
    cfg = tiny_psi_cfg("MODEL.PSI.SLD.STEPS", 0)
    sample, scribbles, _ = scene()
    with pytest.raises(ValueError, match=r"MODEL\.PSI\.SLD\.STEPS is 0"):
        grow_labels(TRAINER_REGISTRY.get(cfg.TRAINER).build_model(cfg), sample, scribbles)


def test_quality_is_a_matter_of_counting(model: PSI) -> None:
    sample, scribbles, truth = scene()
    truth[:, :16], truth[40:] = 3, VOID
    grown = grow_labels(model, sample, scribbles)
    for state, quality in zip(grown.states, quality_of(grown, truth), strict=True):
        labels, drawn = state.labels[0].tolist(), state.scribbles[0].tolist()
        triples = [
            (labels[y][x], drawn[y][x], int(truth[y, x])) for y in range(64) for x in range(64) if labels[y][x] != VOID
        ]
        checked = [(label == true, by_hand) for label, by_hand, true in triples if true != VOID]
        diffused = [right for right, by_hand in checked if not by_hand]
        assert quality.coverage == pytest.approx(len(triples) / 64**2)
        assert quality.accuracy == pytest.approx(sum(right for right, _ in checked) / len(checked))
        assert quality.diffused == sum(not by_hand for _, by_hand, _ in triples)
        assert (quality.checked, quality.correct) == (len(diffused), sum(diffused))
    unknown = quality_of(grown, None)
    assert unknown[-1].coverage == quality.coverage
    assert unknown[-1].checked == 0


def test_reader_reads_whole_images_as_they_are(data: Path) -> None:
    register_all(data)
    cfg = tiny_psi_cfg("INPUT.MIN_SIZE_TEST", 32)
    read = SupervisionReader(cfg)
    sample, scribbles = read(load_training_entries(cfg.DATASETS.TRAIN, filter_empty=False)[0])
    assert (sample["height"], sample["width"]) == tuple(scribbles.shape) == (64, 64)
    assert sample["image"].shape == (3, 32, 32)
    assert 0.005 < float((scribbles != VOID).float().mean()) < 0.1
    with pytest.raises(TypeError, match="reads no semantic labels"):
        SupervisionReader(tiny_psi_cfg("INPUT.DATASET_MAPPER_NAME", "UnlabeledMapper"))


def test_only_classes_that_are_drawn_grow(data: Path, model: PSI) -> None:
    register_all(data)
    cfg = tiny_psi_cfg()
    sample, scribbles = SupervisionReader(cfg)(load_training_entries(cfg.DATASETS.TRAIN, filter_empty=False)[0])
    grown = grow_labels(model, sample, scribbles)
    assert isinstance(grown, GrownLabels)
    assert set(grown.states[-1].labels.unique().tolist()) <= {*scribbles.unique().tolist()}
