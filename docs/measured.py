"""Numbers of the docs that follow from committed benchmark results: what a subject costs, and which values are usual."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS

from popatlas.config.load import default_config, default_content
from popatlas.images.io import read_json
from popatlas.measures import dictionary
from popatlas.measures.metrics import METRICS, OF_LABELS

Rows = list[dict[str, Any]]

# groups of metrics on the page, with the sentence that says how to read them
GROUPS = {
    "Labels against reference labels": (
        "Only where a scan has reference labels (`measure.reference`). Dice depends on the size of a structure: 0.8 is good "
        "for a hippocampus at 2 mm and poor for white matter. So compare methods on the same labels, not structures."
    ),
    "Volumes": "In millilitres. Compare with age, sex and the size of the brain (`mask_brain`), not with a fixed number.",
    "Registration": (
        "Of the brain of a scan on the template. They tell a bad registration from good ones of the same study, with the "
        "same engine and preset; between studies they depend on contrast, noise and grid."
    ),
    "Landmarks": "Only where a scan has landmarks (`measure.landmarks`).",
    "Gate": (
        "One row for each attempt at a registration (`attempt-1`, ...); the last attempt stands. A number beyond its limit "
        "(`register.gate`) fails the attempt."
    ),
    "Truth of a simulated cohort": "Only there: the demo tells how well the pipeline finds what was planted.",
}
TRUTH = (
    *("mask_dice", "known_field_error", "known_field_error_p95", "pairwise_field_error", "template_error"),
    *("template_correlation", "truth_points"),
)
LARGEST = 8  # files that the table of what is kept shows
LOSSES = {
    "made again": "a composed field that is made again, from the one that was removed",
    "rounded": "a field, from what it was before it was rounded: measured",
    "rounded at most": "the same: bound",
}
RETENTION = """## What is kept of a scan

| `retention` | what it keeps |
|---|---|
| `full` | all, and in `work/fuse` what trained fusion methods read: labels and images of atlases on the grid of each scan |
| `standard` | all results under the names of these pages; default |
| `minimal` | the same without fields that follow from others, and without what nothing reads any more |

All fields are stored in steps of about a thousandth of a voxel. Two of the four of a registration follow from its affine and
the other two (`*_desc-warp_xfm.nii.gz`): `minimal` leaves them out, and whatever needs one makes it, to the same bytes. It
also removes images and fields of the template's members once they are averaged: a template that is lost as a whole, with
its averages in `work/`, is then registered again.

Another level starts no job, and what it leaves out does not count as lost. Going up, the next run makes the missing fields
before it begins, without a registration. Going down, `popatlas retain OUT_DIR minimal` says how much could go, and `--yes`
removes it, each field after it has been made a second time and compared. `popatlas plan` says both beforehand, and `popatlas
status` how much the results take.
"""
RECORDINGS = {"demo": "The demo", "cohort": "A cohort, and a subject more"}
# of the gate: metric to its key in register.gate, and which side of the limit is bad
LIMITS = {
    "gate_pose": ("pose", "at least"),
    "gate_sides": ("sides", "at least"),
    "gate_covered": ("covered", "at least"),
    "gate_contrast": ("contrast", "at least"),
    "gate_edges": ("edges", "at least"),
    "gate_mask_dice": ("mask_dice", "at least"),
    "gate_scale_min": ("scale", "at least"),
    "gate_scale_max": ("scale", "at most"),
    "gate_shear": ("shear", "at most"),
    "gate_nonpositive_jacobian": ("nonpositive_jacobian", "at most"),
    "gate_folds": ("folds", "at most"),
    "gate_log_jacobian_sd": ("log_jacobian_sd", "at most"),
    "gate_displacement_p95": ("displacement_p95", "at most"),
    "gate_inverse_error": ("inverse_error", "at most"),
}


def metrics_page() -> str:
    """Return the page that says of each metric what it is, which values are usual, and what is bad."""
    lines = [
        "# Reading the metrics\n",
        "All are in `group/metrics.tsv` (one value a row) and on the pages of the scans; [Tables](tables.md) shows how to "
        "get at them. *Usual* are values of real heads at 2 mm with the defaults (5th percentile, median, 95th percentile, "
        "or mean and range, see [Benchmarks](../benchmarks.md)), for the truth those of a simulated cohort. Values of your "
        "cohort outside of them are a reason to look, not a fault. Scans that stand apart from **your** cohort are "
        "named on its page.\n",
    ]
    known, gate = usual_values(), default_content()["register"]["gate"]
    for title, names in _grouped().items():
        lines += [
            f"## {title}\n",
            f"{GROUPS[title]}\n",
            "| metric | unit | better | usual | meaning |",
            "|---|---|---|---|---|",
        ]
        for name in names:
            metric, limit = METRICS[name], LIMITS.get(name)
            text = dictionary.metric_text(name, metric).replace("|", "\\|")
            told = f" Limit: {limit[1]} {_limit(gate[limit[0]], limit[1]):g}." if limit else ""
            lines.append(f"| `{name}` | {metric.unit} | {metric.better} | {known.get(name, '')} | {text}.{told} |")
        lines.append("")
    return "\n".join(lines)


def _limit(value: Any, side: str) -> float:
    """Return a limit; of a lowest and a highest value the one of that side."""
    return float((min if side == "at least" else max)(value)) if isinstance(value, list | tuple) else float(value)


def _grouped() -> dict[str, list[str]]:
    """Return the metrics of the tables by group, all of them."""
    found: dict[str, list[str]] = {title: [] for title in GROUPS}
    for name in METRICS:
        place = (
            "Labels against reference labels" if name in OF_LABELS
            else "Volumes" if name == "volume"
            else "Landmarks" if name.startswith("landmark")
            else "Gate" if name.startswith("gate_")
            else "Truth of a simulated cohort" if name in TRUTH
            else "Registration"
        )  # fmt: skip
        found[place].append(name)
    return found


def usual_values() -> dict[str, str]:
    """Return metric to its usual values in words, of those that a committed result has."""
    simulated, real = _tables("cohort_simulated"), _tables("cohort_ixi")
    found = {row["metric"]: _mean(row) for row in simulated["Truth"]}
    found |= {row["metric"]: _mean(row) for row in real["Registration to the template"]}
    for title, rows in real.items():
        for row in rows if title.startswith("Fusion") else ():
            if row["method"] == "jlf":
                found |= {name: f"{_short(row[name])} (jlf, mean of labels)" for name in ("dice", "hd95", "assd")}
    for row in _tables("cost").get("Usual values", ()):
        found[row["metric"]] = f"{_short(row['low'])}, {_short(row['middle'])}, {_short(row['high'])}"
    return found


def _mean(row: Mapping[str, Any]) -> str:
    if row.get("count") == 1 or row["min"] == row["max"]:
        return _short(row["mean"])
    return f"{_short(row['mean'])} ({_short(row['min'])} to {_short(row['max'])})"


def _short(value: float) -> str:
    return f"{value:.3g}"


def recordings_page() -> str:
    """Return the page of what a terminal shows, from the texts that `docs/recordings/record.py` wrote."""
    lines = [
        "# Recordings\n",
        "What a terminal shows, recorded by `python docs/recordings/record.py FOLDER` where lines are said now and then; on "
        "a real terminal one line for each stage is kept up to date instead ([what a run "
        "shows](runs.md#what-a-run-shows)).\n",
    ]
    for name, title in RECORDINGS.items():
        path = Path(__file__).parent / "recordings" / f"{name}.txt"
        if path.is_file():
            lines.append(f"## {title}\n\n```text\n{path.read_text(encoding='utf-8').rstrip()}\n```\n")
    return "\n".join(lines)


def cost_table() -> str:
    """Return what a subject costs on each grid, and what the demo costs, as a table, with the machine."""
    rows = ["| | CPU minutes per subject | largest job |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in _costs())]
    machine = read_json(RESULTS / "cohort_ixi.json")["machine"]["processor"]
    default = default_config().preprocess.resolution_mm
    return "\n".join(
        [
            *rows,
            "",
            f"Measured on {machine}, start-up of the programs included. Cores share the minutes: on eight cores a cohort of "
            f"40 takes five times the minutes of one. The default grid is {default:g} mm (`preprocess.resolution_mm`), "
            "whatever the voxels of the images. A grid of 1 mm has eight times as many, and time and memory of most jobs "
            "grow with them.",
        ]
    )


def _costs() -> Iterator[tuple[str, str, str]]:
    """Yield a row for each committed result that tells what its subjects took."""
    found: list[tuple[str, float, float, float]] = [  # what, CPU seconds and jobs of a subject, megabytes
        (f"real heads, grid of {row['grid_mm']} mm ({row['heads']} scans, all of them in the template)", row["cpu_s"],
         row["jobs"], row["largest_job_mb"])
        for row in _tables("cost").get("Cost of a subject", ())
    ]  # fmt: skip
    for name, title in (
        ("cohort_ixi", "real heads, grid of 2 mm (32 scans, 12 of them in the template, 8 atlases)"),
        ("cohort_simulated", "the demo (8 simulated heads, 2 mm)"),
    ):
        for rows in (rows for table, rows in _tables(name).items() if table.startswith("Cost per step")):
            scans = next(row["jobs"] for row in rows if row["step"] == "CorrectAndConform")
            seconds, jobs = (sum(row[key] for row in rows) / scans for key in ("cpu_s", "jobs"))
            found.append((title, seconds, jobs, max(row["peak_mb"] for row in rows)))
    for title, seconds, jobs, megabytes in found:
        yield title, f"{(seconds + jobs * _start_up()) / 60:.1f}", f"{megabytes / 1000:.1f} GB"


def retention_lines() -> Iterator[str]:
    """Yield the section of what is kept of a scan at each level, with the bytes that were measured."""
    tables = _tables("retention")
    yield RETENTION
    yield "| of a scan, MB | 2 mm | of these fields | 1 mm | of these fields |\n|---|---|---|---|---|"
    for row in tables.get("Levels", ()):
        numbers = (row[key] for key in ("mb_2mm", "fields_mb_2mm", "mb_1mm", "fields_mb_1mm"))
        yield f"| `{row['level']}` | {' | '.join(f'{number:.0f}' for number in numbers)} |"
    yield "\n| the largest files of a scan | MB at 2 mm | MB at 1 mm | in `minimal` |\n|---|---|---|---|"
    for row in tables.get("Files of a scan", ())[:LARGEST]:
        size = f"{row['mb_2mm']:.2f} | {row['mb_1mm']:.1f}"
        yield f"| `{row['file'].replace('*', '{scan}')}` | {size} | {'yes' if row['minimal'] else 'no'} |"
    yield "\n| loss | voxels, at most |\n|---|---|"
    for row in tables.get("Loss", ()):
        yield f"| {LOSSES[row['what']]} | {row['voxels']:.2g} |"
    yield ""


def _start_up() -> float:
    """Return the CPU seconds that a step takes before it begins; the records of steps do not count them."""
    (rows,) = _tables("startup").values()
    return float(next(row["cpu_s"] for row in rows if row["command"].startswith("popatlas step")))


def _tables(name: str) -> dict[str, Rows]:
    path: Path = RESULTS / f"{name}.json"
    return read_json(path)["rows"] if path.is_file() else {}
