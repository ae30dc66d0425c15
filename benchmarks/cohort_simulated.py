"""The simulated cohort: known-field error, Dice, template error and the planted age effect, recovered from the tables.

    python -m benchmarks.cohort_simulated --out FOLDER [--quick]

Simulates the demo cohort in FOLDER/bids (4 subjects with --quick), runs the pipeline on the shipped defaults into
FOLDER/derivatives and reads its tables. After `make demo`, `--out results/demo` scores the demo without running it again.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd

from benchmarks.common import METHODS, at_least, at_most, parser, popatlas, report, stage_costs, ventricle_ages
from popatlas.config.load import default_content
from popatlas.images.io import read_json, read_table

QUICK_SUBJECTS = 4


def simulate_and_run(folder: Path, subjects: int, cores: int) -> Path:
    """Simulate a cohort, run the pipeline on it, and return the output folder."""
    bids, out = folder / "bids", folder / "derivatives"
    popatlas("simulate", bids, "--subjects", subjects, "--seed", default_content()["simulate"]["seed"])
    popatlas("run", bids, out, "--cores", cores)
    return out


def ventricle_table(volumes: pd.DataFrame) -> pd.DataFrame:
    """Return the age effect on ventricle volume: planted, in the reference labels, and in each fusion."""
    ventricles = [name for name in map(str, volumes) if "ventricle" in name.lower()]
    return ventricle_ages(
        volumes, {method: [name for name in ventricles if name.startswith(f"{method}_")] for method in METHODS}
    )


def main() -> None:
    """Run, score, print and write."""
    args = parser(__doc__).parse_args()
    folder = args.out or Path(tempfile.mkdtemp(prefix="popatlas-simulated-"))
    out = simulate_and_run(folder, QUICK_SUBJECTS if args.quick else default_content()["simulate"]["subjects"], args.cores)
    truth = read_table(out / "group" / "truth.tsv")
    metrics = read_table(out / "group" / "metrics.parquet")
    scored = truth.groupby("metric")["value"].agg(["count", "mean", "min", "max"]).reset_index()
    dice = metrics[metrics["metric"] == "dice"].groupby("method")["value"].agg(["mean", "std", "min"]).reset_index()
    ventricles = ventricle_table(read_table(out / "group" / "volumes.tsv"))
    means = scored.set_index("metric")["mean"]
    fused = ventricles[ventricles["labels"] != "reference"]
    bars = [
        at_most("known-field error, mean mm", means["known_field_error"], 1.5),
        at_most("template error against the true mean, mm", means["template_error"], 1.5),
        at_least("mask Dice", means["mask_dice"], 0.93),
        *(at_least(f"Dice, {row['method']}", row["mean"], 0.8) for row in dice.to_dict("records")),
        *(at_least(f"age correlation of ventricles, {row['labels']}", row["r"], 0.5) for row in fused.to_dict("records")),
    ]
    tables = {
        "Truth": scored,
        "Dice of fused labels against the truth": dice,
        "Ventricles against age (planted)": ventricles,
        "Cost per step": stage_costs(out),
    }
    members = read_json(out / "group" / "members.json")
    report("cohort_simulated", tables, bars, args, f"{members['n_in']} simulated subjects, 2 mm")


if __name__ == "__main__":
    main()
