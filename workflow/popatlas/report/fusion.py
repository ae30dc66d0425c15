"""The page about the fusion methods: which one to use, how they differ, and where the atlases disagree."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

import popatlas
from popatlas.fusion.bench import Bench
from popatlas.fusion.crossval import ALPHA, CLOSE, FEWEST, Comparison, smallest_p, tell_p
from popatlas.measures.metrics import BENCH_METRICS
from popatlas.report.figures import Cell, ColourBar, Disagreement, Labels, Layer, under
from popatlas.report.pages import link, optional_json, read_config, scan_name, study_name, subject_page, write_page
from popatlas.report.panels import Figure, ScanImages, Sheet, paint, voxels
from popatlas.report.plots import Lanes, lanes
from popatlas.settings import Content

BENCH_SUMMARY = "group/fusion-bench.json"
BENCH_PAGE = "report/fusion.html"
SHEET = "fusion"  # in the names of the pictures
# metric to heading and decimals
COLUMNS = {
    "dice": ("Dice", 3),
    "hd95": ("HD95, mm", 2),
    "assd": ("ASSD, mm", 2),
    "volume_error": ("Volume error, %", 1),
}


def write_fusion_page(bench: Bench, out_dir: Path, references: Mapping[str, Path], page: Path) -> None:
    """Write the page of a bench and its pictures.

    Parameters
    ----------
    bench : Bench
        What was measured.
    out_dir : Path
        Output folder of the run.
    references : mapping of str to Path
        Own labels of each held-out atlas, by scan key.
    page : Path
        HTML page; pictures go to `figures` beside it.
    """
    from popatlas.fusion.methods import METHODS

    config = read_config(out_dir / "cohort" / "config.yaml")
    dice, chosen = bench.dice, bench.recommendation
    figures = draw_targets(bench, out_dir, references, page)
    drawn = {figure.path for _, figure in figures}
    for old in (page.parent / "figures").glob(f"*_{SHEET}-*.webp"):
        if old not in drawn:
            old.unlink()
    pages = {scan_name(scan): subject_page(out_dir, scan) for scan in references}
    write_page(
        "fusion",
        page,
        study=study_name(config, out_dir),
        popatlas=popatlas.__version__,
        chosen=chosen,
        titles={name: METHODS[name].title for name in dice.names if name in METHODS},
        targets=dice.n_targets,
        few=dice.n_targets < FEWEST,
        fewest=FEWEST,
        smallest_p=smallest_p(dice.n_targets),
        smallest_holm=dice.smallest_holm,
        alpha=ALPHA,
        close=CLOSE,
        columns=[(BENCH_METRICS[metric], *heading) for metric, heading in COLUMNS.items()],
        methods=method_rows(bench),
        lanes=dice_lanes(dice),
        pairs=pair_rows(dice),
        labels=label_rows(dice),
        notes=bench.notes,
        figures=[(title, figure, link(figure.path, page)) for title, figure in figures],
        drawn={name: link(path, page) for name, path in pages.items() if path.is_file()},
    )


def method_rows(bench: Bench) -> list[dict[str, object]]:
    """Return the table of methods, the best Dice first: mean and sd of each metric over targets, volume bias, costs."""
    signed = bench.table[bench.table["metric"] == "volume_error"]
    bias = signed.groupby(["method", "scan"])["value"].mean().groupby(level="method").mean()
    rows = []
    for name in bench.dice.names:
        found = {metric: bench.comparisons[metric].methods.loc[name] for metric in COLUMNS}
        rows.append(
            {
                "name": name,
                "cells": [(found[metric]["mean"], found[metric]["sd"], digits) for metric, (_, digits) in COLUMNS.items()],
                "bias": bias[name],
                "won": int((bench.dice.labels["winner"] == name).sum()),
                **{str(key): value for key, value in bench.costs.loc[name].items()},
            }
        )
    return rows


def dice_lanes(dice: Comparison) -> Lanes:
    """Return the Dice of each target by method, the targets joined by lines."""
    values = {
        str(name): {scan_name(str(scan)): float(value) for scan, value in dice.targets[name].items()}
        for name in dice.targets
    }
    return lanes("Dice of each held-out atlas", "mean over its labels", values, 3)


def pair_rows(dice: Comparison) -> list[dict[str, object]]:
    """Return the paired comparisons with a verdict in words."""
    few = dice.smallest_holm >= ALPHA
    rows = []
    for row in dice.pairs.to_dict("records"):
        ahead, behind = (row["first"], row["second"]) if row["difference"] >= 0 else (row["second"], row["first"])
        differs = row["holm"] < ALPHA
        verdict = f"{ahead} is better than {behind}" if differs else "too few targets" if few else "no difference shown"
        told = {name: tell_p(row[name]).removeprefix("p ").removeprefix("= ") for name in ("p", "holm")}
        rows.append({str(key): value for key, value in row.items()} | {"verdict": verdict, "differs": differs, "told": told})
    return rows


def label_rows(dice: Comparison) -> list[dict[str, object]]:
    """Return the table by structure, the mean Dice of each method with it."""
    return [
        {str(key): value for key, value in row.items()} | {"cells": [row[name] for name in dice.names]}
        for row in dice.labels.to_dict("records")
    ]


def draw_targets(bench: Bench, out_dir: Path, references: Mapping[str, Path], page: Path) -> list[tuple[str, Figure]]:
    """Draw the worst, the middle and the best target of the recommended method; targets without images are left out."""
    method = bench.recommendation.method
    dice = bench.dice.targets[method].sort_values(kind="stable")
    last = len(dice) - 1
    places = {0: "worst", last // 2: "median", last: "best"} if last > 1 else dict.fromkeys(range(last + 1), "")
    found = []
    for place, which in places.items():
        scan, value = str(dice.index[place]), float(dice.iloc[place])
        images = ScanImages(out_dir, scan, "", (method,), reference=references.get(scan))
        title = f"{scan_name(scan)}: Dice {value:.3f}" + (f", the {which} of {last + 1} targets" if which else "")
        found += [
            (title, paint(sheet, page.parent / "figures", scan_name(scan))) for sheet in agreement_sheet(images, method)
        ]
    return found


def agreement_sheet(images: ScanImages, method: str) -> list[Sheet]:
    """Return the sheet of a target: reference, fused labels, where the atlases disagree, and what is wrong."""
    fused, reference, agreement = images.fused.get(method), images.reference_labels, images.agreement(method)
    if images.brain is None or images.native is None or fused is None:
        return []
    rows: dict[str, Layer] = {} if reference is None else {"reference": Labels(reference)}
    rows[method] = Labels(fused)
    if agreement is not None:
        rows["agreement"] = Disagreement(agreement)
    if reference is not None:
        rows["wrong"] = Disagreement(np.where(fused != reference, 0.0, 1.0).astype(np.float32))
    ground, cuts = under(voxels(images.brain)), images.native.mixed()
    cells = [[Cell(images.native, cut, [ground, layer]) for cut in cuts] for layer in rows.values()]
    bar = ColourBar.agreement() if agreement is not None else None
    return [Sheet(f"{SHEET}-{method}", f"Fused labels ({method})", "", cells, tuple(rows), bar)]


def is_of_today(summary: Content, atlases: Collection[str]) -> bool:
    """Tell whether a bench was made with the labelled atlases of today, and is no file of before."""
    return bool(summary) and set(summary["targets"]) <= set(atlases)


def bench_section(out_dir: Path, page: Path, atlases: Collection[str]) -> dict[str, object] | None:
    """Return what the cohort page tells of the bench, None when none was made of the atlases of today."""
    summary, target = optional_json(out_dir / BENCH_SUMMARY), out_dir / BENCH_PAGE
    if not is_of_today(summary, atlases):
        return None
    rows = [
        {
            "name": name,
            "cells": [((found[metric] or {}).get("mean"), digits) for metric, (_, digits) in COLUMNS.items()],
            "cpu_seconds": summary["costs"][name]["cpu_seconds"],
        }
        for name, found in summary["methods"].items()
    ]
    return {
        "sentence": summary["sentence"],
        "recommended": summary["recommended"],
        "targets": summary["n_targets"],
        "headings": [title for title, _ in COLUMNS.values()],
        "rows": rows,
        "page": link(target, page) if target.is_file() else "",
    }
