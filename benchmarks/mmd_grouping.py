# SPDX-License-Identifier: Apache-2.0
"""What the generator learns from COCO's class frequencies: groupings of the MMD and images a batch, without COCO.

A mixture stands for the features of a frozen segmentor: each class of COCO panoptic is a Gaussian of its own
covariance, whose mean is a non-linear function of the class embedding and a part that no embedding tells; images hold
segments of classes whose frequencies follow Zipf's law (some classes in most images, most in few). Means and
covariances are known, of unseen classes too. The second stage is the real one (``PADing`` with
``configs/coco_zsp.yaml``) in 64 channels; its classifier starts from a linear one of seen features, as from a
segmentor's class head. Every row sees ``--features`` matched features, larger batches at rates that grow by the square
root of their size.

Groupings are those of ``MODEL.PADING.MMD.GROUPING`` (``auto`` is per_class with a feature bank), and ``moments``:
per_class with ``MMD.ROWS_PER_CLASS`` 8, where classes with fewer rows in the batch are filled up with rows drawn from
running estimates of their mean and variance. Reported for each, mean and spread over seeds: ``spread``, the trace of
the covariance of synthetic features over the true one (1 is right, 0 is one point per class), ``distance`` of the means
in units of the true standard deviation, and accuracy on true features, each class counting alike: seen, unseen and
harmonic mean at the gamma that is best for it.

    python -m benchmarks.mmd_grouping [--features 38400] [--seeds 3] [--images 12 64 256]
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.modeling import build_model
from torch import Tensor

from benchmarks import add_numbers
from padding.bank.feature_bank import FeatureBatch
from padding.class_moments import ClassMoments
from padding.data.catalog import register_all
from padding.data.class_embeddings import save_class_embeddings
from padding.data.class_split import ClassSplit, class_split_of
from padding.engine.commands import load_config
from padding.engine.optimizer import build_optimizer
from padding.errors import run_command
from padding.meta_arch import STEPS, PADing

Optimizers = dict[str, torch.optim.Optimizer]
CONFIG = Path(__file__).parents[1] / "configs" / "coco_zsp.yaml"
CHANNELS, EMBEDDING_WIDTH = 64, 32
SEGMENTS, NO_OBJECT = 8, 10  # rows of an image, as many as COCO's segments and as the bank keeps unmatched queries
FILLED = 8  # rows that "moments" gives each class of a batch
GROUPINGS = ("batch", "per_class", "moments")
TEST_ROWS = 50
GENERATOR_RATE, CLASSIFIER_RATE = 2e-3, 1e-2  # of 12 images, for hundreds of iterations in place of 20 000
GAMMAS = [0.5 * step for step in range(-6, 13)]


@dataclass(frozen=True)
class Mixture:
    """Classes as Gaussians in the plane of a LayerNorm's outputs."""

    means: Tensor  # (K + 1, D), no-object last
    factors: Tensor  # (K + 1, D, D), covariance F F^T before the norm
    embeddings: Tensor  # (K, E), unit rows
    frequencies: Tensor  # (K,), 0 for unseen classes

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """(n,) classes -> (n, D) features, each with mean 0 and variance 1 over its channels."""
        noise = torch.randn(len(labels), CHANNELS, generator=generator)
        rows = self.means[labels] + torch.einsum("nij,nj->ni", self.factors[labels], noise)
        return torch.nn.functional.layer_norm(rows, (CHANNELS,))

    def batches(self, images: int, generator: torch.Generator) -> Iterator[FeatureBatch]:
        """Endless batches of the matched and unmatched queries of so many images."""
        no_object = len(self.means) - 1
        while True:
            drawn = torch.multinomial(self.frequencies, images * SEGMENTS, replacement=True, generator=generator)
            labels = torch.cat([drawn, torch.full((images * NO_OBJECT,), no_object)])
            yield FeatureBatch(self.draw(labels, generator), labels, torch.ones(len(labels)))


def make_mixture(split: ClassSplit, generator: torch.Generator) -> Mixture:
    """Class embeddings in groups of related classes, means that follow them, covariances of rank 16."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    count = split.num_classes
    groups = normal(16, EMBEDDING_WIDTH)
    embeddings = groups[torch.randint(16, (count,), generator=generator)] + 0.7 * normal(count, EMBEDDING_WIDTH)
    embeddings = torch.nn.functional.normalize(embeddings, dim=1)
    hidden = torch.tanh(2.0 * embeddings @ normal(EMBEDDING_WIDTH, 2 * CHANNELS))
    means = hidden @ normal(2 * CHANNELS, CHANNELS) / (2 * CHANNELS) ** 0.5 + 0.3 * normal(count, CHANNELS)
    means = torch.cat([means, 0.2 * normal(1, CHANNELS)])
    shared, own = normal(CHANNELS, CHANNELS), normal(count + 1, CHANNELS, CHANNELS)
    factors = 0.5 * (shared + own) / CHANNELS**0.5 * (0.7 + 0.6 * torch.rand(count + 1, 1, 1, generator=generator))
    # The rank of a class among seen ones by chance, its frequency 1 / rank.
    frequencies = torch.zeros(count)
    seen = torch.tensor(split.seen_ids)
    ranks = torch.randperm(len(seen), generator=generator) + 1
    frequencies[seen] = 1.0 / ranks
    return Mixture(means, factors, embeddings, frequencies)


def build_second_stage(
    mixture: Mixture, split: ClassSplit, grouping: str, images: int, folder: Path
) -> tuple[PADing, Optimizers]:
    """PADing of ``configs/coco_zsp.yaml`` over small features; its segmentor is never run."""
    table = folder / "embeddings.npz"
    save_class_embeddings(table, split.names, mixture.embeddings.numpy())
    scale = (images / 12) ** 0.5
    options = {
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.BACKBONE.NAME": "build_small_resnet_backbone",
        "MODEL.MASK_FORMER.HIDDEN_DIM": CHANNELS,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": CHANNELS,
        "MODEL.SEM_SEG_HEAD.MASK_DIM": CHANNELS,
        "MODEL.PADING.EMBEDDINGS.PATH": str(table),
        "MODEL.PADING.GENERATOR.NUM_PRIMITIVES": 100,
        "MODEL.PADING.GENERATOR.FFN_DIM": 4 * CHANNELS,
        "SOLVER.GENERATOR.BASE_LR": GENERATOR_RATE * scale,
        "SOLVER.CLASSIFIER.BASE_LR": CLASSIFIER_RATE * scale,
        "MODEL.PADING.MMD.GROUPING": "per_class" if grouping == "moments" else grouping,
    }
    cfg = load_config(CONFIG, [str(word) for pair in options.items() for word in pair])
    model = build_model(cfg)
    assert isinstance(model, PADing)
    return model, {step: build_optimizer(cfg, model.step_modules(step), name=step) for step in STEPS}


def fit_head(model: PADing, mixture: Mixture, generator: torch.Generator) -> None:
    """Start seen classes and no-object from a linear classifier of true features, as a segmentor's class head would."""
    batch = next(mixture.batches(400, generator))
    known = [*model.label_space.seen_ids, model.num_test_classes]
    columns = torch.searchsorted(torch.tensor(known), batch.labels)
    weight = torch.zeros(len(known), CHANNELS + 1, requires_grad=True)
    rows = torch.nn.functional.pad(batch.embeddings, (0, 1), value=1.0)
    optimizer = torch.optim.LBFGS([weight], max_iter=30, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(rows @ weight.T, columns) + 1e-3 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        model.new_fc.weight[known], model.new_fc.bias[known] = weight[:, :-1], weight[:, -1]


def train(
    model: PADing, optimizers: Optimizers, mixture: Mixture, grouping: str, *, images: int, features: int, seed: int
) -> None:
    """Interleaved steps over ``features`` matched features, the rates of both optimisers falling to 0 as a cosine."""
    data = torch.Generator().manual_seed(seed)
    moments = ClassMoments(len(mixture.frequencies), CHANNELS, FILLED)
    iterations = features // (images * SEGMENTS)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(entry, iterations) for entry in optimizers.values()]
    stream = mixture.batches(images, data)
    model.train()
    for _ in range(iterations):
        batch = next(stream)
        wider = moments.fill(batch) if grouping == "moments" else batch
        for step, rows in (("generator", wider), ("classifier", batch)):
            loss = torch.stack(list(model(rows, step=step).values())).sum()
            loss.backward()
            optimizers[step].step()
            optimizers[step].zero_grad()
        for schedule in schedules:
            schedule.step()


@torch.no_grad()
def judge(model: PADing, mixture: Mixture, seed: int) -> dict[str, float]:
    """Spread, distance of means and accuracies; see the module."""
    model.eval()
    split, data = model.label_space, torch.Generator().manual_seed(1000 + seed)
    labels = torch.arange(split.num_classes).repeat_interleave(TEST_ROWS)
    true = mixture.draw(labels, data).view(split.num_classes, TEST_ROWS, CHANNELS)
    fake = model.synthesise(labels).view_as(true)
    variance, fake_variance = true.var(1).sum(1), fake.var(1).sum(1)
    distance = (true.mean(1) - fake.mean(1)).square().sum(1).sqrt() / variance.sqrt()
    found = {}
    for name, ids in (("seen", list(split.seen_ids)), ("unseen", list(split.unseen_ids))):
        found[f"spread_{name}"] = float((fake_variance[ids] / variance[ids]).mean())
        found[f"distance_{name}"] = float(distance[ids].mean())
    logits = model.classify(true.flatten(0, 1))[:, : split.num_classes]
    best = max((_accuracies(logits, labels, split, gamma) for gamma in GAMMAS), key=lambda entry: entry["harmonic"])
    return found | best


def _accuracies(logits: Tensor, labels: Tensor, split: ClassSplit, gamma: float) -> dict[str, float]:
    logits = logits.clone()
    logits[:, list(split.seen_ids)] -= gamma
    right = (logits.argmax(1) == labels).float().view(split.num_classes, TEST_ROWS).mean(1)
    seen, unseen = (100.0 * float(right[list(ids)].mean()) for ids in (split.seen_ids, split.unseen_ids))
    return {"seen": seen, "unseen": unseen, "harmonic": 2.0 * seen * unseen / max(seen + unseen, 1e-9)}


def run(grouping: str, images: int, features: int, seed: int) -> dict[str, float]:
    """One row with one seed; the mixture depends on the seed, not on the row."""
    split = class_split_of("coco_2017_val_panoptic_zsp")
    mixture = make_mixture(split, torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        model, optimizers = build_second_stage(mixture, split, grouping, images, Path(folder))
    fit_head(model, mixture, torch.Generator().manual_seed(500 + seed))
    train(model, optimizers, mixture, grouping, images=images, features=features, seed=seed)
    return judge(model, mixture, seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table as it grows, and one JSON object."""
    parser = argparse.ArgumentParser(description="groupings of the MMD at COCO's class frequencies")
    add_numbers(parser, features=38400, seeds=3)
    parser.add_argument("--images", type=int, nargs="+", default=[12, 64, 256], help="of a batch")
    parser.add_argument("--groupings", nargs="+", default=list(GROUPINGS), choices=GROUPINGS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    register_all()
    result = {}
    for images in args.images:
        for grouping in args.groupings:
            found = [run(grouping, images, args.features, seed) for seed in range(args.seeds)]
            row = {}
            for key in found[0]:
                values = [entry[key] for entry in found]
                row[key] = [round(statistics.mean(values), 3), round(statistics.pstdev(values), 3)]
            result[f"{grouping}_{images}"] = row
            print(f"{images:4d} images, {grouping:9s}", json.dumps(row), flush=True)
    print(json.dumps({"features": args.features, "seeds": args.seeds, **result}))


if __name__ == "__main__":
    sys.exit(run_command(main))
