# SPDX-License-Identifier: Apache-2.0
"""Packed models on the Hugging Face Hub, or in a folder of the same layout: ``model.safetensors`` and its card."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tabulate import tabulate

from padding.data.class_split import ClassSplit
from padding.data.files import replacing, write_text
from padding.engine.packing import packed_classes
from padding.errors import ConfigError, MissingFileError, UserError
from padding.modeling.weights.packed import Description, read_description, read_packed

MODEL_NAME, CARD_NAME = "model.safetensors", "README.md"
_SHOWN_CLASSES = 200


class HubError(UserError, OSError):
    """The Hub cannot be reached, or refuses."""


def push(path: str | Path, target: str, *, license_name: str = "", private: bool = False) -> str:
    """Send a packed model and its card to a repository of the Hub, or copy both into a folder.

    Args:
        path: of the model.
        target: ``owner/name``, or a folder: one that exists, or a path that begins with ``.`` or ``/``.
        license_name: of the weights, as the Hub writes it, such as "apache-2.0"; "": the card names none.
        private: a repository that is made now is seen by its owner alone.

    Returns:
        Where it lies: an address, or the folder.

    Raises:
        CheckpointError: the file is no packed model, or damaged.
        HubError: the Hub cannot be reached or refuses; the message says what it said.
    """
    read_packed(path)  # a damaged file is not sent
    text = model_card(path, target, license_name=license_name)
    if _is_folder(target):
        with replacing(Path(target) / MODEL_NAME) as temporary:
            shutil.copyfile(path, temporary)
        write_text(Path(target) / CARD_NAME, text)
        return target
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    with _readable_errors(target):
        api.create_repo(target, private=private, exist_ok=True)
        files = [CommitOperationAdd(MODEL_NAME, str(path)), CommitOperationAdd(CARD_NAME, text.encode())]
        api.create_commit(target, files, commit_message=f"Add {Path(path).name}")
    return f"{api.endpoint}/{target}"


def pull(source: str, output: str | Path, *, revision: str = "") -> Path:
    """Fetch a packed model and verify it.

    Args:
        source: see ``push``.
        output: ``*.safetensors`` to write.
        revision: branch, tag or commit of the Hub; "": the newest.

    Raises:
        MissingFileError: the folder holds no model.
        CheckpointError: what was fetched is no packed model, or damaged.
        HubError: see ``push``.
    """
    if Path(output).suffix != ".safetensors":
        raise ConfigError(f"{output}: a packed model is a .safetensors file; change the ending")
    if _is_folder(source):
        found = Path(source) / MODEL_NAME
        if not found.is_file():
            raise MissingFileError(f"{found}: no such file; python -m padding.hub push writes one")
    else:
        from huggingface_hub import hf_hub_download

        with _readable_errors(source):
            found = Path(hf_hub_download(source, MODEL_NAME, revision=revision or None))
    read_packed(found)
    with replacing(output) as temporary:
        shutil.copyfile(found, temporary)
    return Path(output)


def model_card(path: str | Path, target: str, *, license_name: str = "") -> str:
    """Card of a packed model as Markdown with the Hub's header: classes, results of its last evaluation, how to use it.

    Args:
        path: of the model.
        target: ``owner/name`` or a folder, for the title and the commands.
        license_name: see ``push``.
    """
    from huggingface_hub import EvalResult, ModelCardData

    description, split = read_description(path), packed_classes(path)
    name = Path(target).name
    results = [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=data,
            dataset_name=data,
            metric_type=f"{task}/{metric}",
            metric_value=value,
        )
        for data, task, metric, value in _results(description)
    ]
    head = ModelCardData(
        license=license_name or None,
        library_name="missing-supervision-segmentation",
        pipeline_tag="image-segmentation",
        tags=["image-segmentation", "detectron2", _architecture(description).lower()],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return f"---\n{head.to_yaml()}\n---\n\n{_body(name, path, target, description, split)}"


def _body(name: str, path: str | Path, target: str, description: Description, split: ClassSplit) -> str:
    unseen = len(split.unseen_ids)
    lines = [
        f"# {name}",
        "",
        f"{_architecture(description)}, {split.num_classes} classes"
        + (f", {unseen} of them without any training example (marked with \\*)." if unseen else "."),
        f"One file of {Path(path).stat().st_size / 1e6:.1f} MB holds weights, configuration and classes; nothing in it "
        "is executed.",
        "",
        "```",
        f"python -m padding.hub pull {target} --output {MODEL_NAME}",
        f"python demo.py --model {MODEL_NAME} --input photo.jpg --output pictures",
        "```",
        "",
        "```python",
        "from padding.engine import Predictor",
        "",
        f'prediction = Predictor.from_file("{MODEL_NAME}")(image)  # image: (h, w, 3) uint8, RGB',
        "```",
        "",
    ]
    rows = [(data, f"{task}/{metric}", f"{value:.2f}") for data, task, metric, value in _results(description)]
    if rows:
        table = tabulate(rows, headers=("data", "metric", "value"), tablefmt="github", disable_numparse=True)
        lines += ["## Results of the last evaluation", "", table, ""]
    marked = [f"{n}\\*" if n in split.unseen_names else n for n in split.names[:_SHOWN_CLASSES]]
    more = f", and {split.num_classes - _SHOWN_CLASSES} more" if split.num_classes > _SHOWN_CLASSES else ""
    return "\n".join([*lines, "## Classes", "", ", ".join(marked) + more, ""])


def _results(description: Description) -> Iterator[tuple[str, str, str, float]]:
    """Data set, task, metric and value; numbers that do not exist are left out."""
    for name, value in description.results.items():
        if value is not None and name.count("/") == 2:
            data, task, metric = name.split("/")
            yield data, task, metric, value


def _architecture(description: Description) -> str:
    prefix = "  META_ARCHITECTURE: "
    lines = description.configuration.splitlines()
    return next((line.removeprefix(prefix) for line in lines if line.startswith(prefix)), "model").strip("'\"")


def _is_folder(target: str) -> bool:
    return target.startswith((".", "/", "~")) or os.sep not in target or Path(target).is_dir()


@contextmanager
def _readable_errors(target: str) -> Iterator[None]:
    """One line for what the Hub says; the network's errors name the address."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # Its bases are those of the network's library, whichever this version uses: a refused connection is one of them.
    of_network: tuple[type[Exception], ...] = tuple(
        base for base in HfHubHTTPError.__mro__ if base not in (Exception, BaseException, object)
    )
    try:
        yield
    except HFValidationError as error:
        raise ConfigError(f"{target}: expected owner/name or a folder ({error})") from error
    except of_network as error:
        first = str(error).strip().split("\n")[0]
        raise HubError(
            f"{target}: the Hub cannot be reached or refuses ({type(error).__name__}: {first}); log in by 'hf auth "
            "login' or HF_TOKEN, or name a local folder"
        ) from error
