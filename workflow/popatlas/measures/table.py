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

from popatlas.errors import InputError
from popatlas.images.io import read_table
from popatlas.measures.dictionary import ATLASES, BRAIN, COLUMNS, GROUP_COLUMN_TEXT, KEYS
from popatlas.measures.landmarks import landmark_errors
from popatlas.measures.metrics import METRICS
from popatlas.measures.sessions import COORDINATES as OF_AFFINES
from popatlas.measures.sessions import session_distances
from popatlas.measures.wide import WHO, volume_names, wide_volumes, with_participants
from popatlas.renamed import COLUMNS as OLD_COLUMNS
from popatlas.renamed import with_columns_of_today
from popatlas.stages import SIDE_STAGES

OUT_STATES = ("failed", "excluded", "unavailable")
COORDINATES = ("landmark_x", "landmark_y", "landmark_z", *OF_AFFINES)


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

    @property
    def participant_columns(self) -> dict[str, list[str]]:
        """The columns that come from the participants, of `metrics` and of `volumes`."""
        own = {"metrics": [*COLUMNS, *GROUP_COLUMN_TEXT], "volumes": [*WHO, *GROUP_COLUMN_TEXT, *self.volume_columns]}
        tables = {"metrics": self.metrics, "volumes": self.volumes}
        return {name: [str(column) for column in table if column not in own[name]] for name, table in tables.items()}


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


def read_scan_tables(tables: Iterable[Path]) -> pd.DataFrame:
    """Read and stack the tidy tables of scans; keys are text, absent sessions are empty text.

    Tables of earlier versions, which called the participant otherwise, are taken too.
    """
    kinds = dict.fromkeys([*KEYS, *OLD_COLUMNS, "metric", "unit"], str)
    frames = []
    for table in tables:
        frame = with_columns_of_today(read_table(table, dtype=kinds))
        missing = [column for column in COLUMNS if column not in frame.columns]
        if missing:
            raise InputError(f"columns {missing} are missing", file=table, remedy="delete the file and run again")
        if len(frame):
            frames.append(frame)
    stacked = pd.concat(frames, ignore_index=True)[COLUMNS] if frames else pd.DataFrame(columns=COLUMNS)
    texts = [column for column in COLUMNS if column != "value"]
    stacked[texts] = stacked[texts].fillna("").astype(str)
    stacked["value"] = stacked["value"].astype(float)
    return stacked


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
    inside, outside = members(index, ledger)
    there = inside["scan"].map(lambda scan: scan_table(derivatives, scan).exists()).astype(bool)
    lost = inside[~there].assign(stage="measure", state="pending", reason="no metric table")
    inside, outside = inside[there].reset_index(drop=True), pd.concat([outside, lost], ignore_index=True)
    metrics = read_scan_tables([*(scan_table(derivatives, scan) for scan in inside["scan"]), *extra])
    more = [rows for rows in (landmark_errors(metrics), session_distances(metrics)) if len(rows)]
    metrics = pd.concat([metrics, *more], ignore_index=True) if more else metrics
    who: MembersFile = {
        "n_in": len(inside),
        "n_out": len(outside),
        "in": inside["scan"].tolist(),
        "out": outside.fillna("").to_dict(orient="records"),
    }
    scans = inside.rename(columns=OLD_COLUMNS)[WHO]
    if atlases:
        scans = scans.assign(**{ATLASES: inside["scan"].map(atlases).astype("Int64")})
    joined = with_participants(metrics.merge(scans, on=WHO, how="left") if atlases else metrics, participants)
    volumes = wide_volumes(metrics, scans, participants, names)
    return GroupTables(joined, volumes, summarise(metrics), who, volume_names(metrics, names))


def summarise(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return mean and spread over scans by template, method and metric.

    Values are averaged over labels within a scan first, so that every scan counts once. Coordinates and
    volumes of single labels are left out: their mean over labels has no meaning.
    """
    single = metrics["metric"].isin(COORDINATES) | ((metrics["metric"] == "volume") & (metrics["label"] != BRAIN))
    rows = metrics[~single]
    keys = ["template", "method", "metric", "unit"]
    columns = [*keys, "scans", "mean", "sd", "minimum", "maximum"]
    if rows.empty:
        return pd.DataFrame(columns=columns)
    per_scan = rows.groupby([*keys, *WHO], sort=False)["value"].mean().dropna()
    groups = per_scan.groupby(level=keys)
    table = groups.agg(scans="size", mean="mean", sd="std", minimum="min", maximum="max").reset_index()
    order = {name: place for place, name in enumerate(METRICS)}
    return table.sort_values(
        ["template", "method", "metric"], key=lambda c: c.map(order) if c.name == "metric" else c, ignore_index=True
    )[columns]


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
