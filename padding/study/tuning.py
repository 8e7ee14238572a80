# SPDX-License-Identifier: Apache-2.0
"""Every row of Table 1 tuned equally on one half of the validation images and reported on the other.

``python -m padding.tuning --config-file configs/shapes_zsp.yaml --segmentors A.pth B.pth --seeds 3 [KEY VALUE ...]``

A zero-shot method is one point of a trade-off between seen and unseen classes, so that a row with one more tuned number
beats a row without. Here each row gets six settings of its training (unseen class weight and number of synthetic
features; for the projection, which has neither, the temperature of its cosines), five object-mask thresholds and every
gamma. They are chosen by the best harmonic mean of PQ on half A, with one seed and the first segmentor. The report is
half B's: area under the seen-unseen curve, and the harmonic mean at the gamma chosen on half A, for every segmentor and
seed. The frozen segmentor sees the images once; finished runs and measurements are not repeated.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from tabulate import tabulate

from padding.bank.feature_bank import weights_digest
from padding.data.files import write_json, write_text
from padding.data.streams import build_eval_loader
from padding.engine.commands import load_config, open_config, start_log
from padding.evaluation.panoptic import PanopticGroundTruth
from padding.modeling.maskformer import MaskFormer
from padding.study.ablation import choose_rows, parse_study, prepare, rows_of_table, study_parser
from padding.study.curve import (
    GAMMAS,
    AccumulatedSweep,
    RawPrediction,
    area_under_curve,
    best_harmonic_mean,
    half_of_images,
    seen_unseen_curve,
)
from padding.study.panoptic_sweep import Setting, sweep_settings
from padding.study.seen_bias import SegmentorOutput, segmentor_outputs
from padding.study.table_rows import AblationRuns, Row, spread_text

THRESHOLDS = (0.1, 0.2, 0.3, 0.5, 0.7)
TUNING_GAMMAS = tuple(float(gamma) for gamma in range(-3, 11))
_WEIGHT, _NUMBER = "MODEL.PADING.CLASSIFIER.UNSEEN_WEIGHT", "MODEL.PADING.CLASSIFIER.NUM_PER_CLASS"
_GENERATIVE = tuple((_WEIGHT, weight, _NUMBER, number) for weight in ("1.0", "5.0", "20.0") for number in ("4", "16"))
_TEMPERATURES = ("0.01", "0.02", "0.05", "0.1", "0.2", "0.5")
_PROJECTION = tuple(("MODEL.PADING.PROJECTION.TEMPERATURE", temperature) for temperature in _TEMPERATURES)
_THRESHOLD = "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD"


@dataclass(frozen=True)
class Choice:
    """What was chosen for a row on half A."""

    options: tuple[str, ...]  # KEY, VALUE, ... of its training
    threshold: float  # probability from which a query is a segment
    gamma: float  # the best one of ``TUNING_GAMMAS``; the report chooses its own for each run
    hm: float  # harmonic mean of PQ on half A, percent


def settings_of(row: Row) -> tuple[tuple[str, ...], ...]:
    """Settings of the training that are tried for a row: as many for each, so that no row is tuned more than another.

    Raises:
        ValueError: for a row without a training.
    """
    if not row.trained:
        raise ValueError(f"row '{row.label}' is not trained: there is nothing to tune")
    return _PROJECTION if row.name == "projection" else _GENERATIVE


class HalfMeasures:
    """What is measured on each half; the segmentor's outputs are kept for the next classifier on the same segmentor."""

    def __init__(self) -> None:
        self._key: tuple[str, str] | None = None
        self._outputs: list[SegmentorOutput] = []
        self._truths: dict[str, PanopticGroundTruth] = {}

    def on_half_a(self, cfg: CfgNode, model: MaskFormer) -> dict[str, Any]:
        """Harmonic mean of PQ on half A at every threshold and gamma.

        Returns:
            ``{"points": [{threshold, gamma, seen, unseen, hm}, ...]}``, percent.
        """
        settings = [Setting(gamma, threshold) for threshold in THRESHOLDS for gamma in TUNING_GAMMAS]
        sweep, truth = self._sweep(cfg, model, settings, half=0)
        curve = seen_unseen_curve(sweep.gammas, sweep.scores("a"), truth.groups)
        points = [
            {"threshold": setting.threshold, "gamma": setting.gamma, "seen": seen, "unseen": unseen, "hm": hm}
            for setting, seen, unseen, hm in zip(settings, curve.seen, curve.unseen, curve.harmonic_means, strict=True)
        ]
        return {"points": points}

    def on_half_b(self, cfg: CfgNode, model: MaskFormer) -> dict[str, Any]:
        """Area under the curve of half B, and its harmonic mean at the gamma that is best on half A.

        Returns:
            ``AUSUC`` in [0, 1]; ``hm``, ``seen``, ``unseen``, ``hm_at_gamma_0`` in percent; ``gamma``.
        """
        settings = [Setting(gamma, model.inference.object_mask_threshold) for gamma in GAMMAS]
        sweep, truth = self._sweep(cfg, model, settings, half=None)
        a, b = (seen_unseen_curve(sweep.gammas, sweep.scores(half), truth.groups) for half in "ab")
        best = best_harmonic_mean(a, b)
        return {
            "AUSUC": area_under_curve(b.seen, b.unseen),
            "hm": best.hm,
            "seen": best.seen,
            "unseen": best.unseen,
            "gamma": best.gamma,
            "hm_at_gamma_0": b.harmonic_means[GAMMAS.index(0.0)],
        }

    def _sweep(
        self, cfg: CfgNode, model: MaskFormer, settings: Sequence[Setting], *, half: int | None
    ) -> tuple[AccumulatedSweep, PanopticGroundTruth]:
        """Sweep the images of one half, 0 for A, or of both."""
        dataset = cfg.DATASETS.TEST[0]
        if dataset not in self._truths:
            self._truths[dataset] = PanopticGroundTruth.of_dataset(dataset)
        truth = self._truths[dataset]
        half_of = half_of_images(truth.image_ids)
        chosen = (output for output in self._segmentor_outputs(cfg, model) if half in (None, half_of[output.image_id]))
        raw: Iterator[RawPrediction] = (output.classified(model).as_raw() for output in chosen)
        overlap = model.inference.overlap_threshold
        return sweep_settings(raw, truth, settings, thing_ids=model.thing_ids, overlap_threshold=overlap), truth

    def _segmentor_outputs(self, cfg: CfgNode, model: MaskFormer) -> list[SegmentorOutput]:
        """Of all images, at the network's own resolution; run again only for another segmentor."""
        dataset = cfg.DATASETS.TEST[0]
        key = (weights_digest([model.backbone, model.sem_seg_head]), dataset)
        if key != self._key:
            self._outputs = list(segmentor_outputs(model.eval(), build_eval_loader(cfg, dataset)))
            self._key = key
        return self._outputs


def choose(results: Mapping[tuple[str, ...], Mapping[str, Any]]) -> Choice:
    """Setting, threshold and gamma of the best harmonic mean in results of ``on_half_a``; of equal ones the first."""
    known = [(options, point) for options, result in results.items() for point in result["points"]]
    options, best = max(known, key=lambda entry: entry[1]["hm"] if entry[1]["hm"] == entry[1]["hm"] else -1.0)
    return Choice(options, best["threshold"], best["gamma"], best["hm"])


def tune_and_report(
    rows: Sequence[Row], segmentors: Sequence[AblationRuns], seeds: Sequence[int], output: Path
) -> dict[str, Any]:
    """Tune every row with the first segmentor and seed 0, then measure it with all segmentors and seeds.

    ``tuning.json`` and ``tuning.md`` are written after every row.

    Args:
        rows: trained rows of Table 1.
        segmentors: the trainings and measurements on each.
        seeds: of the second stage.
        output: folder.

    Returns:
        What the JSON holds.
    """
    measures = HalfMeasures()
    chosen: dict[str, Choice] = {}
    runs: dict[str, list[dict[str, Any]]] = {}
    content: dict[str, Any] = {}
    for row in rows:
        tuned = {
            options: segmentors[0].measure(_with(row, options), 0, f"half_a_{_grid_digest()}", measures.on_half_a)
            for options in settings_of(row)
        }
        chosen[row.label] = choice = choose(tuned)
        final = _with(row, choice.options)
        runs[row.label] = [
            {
                "segmentor": index,
                "seed": seed,
                **segmentor.measure(final, seed, "half_b", measures.on_half_b, _THRESHOLD, str(choice.threshold)),
            }
            for index, segmentor in enumerate(segmentors)
            for seed in seeds
        ]
        content = {
            "markdown": to_markdown(runs, chosen),
            "chosen": {label: vars(entry) for label, entry in chosen.items()},
            "runs": runs,
        }
        write_text(output / "tuning.md", content["markdown"] + "\n")
        write_json(output / "tuning.json", content)
    return content


def _with(row: Row, options: tuple[str, ...]) -> Row:
    return row._replace(options=(*row.options, *options))


def _grid_digest() -> str:
    """Measurements of another grid are not taken for those of this one."""
    return hashlib.sha256(repr((THRESHOLDS, TUNING_GAMMAS)).encode()).hexdigest()[:6]


def to_markdown(runs: Mapping[str, Sequence[Mapping[str, Any]]], chosen: Mapping[str, Choice]) -> str:
    """One line a row: mean and spread over segmentors and seeds, then the means of each segmentor, then the choice."""
    headers = ["row", "AUSUC x 100", "HM", "seen", "unseen", "HM at gamma 0"]
    segmentors = sorted({run["segmentor"] for entries in runs.values() for run in entries})
    headers += [f"AUSUC x 100, HM (segmentor {index})" for index in segmentors] + ["chosen on half A"]
    lines = []
    for label, entries in runs.items():
        scaled = [{**run, "AUSUC": 100 * run["AUSUC"]} for run in entries]
        cells = [
            spread_text([run[key] for run in scaled]) for key in ("AUSUC", "hm", "seen", "unseen", "hm_at_gamma_0")
        ]
        for index in segmentors:
            of_segmentor = [run for run in scaled if run["segmentor"] == index]
            cells.append("; ".join(spread_text([run[key] for run in of_segmentor]) for key in ("AUSUC", "hm")))
        choice = chosen[label]
        values = ", ".join(choice.options[1::2])
        lines.append([label, *cells, f"{values or '-'}; threshold {choice.threshold}"])
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line; returns what the JSON holds."""
    parser = study_parser(__doc__, output="output/tuning/<config>")
    parser.add_argument("--segmentors", nargs="+", metavar="PTH", help="pre-trained weights; default: the config's own")
    args = parse_study(parser, arguments)
    start_log()
    cfg = open_config(args.config_file, args.opts, architectures=("PADing",))
    segmentors = args.segmentors or [cfg.MODEL.WEIGHTS]
    for weights in segmentors:
        prepare(load_config(args.config_file, [*args.opts, "MODEL.WEIGHTS", weights]), args.config_file)
    output = args.output or Path("output/tuning") / Path(args.config_file).stem
    segmentors = [
        AblationRuns(args.config_file, ("MODEL.WEIGHTS", weights, *args.opts), output / f"segmentor_{index}")
        for index, weights in enumerate(segmentors)
    ]
    trained = [row for row in rows_of_table("1", cfg) if row.trained]
    content = tune_and_report(choose_rows(trained, args.rows, parser), segmentors, range(args.seeds), output)
    print(f"\n{content['markdown']}\n\nnumbers in {output / 'tuning.json'}")  # noqa: T201  (the command line's result)
    return content
