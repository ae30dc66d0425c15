"""Label fusion on real images: the experiments of the data-parameter paper, all methods side by side, our joint fusion.

    python -m benchmarks.fusion --data FOLDER --out OUT_DIR [--parts shifted mixed sizes paper hippocampus heads]

FOLDER holds `msd-hippocampus` (images, labels; Medical Segmentation Decathlon Task04, CC BY-SA 4.0) and `ixi-hh` (BIDS with
derivatives/*/*_dseg; IXI, CC BY-SA 3.0). Registered candidates and the tables of each part are kept in OUT_DIR: a second run
goes on where the first one ended. Tables of parts that are not in OUT_DIR stay in the result as they were. Each part runs in
one thread.

* shifted: experiment I in 2D, labels shifted at random;
* mixed: experiment II in 2D, labels of mixed quality, and what the outcome depends on;
* sizes: volumes of fused labels against the true ones, on the hippocampus;
* paper: data parameters as published beside ours, on 18 targets of the hippocampus;
* hippocampus: experiments III and IV in 3D, 10 atlases, three qualities of registration;
* heads: all methods on IXI in leave-one-out, 8 atlases, per label; joint label fusion against ANTs.

Registrations: `clean` is linear and then the instance engine, `linear` is linear only, `noisy` gives each target candidates
of both kinds and, three of five, linear ones with a random rigid error (12 degrees, up to 8 mm: failed registrations).
CPU seconds are those of fusing alone: data parameters need the training (in the table of experiment III) and a pass of the
network besides. The constants of our consensus (margin, strictness, network weight) were chosen on parts of these data.
`other contrast` fuses the same candidates with atlas images in which dark and bright are exchanged.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.common import RESULTS, Bar, Record, add_to_results, at_least, at_most, parser, records, report
from benchmarks.fusion.cases import load_heads, load_hippocampus, registered
from benchmarks.fusion.methods import OURS, PAPER, PEER, STAPLE
from benchmarks.fusion.mixed import ARMS, mixed, mixed_bars
from benchmarks.fusion.plot import draw
from benchmarks.fusion.sizes import size_bars, size_rows
from benchmarks.fusion.slices import disturbed
from benchmarks.fusion.volumes import (
    CONTRAST,
    SETTINGS,
    consensus_rows,
    network_rows,
    paper_rows,
    parameters_row,
    trained,
)
from popatlas.config.load import default_content
from popatlas.fusion.crossval import holm, signed_rank
from popatlas.fusion.settings import DataParametersSettings
from popatlas.images.io import read_json, write_json

Tables = Mapping[str, list[Record]]  # of a part, by name
PARTS = ("shifted", "mixed", "sizes", "paper", "hippocampus", "heads")
TRUST = "Experiment III: trust against the true Dice of the candidates"
# titles of the tables on the page, in their order
TITLES = (
    "Experiment I",
    "Experiment II",
    TRUST,
    "As published and ours, hippocampus, noisy",
    "Volumes, hippocampus",
    "Consensus, hippocampus",
    "Consensus, heads",
    "Experiment IV: networks trained on the labels",
    "IXI, clean: labels won",
    "IXI, clean: by label",
)
PEERS = 6  # targets that ANTs' joint label fusion is run on
RADIUS = {"hippocampus": 2, "heads": 1}  # voxels of 1 mm and of 2 mm


def run_shifted(data: Path, out: Path, quick: bool) -> Tables:
    """Experiment I."""
    crops = load_hippocampus(data / "msd-hippocampus")[: 6 if quick else None]
    return {"Experiment I": records(disturbed(crops, 2 if quick else 30))}


def run_mixed(data: Path, out: Path, quick: bool) -> Tables:
    """Experiment II."""
    files = hippocampus_files(data, out, quick)
    return {"Experiment II": records(mixed(files, 2, 1, ARMS[2:4]) if quick else mixed(files, 30))}


def run_sizes(data: Path, out: Path, quick: bool) -> Tables:
    """Volumes of fused labels."""
    files = hippocampus_files(data, out, quick)
    return {"Volumes, hippocampus": size_rows(files, tuple(SETTINGS), RADIUS["hippocampus"])}


def run_paper(data: Path, out: Path, quick: bool) -> Tables:
    """Train data parameters as published, and ours."""
    files = hippocampus_files(data, out, quick)[::2]
    return {"As published and ours, hippocampus, noisy": paper_rows(files, quick)}


def hippocampus_files(data: Path, out: Path, quick: bool) -> list[Path]:
    """Return the registered crops: every sixth is an atlas."""
    crops = load_hippocampus(data / "msd-hippocampus")
    atlases = crops[::6][: 3 if quick else None]
    targets = [crop for number, crop in enumerate(crops) if number % 6][: 3 if quick else 36]
    return list(registered(targets, atlases, out / "hippocampus"))


def run_hippocampus(data: Path, out: Path, quick: bool) -> Tables:
    """Experiments III and IV."""
    return run_volumes(hippocampus_files(data, out, quick), "hippocampus", tuple(SETTINGS), quick)


def run_heads(data: Path, out: Path, quick: bool) -> Tables:
    """All methods on heads; every fourth is an atlas, these and as many others are targets."""
    heads = load_heads(data / "ixi-hh")
    targets = heads[:3] if quick else heads[::2]
    files = list(registered(targets, heads[::4][: 3 if quick else None], out / "heads"))
    return run_volumes(files, "heads", ("clean", "noisy"), quick)


def run_volumes(files: list[Path], part: str, settings: tuple[str, ...], quick: bool) -> Tables:
    """Train and fuse in each setting; a network for new subjects where there are few labels."""
    weight = default_content()["fuse"]["dataparams"]["network_weight"]
    parameters: list[Record] = []
    networks: list[Record] = []
    tables = []
    plan = DataParametersSettings(epochs=2) if quick else DataParametersSettings()
    for name in settings:
        setting = trained(name, files, plan)
        parameters.append(parameters_row(setting, plan.update))
        table, found = consensus_rows(setting, RADIUS[part], weight, PEERS if name == "clean" else 0)
        tables.append(table)
        if name == "noisy" and part == "hippocampus":
            tables.append(consensus_rows(setting.other_contrast(), RADIUS[part], weight, 0)[0])
            networks = network_rows(setting, found, plan)
    if part == "hippocampus":
        inline = DataParametersSettings(epochs=plan.epochs, update="inline")
        parameters.append(parameters_row(trained("noisy", files, inline), "inline"))
    return {"trust": parameters, "rows": records(pd.concat(tables, ignore_index=True)), "networks": networks}


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return per setting and method: mean over targets of the mean over labels, its SD, n, and the test against STAPLE."""
    targets = rows.groupby(["setting", "method", "target"]).agg(dice=("dice", "mean"), seconds=("seconds", "first"))
    found = []
    for (setting, method), part in targets.groupby(level=["setting", "method"], sort=False):
        peer = targets["dice"].xs((setting, STAPLE), level=("setting", "method"))
        mine = part["dice"].droplevel(["setting", "method"])
        difference = (mine - peer.reindex(mine.index)).to_numpy()
        row = {"setting": setting, "method": method, "n": len(part), "Dice": mine.mean(), "SD": mine.std()}
        row |= {"- STAPLE": difference.mean(), "CPU s of fusing": part["seconds"].mean()}
        row["p (Wilcoxon)"] = signed_rank(difference)[1] if method != STAPLE else np.nan
        found.append(row)
    table = pd.DataFrame(found)
    for _, part in table.groupby("setting"):
        tested = part["p (Wilcoxon)"].notna()
        table.loc[part.index[tested], "p (Holm)"] = holm(part.loc[tested, "p (Wilcoxon)"].to_numpy())
    return table.drop(columns="p (Wilcoxon)").sort_values(["setting", "Dice"], ascending=[True, False], ignore_index=True)


def by_label(rows: pd.DataFrame) -> pd.DataFrame:
    """Return for each label of the clean setting: the best method, the next one, by how much, and in how many targets."""
    clean = rows[(rows["setting"] == "clean") & (rows["method"] != PEER)]
    means = clean.groupby(["label", "method"])["dice"].mean().unstack()
    found = []
    for label, values in means.iterrows():
        first, second = values.sort_values(ascending=False).index[:2]
        single = clean[clean["label"] == label].pivot(index="target", columns="method", values="dice")
        row = {
            "label": label,
            "best": first,
            "Dice": values[first],
            "next": second,
            "margin": values[first] - values[second],
        }
        found.append(row | {"ahead in": int((single[first] > single[second]).sum()), "n": len(single)})
    return pd.DataFrame(found)


def wins(labels: pd.DataFrame) -> pd.DataFrame:
    """Return how many labels each method is best at, from `by_label`, and by how much over the next one."""
    table = labels.groupby("best")["margin"].agg(["size", "median"]).reset_index()
    table.columns = pd.Index(["method", "labels won", "median margin"])
    return table.sort_values("labels won", ascending=False, ignore_index=True)


def bars(found: Mapping[str, Tables]) -> list[Bar]:
    """Return the numbers that were asked for."""
    result = mixed_bars(found["mixed"]["Experiment II"]) if "mixed" in found else []
    result += size_bars("hippocampus", found["sizes"]["Volumes, hippocampus"]) if "sizes" in found else []
    for part in ("hippocampus", "heads"):
        if part not in found:
            continue
        table = summary(pd.DataFrame(found[part]["rows"]))
        gains = table.set_index(["setting", "method"])["- STAPLE"].to_dict()
        for setting in ("noisy", CONTRAST):
            for method in (OURS, PAPER):
                if (setting, method) in gains:
                    gain = 100 * gains[(setting, method)]
                    result.append(at_least(f"{part}, {setting}: {method} - STAPLE, Dice points", gain, 4.0))
        clean = table[table["setting"] == "clean"].set_index("method")["Dice"].drop(PEER, errors="ignore")
        lost = 100 * (clean.drop(OURS).max() - clean[OURS])
        result.append(at_most(f"{part}, clean: best other method - {OURS}, Dice points", lost, 0.5))
        rows = pd.DataFrame(found[part]["rows"]).query("setting == 'clean'")
        both = rows[rows["target"].isin(rows.loc[rows["method"] == PEER, "target"])]
        means = both.groupby("method")[["dice", "seconds"]].mean()
        dice, seconds = means["dice"], means["seconds"]
        gap = abs(dice["jlf"] - dice[PEER])
        result.append(at_most(f"{part}: |Dice of our joint fusion - ANTs'|", gap, 0.003))
        share = seconds["jlf"] / seconds[PEER]
        result.append(at_most(f"{part}: CPU time of our joint fusion / ANTs'", share, 0.2))
    return result


def finished(args: argparse.Namespace) -> dict[str, Tables]:
    """Run the parts that were asked for and are missing; return all that are there."""
    runs: dict[str, Callable[[Path, Path, bool], Tables]] = {
        "shifted": run_shifted,
        "mixed": run_mixed,
        "sizes": run_sizes,
        "paper": run_paper,
        "hippocampus": run_hippocampus,
        "heads": run_heads,
    }
    found: dict[str, Tables] = {}
    for part in PARTS:
        file = args.out / f"{part}{'-quick' if args.quick else ''}.json"
        if not file.is_file() and part in args.parts:
            write_json(file, runs[part](args.data, args.out, args.quick))
        if file.is_file():
            found[part] = read_json(file)
    return found


def shown(found: Mapping[str, Tables]) -> dict[str, pd.DataFrame]:
    """Return the tables of the page, by title."""
    tables = {
        title: pd.DataFrame(rows)
        for part in ("shifted", "mixed", "paper", "sizes")
        for title, rows in found.get(part, {}).items()
    }
    volumes = [part for part in ("hippocampus", "heads") if part in found]
    if volumes:
        parameters = [pd.DataFrame(found[part]["trust"]).assign(data=part) for part in volumes]
        tables[TRUST] = pd.concat(parameters, ignore_index=True)
    for part in volumes:
        tables[f"Consensus, {part}"] = summary(pd.DataFrame(found[part]["rows"]))
    if "hippocampus" in found:
        tables["Experiment IV: networks trained on the labels"] = pd.DataFrame(found["hippocampus"]["networks"])
    if "heads" in found:
        labels = by_label(pd.DataFrame(found["heads"]["rows"]))
        tables |= {"IXI, clean: labels won": wins(labels), "IXI, clean: by label": labels}
    return tables


def with_earlier(
    tables: Mapping[str, pd.DataFrame], judged: list[Bar], earlier: Mapping[str, Any]
) -> tuple[dict[str, pd.DataFrame], list[Bar], dict[str, str]]:
    """Return tables in their order and bars, those of an earlier result where they are not new, and the dates of those."""
    old = {title: pd.DataFrame(rows) for title, rows in earlier.get("rows", {}).items() if title not in tables}
    whole = {title: {**old, **tables}[title] for title in TITLES if title in old or title in tables}
    names = {bar.name for bar in judged}
    kept = [Bar(**bar) for bar in earlier.get("bars", []) if bar["name"] not in names]
    return (
        whole,
        [*kept, *judged],
        {title: earlier.get("dates", {}).get(title, earlier["date"]) for title in whole if title in old},
    )


def main() -> None:
    """Run what is missing, then print and write everything."""
    line = parser(__doc__)
    line.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(all)")
    args = line.parse_args()
    torch.set_num_threads(1)
    found = finished(args)
    tables, judged = shown(found), bars(found)
    dates: dict[str, str] = {}
    data = "MSD Task04 hippocampus (CC BY-SA 4.0), IXI Hammersmith (CC BY-SA 3.0, brain-development.org)"
    file = RESULTS / "fusion.json"
    if not args.quick and file.is_file():
        tables, judged, dates = with_earlier(tables, judged, read_json(file))
        data += "".join(
            f". Of {day}: {'; '.join(t for t in dates if dates[t] == day)}" for day in sorted(set(dates.values()))
        )
    volumes = [part for part in ("hippocampus", "heads") if part in found]
    if volumes and not args.quick:
        draw({part: summary(pd.DataFrame(found[part]["rows"])) for part in volumes})
    files = report("fusion", tables, judged, args, data)
    add_to_results(files, dates=dates)


if __name__ == "__main__":
    main()
