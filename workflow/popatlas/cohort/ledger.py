"""The ledger: scan x stage -> ok, failed, excluded, unavailable or pending, with the reason.

Group steps take it as input and compute on `ok` only, so a broken scan costs itself and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from popatlas.errors import InputError
from popatlas.images.io import read_json, read_table, table_text, write_if_changed

if TYPE_CHECKING:
    from collections.abc import Hashable

STAGES = ("index", "preprocess", "register", "fuse", "measure")
STATES = ("ok", "failed", "excluded", "unavailable", "pending")
COLUMNS = ["scan", "subject", "session", "stage", "state", "reason", "log"]
FAILURE_COLUMNS = ["scan", "stage", "reason"]
KILLED = "the job ended without a word: killed, out of memory or out of time; remedy: give it more memory or time"


def settle(out_dir: Path, index: pd.DataFrame, stage_outputs: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Find out what became of each scan and write `cohort/ledger.tsv` and `cohort/failures.tsv`.

    Parameters
    ----------
    out_dir : Path
        Output folder.
    index : DataFrame
        Cohort index.
    stage_outputs : mapping
        Stage to the file patterns (with `{scan}`) that prove that it is done.

    Returns
    -------
    DataFrame
        Columns `COLUMNS`, one row per scan and stage. Files are written only when their content changed.
    """
    rows = [row for scan in index.to_dict("records") for row in _settle_scan(out_dir, scan, stage_outputs)]
    ledger = pd.DataFrame(rows, columns=COLUMNS)
    write_if_changed(out_dir / "cohort" / "ledger.tsv", table_text(ledger))
    failures = ledger.loc[ledger["state"] == "failed", FAILURE_COLUMNS]
    write_if_changed(out_dir / "cohort" / "failures.tsv", table_text(failures))
    return ledger


def _settle_scan(
    out_dir: Path, scan: Mapping[Hashable, Any], stage_outputs: Mapping[str, Sequence[str]]
) -> list[dict[str, str]]:
    def row(stage: str, state: str, reason: str = "", log: str = "") -> dict[str, str]:
        keys = {"scan": scan["scan"], "subject": scan["subject"], "session": scan["session"]}
        return {**keys, "stage": stage, "state": state, "reason": reason, "log": log}

    rows = [row("index", scan["state"], scan["reason"])]
    waits_for = "" if scan["state"] == "ok" else "index"
    for stage in STAGES[1:]:
        if scan["state"] != "ok":
            rows.append(row(stage, scan["state"], scan["reason"]))
        elif _is_done(out_dir, scan["scan"], stage_outputs[stage]):
            rows.append(row(stage, "ok"))
        elif waits_for:
            rows.append(row(stage, "pending", f"waits for {waits_for}"))
        else:
            waits_for = stage
            reason, log = _find_failure(out_dir, stage, scan["scan"])
            rows.append(row(stage, "failed" if reason else "pending", reason or "not run yet", log))
    return rows


def _is_done(out_dir: Path, scan: str, patterns: Sequence[str]) -> bool:
    return all((out_dir / pattern.format(scan=scan)).is_file() for pattern in patterns)


def _find_failure(out_dir: Path, stage: str, scan: str) -> tuple[str, str]:
    """Return reason and log of the newest failed record of a scan at a stage; empty when no step failed."""
    folder, name = (out_dir / "logs" / stage / scan).parent, Path(scan).name
    failed = []
    for path in folder.rglob(f"{name}_*.json") if folder.is_dir() else ():
        try:
            record = read_json(path)
        except InputError:
            record = {"state": "running"}
        if record.get("state") in ("failed", "running"):
            failed.append((path.stat().st_mtime_ns, path, record))
    if not failed:
        return "", ""
    _, path, record = max(failed, key=lambda entry: entry[0])
    remedy = f"; remedy: {record['remedy']}" if record.get("remedy") else ""
    reason = f"{record.get('message', '')}{remedy}" if record["state"] == "failed" else KILLED
    return " ".join(reason.split()), str(path.relative_to(out_dir)).removesuffix(".json")


def read_failures(out_dir: Path) -> pd.DataFrame:
    """Return the failed scans of the last settling (scan, stage, reason)."""
    path = out_dir / "cohort" / "failures.tsv"
    return read_table(path, dtype=str) if path.is_file() else pd.DataFrame(columns=FAILURE_COLUMNS)


def read_ledger(out_dir: Path) -> pd.DataFrame:
    """Return the ledger.

    Raises
    ------
    InputError
        When nothing has been run in `out_dir` yet.
    """
    path = out_dir / "cohort" / "ledger.tsv"
    if not path.is_file():
        raise InputError("there is no ledger", file=path, remedy="start with `popatlas run BIDS_DIR OUT_DIR`")
    return read_table(path, dtype=str).fillna("")


def included(ledger: pd.DataFrame, stage: str = "measure") -> list[str]:
    """Return the scans that are ok at a stage."""
    return list(ledger.loc[(ledger["stage"] == stage) & (ledger["state"] == "ok"), "scan"])


def summary(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return the number of scans per stage (rows) and state (columns)."""
    counts = pd.crosstab(ledger["stage"], ledger["state"])
    return counts.reindex(index=list(STAGES), columns=list(STATES), fill_value=0)


def left_out(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return one row per scan that is not ok at its last stage: where it stopped first and why."""
    stopped = ledger[ledger["state"] != "ok"].copy()
    stopped["order"] = stopped["stage"].map({stage: number for number, stage in enumerate(STAGES)})
    return stopped.sort_values(["scan", "order"]).drop_duplicates("scan")[COLUMNS].reset_index(drop=True)
