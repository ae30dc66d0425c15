"""What a subject costs at 2 mm and at 1 mm, and which values of the metrics are usual, on real heads.

    python -m benchmarks.cost --data IXI_BIDS --out FOLDER [--heads 6 2] [--label-files PATTERN]

Runs `popatlas run` with the defaults on the first heads of a dataset, once for each grid, in FOLDER/2mm and FOLDER/1mm;
finished work there is kept. Seconds are those of the CPU, so that other work on the machine hardly counts.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from benchmarks.common import Record, parser, popatlas, report, stage_costs
from popatlas.config.load import load_config
from popatlas.images.io import read_json, read_table, write_text
from popatlas.study.joblist import JobList
from popatlas.study.study import Study
from popatlas.study.together import rule_of

COSTS, USUAL = "Cost of a subject", "Usual values"
LABELS = "derivatives/dlmuse/{scan}_desc-dlmuse_dseg.nii.gz"
GRIDS = (2, 1)  # mm
QUANTILES = (0.05, 0.5, 0.95)
OF_WHOLE = ("affine", "mask", "registration")  # methods whose values are of the whole brain


def run(data: Path, out: Path, grid: int, heads: int, labels: str, cores: int) -> None:
    """Run the pipeline on the first heads of a dataset."""
    subjects = [path.name for path in sorted(data.glob("sub-*"))[:heads]]
    settings = {"preprocess": {"resolution_mm": grid}, "fuse": {"labels": labels}, "measure": {"reference": labels}}
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "cost.yaml", json.dumps(settings))  # JSON is YAML
    popatlas("run", data, out, "--config", out / "cost.yaml", "--cores", cores, "--participant-label", *subjects)


def cost(out: Path, grid: int) -> Record:
    """Return what a finished run took for each of its scans: the template, of which all are members, included."""
    costs, members = stage_costs(out), read_json(out / "group" / "members.json")
    scans = [
        path.parent / path.name.removesuffix("_desc-preproc_T1w.nii.gz") for path in out.rglob("*_desc-preproc_T1w.nii.gz")
    ]
    files = [path for scan in scans for path in scan.parent.glob(f"{scan.name}_*")]
    return {
        "grid_mm": grid,
        "heads": members["n_in"],
        "cpu_s": costs["cpu_s"].sum() / members["n_in"],
        "jobs": jobs_of(out) / members["n_in"],
        "steps": costs["jobs"].sum() / members["n_in"],
        "largest_job_mb": costs["peak_mb"].max(),
        "longest_job_s": costs["wall_s_per_job"].max(),
        "results_mb": sum(path.stat().st_size for path in files) / members["n_in"] / 1e6,
    }


def jobs_of(out: Path) -> int:
    """Return how many jobs of Snakemake ran the steps of a study, several of which may share one."""
    jobs = JobList(Study.read(load_config(out / "config.yaml", out_dir=str(out)), out))
    config = jobs.study.config
    ran = [job for job in jobs.jobs.values() if (out / f"{jobs.log(job.rule, job.wildcards)}.json").is_file()]
    run_by = [rule_of(config, job.rule, job.wildcards) for job in ran]
    return len({(rule, *sorted(wildcards.items())) for rule, wildcards in run_by})


def usual(out: Path) -> pd.DataFrame:
    """Return low, middle and high values of each metric: of the brain, of the labels by joint label fusion, of the gate."""
    metrics = read_table(out / "group" / "metrics.parquet")
    last = metrics["method"].where(~metrics["method"].str.startswith("attempt-"), "attempt")
    found = metrics.assign(method=last)
    kept = found[found["method"].isin([*OF_WHOLE, "attempt", "jlf"])].dropna(subset="value")
    rows = []
    for (metric, method), values in kept.groupby(["metric", "method"])["value"]:
        low, middle, high = values.quantile(QUANTILES)
        rows.append({"metric": metric, "of": method, "values": len(values), "low": low, "middle": middle, "high": high})
    return pd.DataFrame(rows)


def main() -> None:
    """Run, measure and write."""
    line = parser(__doc__)
    line.add_argument("--heads", type=int, nargs=2, default=(6, 2), help="at 2 mm and at 1 mm (6 2)")
    line.add_argument("--label-files", default=LABELS, metavar="PATTERN", help="labels of the heads, as in fuse.labels")
    args = line.parse_args()
    rows = []
    for grid, heads in zip(GRIDS, args.heads, strict=True):
        if heads:
            out = args.out / f"{grid}mm"
            run(args.data, out, grid, heads, args.label_files, args.cores)
            rows.append(cost(out, grid))
    tables = {COSTS: pd.DataFrame(rows), USUAL: usual(args.out / "2mm")}
    report("cost", tables, [], args, "IXI Hammersmith, T1w heads of 2 mm (brain-development.org, CC BY-SA 3.0)")


if __name__ == "__main__":
    main()
