# SPDX-License-Identifier: Apache-2.0
"""Graphs into files: ``torch.export`` (.pt2) and ONNX, with dynamic batch and size where a graph allows it, checked.

Beside the file lies a JSON of the same name: what goes in, what comes out, the classes and how exact the graph is.
"""

import io
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from padding.data.files import write_bytes, write_json
from padding.engine.graphs import Graph
from padding.errors import ConfigError, UserError

ENDINGS = {"torch-export": ".pt2", "onnx": ".onnx"}
_OPSET = 18
# Sides of the example of a dynamic graph, in strides: no size that a network has a table of.
_EXAMPLE = (7, 11)
_OTHER = (3, 2)  # of the images that it is checked with
_STRIDE = 32  # at least; on maps of one pixel networks compute something else


class ExportError(UserError, RuntimeError):
    """The exporter refuses the graph, or a package is missing."""


@dataclass
class ExportReport:
    """What was written.

    Attributes:
        format: key of ``ENDINGS``.
        inputs: name -> what it is.
        outputs: name -> what it is.
        size: (H, W) that the graph takes; None: any multiple of ``size_divisibility``, and any batch.
        batch: images that the graph takes; None: any.
        size_divisibility: of H and W.
        differences: output -> largest absolute difference from the network; of integers the share that differs.
        classes: names by id.
    """

    format: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    size: tuple[int, int] | None
    batch: int | None
    size_divisibility: int
    differences: dict[str, float] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


def export_graph(
    graph: Graph,
    output: str | Path,
    *,
    form: str,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    channels: int = 3,
    pixels: str = "",
    classes: Sequence[str] = (),
) -> ExportReport:
    """Write a graph and compare what is in the file with the network.

    Args:
        graph: in evaluation mode, on the CPU.
        output: ``*.pt2`` or ``*.onnx``.
        form: "torch-export" or "onnx".
        size: (H, W); None: any size and batch, or the example's size where the graph does not allow that.
        batch: images of a graph of fixed size.
        channels: C.
        pixels: channel order, for the description.
        classes: names, for the description.

    Raises:
        ConfigError: the ending does not fit the format, or the size not the network.
        ExportError: the exporter refuses the graph, or a package is missing.
    """
    output, unit = Path(output), graph.size_divisibility
    other = _images_of_strides(_OTHER, graph, 3, channels)
    if form not in ENDINGS or output.suffix != ENDINGS[form]:
        raise ConfigError(f"{output}: format {form} is written to a file *{ENDINGS.get(form, '.pt2 or *.onnx')}")
    if size is not None and (min(size) < 1 or any(side % unit for side in size)):
        raise ConfigError(f"size {size[0]} x {size[1]}: expected multiples of {unit}")
    program, dynamic, example = _traced(graph, size, batch, channels)
    content = _torch_bytes(program) if form == "torch-export" else _onnx_bytes(program, graph)
    if not dynamic:
        other = _images(*_sides(example), len(example), channels)
    run = _run_torch if form == "torch-export" else _run_onnx
    write_bytes(output, content)
    report = ExportReport(
        format=form,
        inputs={"images": f"(B, {channels}, H, W) float32 in [0, 255], {pixels or 'channels as trained'}"},
        outputs=dict(graph.outputs),
        size=None if dynamic else _sides(example),
        batch=None if dynamic else len(example),
        size_divisibility=unit,
        differences=_differences(graph, run(output, other), other),
        classes=tuple(classes),
    )
    write_json(output.with_suffix(".json"), asdict(report))
    return report


def _sides(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def _images(height: int, width: int, batch: int, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, channels, height, width), generator=generator).float()


def _images_of_strides(sides: tuple[int, int], graph: Graph, batch: int, channels: int) -> Tensor:
    stride = math.lcm(graph.size_divisibility, _STRIDE)
    return _images(sides[0] * stride, sides[1] * stride, batch, channels)


def _traced(
    graph: Graph, size: tuple[int, int] | None, batch: int, channels: int
) -> tuple[torch.export.ExportedProgram, bool, Tensor]:
    """Program, whether it takes any batch and size, and the images it was traced with."""
    unit = graph.size_divisibility
    if size is not None:
        example = _images(*size, batch, channels)
        return _trace(graph, example, None), False, example
    example = _images_of_strides(_EXAMPLE, graph, 2, channels)
    sides = {2 + i: unit * torch.export.Dim(name, min=2, max=1 << 12) for i, name in enumerate(("rows", "columns"))}
    try:
        program = _trace(graph, example, {0: torch.export.Dim("batch", min=1, max=1 << 12), **sides})
        _try_other_size(program, _images_of_strides(_OTHER, graph, 3, channels))
        return program, True, example
    except ExportError as error:
        message = "Any batch and size is not possible with this network, so both are fixed; choose them: %s"
        logging.getLogger(__name__).warning(message, error)
        return _trace(graph, example, None), False, example


def _trace(graph: Graph, example: Tensor, dynamic: dict[int, Any] | None) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad():
            shapes = None if dynamic is None else {"images": dynamic}
            return torch.export.export(graph, (example,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # a guard, an operator, an assertion: each fails in its own way
        raise ExportError(f"torch.export refuses: {str(error).strip().splitlines()[0]}") from error


def _try_other_size(program: torch.export.ExportedProgram, images: Tensor) -> None:
    """Run a dynamic program: what hangs on the example's size is kept as an assertion."""
    try:
        with torch.no_grad():
            program.module()(images)
    except (AssertionError, RuntimeError) as error:
        raise ExportError(f"the graph holds for one size alone: {str(error).strip().splitlines()[0]}") from error


def _torch_bytes(program: torch.export.ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _onnx_bytes(program: torch.export.ExportedProgram, graph: Graph) -> bytes:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError("ONNX needs packages that are not installed: pip install '.[export]'") from error
    try:
        written = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=_OPSET,
            verbose=False,
            input_names=["images"],
            output_names=list(graph.outputs),
        )
        assert written is not None
        return written.model_proto.SerializeToString()
    except Exception as error:
        raise ExportError(f"torch.onnx refuses: {str(error).strip().splitlines()[0]}") from error


def _run_torch(path: Path, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return list(torch.export.load(path).module()(images))


def _run_onnx(path: Path, images: Tensor) -> list[Tensor] | None:
    """What onnxruntime computes; None where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        logging.getLogger(__name__).warning("onnxruntime is not installed: %s is written and not checked", path)
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(array) for array in session.run(None, {"images": images.numpy()})]


def _differences(graph: Graph, found: list[Tensor] | None, images: Tensor) -> dict[str, float]:
    if found is None:
        return {}
    with torch.no_grad():
        expected = graph(images)
    pairs = zip(graph.outputs, found, expected, strict=True)
    return {name: difference(tensor, wanted) for name, tensor, wanted in pairs}


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference, where infinite values equal themselves; of integers the share that differs."""
    if not expected.is_floating_point():
        return float((found != expected).float().mean())
    return float(torch.where(found == expected, 0.0, (found - expected).abs()).max())
