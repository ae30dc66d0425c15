"""The QC page of one scan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from popatlas.cohort.freeze import atlases_for, read_label_atlases
from popatlas.config.sections import Config
from popatlas.images.colours import label_hex
from popatlas.images.io import read_table
from popatlas.measures.attempts import tried
from popatlas.measures.dictionary import BRAIN, REFERENCE, VOLUME_NOTES
from popatlas.measures.metrics import METRICS
from popatlas.measures.names import LABEL_NAMES, find_names, read_names
from popatlas.report.pages import (
    link,
    optional_json,
    optional_table,
    read_config,
    scan_name,
    step_records,
    study_name,
    write_page,
)
from popatlas.report.panels import ScanImages, draw_scan, draw_thumbnail
from popatlas.settings import Content

# metrics of the table by structure: heading and decimals
BY_LABEL = {"dice": ("Dice", 3), "hd95": ("HD95, mm", 2), "volume": ("Volume, ml", 2)}
LANDMARKS = ("landmark_x", "landmark_y", "landmark_z")


@dataclass(frozen=True)
class Limit:
    """A gate or mask number beside what is allowed."""

    title: str
    value: float
    allowed: str
    digits: int


def draw_subject(
    out_dir: Path,
    scan: str,
    label: str,
    methods: Sequence[str],
    page: Path,
    thumbnail: Path,
    stopped: Mapping[str, str] | None = None,
) -> int:
    """Draw the figures, the montage tile and the page of a scan from whatever files it has.

    Parameters
    ----------
    out_dir : Path
        Output folder.
    scan : str
        Scan key.
    label : str
        Name of the template.
    methods : sequence of str
        Fusion methods.
    page, thumbnail : Path
        HTML page and PNG; the figures go to `figures` beside the page's folder.
    stopped : mapping, optional
        Ledger row of a scan that did not finish.

    Returns
    -------
    int
        Number of figures.
    """
    config = read_config(out_dir / "cohort" / "config.yaml")
    images = ScanImages(
        out_dir, scan, label, tuple(methods), raw_image(out_dir, scan), reference_image(config, out_dir, scan)
    )
    name = scan_name(scan)
    figures = draw_scan(images, page.parent.parent / "figures", name)
    draw_thumbnail(images, thumbnail)
    metrics = optional_table(out_dir / f"{scan}_desc-metrics_table.tsv", dtype={"label": str})
    gate = optional_json(out_dir / f"{scan}_space-{label}_desc-gate_registration.json")
    quality = optional_json(out_dir / f"{scan}_desc-qc_mask.json")
    records = step_records(out_dir, scan)
    write_page(
        "subject",
        page,
        name=name,
        scan=scan,
        study=study_name(config, out_dir),
        label=label,
        stopped=stopped,
        stopped_log=_log_link(out_dir, stopped, page),
        figures=[(figure, link(figure.path, page)) for figure in figures],
        legend=legend(images),
        cards=summary_cards(metrics, quality, methods),
        gate=gate,
        attempts=attempts(gate, records),
        gate_limits=gate_limits(gate, config.content["register"]["gate"]),
        remarks=[*([quality["note"]] if quality.get("note") else []), *gate.get("notes", [])],
        quality=quality,
        quality_limits=quality_limits(quality, config.preprocess.brain.volume_ml),
        structures=structures(metrics, methods),
        label_notes=label_notes(out_dir, scan, methods),
        others=whole_brain(metrics),
        steps=[_step(record, page) for record in records],
        versions=versions(records),
        folder=link((out_dir / scan).parent, page),
        table=_link_if_there(out_dir / f"{scan}_desc-metrics_table.tsv", page),
    )
    return len(figures)


def raw_image(out_dir: Path, scan: str) -> Path | None:
    """Return the image that a scan was made from, None when the index does not know it."""
    index = out_dir / "cohort" / "index.parquet"
    if not index.is_file():
        return None
    table = read_table(index, columns=["scan", "t1w"], filters=[("scan", "==", scan)])
    return Path(table["t1w"].iloc[0]) if len(table) and table["t1w"].iloc[0] else None


def reference_image(config: Config, out_dir: Path, scan: str) -> Path | None:
    """Return the reference labels of a scan, None when the configuration names none that exist and are good."""
    from popatlas.cohort.labelfiles import left_out, resolve_pattern

    pattern = config.measure.reference
    path = resolve_pattern(pattern, scan, Path(config.bids_dir)) if pattern else None
    return path if path is not None and path.is_file() and not left_out(out_dir, scan, path) else None


def legend(images: ScanImages) -> list[tuple[str, str]]:
    """Return colour and name of every label that is drawn."""
    stacks = [*images.fused.values(), *([images.reference_labels] if images.reference_labels is not None else [])]
    values = sorted({int(value) for stack in stacks for value in np.unique(stack)} - {0})
    frozen = images.out_dir / LABEL_NAMES
    names = read_names(frozen if frozen.is_file() else find_names(images.reference))
    return [(label_hex(value), names.get(value, str(value))) for value in values]


def summary_cards(metrics: pd.DataFrame, quality: Content, methods: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return title, value and note of the numbers at the head of the page."""
    cards = []
    if quality.get("brain_ml") is not None:
        cards.append(("Brain volume", f"{quality['brain_ml']:.0f} ml", "brain mask"))
    if metrics.empty:
        return cards
    for metric, title in (("correlation", "Correlation with template"), ("log_jacobian_sd", "SD of log Jacobian")):
        rows = metrics[(metrics["metric"] == metric) & (metrics["method"] == "registration")]
        if len(rows) and pd.notna(rows["value"].iloc[0]):
            cards.append((title, f"{rows['value'].iloc[0]:.3f}", "in the template brain"))
    for method in methods:
        values = metrics.loc[(metrics["metric"] == "dice") & (metrics["method"] == method), "value"].dropna()
        if len(values):
            note = f"mean of {len(values)} labels, lowest {values.min():.3f}"
            cards.append((f"Dice {method}", f"{values.mean():.3f}", note))
    return cards


def attempts(gate: Content, records: Iterable[Content]) -> list[tuple[str, str]]:
    """Return what each attempt at the registration was and how it ended; of a failed scan only the step's record knows."""
    recorded = [record["notes"]["attempts"] for record in records if record.get("notes", {}).get("attempts")]
    found = gate.get("attempts") or (recorded[-1] if recorded else [])
    return [(tried(one), "; ".join(one["reasons"]) or "passed") for one in found]


def gate_limits(gate: Content, limits: Content) -> list[Limit]:
    """Return the gate's numbers beside the limits of the configuration."""
    low, high = limits["scale"]
    least = {
        "pose": ("Pose above turned ones (SD)", 1),
        "sides": ("Asymmetry (1 in people)", 2),
        "covered": ("Share of the fixed image in the moving one", 2),
        "contrast": ("One contrast", 2),
        "edges": ("Agreement of edges", 3),
        "mask_dice": ("Mask Dice", 3),
    }
    most = {"log_jacobian_sd": ("Log-Jacobian SD", 2), "displacement_p95": ("Displacement, 95th percentile (mm)", 1)}
    rows = {
        **{key: (title, f"\u2265 {limits[key]:g}", digits) for key, (title, digits) in least.items()},
        **{key: (title, f"\u2264 {limits[key]:g}", digits) for key, (title, digits) in most.items()},
        "scale_min": ("Smallest scale", f"\u2265 {low:g}", 3),
        "scale_max": ("Largest scale", f"\u2264 {high:g}", 3),
        "shear": ("Shear", f"\u2264 {limits['shear']:g}", 3),
        "nonpositive_jacobian": ("Share of Jacobian \u2264 0", f"\u2264 {limits['nonpositive_jacobian']:g}", 5),
        "folds": ("Share of voxels that fold", f"\u2264 {limits['folds']:g}", 5),
        "ncc_affine": ("Correlation after affine", "", 3),
        "ncc": ("Correlation after warp", "", 3),
    }
    if not gate.get("one_contrast", 1.0):  # of a similarity that takes any contrasts: nobody judges it
        rows["contrast"] = (rows["contrast"][0], "", rows["contrast"][2])
    found = ((gate.get(key), *row) for key, row in rows.items())
    return [Limit(title, value, text, digits) for value, title, text, digits in found if value is not None]


def quality_limits(quality: Content, volume: Sequence[float]) -> list[Limit]:
    """Return the numbers of the brain mask beside the limits of the configuration."""
    rows = {
        "brain_ml": ("Brain volume, ml", f"{volume[0]:g} to {volume[1]:g}", 0),
        "components": ("Components", "", 0),
        "border_voxels": ("Voxels on the image border", "", 0),
        "compactness": ("Compactness", "", 3),
        "dark_share": ("Share of dark voxels", "", 4),
        "elongation": ("Length / width", "", 2),
        "contrast": ("Contrast inside / outside", "", 2),
    }
    found = ((quality.get(key), *row) for key, row in rows.items())
    return [Limit(title, value, text, digits) for value, title, text, digits in found if value is not None]


def structures(metrics: pd.DataFrame, methods: Sequence[str]) -> dict[str, object]:
    """Return the table by structure: a group of columns per metric, a column per method, a row per label."""
    if metrics.empty:
        return {"groups": [], "rows": []}
    rows = metrics[metrics["metric"].isin(BY_LABEL) & metrics["method"].isin([*methods, REFERENCE])]
    wide = rows.pivot_table(index="label", columns=["metric", "method"], values="value", aggfunc="first", sort=False)
    groups = [
        (metric, title, digits, [method for method in [REFERENCE, *methods] if (metric, method) in wide.columns])
        for metric, (title, digits) in BY_LABEL.items()
    ]
    groups = [group for group in groups if group[3]]
    cells = [
        (str(label), [(values[metric, method], digits) for metric, _, digits, columns in groups for method in columns])
        for label, values in wide.iterrows()
    ]
    return {"groups": [(title, columns) for _, title, _, columns in groups], "rows": cells}


def label_notes(out_dir: Path, scan: str, methods: Sequence[str]) -> list[str]:
    """Return what a reader of the numbers by structure has to know: of an atlas's own labels, and of volumes by a method."""
    atlases = list(read_label_atlases(out_dir)["atlas"])
    serving = len(atlases_for(scan, atlases))
    notes = [f"{VOLUME_NOTES[method]}." for method in methods if method in VOLUME_NOTES]
    if methods and serving < len(atlases):
        notes.insert(0, f"This scan is a labelled atlas itself, and never labels itself: its labels come from {serving} "
                     f"atlas{'' if serving == 1 else 'es'}, those of others from up to {len(atlases)}.")  # fmt: skip
    return notes


def whole_brain(metrics: pd.DataFrame) -> list[dict[str, object]]:
    """Return the remaining metrics that describe the whole brain, with their meaning."""
    if metrics.empty:
        return []
    rows = metrics[(metrics["label"] == BRAIN) & ~metrics["metric"].isin(LANDMARKS)]
    found = []
    for method, metric, value, unit in rows[["method", "metric", "value", "unit"]].itertuples(index=False, name=None):
        about = METRICS[metric].description if metric in METRICS else ""
        shown = "" if unit == "1" else unit
        found.append({"method": method, "title": metric.replace("_", " "), "value": value, "unit": shown, "about": about})
    return found


def versions(records: Sequence[Content]) -> dict[str, str]:
    """Return the versions that the steps of a scan recorded."""
    found: dict[str, str] = {}
    for record in records:
        found |= {"popatlas": str(record.get("popatlas", ""))} | dict(record.get("versions", {}))
    return found


def _step(record: Content, page: Path) -> dict[str, object]:
    inputs = dict(record.get("inputs", {}))
    kept = {key: value for key, value in inputs.items() if not key.startswith(("in_", "out_")) and key != "subject"}
    return {
        "stage": record["stage"],
        "step": record.get("step", ""),
        "state": record.get("state", ""),
        "seconds": record.get("seconds"),
        "cpu_seconds": record.get("cpu_seconds"),
        "peak_mb": record.get("peak_mb"),
        "message": record.get("message", ""),
        "parameters": kept,
        "log": _link_if_there(record["log"], page),
        "record": link(record["file"], page),
    }


def _link_if_there(path: Path, page: Path) -> str:
    return link(path, page) if path.is_file() else ""


def _log_link(out_dir: Path, stopped: Mapping[str, str] | None, page: Path) -> str:
    return _link_if_there(out_dir / stopped["log"], page) if stopped and stopped.get("log") else ""
