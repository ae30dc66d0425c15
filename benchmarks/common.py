"""What all benchmarks share: options, bars, machine, and the written result."""

from __future__ import annotations

import argparse
import math
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import NotRequired, TypedDict, TypeVar, cast

import pandas as pd

from popatlas.images.io import read_json, write_json
from popatlas.measures.table import age_effect

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = ROOT / "docs" / "images"
PACKAGES = ("antspyx", "deepbet", "SimpleITK", "monai", "numpy", "snakemake", "torch")
METHODS = ("reference", "majority", "staple", "jlf")  # whose volumes the tables of a cohort hold
Record = dict[str, str | float | None]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Bar:
    """One number that was asked for, and whether it holds."""

    name: str
    value: float
    threshold: float
    holds: bool


class Result(TypedDict):
    """What a benchmark writes: tables by title, as rows, and bars; `dates` of tables of earlier runs."""

    benchmark: str
    date: str
    data: str
    machine: dict[str, str]
    rows: dict[str, list[Record]]
    bars: list[Record]
    dates: NotRequired[dict[str, str]]
    remarks: NotRequired[dict[str, str]]


def at_least(name: str, value: float, threshold: float) -> Bar:
    """Return a bar that holds from a threshold upwards."""
    return Bar(name, float(value), threshold, bool(value >= threshold))


def at_most(name: str, value: float, threshold: float) -> Bar:
    """Return a bar that holds up to a threshold."""
    return Bar(name, float(value), threshold, bool(value <= threshold))


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return the options that every benchmark has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, help="dataset, where the benchmark needs one")
    options.add_argument("--out", type=Path, help="folder of the run; finished work in it is kept")
    options.add_argument("--quick", action="store_true", help="smaller and faster, for a first look")
    options.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    options.add_argument("--cores", type=int, default=2, help="cores of the run (2)")
    return options


def popatlas(*arguments: object) -> None:
    """Run the command line; a failure ends the benchmark."""
    subprocess.run([sys.executable, "-m", "popatlas.cli.main", *map(str, arguments)], check=True)


def machine() -> dict[str, str]:
    """Return processor, cores and versions."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    versions = {package: metadata.version(package) for package in PACKAGES}
    return {"processor": model, "system": platform.platform(), "python": platform.python_version(), **versions}


def report(
    name: str,
    tables: Mapping[str, pd.DataFrame],
    bars: Sequence[Bar],
    args: argparse.Namespace,
    data: str,
    parts: Sequence[str] = (),
    remarks: Mapping[str, str] | None = None,
) -> list[Path]:
    """Print tables and bars; write Markdown and JSON to `benchmarks/results`, and return the JSON files.

    Parameters
    ----------
    name : str
        Of the benchmark.
    tables : mapping
        What this run found, by title.
    bars : sequence of Bar
        What must hold.
    args : Namespace
        Of `parser`.
    data : str
        What it ran on.
    parts : sequence of str
        Titles of all tables that the benchmark may make: those that this run did not make are kept from the committed
        result, with their date and the bars that no new one replaces.
    remarks : mapping, optional
        What has to be said of a table, by its title.
    """
    result: Result = {
        "benchmark": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "data": data,
        "machine": machine(),
        "rows": {title: records(table) for title, table in tables.items()},
        "bars": [asdict(bar) for bar in bars],
    }
    if remarks:
        result["remarks"] = dict(remarks)
    if parts and not args.quick and (RESULTS / f"{name}.json").is_file():
        result = with_kept(result, read_json(RESULTS / f"{name}.json"), parts)
    text = to_markdown(result)
    print(text)
    files: list[Path] = [] if args.quick else [RESULTS / f"{name}.json"]
    if not args.quick:
        (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    if args.json:
        files.append(args.json)
    for file in files:
        write_json(file, result)
    return files


def with_kept(result: Result, earlier: Result, parts: Sequence[str]) -> Result:
    """Return a result with the tables of an earlier one that it did not make anew, in the order of `parts`."""
    kept = [title for title in earlier["rows"] if title in parts and title not in result["rows"]]
    rows = {**earlier["rows"], **result["rows"]}
    names = {bar["name"] for bar in result["bars"]}
    return {
        **result,
        "rows": {title: rows[title] for title in parts if title in kept or title in result["rows"]},
        "bars": result["bars"] + [bar for bar in earlier["bars"] if kept and bar["name"] not in names],
        "dates": {title: earlier.get("dates", {}).get(title, earlier["date"]) for title in kept},
    }


def add_to_results(files: Iterable[Path], **more: object) -> None:
    """Add entries to JSON files of `report`, for example all runs, and write None for NaN in them."""
    for file in files:
        write_json(file, known(read_json(file)) | more)


def records(table: pd.DataFrame) -> list[Record]:
    """Return the rows of a table."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def to_markdown(result: Result) -> str:
    """Return a result as a Markdown page."""
    place = result["machine"]
    lines = [
        f"# {result['benchmark']}\n",
        f"Data: {result['data']}. Machine: {place['processor']}. Date: {result['date']}. "
        f"Versions: {', '.join(f'{package} {place[package]}' for package in PACKAGES)}.\n",
    ]
    for title, rows in result["rows"].items():
        date, remark = result.get("dates", {}).get(title), result.get("remarks", {}).get(title)
        said = [f"Of {date}.\n"] * bool(date) + [f"{remark}\n"] * bool(remark)
        lines += [f"## {title}\n", *said, table_markdown(pd.DataFrame(rows)), ""]
    if result["bars"]:
        lines += ["## Bars\n", table_markdown(pd.DataFrame(result["bars"])), ""]
    return "\n".join(lines)


def table_markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown, numbers with four significant digits; "none" for no row."""
    if table.empty:
        return "none"
    rows = [[_shown(value) for value in row] for row in table.itertuples(index=False)]
    head = [list(map(str, table.columns)), ["---"] * len(table.columns)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [*head, *rows])


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def stage_costs(out_dir: Path) -> pd.DataFrame:
    """Return jobs, wall seconds and CPU seconds per stage and step, from the records of a run.

    Parameters
    ----------
    out_dir : Path
        Output folder of a run.
    """
    records = []
    for path in sorted((out_dir / "logs").rglob("*.log.json")):
        record = read_json(path)
        if record["state"] == "ok":
            stage = path.relative_to(out_dir / "logs").parts[0]
            records.append({"stage": stage} | {key: record[key] for key in ("step", "seconds", "cpu_seconds", "peak_mb")})
    table = pd.DataFrame(records).groupby(["stage", "step"])
    costs = table.agg(
        jobs=("seconds", "size"),
        wall_s=("seconds", "sum"),
        cpu_s=("cpu_seconds", "sum"),
        wall_s_per_job=("seconds", "mean"),
        peak_mb=("peak_mb", "max"),
    )
    return costs.reset_index().sort_values("cpu_s", ascending=False, ignore_index=True)


def ventricle_ages(volumes: pd.DataFrame, columns: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return the age effect on the volume of the ventricles, by whose labels they were measured.

    Parameters
    ----------
    volumes : DataFrame
        `volumes.tsv` of a run.
    columns : mapping
        Method to its columns of the ventricles; one without columns gets no row.
    """
    rows: list[Record] = []
    for method, names in columns.items():
        if names:
            table = volumes.assign(ventricles=volumes[list(names)].sum(axis=1))
            rows.append({"labels": method, "mean_ml": table["ventricles"].mean(), **age_effect(table, "ventricles")})
    return pd.DataFrame(rows)


def known(value: Value) -> Value:
    """Return JSON data with None for NaN, which JSON does not have."""
    return cast(Value, _known(value))


def _known(value: object) -> object:
    if isinstance(value, dict):
        return {key: _known(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_known(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
