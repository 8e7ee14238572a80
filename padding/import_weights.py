# SPDX-License-Identifier: Apache-2.0
"""Import published weights: official Mask2Former, official PADing, Mask2Former of Hugging Face transformers.

``python -m padding.import_weights --from LAYOUT INPUT --output OUT.pth [--config-file FILE] [KEY VALUE ...]`` renames
every tensor, prints what became of each, and writes a file that MODEL.WEIGHTS takes. With a configuration the network
is built and loaded: the file then holds what this network uses, its class rows placed in this network's label space.
"""

import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from padding.checkpoint import CLASSIFIER, HEAD, repair_class_head, start_from
from padding.data.class_split import read_name_list
from padding.engine.checkpointer import write_checkpoint
from padding.engine.commands import add_config_arguments, command_parser, open_config, parse, start_log
from padding.engine.trainer import TRAINER_REGISTRY
from padding.errors import CheckpointError, run_command
from padding.meta_arch import PADing
from padding.modeling.label_space import evaluation_split
from padding.modeling.weights.checkpoint import State, read_checkpoint
from padding.modeling.weights.loading import load_into
from padding.modeling.weights.renaming import Imported
from padding.modeling.weights.report import CheckpointReport
from padding.modeling.weights.segmentors import import_huggingface, import_mask2former, layout_of

# Everything of a released PADing file beside the segmentor.
PADING_NAMES = re.compile(
    r"""^(?:
    (?:new_fc|fc_projection|relation\.fc[12])\.(?:weight|bias)
    | dict_feature\.weight
    | generator\.norm\.(?:weight|bias)
    | generator\.layers\.\d+\.(?:
        (?:self_attn|multihead_attn)\.(?:in_proj_(?:weight|bias)|out_proj\.(?:weight|bias))
        | (?:linear[12]|norm[123])\.(?:weight|bias))
    | projection_(?:un)?related\.encoder\.\d+\.(?:weight|bias)
    | decoder\.decoder\.\d+\.(?:weight|bias)
    )$""",
    re.VERBOSE,
)
OFFICIAL_PRESET = "configs/_base_/padding_official.yaml"


def import_pading(state: Mapping[str, Tensor]) -> Imported:
    """Released PADing file; a misplaced no-object row of its class heads is moved to the end.

    Args:
        state: name -> tensor as in the file.

    Raises:
        CheckpointError: for names that no released PADing has, or if an essential part is absent.
    """
    imported = import_mask2former(state, PADING_NAMES)
    for head in (HEAD, CLASSIFIER):
        names = (f"{head}.weight", f"{head}.bias")
        if not all(name in imported.state for name in names):
            continue
        weight, bias, repaired = repair_class_head(*(imported.state[name] for name in names))
        if repaired:
            imported.state |= dict(zip(names, (weight, bias), strict=True))
            imported.notes.append(
                f"{head}: the released converter left the no-object row behind the seen classes; moved to the end"
            )
    return imported


IMPORTERS: dict[str, Callable[[Mapping[str, Tensor]], Imported]] = {
    "mask2former": import_mask2former,
    "pading": import_pading,
    "huggingface": import_huggingface,
}


def import_weights(state: Mapping[str, Tensor], source: str) -> Imported:
    """Import a file of a stated kind.

    Args:
        state: name -> tensor as in the file.
        source: one of ``IMPORTERS``.

    Raises:
        CheckpointError: if the names are those of another kind, or do not make a whole network.
    """
    layout = layout_of(state)
    # Before its second stage the released PADing is a plain Mask2Former.
    if layout != source and (layout, source) != ("mask2former", "pading"):
        raise CheckpointError(f"the names in the file are of layout '{layout}', not '{source}'; pass --from {layout}")
    return IMPORTERS[source](state)


def reorder_class_rows(state: State, file_names: Sequence[str], wanted: Sequence[str]) -> State:
    """Bring the rows of all class heads from the file's order of classes to another one, no-object last.

    Args:
        state: imported names.
        file_names: classes of the file, in the order of its rows.
        wanted: classes of the network; heads of another number of rows are left alone.

    Raises:
        CheckpointError: if the two lists are not the same classes, or no head has that many rows.
    """
    differing = sorted(set(file_names) ^ set(wanted))
    if differing or len(file_names) != len(wanted):
        raise CheckpointError(
            f"the class list has {len(file_names)} names, the network {len(wanted)}; in only one of them: "
            f"{', '.join(differing[:10]) or 'none, but one list repeats a name'}"
        )
    position = {name: row for row, name in enumerate(file_names)}
    order = torch.tensor([*(position[name] for name in wanted), len(wanted)])
    heads = [f"{head}.{leaf}" for head in (HEAD, CLASSIFIER) for leaf in ("weight", "bias")]
    moved = {name: state[name][order] for name in heads if name in state and len(state[name]) == len(order)}
    if not moved:
        rows = len(state[f"{HEAD}.bias"])
        raise CheckpointError(f"the class list has {len(file_names)} names, but the class head of the file {rows} rows")
    return {**state, **moved}


def fit_to_network(cfg: CfgNode, imported: Imported, file_names: Sequence[str] = ()) -> tuple[State, CheckpointReport]:
    """Load an imported file into the network of a configuration.

    Args:
        cfg: the full configuration; its data sets must be registered.
        imported: the file.
        file_names: classes in the order of the file's rows, as far as that differs from the evaluated data set's.

    Returns:
        The tensors of the network that came from the file, and the report.

    Raises:
        CheckpointError: if backbone or head do not fit, or PADing's own parts are in the file but fit only in part.
    """
    if file_names:
        imported.state = reorder_class_rows(imported.state, file_names, evaluation_split(cfg).names)
    model = TRAINER_REGISTRY.get(cfg.TRAINER).build_model(cfg)
    if isinstance(model, PADing):
        report = start_from(model, imported.state, "the imported file")
        _check_second_stage(model, imported, report)
    else:
        report = load_into(model, imported.state)
    model_state = model.state_dict()
    report.renamed = {old: new for old, new in imported.renamed.items() if new in model_state}
    report.skipped = imported.skipped | report.skipped
    return {name: model_state[name].detach().cpu() for name in report.matched}, report


def _check_second_stage(model: nn.Module, imported: Imported, report: CheckpointReport) -> None:
    """A file with a generator must fill the whole second stage: half a generator is none."""
    if not any(name.startswith("generator.") for name in imported.state):
        return
    unfit = [name for name in report.untrained if not name.startswith("criterion.")]
    if unfit:
        raise CheckpointError(
            f"{len(unfit)} tensors of {type(model).__name__} do not fit the released file, first {unfit[0]!r}. "
            f"Released networks have the preset 'official': add {OFFICIAL_PRESET} to _BASE_, and check "
            f"MODEL.PADING.GENERATOR and the width of the class embeddings.\n{report}"
        )


def main(arguments: Sequence[str] | None = None) -> CheckpointReport:
    """Command line; returns the report that it prints."""
    parser = command_parser(__doc__)
    add_config_arguments(parser, required=False, help_text="fit the weights to the network of this configuration")
    parser.add_argument("--from", dest="source", required=True, choices=sorted(IMPORTERS))
    parser.add_argument("input", metavar="INPUT", help="local .pkl, .pth, .pt, .bin or .safetensors file")
    parser.add_argument("--output", required=True, type=Path, metavar="OUT.pth")
    parser.add_argument("--class-names", metavar="FILE", help="classes in the order of the file's rows, one per line")
    args = parse(parser, arguments)
    if (args.class_names or args.opts) and not args.config_file:
        parser.error("--class-names and KEY VALUE pairs need --config-file")
    if args.output.suffix != ".pth":
        parser.error(f"--output {args.output} must end in .pth")
    start_log()
    logger = logging.getLogger("padding")
    cfg = open_config(args.config_file, args.opts) if args.config_file else None
    imported = import_weights(read_checkpoint(args.input), args.source)
    state, report = imported.state, imported.report()
    if cfg is not None:
        names = read_name_list(args.class_names) if args.class_names else ()
        state, report = fit_to_network(cfg, imported, names)
    for note in imported.notes:
        logger.info("%s", note)
    write_checkpoint(args.output, {"model": state})
    logger.info("%s -> %s\n%s", args.input, args.output, report)
    return report


if __name__ == "__main__":
    sys.exit(run_command(main))
