"""The QC page of the cohort: who is in, the template, distributions, every scan, and the methods text."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pandas as pd

import popatlas
from popatlas.cohort.freeze import atlases_for, read_label_atlases
from popatlas.cohort.ledger import COLUMNS, incomplete, left_out, summary
from popatlas.cohort.participants import ages_of, read_people
from popatlas.cohort.remarks import read_remarks
from popatlas.config.sections import Config
from popatlas.images.io import read_table, write_if_changed, write_text
from popatlas.measures.attempts import tried
from popatlas.measures.dictionary import ATLASES
from popatlas.measures.table import age_effect
from popatlas.renamed import with_columns_of_today
from popatlas.report.along import along_section
from popatlas.report.atlas_weights import atlas_weights_section
from popatlas.report.fusion import BENCH_SUMMARY, bench_section, is_of_today
from popatlas.report.limits import CHANCE, FEWEST
from popatlas.report.methods import Counts, write_methods
from popatlas.report.outliers import Measure, far_scans, key_measures, limits, outlier_scores, scan_names
from popatlas.report.pages import (
    SUBJECTS,
    link,
    optional_json,
    optional_table,
    read_config,
    scan_name,
    step_records,
    study_name,
    subject_page,
    thumbnail,
    write_page,
)
from popatlas.report.panels import ScanImages
from popatlas.report.plots import Line, Scatter, Strip, line, scatter, strip
from popatlas.report.scans import MOST_OUT, ORDER, Row, is_long, shown, write_scans
from popatlas.report.subject import draw_subject
from popatlas.report.template import draw_template, draw_tissue_maps
from popatlas.settings import Content

PACKAGES = ("popatlas", "snakemake", "antspyx", "deepbet", "SimpleITK", "nipype", "nibabel", "numpy", "torch")
EXTERNAL = "atlases/"
FEWEST_FOR_AGE = 5


@dataclass(frozen=True)
class Cohort:
    """Everything that is read once for all pages."""

    out_dir: Path
    label: str
    methods: tuple[str, ...]
    ledger: pd.DataFrame
    stopped: dict[str, dict[str, str]]
    table: pd.DataFrame
    measures: list[Measure]
    registered: dict[str, str]
    atlases: tuple[str, ...]
    config: Config

    @classmethod
    def read(cls, out_dir: Path, ledger: Path, label: str, methods: Sequence[str], config: Path | None) -> Cohort:
        """Read ledger, metrics and QC numbers."""
        rows = read_table(ledger, dtype=str).fillna("").reindex(columns=COLUMNS, fill_value="")
        rows = rows[~rows["scan"].str.startswith(EXTERNAL)] if len(rows) else rows
        stopped = {
            str(row["scan"]): {str(key): str(value) for key, value in row.items()}
            for row in left_out(rows).to_dict("records")
        }
        alive = [scan for scan in dict.fromkeys(rows["scan"]) if scan not in stopped]
        gate = f"space-{label}_desc-gate_registration.json"
        gates = {scan_name(scan): optional_json(out_dir / f"{scan}_{gate}") for scan in alive}
        masks = {scan_name(scan): optional_json(out_dir / f"{scan}_desc-qc_mask.json") for scan in alive}
        metrics = with_columns_of_today(optional_table(out_dir / "group" / "metrics.parquet"))
        table, measures = key_measures(metrics, gates, masks, methods)
        table = table.reindex([scan_name(scan) for scan in alive])
        registered = {scan: registered_by(found) for scan, found in gates.items()}
        atlases = tuple(str(atlas) for atlas in read_label_atlases(out_dir)["atlas"])
        return cls(out_dir, label, tuple(methods), rows, stopped, table, measures, registered, atlases, read_config(config))

    @property
    def scans(self) -> list[str]:
        """All scans of the cohort, in the ledger's order."""
        return list(dict.fromkeys(self.ledger["scan"]))

    def rows(self, page: Path) -> list[Row]:
        """Return the scans, most suspicious first."""
        scores = outlier_scores(self.table, self.measures)
        rows = [self._row(scan, scores, page) for scan in self.scans]
        return sorted(rows, key=lambda row: (ORDER[row.state], -row.score, row.name))

    def _row(self, scan: str, scores: pd.DataFrame, page: Path) -> Row:
        name, stop = scan_name(scan), self.stopped.get(scan, {})
        state, done = stop.get("state", "ok"), scan not in self.stopped
        drawn = state in ("ok", "failed", "pending")
        reason, _, remedy = stop.get("reason", "").partition("; remedy: ")
        files = {"log": self.out_dir / (stop.get("log") or "none"), "page": subject_page(self.out_dir, scan),
                 "picture": thumbnail(self.out_dir, scan)}  # fmt: skip
        links = {key: link(path, page) if path.is_file() and (drawn or key == "log") else "" for key, path in files.items()}
        return Row(
            scan=scan, name=name, state=state, stage=stop.get("stage", ""), reason=reason, remedy=remedy, **links,
            score=float(scores["score"].get(name, 0.0)) if done else 0.0,
            measure=str(scores["measure"].get(name, "")) if done else "",
            values=[float(self.table[measure.key].get(name, float("nan"))) for measure in self.measures],
            registered=self.registered.get(name, ""), atlases=len(atlases_for(scan, self.atlases)),
        )  # fmt: skip


def registered_by(gate: Content) -> str:
    """Return engine, linear stage and start of the registration that stands, and which attempt it was if not the first."""
    attempts = gate.get("attempts", [])
    if not attempts:
        return ""
    return tried(attempts[-1]) + (f" (attempt {len(attempts)})" if len(attempts) > 1 else "")


def write_report(
    out_dir: Path, ledger: Path, label: str, methods: Sequence[str], per_page: int, config: Path | None, page: Path
) -> int:
    """Write the pages of the cohort, the BibTeX file and the order of the subject pages.

    Parameters
    ----------
    out_dir : Path
        Output folder.
    ledger : Path
        The ledger.
    label : str
        Name of the template.
    methods : sequence of str
        Fusion methods.
    per_page : int
        Scans in the montage of one page; further ones go to `page-2.html` and so on, beside `page`.
    config : Path or None
        Resolved configuration, YAML or JSON.
    page : Path
        First page.

    Returns
    -------
    int
        Number of pages.
    """
    cohort = Cohort.read(out_dir, ledger, label, methods, config)
    draw_stopped(cohort, ledger)
    rows = cohort.rows(page)
    description = optional_json(out_dir / f"tpl-{label}" / "template_description.json")
    text = write_methods(cohort.config, count(cohort, rows, description), methods, versions(cohort))
    write_text(page.parent / "methods.bib", text.bibtex)
    names = [row.name for row in rows if row.page]
    write_scans(rows, cohort.measures, page.with_name("scans.js"))
    write_if_changed(out_dir / SUBJECTS / "order.js", f"window.popatlasScans = {json.dumps(names)};\n")
    pages = [rows[start : start + per_page] for start in range(0, len(rows), per_page)] or [[]]
    paths = [page, *(page.with_name(f"page-{number}.html") for number in range(2, len(pages) + 1))]
    for old in page.parent.glob("page-*.html"):
        if old not in paths:
            old.unlink()
    shared = {
        "study": study_name(cohort.config, out_dir),
        "label": label,
        "version": description.get("Version", ""),
        "generated": generated(ledger),
        "popatlas": popatlas.__version__,
        "pages": [path.name for path in paths],
        "per_page": per_page,
        "total": len(rows),
    }
    overview = _overview(cohort, rows, description, page)
    write_page("cohort", page, number=1, cards=pages[0], methods=text, **shared, **overview)
    for number, (path, cards) in enumerate(zip(paths[1:], pages[1:], strict=True), start=2):
        write_page("montage", path, number=number, cards=cards, **shared)
    return len(paths)


def draw_stopped(cohort: Cohort, ledger: Path) -> None:
    """Draw the failed scans that have images: what went wrong is seen there and nowhere else."""
    for scan, row in cohort.stopped.items():
        page, picture = subject_page(cohort.out_dir, scan), thumbnail(cohort.out_dir, scan)
        if row["state"] != "failed" or not (cohort.out_dir / f"{scan}_desc-preproc_T1w.nii.gz").is_file():
            continue
        if not page.is_file() or page.stat().st_mtime_ns <= ledger.stat().st_mtime_ns:
            try:
                draw_subject(cohort.out_dir, scan, cohort.label, cohort.methods, page, picture, row)
            except Exception as error:  # what broke the scan may break its page; that must not cost the report
                print(f"{scan}: its page cannot be drawn: {type(error).__name__}: {error}", flush=True)


def _overview(cohort: Cohort, rows: Sequence[Row], description: Content, page: Path) -> dict[str, object]:
    """Return what only the first page shows."""
    counts = summary(cohort.ledger)
    convergence = optional_table(cohort.out_dir / f"tpl-{cohort.label}" / f"tpl-{cohort.label}_desc-convergence_table.tsv")
    template = ScanImages(cohort.out_dir, "", cohort.label)
    picture = draw_template(template, page.parent / "figures")
    maps = draw_tissue_maps(template, page.parent / "figures") if cohort.config.tissues.enabled else None
    return {
        "rows": shown(rows),
        "is_long": is_long(rows),
        "drawn": {row.name: row.page for row in rows if row.page},
        "measures": cohort.measures,
        "included": sum(row.state == "ok" for row in rows),
        "odd": sum(row.odd for row in rows),
        "out": [row for row in rows if row.state != "ok"],
        "most_out": MOST_OUT,
        "atlases": len(cohort.atlases),
        "fewer": [row for row in rows if row.state == "ok" and row.atlases < len(cohort.atlases)],
        "registered": Counter(row.registered for row in rows if row.registered).most_common(),
        "remarks": [row | {"name": scan_name(row["scan"])} for row in read_remarks(cohort.out_dir).to_dict("records")],
        "incomplete": [row | {"name": scan_name(row["scan"])} for row in incomplete(cohort.ledger).to_dict("records")],
        "stages": [(stage, counts.loc[stage].to_dict()) for stage in counts.index],
        "description": description,
        "template": (picture, link(picture.path, page)) if picture else None,
        "tissues": (maps, link(maps.path, page)) if maps else None,
        "convergence": convergence_table(convergence),
        "lines": convergence_lines(convergence),
        "strips": strips(cohort),
        "age": age_plot(read_volumes(cohort.out_dir), list(read_people(cohort.out_dir).columns)),
        "along": along_section(cohort.out_dir, cohort.label, page),
        "bench": bench_section(cohort.out_dir, page, cohort.atlases),
        "atlas_weights": atlas_weights_section(cohort.out_dir, page),
        "rule": outlier_rule(cohort),
    }


def outlier_rule(cohort: Cohort) -> str:
    """Return the sentence that tells which scans are outliers in a cohort of this size."""
    far = min(limits(cohort.table, cohort.measures).values(), default=float("inf"))
    if far == float("inf"):
        return f"With fewer than {FEWEST} scans none is called an outlier."
    more = " (farther for measures that fewer scans have)" if cohort.table.isna().to_numpy().any() else ""
    return (
        f"An outlier lies more than {far:.1f} robust standard deviations from the median{more}, on the bad side of a "
        f"measure that has one. That follows from the {len(cohort.table)} scans and {len(cohort.measures)} measures: were "
        f"all values normal, the chance that any scan is called an outlier would be at most {100 * CHANCE:g} %."
    )


def convergence_table(table: pd.DataFrame) -> dict[str, object]:
    """Return headings and rows of the convergence table."""
    headings = [str(column).replace("_", " ") for column in table.columns]
    digits = [0 if pd.api.types.is_integer_dtype(table[column]) else 4 for column in table.columns]
    rows = [list(zip(row, digits, strict=True)) for row in table.itertuples(index=False)]
    return {"headings": headings, "rows": rows}


def convergence_lines(table: pd.DataFrame) -> list[Line]:
    """Return a curve for each numeric column that changes over the iterations."""
    if len(table) < 2 or "iteration" not in table:
        return []
    columns = table.drop(columns="iteration").select_dtypes("number")
    changing = [column for column in columns if columns[column].nunique() > 1 and columns[column].notna().sum() > 1]
    return [line(str(column).replace("_", " "), table["iteration"].tolist(), table[column].tolist()) for column in changing]


def strips(cohort: Cohort) -> list[Strip]:
    """Return the distribution of each key measure, with the outliers on its bad side."""
    found, far = [], limits(cohort.table, cohort.measures)
    for measure in cohort.measures:
        values = cohort.table[measure.key].dropna()
        if len(values):
            shown = {str(name): float(value) for name, value in values.items()}
            odd = far_scans(values, measure, far[measure.key])
            found.append(strip(measure.title, measure.unit, measure.about, shown, odd, measure.digits))
    return found


def read_volumes(out_dir: Path) -> pd.DataFrame:
    """Return group/volumes.tsv with ages as numbers; what is no age is missing."""
    volumes = with_columns_of_today(optional_table(out_dir / "group" / "volumes.tsv", dtype={"age": str}))
    return volumes.assign(age=ages_of(volumes["age"].fillna(""))) if "age" in volumes else volumes


def age_plot(volumes: pd.DataFrame, told: Sequence[str] = ()) -> Scatter | None:
    """Return the volume that goes with age most, None without ages or with too few scans; columns in `told` are none."""
    if "age" not in volumes or "participant_id" not in volumes:
        return None
    others = {"age", ATLASES, *told, *(f"participants_{name}" for name in told)}
    numbers = volumes.select_dtypes("number").drop(columns=list(others), errors="ignore")
    columns = [column for column in numbers if "_" in str(column) and numbers[column].notna().sum() >= FEWEST_FOR_AGE]
    effects = {str(column): age_effect(volumes, str(column)) for column in columns}
    effects = {column: effect for column, effect in effects.items() if effect["r"] == effect["r"]}
    if not effects:
        return None
    best = max(effects, key=lambda column: abs(effects[column]["r"]))
    pairs = volumes.dropna(subset=["age", best])
    values = zip(pairs["age"].astype(float), pairs[best].astype(float), strict=True)
    points = dict(zip(scan_names(pairs), values, strict=True))
    method, _, structure = best.partition("_")
    effect = effects[best]
    text = (
        f"Largest of {len(effects)} correlations with age, not corrected for that choice: "
        f"r = {effect['r']:+.2f}, {effect['slope']:+.3g} ml per year, {effect['n']:.0f} scans."
    )
    return scatter(
        f"{structure.replace('_', ' ')} ({method}), ml", "age", text, points, effect["slope"], effect["intercept"]
    )


def count(cohort: Cohort, rows: Sequence[Row], description: Content) -> Counts:
    """Return the counts that the methods text states."""
    states = [row.state for row in rows]
    out = {state: states.count(state) for state in ORDER if state != "ok"}
    inside = [row.scan for row in rows if row.state == "ok"]
    image = "_space-T1w_desc-preproc_"
    aligned = {
        name: sum((cohort.out_dir / f"{scan}{image}{name}.nii.gz").is_file() for scan in inside)
        for name in cohort.config.cohort.channels
    }
    scored = [f"{method}_dice" for method in cohort.methods if f"{method}_dice" in cohort.table]
    return Counts(
        scans=len(rows),
        included=len(inside),
        out=out,
        members=len(description.get("Members", [])),
        atlases=len(cohort.atlases),
        held_out=_held_out(cohort),
        channels=aligned,
        referenced=int(cohort.table[scored].notna().any(axis=1).sum()),
    )


def _held_out(cohort: Cohort) -> int:
    """Return the targets of the bench that this run has made, 0 without one: its file may be of other settings."""
    bench = optional_json(cohort.out_dir / BENCH_SUMMARY)
    is_own = cohort.config.fuse.bench and is_of_today(bench, cohort.atlases) and set(bench["methods"]) <= set(cohort.methods)
    return int(bench["n_targets"]) if is_own else 0


def versions(cohort: Cohort) -> dict[str, str]:
    """Return the versions that the steps recorded; of packages that no step recorded, the installed ones."""
    done = next((scan for scan in cohort.scans if scan not in cohort.stopped), None)
    recorded: dict[str, str] = {"popatlas": popatlas.__version__}
    for record in step_records(cohort.out_dir, done) if done else ():
        recorded |= dict(record.get("versions", {}))
    for package in PACKAGES:
        if package not in recorded:
            try:
                recorded[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
    return {package: recorded[package] for package in PACKAGES if package in recorded}


def generated(ledger: Path) -> str:
    """Return the date of the results (UTC): SOURCE_DATE_EPOCH, or when the ledger last changed."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    seconds = int(epoch) if epoch else ledger.stat().st_mtime
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
