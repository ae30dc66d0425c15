"""The bench of a run: fused labels of the held-out atlases on disk, scored, compared and priced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from popatlas.errors import InputError
from popatlas.fusion.crossval import FEWEST, Comparison, Recommendation, compare, recommend, score, smallest_p
from popatlas.images.io import read_json
from popatlas.images.labels import read_labels
from popatlas.measures.dictionary import BENCH_COLUMN_TEXT, bench_dictionary
from popatlas.measures.metrics import BENCH_METRICS
from popatlas.measures.scan import resample_labels, split_scan
from popatlas.settings import Content

TRAINED = "dataparams"  # the method that a network is trained for
COSTS = ["cpu_seconds", "seconds", "peak_mb", "records"]


@dataclass(frozen=True)
class Bench:
    """Scores, comparisons by metric, and costs.

    Attributes
    ----------
    table : DataFrame
        Tidy scores: participant_id, session_id, scan, method, label, metric, value, unit.
    comparisons : mapping
        Metric to comparison; Dice is always there.
    costs : DataFrame
        Index method: cpu_seconds and seconds (mean for a target), peak_mb (largest), records (jobs that told).
    notes : tuple of str
        What a reader has to know about the costs and the training.
    """

    table: pd.DataFrame
    comparisons: Mapping[str, Comparison]
    costs: pd.DataFrame
    notes: tuple[str, ...] = ()

    @property
    def dice(self) -> Comparison:
        """Comparison of Dice."""
        return self.comparisons["dice"]

    @property
    def recommendation(self) -> Recommendation:
        """Which method to use."""
        seconds = self.costs["cpu_seconds"]
        return recommend(self.dice, dict(zip(map(str, seconds.index), seconds.astype(float), strict=True)))


def run_bench(
    derivatives: Path,
    scans: Sequence[str],
    references: Sequence[Path],
    methods: Sequence[str],
    names: Mapping[int, str] | None = None,
    min_voxels: int = 1,
) -> Bench:
    """Score every method on every held-out atlas.

    Parameters
    ----------
    derivatives : Path
        Output folder with ``{scan}_desc-{method}_dseg.nii.gz`` and the records of the jobs.
    scans : sequence of str
        Keys of the atlases; each has been labelled from the others.
    references : sequence of Path
        Their own labels, on any grid of the same world space.
    methods : sequence of str
        Fusion methods.
    names : mapping of int to str, optional
        Names of labels.
    min_voxels : int
        Labels with fewer voxels (on the grid of the fused labels) in the reference are not scored.

    Returns
    -------
    Bench

    Raises
    ------
    InputError
        No atlas, no method, other numbers of scans and references, or an image that cannot be read.
    """
    if not scans or not methods or len(scans) != len(references):
        raise InputError(
            f"a bench of {len(methods)} methods on {len(scans)} scans with {len(references)} reference labels",
            remedy="give at least one method and one labelled atlas, and one reference for each atlas",
        )
    frames = []
    for scan, reference in zip(scans, references, strict=True):
        frames += [_scores(derivatives, scan, reference, method, min_voxels) for method in methods]
        print(f"{scan}: scored {', '.join(methods)}", flush=True)
    table = pd.concat(frames, ignore_index=True)
    table["label"] = table["label"].map(lambda label: (names or {}).get(label, str(label)))
    costs, notes = read_costs(derivatives, scans, methods)
    comparisons = {metric: compare(table, metric) for metric in BENCH_METRICS}
    return Bench(table[list(BENCH_COLUMN_TEXT)], comparisons, costs, notes)


def _scores(derivatives: Path, scan: str, reference: Path, method: str, min_voxels: int) -> pd.DataFrame:
    fused = read_labels(derivatives / f"{scan}_desc-{method}_dseg.nii.gz", scan, empty=True)
    rows = score(fused.data, resample_labels(reference, fused.image), fused.affine, min_voxels=min_voxels)
    if rows.empty:
        raise InputError(
            "no label of the reference lies inside the image",
            file=reference,
            subject=scan,
            remedy="check that the labels belong to the scan, or lower measure.min_voxels",
        )
    participant, session = split_scan(scan)
    return rows.assign(participant_id=participant, session_id=session, scan=scan, method=method)


def read_costs(derivatives: Path, scans: Sequence[str], methods: Sequence[str]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read from the records of the jobs what a target costs by each method.

    Parameters
    ----------
    derivatives : Path
        Output folder; records are ``logs/fuse/{scan}_{method}.log.json``.
    scans, methods : sequence of str
        Keys of the targets, and methods.

    Returns
    -------
    costs : DataFrame
        See :class:`Bench`; missing where no job left a record. The training of the data parameters is shared by the
        targets that it was done on.
    notes : tuple of str
        How the training was counted.
    """
    rows = {method: _mean_cost(derivatives, scans, method) for method in methods}
    notes: list[str] = []
    if TRAINED in rows:
        notes = [
            f"The network of {TRAINED} was trained once, on labels that come from all atlases: it has not seen those of a "
            "held-out atlas on that atlas' own image, but their copies on other scans.",
            *_add_training(derivatives, rows[TRAINED], len(scans)),
        ]
    return pd.DataFrame.from_dict(rows, orient="index", columns=COSTS).astype({"records": int}), tuple(notes)


def _mean_cost(derivatives: Path, scans: Sequence[str], method: str) -> dict[str, float]:
    found = [_finished(derivatives / "logs" / "fuse" / f"{scan}_{method}.log.json") for scan in scans]
    records = pd.DataFrame([record for record in found if record], columns=COSTS[:3]).astype(float)
    means = records.mean()
    return {
        "cpu_seconds": float(means["cpu_seconds"]),
        "seconds": float(means["seconds"]),
        "peak_mb": float(records["peak_mb"].max()),
        "records": len(records),
    }


def _add_training(derivatives: Path, row: dict[str, float], held_out: int) -> Iterator[str]:
    """Add the training to the costs of the method that needs it, and say how."""
    for record in filter(None, map(_finished, sorted((derivatives / "logs").glob("**/*train_trust*.json")))):
        targets = len(record.get("inputs", {}).get("scans", [])) or held_out
        for name in ("cpu_seconds", "seconds"):
            row[name] += record[name] / targets
        row["peak_mb"] = float(np.fmax(row["peak_mb"], record["peak_mb"]))
        yield (
            f"The costs of {TRAINED} include its training, {record['cpu_seconds']:.0f} CPU seconds shared by the {targets} "
            "targets that it was trained on."
        )


def _finished(path: Path) -> Content:
    """Return the record of a job, empty when there is none or the job did not finish."""
    record = dict(read_json(path)) if path.is_file() else {}
    return record if record.get("state") == "ok" else {}


def summarise(bench: Bench) -> dict[str, object]:
    """Return the columns and the result of a bench as plain data for JSON; missing numbers are None."""
    dice, chosen = bench.dice, bench.recommendation
    by_metric = {metric: _records(found.methods, index=True) for metric, found in bench.comparisons.items()}
    return {
        **bench_dictionary(),
        "recommended": chosen.method,
        "sentence": chosen.sentence,
        "best": chosen.best,
        "as_good": list(chosen.close),
        "n_targets": dice.n_targets,
        "targets": list(dice.targets.index),
        "methods": {method: {metric: rows[method] for metric, rows in by_metric.items()} for method in dice.names},
        "testable": dice.n_targets >= FEWEST,
        "smallest_p": smallest_p(dice.n_targets),
        "smallest_holm": dice.smallest_holm,
        "pairs": list(_records(dice.pairs).values()),
        "labels": list(_records(dice.labels).values()),
        "costs": _records(bench.costs, index=True),
        "notes": list(bench.notes),
    }


def _records(table: pd.DataFrame, *, index: bool = False) -> dict[str, dict[str, object]]:
    """Return the rows of a table by their index, or their number, with None for what is missing."""
    plain = table.astype(object).where(table.notna(), None)
    keys = plain.index if index else range(len(plain))
    rows = plain.to_dict("records")
    return {str(key): {str(name): value for name, value in row.items()} for key, row in zip(keys, rows, strict=True)}
