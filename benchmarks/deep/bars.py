"""From runs to tables and bars of the parts `pairs` and `contrast`."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from benchmarks.common import Bar, at_least, at_most
from benchmarks.deep.contrast import CONTRASTS
from benchmarks.deep.engines import CONTRAST, IMPORTED, T1W
from benchmarks.deep.rows import Row
from benchmarks.registration.summary import summarise

DEFAULT = "instance-default"
SHARE = 1 / 3  # of the wall seconds of the default that a network with refinement may take
FOLDED = 1e-4
LOST = 0.03  # Dice that another contrast may cost
AUTO_FAST = "instance-auto-fast"
MAPPED, MAPPED_S = 0.56, 2.0  # Dice with another contrast, and CPU seconds
NAN = float("nan")
KEYS = ("dataset", "case", "engine", "dice")
COLUMNS = (
    "engine",
    "cases",
    "dice",
    "hd95",
    "folded",
    "folds",
    "sdlogj",
    "volume_error",
    "inverse_error",
    "cpu_s",
    "wall_s",
    "peak_mb",
    "state",
)


def pairs_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Return the means of each engine over its T1w pairs, best Dice first."""
    table = summarise([row for row in rows if row["dataset"] == CONTRASTS[0]])
    return table[list(COLUMNS)].sort_values("dice", ascending=False, ignore_index=True)


def shared_rows(rows: Sequence[Row], engines: Sequence[str]) -> list[Row]:
    """Return the rows of the cases that all of some engines have finished, in each dataset."""
    good = [row for row in rows if row["engine"] in engines and row["state"] == "ok"]
    done = [{(row["dataset"], row["case"]) for row in good if row["engine"] == name} for name in engines]
    both = set.intersection(*done) if done else set()
    return [row for row in good if (row["dataset"], row["case"]) in both]


def network_rows(rows: Sequence[Row]) -> list[Row]:
    """Return our T1w network and the imported ones on the T1w pairs that all of them have finished."""
    plain = [row for row in rows if row["dataset"] == CONTRASTS[0]]
    present = {row["engine"] for row in plain if row["state"] == "ok"}
    return shared_rows(plain, [name for name in (T1W, *IMPORTED) if name in present])


def pair_bars(rows: Sequence[Row]) -> list[Bar]:
    """Return the bars of the T1w pairs; what did not run gives NaN, which holds nothing.

    Those against imported networks are left out where none ran: they need public checkpoints.
    """
    means = pairs_table(rows).set_index("engine")
    bars = [speed_bar(means)]
    compared = pairs_table(network_rows(rows)).set_index("engine")
    others = compared.loc[compared.index.isin(IMPORTED)]
    if len(others):
        best = str(others["dice"].idxmax())
        dice, folded = (value_of(compared, T1W, name) - value_of(compared, best, name) for name in ("dice", "folded"))
        bars.append(at_least(f"{T1W} - {best}, Dice on {int(others['cases'].max())} pairs", dice, 0.0))
        bars.append(at_most(f"{T1W} - {best}, folded", folded, 0.0))
    return bars + [at_most(f"{name}, folded", value_of(means, name, "folded"), FOLDED) for name in (T1W, CONTRAST)]


def value_of(means: pd.DataFrame, engine: str, column: str) -> float:
    """Return a mean of an engine, NaN where it did not run."""
    return float(means[column].to_dict().get(engine, NAN))


def speed_bar(means: pd.DataFrame) -> Bar:
    """Return the least share of the default's wall seconds at which the T1w network, refined or not, has its Dice."""
    ratio, name = NAN, "none reaches it"
    if DEFAULT in means.index:
        default = means.loc[DEFAULT]
        ours = means[means.index.str.split("+").str[0] == T1W]
        ours = ours[ours["dice"] >= default["dice"]]
        if len(ours):
            name = str(ours["wall_s"].idxmin())
            ratio = float(ours["wall_s"].min() / default["wall_s"])
    return at_most(f"wall s of {T1W}+steps with the Dice of {DEFAULT} ({name}), over its own", ratio, SHARE)


def contrast_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Return Dice in each contrast for each engine, folded share and seconds over all of them."""
    found = summarise(rows)
    table = found.pivot(index="engine", columns="dataset", values="dice").reindex(columns=list(CONTRASTS))
    table.columns = pd.Index([f"Dice, {name}" for name in CONTRASTS])
    means = found.groupby("engine")[["folded", "cpu_s", "wall_s", "peak_mb"]].mean()
    pairs = found.groupby("engine")["cases"].min()
    return table.join(means).assign(pairs=pairs).reindex(found["engine"].unique()).reset_index()


def contrast_bars(rows: Sequence[Row]) -> list[Bar]:
    """Return the bars of the other contrasts, on the pairs that are there in all of them."""
    good = pd.DataFrame([row for row in rows if row["engine"] == CONTRAST and row["state"] == "ok"], columns=list(KEYS))
    dice = good.pivot(index="case", columns="dataset", values="dice").reindex(columns=list(CONTRASTS)).dropna().mean()
    same, text = dice[CONTRASTS[0]], f"{CONTRAST}, Dice with {{}} against that with {CONTRASTS[0]}"
    bars = [at_least(text.format(name), float(dice[name]), float(same - LOST)) for name in CONTRASTS[1:]]
    table = contrast_table(rows).set_index("engine")
    if AUTO_FAST not in table.index:
        return bars
    quick = {name: value_of(table, AUTO_FAST, f"Dice, {name}") for name in CONTRASTS[1:]}
    bars += [at_least(f"{AUTO_FAST}, Dice with {name}", dice, MAPPED) for name, dice in quick.items()]
    return [*bars, at_most(f"{AUTO_FAST}, CPU s", value_of(table, AUTO_FAST, "cpu_s"), MAPPED_S)]
