"""Group tables: the long table of all scans, wide volumes, summary, and who is in and who is out.

Membership comes from the ledger, never from which files happen to exist: a scan is in when none of its stages failed,
was excluded or is unavailable, and its measurement is not pending. Its extra channels and its QC page do not count.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import pandas as pd

from popatlas.measures.dictionary import ATLASES
from popatlas.measures.pieces import Pieces
from popatlas.measures.wide import WHO
from popatlas.renamed import COLUMNS as OLD_COLUMNS
from popatlas.stages import SIDE_STAGES

OUT_STATES = ("failed", "excluded", "unavailable")


# `in` is a word of Python: scans in the tables, scans left out with stage, state and reason, and how many
MembersFile = TypedDict("MembersFile", {"n_in": int, "n_out": int, "in": list[str], "out": list[dict[Hashable, object]]})


@dataclass(frozen=True)
class GroupTables:
    """The tables of a cohort.

    Attributes
    ----------
    metrics : DataFrame
        Long, joined with the participants.
    volumes : DataFrame
        Wide, joined with the participants.
    summary : DataFrame
        Mean and spread.
    members : dict
        Who is in and who is out, for JSON.
    volume_columns : dict
        Columns of volumes to method and label.
    """

    metrics: pd.DataFrame
    volumes: pd.DataFrame
    summary: pd.DataFrame
    members: MembersFile
    volume_columns: Mapping[str, tuple[str, str]]


def members(index: pd.DataFrame, ledger: pd.DataFrame, stage: str = "measure") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split the cohort into scans that enter group results and scans that do not.

    Parameters
    ----------
    index : DataFrame
        cohort/index: columns scan, subject, session and, where atlases were added, role (atlases are left aside).
    ledger : DataFrame
        Columns subject, session, stage, state, reason.
    stage : str
        Last stage that has to be done; ``pending`` there leaves a scan out. A stage without a row does not.

    Returns
    -------
    inside : DataFrame
        Columns scan, subject, session.
    outside : DataFrame
        Columns scan, subject, session, stage, state, reason and, where the ledger has it, code: the first stage at fault.
    """
    cohort = index[index["role"] != "atlas"] if "role" in index.columns else index
    cohort = cohort[["scan", "subject", "session"]].fillna({"session": ""}).astype(str)
    rows = ledger.assign(session=ledger["session"].fillna("").astype(str), subject=ledger["subject"].astype(str))
    bad = rows["state"].isin(OUT_STATES) | ((rows["stage"] == stage) & (rows["state"] == "pending"))
    bad &= ~rows["stage"].isin(list(SIDE_STAGES))
    kept = [name for name in ("subject", "session", "stage", "state", "reason", "code") if name in rows]
    first = rows[bad].drop_duplicates(["subject", "session"])[kept]
    joined = cohort.merge(first, on=["subject", "session"], how="left")
    out = joined["state"].notna()
    return joined.loc[~out, ["scan", "subject", "session"]].reset_index(drop=True), joined[out].reset_index(drop=True)


def scan_table(derivatives: Path, scan: str) -> Path:
    """Return the path of the metric table of a scan."""
    return derivatives / f"{scan}_desc-metrics_table.tsv"


def tabulate(
    derivatives: Path,
    index: pd.DataFrame,
    ledger: pd.DataFrame,
    participants: pd.DataFrame | None = None,
    extra: Iterable[Path] = (),
    names: Mapping[int, str] | None = None,
    atlases: Mapping[str, int] | None = None,
) -> GroupTables:
    """Combine the tables of all scans that the ledger lets in.

    Parameters
    ----------
    derivatives : Path
        OUT_DIR, which holds ``{scan}_desc-metrics_table.tsv``.
    index, ledger : DataFrame
        See :func:`members`.
    participants : DataFrame, optional
        BIDS participants.tsv (participant_id with or without ``sub-``), joined to metrics and volumes.
    extra : iterable of Path
        More tidy tables, appended to the metrics (the truth of a simulation).
    names : mapping of int to str, optional
        Number to name of the labels.
    atlases : mapping of str to int, optional
        Scan to the number of atlases that its labels come from.

    Returns
    -------
    GroupTables
        A scan that the ledger lets in but that has no table is out, with that reason.
    """
    group = gather(derivatives, index, ledger, participants, extra, atlases)
    metrics = pd.concat([piece for piece in group.pieces if len(piece)] or list(group.pieces), ignore_index=True)
    volumes = group.pieces.volumes
    return GroupTables(
        metrics, volumes.table(group.pieces.scans, participants, names), group.pieces.spread.table(), group.members,
        volumes.columns(names),
    )  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Who is in the tables of a group, and the pieces of these."""

    members: MembersFile
    pieces: Pieces


def gather(
    derivatives: Path,
    index: pd.DataFrame,
    ledger: pd.DataFrame,
    participants: pd.DataFrame | None = None,
    extra: Iterable[Path] = (),
    atlases: Mapping[str, int] | None = None,
) -> Group:
    """Return the group, whose tables are not yet read; see `tabulate`."""
    inside, outside = members(index, ledger)
    there = inside["scan"].map(lambda scan: scan_table(derivatives, scan).exists()).astype(bool)
    lost = inside[~there].assign(stage="measure", state="pending", reason="no metric table")
    inside, outside = inside[there].reset_index(drop=True), pd.concat([outside, lost], ignore_index=True)
    who: MembersFile = {
        "n_in": len(inside),
        "n_out": len(outside),
        "in": inside["scan"].tolist(),
        "out": outside.fillna("").to_dict(orient="records"),
    }
    scans = inside.rename(columns=OLD_COLUMNS)[WHO]
    if atlases:
        scans = scans.assign(**{ATLASES: inside["scan"].map(atlases).astype("Int64")})
    tables = [scan_table(derivatives, scan) for scan in inside["scan"]]
    return Group(who, Pieces(tables, list(extra), scans, participants))


def age_effect(volumes: pd.DataFrame, column: str, age: str = "age") -> dict[str, float]:
    """Regress a volume on age by ordinary least squares.

    Parameters
    ----------
    volumes : DataFrame
        Wide volumes with a column of ages in years.
    column : str
        Volume column, for example ``jlf_lateral_ventricle``.
    age : str
        Column of ages.

    Returns
    -------
    dict
        ``slope`` (ml per year), ``intercept`` (ml), ``r``, ``p`` (two-sided), ``n``; NaN with fewer than
        three scans or one single age.
    """
    from scipy.stats import linregress

    pairs = volumes[[age, column]].apply(pd.to_numeric, errors="coerce").dropna()
    if len(pairs) < 3 or pairs[age].nunique() < 2:
        return {**dict.fromkeys(("slope", "intercept", "r", "p"), float("nan")), "n": float(len(pairs))}
    fit = linregress(pairs[age], pairs[column])
    return {
        "slope": float(fit.slope),
        "intercept": float(fit.intercept),
        "r": float(fit.rvalue),
        "p": float(fit.pvalue),
        "n": float(len(pairs)),
    }
