# SPDX-License-Identifier: Apache-2.0
"""Saliency maps against the truth of a data set, as papers on salient object detection report them.

Every score stands twice in the results: of the prediction as it is, and ``*_normalized``, of the prediction stretched
to [0, 1] image by image (min-max), as PySODMetrics and many published evaluations do it. The truth is made binary
(grey values above 128); scores are taken at its size, to which predictions are resized; its void does not count.
"""

import csv
import io
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate
from torch import Tensor

from padding.data.files import save_figure, write_json, write_text
from padding.data.saliency.maps import SALIENT_ABOVE, read_saliency, saliency_to_bytes
from padding.errors import ConfigError, DataError
from padding.evaluation.saliency_metrics import SaliencyTotals, image_scores, min_max_normalized

logger = logging.getLogger(__name__)

NORMALIZED = "_normalized"
"""End of the names of scores of stretched predictions."""

Curves = Mapping[str, npt.NDArray[np.float64]]


class SaliencyEvaluator(DatasetEvaluator):
    """Detectron2 evaluator of ``output["saliency"]``, a map (h, w) or (1, h, w) of floats in [0, 1].

    The result key is ``saliency``: ``MAE`` as a fraction (less is better) and in percent ``max_F, mean_F, adaptive_F,
    max_F_of_mean_PR, mean_of_max_F, S, max_E, mean_E, adaptive_E`` (``SaliencyTotals.results`` explains them), each
    also with ``_normalized``; ``num_images``, and ``num_images_without_object``, whose F-measure is 0 whatever is
    predicted. Images without any known pixel are left out.

    Attributes:
        totals: sums over the images so far, of the predictions as they are and (key ``_normalized``) stretched.
    """

    def __init__(self, dataset_name: str, output_folder: str | Path | None = None) -> None:
        """Find the entry of each image.

        Args:
            dataset_name: registered data set whose dicts ``padding.data.saliency.maps.read_saliency`` can read.
            output_folder: where ``saliency.json``, ``pr_curve.csv`` and ``pr_curve.png`` go; None writes nothing.
        """
        self._dataset_name = dataset_name
        self._entries = {entry["file_name"]: entry for entry in DatasetCatalog.get(dataset_name)}
        self._output_folder = Path(output_folder) if output_folder is not None else None
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.totals = {"": SaliencyTotals(), NORMALIZED: SaliencyTotals()}

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Take in a batch.

        Args:
            inputs: dataset dicts with ``file_name``.
            outputs: predictions of the same images.

        Raises:
            ValueError: naming the file, if the image is unknown, or saliency is missing or not in [0, 1].
        """
        for record, output in zip(inputs, outputs, strict=True):
            name = record["file_name"]
            if name not in self._entries:
                raise DataError(f"{name}: not an image of data set '{self._dataset_name}'")
            if "saliency" not in output:
                raise ConfigError(
                    f"{name}: the prediction has only {sorted(output)}, not 'saliency'; '{self._dataset_name}' needs a "
                    "model that predicts it: set MODEL.SALSEG.TEST.SALIENCY to True, or take the set out of "
                    "DATASETS.TEST"
                )
            saliency, known = read_saliency(self._entries[name])
            if not known.any():
                logger.warning("%s: no pixel is labeled; the image is left out", name)
                continue
            try:
                self._count(output["saliency"], saliency_to_bytes(saliency) > SALIENT_ABOVE, known)
            except ValueError as error:
                raise DataError(f"{name}: {error}") from error

    def _count(self, prediction: Tensor, truth: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_]) -> None:
        values = saliency_at_size(prediction, truth.shape)
        # Predictions stretched to [0, 1] are scored beside the plain ones: papers differ in whether they stretch.
        for suffix, scored in (("", values), (NORMALIZED, min_max_normalized(values, known))):
            self.totals[suffix] += SaliencyTotals.of_image(image_scores(scored, truth, known))

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Join the ranks, report and write the files.

        Returns:
            ``{"saliency": {...}}`` on the main rank, None on the others.
        """
        comm.synchronize()
        of_rank = comm.gather(self.totals)
        if not comm.is_main_process():
            return None
        totals = {suffix: sum((part[suffix] for part in of_rank), SaliencyTotals()) for suffix in self.totals}
        scores = {suffix: of_all.results() for suffix, of_all in totals.items()}
        results = {f"{name}{suffix}": value for suffix, part in scores.items() for name, value in part.items()}
        results["num_images"] = totals[""].num_images
        results["num_images_without_object"] = totals[""].num_without_object
        rows = [[name, value, scores[NORMALIZED][name]] for name, value in scores[""].items()]
        table = tabulate(rows, headers=["score", "as predicted", "normalized"], floatfmt=".3f")
        logger.info("saliency on %s, %d images (%%, but MAE):\n%s", self._dataset_name, results["num_images"], table)
        if self._output_folder is not None:
            self._write(results, {suffix: of_all.curves() for suffix, of_all in totals.items()})
        return OrderedDict(saliency=results)

    def _write(self, results: Mapping[str, float], curves: Mapping[str, Curves]) -> None:
        assert self._output_folder is not None
        content = {
            "task": "saliency",
            "dataset": self._dataset_name,
            "units": "percent; MAE is a fraction",
            "results": results,
        }
        write_json(self._output_folder / "saliency.json", content)
        write_text(self._output_folder / "pr_curve.csv", _as_csv(curves))
        labels = {"as predicted": curves[""], "normalized": curves[NORMALIZED]}
        draw_precision_recall(self._output_folder / "pr_curve.png", labels, title=self._dataset_name)


def saliency_at_size(prediction: Tensor, size: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """A predicted map as numpy, resized bilinearly where its size differs.

    Args:
        prediction: (h', w') or (1, h', w') float on any device.
        size: (h, w) of the truth.

    Returns:
        (h, w) float32.

    Raises:
        ValueError: for any other shape or an integer dtype.
    """
    if prediction.dim() == 3 and len(prediction) == 1:
        prediction = prediction[0]
    if prediction.dim() != 2 or not prediction.is_floating_point():
        raise ValueError(
            f"saliency is {prediction.dtype} of shape {tuple(prediction.shape)}; expected floats (h, w) in [0, 1]"
        )
    values = prediction.detach().float()
    if values.shape != size:
        values = torch.nn.functional.interpolate(values[None, None], size=size, mode="bilinear")[0, 0]
    return values.cpu().numpy()


def _as_csv(curves: Mapping[str, Curves]) -> str:
    """One line per threshold: mean precision, recall, F and E as fractions, then the same of stretched predictions."""
    columns = {f"{name}{suffix}": values for suffix, part in curves.items() for name, values in part.items()}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["threshold", *columns])
    for threshold, row in enumerate(zip(*columns.values(), strict=True)):
        writer.writerow([threshold, *(f"{value:.6f}" for value in row)])
    return file.getvalue()


def draw_precision_recall(path: str | Path, curves: Mapping[str, Curves], *, title: str = "") -> None:
    """Draw precision over recall, and the F-measure over the threshold beside it.

    Args:
        path: image file; the ending chooses the format.
        curves: label -> curves of ``SaliencyTotals.curves``.
        title: above the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 4.0), layout="constrained")  # without pyplot: no window system, no global state
    FigureCanvasAgg(figure)
    by_recall, by_threshold = figure.subplots(1, 2)
    for label, part in curves.items():
        by_recall.plot(part["recall"], part["precision"], linewidth=1.5, label=label)
        by_threshold.plot(part["F"], linewidth=1.5, label=f"{label} (max {100 * float(part['F'].max()):.1f} %)")
    by_recall.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    by_threshold.set(xlabel="threshold (of 255)", ylabel=r"$F_\beta$, $\beta^2 = 0.3$", xlim=(0, 255), ylim=(0, 1.02))
    for axes in (by_recall, by_threshold):
        axes.legend(loc="best", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)
