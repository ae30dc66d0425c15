"""The whole pipeline on IXI (Hammersmith, 2 mm): time per stage, masks, three fusions in leave-one-out, age.

    python -m benchmarks.cohort_ixi --data IXI_BIDS --out OUT_DIR [--engine ants]

Runs `popatlas run` with `benchmarks/cohort_ixi.yaml` and the engine that is asked for (ANTs with its own linear stage);
finished work in OUT_DIR is kept. The reference is an automatic
parcellation (DLMUSE, in derivatives/dlmuse), so the overlaps measure agreement with it, not with manual labels.
Data from the IXI dataset, brain-development.org, CC BY-SA 3.0.
"""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import yaml

from benchmarks.common import METHODS, Bar, Record, at_least, parser, popatlas, report, stage_costs, ventricle_ages
from popatlas.images.io import read_json, read_table, write_text
from popatlas.images.labels import read_mask
from popatlas.measures.scan import resample_labels

SETTINGS = Path(__file__).with_suffix(".yaml")
LATERAL_VENTRICLES = ("51", "52")
RUN = "Run"
COSTS = "Cost per step (records of the jobs; start-up of Python not counted)"
MASKS = "Brain masks against parcellation > 0 (Dice)"
FUSIONS = "Fusion in leave-one-out, 8 atlases, labels > 100 voxels"
AGES = "Lateral ventricles against age"
QUALITY = "Registration to the template"
SUPPLIED_R = 0.57  # ventricle volume against age in the supplied parcellation


def run(data: Path, out: Path, engine: str, cores: int, extra: list[str]) -> float:
    """Run the pipeline, hand unknown options to it, and return the wall seconds of this call."""
    started = time.monotonic()
    linear = "ants" if engine == "ants" else "affine"
    settings = yaml.safe_load(SETTINGS.read_text()) | {"register": {"engine": engine, "linear": linear}}
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "benchmark.yaml", yaml.safe_dump(settings))
    popatlas("run", data, out, "--config", out / "benchmark.yaml", "--cores", cores, *extra)
    return time.monotonic() - started


def mask_dice(data: Path, out: Path) -> pd.Series:
    """Return the Dice of each brain mask with the parcellation's non-zero voxels, resampled to the mask's grid."""
    scores = {}
    for scan in read_table(out / "cohort" / "index.parquet").query("state == 'ok'")["scan"]:
        mask = read_mask(out / f"{scan}_desc-brain_mask.nii.gz", scan)
        labels = data / "derivatives" / "dlmuse" / f"{scan}_desc-dlmuse_dseg.nii.gz"
        truth, found = resample_labels(labels, mask.image) > 0, mask.data > 0
        scores[scan] = 2 * (truth & found).sum() / (truth.sum() + found.sum())
    return pd.Series(scores)


def fusion_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return per method the mean over scans of the mean over labels, with the spread over scans."""
    rows = []
    for method in METHODS[1:]:
        scores: Record = {"method": method}
        for metric in ("dice", "hd95", "assd"):
            values = metrics[(metrics["method"] == method) & (metrics["metric"] == metric)]
            per_scan = values.groupby("participant_id")["value"].mean()
            scores |= {"scans": len(per_scan), f"{metric}": per_scan.mean(), f"{metric}_sd": per_scan.std()}
        rows.append(scores)
    return pd.DataFrame(rows)


def age_table(volumes: pd.DataFrame) -> pd.DataFrame:
    """Return ventricle volume against age for each method and the supplied parcellation."""
    columns = {method: [f"{method}_{label}" for label in LATERAL_VENTRICLES] for method in METHODS}
    return ventricle_ages(volumes, {method: names for method, names in columns.items() if set(names) <= set(volumes)})


def collect(data: Path, out: Path, cores: int, seconds: float) -> dict[str, pd.DataFrame]:
    """Return the tables of a finished run.

    Parameters
    ----------
    data, out : Path
        Dataset, and folder of the run.
    cores : int
        That it was given.
    seconds : float
        Wall seconds of the call.
    """
    costs = stage_costs(out)
    metrics = read_table(out / "group" / "metrics.parquet")
    registration = metrics[(metrics["method"] == "registration") & (metrics["label"] == "brain")]
    members = read_json(out / "group" / "members.json")
    total = {"scans in": members["n_in"], "scans out": members["n_out"], "cpu_h": costs["cpu_s"].sum() / 3600,
             "wall_s of jobs": costs["wall_s"].sum(), "cores": cores, "wall_s of this call": seconds}  # fmt: skip
    return {
        RUN: pd.DataFrame([total]),
        COSTS: costs,
        MASKS: mask_dice(data, out).describe().to_frame().T,
        FUSIONS: fusion_table(metrics),
        AGES: age_table(read_table(out / "group" / "volumes.tsv")),
        QUALITY: registration.groupby("metric")["value"].agg(["mean", "std", "min", "max"]).reset_index(),
        "Template": read_table(next(out.glob("tpl-*/*_desc-convergence_table.tsv"))),
    }


def main() -> None:
    """Run, score, print and write."""
    line = parser(__doc__)
    engines = ("instance", "network", "ants", "greedy", "ffd")
    line.add_argument("--engine", default="instance", choices=engines, help="(instance)")
    args, extra = line.parse_known_args()
    seconds = run(args.data, args.out, args.engine, args.cores, extra)
    tables = collect(args.data, args.out, args.cores, seconds)
    bars: list[Bar] = [
        at_least("scans in the group tables", tables[RUN]["scans in"][0], 32),
        at_least("mean mask Dice", tables[MASKS]["mean"].iloc[0], 0.974),
        *(
            at_least(f"age correlation of ventricles, {row['labels']}", row["r"], SUPPLIED_R - 0.1)
            for row in tables[AGES].to_dict("records")
        ),
    ]
    name = "cohort_ixi" if args.engine == "instance" else f"cohort_ixi_{args.engine}"
    report(name, tables, bars, args, "IXI Hammersmith, 32 T1w at 2 mm (brain-development.org, CC BY-SA 3.0)")


if __name__ == "__main__":
    main()
