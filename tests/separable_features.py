# SPDX-License-Identifier: Apache-2.0
"""A second stage without images: features of 30 classes, colour x shape, that follow from their embeddings."""

from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from padding.bank.feature_bank import FeatureBatch, weights_digest
from padding.bank.seen_statistics import SeenStatistics
from padding.data.class_embeddings import save_class_embeddings
from padding.data.class_split import ClassSplit
from padding.meta_arch import PADing
from tests.tiny_padding import FEATURE_WIDTH, tiny_padding_cfg

COLOURS = ("red", "green", "blue", "white", "black", "pink")
SHAPES = ("disk", "star", "ring", "cross", "cube")
NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
UNSEEN = ("red star", "blue ring", "white cube", "pink disk")
# Neither seen nor unseen in training: added later.
ADDED = ("green cross", "black disk")
KNOWN = tuple(name for name in NAMES if name not in ADDED)
SPLIT = ClassSplit(
    names=KNOWN, is_thing=(True,) * len(KNOWN), dataset_ids=tuple(range(len(KNOWN))), unseen_names=frozenset(UNSEEN)
)
TRAIN, TEST = "separable_features_train", "separable_features_val"
NO_OBJECT = len(NAMES)
PER_IMAGE = 8


def embeddings() -> np.ndarray:
    """(30, 11): which colour, which shape."""
    colour, shape = np.eye(len(COLOURS)), np.eye(len(SHAPES))
    rows = [np.concatenate([colour[i // len(SHAPES)], shape[i % len(SHAPES)]]) for i in range(len(NAMES))]
    return np.stack(rows).astype(np.float32)


def real_features(ids: torch.Tensor, seed: int) -> torch.Tensor:
    """(n, D) features of classes of ``NAMES``, or of no-object, normalised as the decoder's last layer does."""
    fixed, generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    table = torch.from_numpy(embeddings())
    table = torch.cat([table, torch.zeros(1, table.shape[1])])
    direction = torch.randn(table.shape[1] + 1, FEATURE_WIDTH, generator=fixed)
    inputs = torch.cat([table[ids], (ids == NO_OBJECT).float()[:, None]], dim=1)
    noise = 0.35 * torch.randn(len(ids), FEATURE_WIDTH, generator=generator)
    return torch.nn.functional.layer_norm(inputs @ direction + noise, (FEATURE_WIDTH,))


def training_batch(seed: int, num_images: int = 8) -> FeatureBatch:
    """Features of the images of one step: a quarter no-object, otherwise seen classes; labels of ``SPLIT``."""
    generator = torch.Generator().manual_seed(seed)
    seen = torch.tensor([NAMES.index(SPLIT.names[i]) for i in SPLIT.seen_ids])
    ids = seen[torch.randint(len(seen), (num_images * PER_IMAGE,), generator=generator)]
    ids[::4] = NO_OBJECT
    to_label = torch.tensor([SPLIT.names.index(name) if name in SPLIT.names else -1 for name in NAMES] + [len(KNOWN)])
    return FeatureBatch(real_features(ids, seed + 1), to_label[ids], torch.ones(len(ids)))


def separable_cfg(folder: Path, *opts: object) -> CfgNode:
    """Configuration of the tiny PADing over these classes; writes the table of embeddings, added classes included."""
    MetadataCatalog.get(TRAIN).class_split = SPLIT.seen_only()
    metadata = MetadataCatalog.get(TEST)
    metadata.class_split, metadata.stuff_classes = SPLIT, list(SPLIT.names)
    path = folder / "class_embeddings.npz"
    save_class_embeddings(path, NAMES, embeddings())
    return tiny_padding_cfg(
        folder,
        folder / "output",
        *("DATASETS.TRAIN", (TRAIN,), "DATASETS.TEST", (TEST,), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(SPLIT.seen_ids)),
        *("MODEL.PADING.CLASSIFIER.CLASSES_PER_ITER", 0, "MODEL.PADING.CLASSIFIER.NUM_PER_CLASS", 2),
        *("MODEL.PADING.GENERATOR.NOISE_STD", 0.3, "MODEL.PADING.MMD.GROUPING", "per_class"),
        *("MODEL.PADING.ADD_CLASSES.NUM_PER_CLASS", 200, "SOLVER.IMS_PER_BATCH", 8),
        *opts,
    )


def train_second_stage(cfg: CfgNode, iterations: int = 250) -> tuple[PADing, SeenStatistics]:
    """Train generator and classifier on generated features; a second or two."""
    torch.manual_seed(0)
    model: PADing = build_model(cfg)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "classifier": torch.optim.SGD(model.step_modules("classifier").parameters(), lr=0.05, momentum=0.9)
    }
    if model.generation is not None:
        optimizers = {
            "generator": torch.optim.Adam(model.step_modules("generator").parameters(), lr=3e-3),
            **optimizers,
        }
    origin = weights_digest([model.backbone, model.sem_seg_head])
    statistics = SeenStatistics(SPLIT.names, per_class=50, no_object=200, origin=origin)
    model.train()
    for iteration in range(iterations):
        batch = training_batch(10 * iteration)
        statistics.add(batch, 8)
        for step, optimizer in optimizers.items():
            optimizer.zero_grad()
            torch.stack(list(model(batch, step=step).values())).sum().backward()
            optimizer.step()
    return model.eval(), statistics
