"""The whole pipeline with the network engine on the 32 scans of IXI, against earlier runs with other engines.

24 of the 32 scans were seen in the training of the network: what counts here is time, and that nothing breaks. Quality on
subjects that nobody has seen is in the part `pairs`.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from benchmarks import cohort_ixi
from benchmarks.common import RESULTS, Record, known, records
from benchmarks.deep.cohort import HELD_OUT
from benchmarks.deep.rows import Tables
from popatlas.images.io import read_json, read_table, write_json

EARLIER = {"instance": "cohort_ixi.json", "ants": "cohort_ixi_ants.json"}
METRICS = ("correlation", "local_correlation", "log_jacobian_sd", "nonpositive_jacobian")
BATCH = ("batches", "PredictDeformations")  # serves the stage register; that of the template's members has the stage atlas


def run_pipeline(data: Path, out: Path, cores: int, digest: str) -> Tables:
    """Run the pipeline, or go on with it; return its tables and one of the held-out scans alone."""
    folder = out / f"pipeline-{digest}"  # other weights, another run
    file = folder / "benchmark.json"
    if not file.is_file():
        seconds = cohort_ixi.run(data, folder, "network", cores, [])
        tables = cohort_ixi.collect(data, folder, cores, seconds)
        metrics = read_table(folder / "group" / "metrics.parquet")
        tables["held out"] = cohort_ixi.fusion_table(metrics[metrics["participant_id"].str.contains("|".join(HELD_OUT))])
        write_json(file, known({title: records(table) for title, table in tables.items()}))
    found: Tables = read_json(file)
    return found


def pipeline_table(network: Tables) -> pd.DataFrame:
    """Return a row for each engine: costs, fused labels, and registration to the template."""
    found = [pipeline_row("network", network)]
    for engine, name in EARLIER.items():
        if (RESULTS / name).is_file():
            result = read_json(RESULTS / name)
            found.append(pipeline_row(engine, result["rows"]) | {"date": result["date"]})
    return pd.DataFrame(found).fillna({"date": "this run"})


def pipeline_row(engine: str, rows: Tables) -> Record:
    """Return what a run cost and reached, from the tables of `cohort_ixi`."""
    total, scans = rows[cohort_ixi.RUN][0], rows[cohort_ixi.RUN][0]["scans in"]
    costs = rows[cohort_ixi.COSTS]
    own = [row for row in costs if row["stage"] == "register" or (row["stage"], row["step"]) == BATCH]
    registering = own + [row for row in costs if row["stage"] == "atlas"]
    row: Record = {
        "engine": engine,
        "scans": scans,
        "wall s of jobs per scan": total["wall_s of jobs"] / scans,
        "cpu s per scan": 3600 * total["cpu_h"] / scans,
        "register, cpu s per scan": sum(part["cpu_s"] for part in own) / scans,
        "register, wall s per scan": sum(part["wall_s"] for part in own) / scans,
        "atlas, cpu s": sum(part["cpu_s"] for part in registering if part["stage"] == "atlas"),
        "peak MB": max(part["peak_mb"] for part in registering),
    }
    row |= {f"Dice, {part['method']}": part["dice"] for part in rows[cohort_ixi.FUSIONS]}
    if "held out" in rows:
        row |= {f"Dice, {part['method']}, held out": part["dice"] for part in rows["held out"]}
    quality = {part["metric"]: part["mean"] for part in rows[cohort_ixi.QUALITY]}
    return row | {name: quality[name] for name in METRICS if name in quality}
