"""The ledger: scan x stage -> ok, failed, excluded, unavailable or pending, with the reason.

A stage is `ok` when the inventory says that all its results are made; files that only lie there do not count. A failure
counts in the attempt in which it was recorded, whatever the clock said. Its code says in a word why (`popatlas.reasons`).

Group steps take the ledger as input and compute on `ok` only, so a broken scan costs itself and nothing else. The extra
channels, the tissues and the QC page of a scan stand in it too, but no group result needs them: a scan that lacks them
stays in. So do the labels that an atlas gets in the bench of the fusion methods: an atlas that lacks them is left out of
the bench alone.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from popatlas.cohort.batches import BRAINS, MEMBERS, PREDICTIONS, read_batches
from popatlas.errors import InputError
from popatlas.fusion.methods import SEGMENTER
from popatlas.images.io import read_json, read_table, table_text, write_if_changed, write_json, write_text
from popatlas.reasons import INPUT, UNKNOWN, code_of_words
from popatlas.receipts import ATTEMPT, read_attempt
from popatlas.stages import EARLY, SIDE_STAGES, STAGES

if TYPE_CHECKING:
    from collections.abc import Hashable

STATES = ("ok", "failed", "excluded", "unavailable", "pending")
COLUMNS = ["scan", "subject", "session", "stage", "state", "code", "reason", "log"]
LEDGER, FAILURES = "cohort/ledger.tsv", "cohort/failures.tsv"
KEPT = "cohort/kept.json"  # bytes of the results after the last run, and the level of `retention`
FAILURE_COLUMNS = ["scan", "stage", "code", "reason"]
# Folders below logs/ whose records speak for a stage: a member that cannot be registered blocks the template
RECORD_FOLDERS = {
    **{"register": ("register", "atlas"), "channel": ("preprocess",), "tissues": ("tissues",)},
    **{"page": ("report",), "bench": ("fuse",)},
}
# Logs of batches, below logs/, and their tables: what a batch failed at all its scans failed at
BATCH_LOGS = {
    "preprocess": {BRAINS: "batches/brain-{batch}.log"},
    "register": {PREDICTIONS: "batches/predict-{batch}.log", MEMBERS: "atlas/predict_iter-*_batch-{batch}.log"},
}
RETRY_MARK = ATTEMPT  # records that name no attempt count when they are newer than this file
CHANNEL_LOG = "_channel-"
NOT_FOR_ATLASES = ("fuse", "measure", "channel", "tissues", "page")
KILLED = "the job ended without a word: killed, out of memory or out of time; remedy: give it more memory or time"


def settle(
    out_dir: Path,
    index: pd.DataFrame,
    stage_outputs: Mapping[str, Sequence[str]],
    is_done: Callable[[str, str], bool] | None = None,
    why_not: Callable[[str, str], str] | None = None,
) -> pd.DataFrame:
    """Find out what became of each scan and write `cohort/ledger.tsv` and `cohort/failures.tsv`.

    Parameters
    ----------
    out_dir : Path
        Output folder.
    index : DataFrame
        Cohort index.
    stage_outputs : mapping
        Stage to the file patterns (with `{scan}`) that it leaves; a stage without any is one of no scan.
    is_done : callable, optional
        Tells whether a scan's results at a stage are made (`Inventory.is_done`). When left out the files are looked for,
        which may be those of another time.
    why_not : callable, optional
        Tells why a scan that can be used is to have nothing at a stage beside the chain; empty when it is.

    Returns
    -------
    DataFrame
        Columns `COLUMNS`, one row per scan and stage. Files are written only when their content changed.
    """
    from popatlas.cohort.freeze import atlases_for, read_label_atlases

    # where all labelled atlases are of one subject, that subject has none to take labels from
    atlases = list(read_label_atlases(out_dir)["atlas"])
    exempt = {scan for scan in index["scan"] if atlases and not atlases_for(scan, atlases)}
    unbenched = {**stage_outputs, "bench": []}
    unfused = {**unbenched, "fuse": [pattern for pattern in stage_outputs["fuse"] if f"_desc-{SEGMENTER}_" in pattern]}

    def outputs(scan: str) -> Mapping[str, Sequence[str]]:
        return unfused if scan in exempt else stage_outputs if scan in atlases else unbenched

    evidence = Evidence(out_dir, is_done)
    records, lacks = index.to_dict("records"), why_not or (lambda scan, stage: "")
    rows = [row for scan in records for row in _settle_scan(evidence, scan, outputs(scan["scan"]), lacks)]
    ledger = pd.DataFrame(rows, columns=COLUMNS)
    write_if_changed(out_dir / LEDGER, table_text(ledger))
    failures = ledger.loc[ledger["state"] == "failed", FAILURE_COLUMNS]
    write_if_changed(out_dir / FAILURES, table_text(failures))
    return ledger


def forget_failures(out_dir: Path) -> None:
    """Let failed scans be tried again: another attempt begins, and failures recorded until now no longer count."""
    (out_dir / FAILURES).unlink(missing_ok=True)
    write_text(out_dir / ATTEMPT, secrets.token_hex(6))


def forget_some(out_dir: Path, codes: Sequence[str]) -> pd.DataFrame:
    """Let the scans that failed for some reasons be tried again by a run that leaves out all others that failed.

    Parameters
    ----------
    out_dir : Path
        Output folder, whose lock is held.
    codes : sequence of str
        Of `popatlas.reasons.CODES`.

    Returns
    -------
    DataFrame
        Rows of the ledger that have been forgotten.
    """
    ledger, evidence = read_ledger(out_dir), Evidence(out_dir)
    chosen = (ledger["state"] == "failed") & ledger["code"].isin(codes)
    for row in ledger[chosen].to_dict("records"):
        for _, failure in evidence.failures(row["stage"], row["scan"]):
            log = out_dir / failure.log
            write_json(log.with_name(f"{log.name}.json"), {"state": "forgotten", "attempt": "", "subject": row["scan"]})
    left = ledger.assign(state=ledger["state"].mask(chosen, "pending"))
    left.loc[chosen, ["code", "reason", "log"]] = ["", "to be tried again", ""]
    write_if_changed(out_dir / LEDGER, table_text(left))
    failures = left.loc[left["state"] == "failed", FAILURE_COLUMNS]
    write_if_changed(out_dir / FAILURES, table_text(failures))
    return ledger[chosen]


class Failure(NamedTuple):
    """Why a job failed: its code (`popatlas.reasons`), what was said, and its log, relative to the output folder."""

    code: str
    reason: str
    log: str


NO_FAILURE = Failure("", "", "")


class Evidence:
    """What the steps left in the output folder; each folder is listed once."""

    def __init__(self, out_dir: Path, is_done: Callable[[str, str], bool] | None = None) -> None:
        self.out_dir, self.judge = out_dir, is_done
        self.batches = {table: read_batches(out_dir, table) for tables in BATCH_LOGS.values() for table in tables}
        mark = out_dir / ATTEMPT
        self.attempt, self.since = read_attempt(out_dir), mark.stat().st_mtime_ns if mark.is_file() else 0
        self.listed: tuple[str, frozenset[str]] = ("", frozenset())

    def is_done(self, scan: str, stage: str, patterns: Sequence[str]) -> bool:
        """Tell whether a stage is done for a scan."""
        if self.judge is not None and patterns:
            return self.judge(scan, stage)
        return all(self._exists(pattern.format(scan=scan)) for pattern in patterns)

    def _exists(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        if self.listed[0] != folder:
            place = self.out_dir / folder
            self.listed = (
                folder,
                frozenset(entry.name for entry in os.scandir(place)) if place.is_dir() else frozenset(),
            )
        return name in self.listed[1]

    def find_failure(self, stage: str, scan: str) -> Failure:
        """Return the newest failure of a scan at a stage; `NO_FAILURE` when no step failed."""
        found = self.failures(stage, scan)
        return max(found)[1] if found else NO_FAILURE

    def failures(self, stage: str, scan: str) -> list[tuple[int, Failure]]:
        """Return when and why jobs of a scan failed at a stage; a batch speaks where no job of its own does."""
        found = [entry for log in self._own_logs(stage, scan) for entry in self._failed(log)]
        return found or [entry for log in self._batch_logs(stage, scan) for entry in self._failed(log)]

    def logs(self, stage: str, scan: str) -> list[Path]:
        """Return the logs of a scan at a stage, also those of batches that it was in."""
        return [*self._own_logs(stage, scan), *self._batch_logs(stage, scan)]

    def _own_logs(self, stage: str, scan: str) -> Iterator[Path]:
        name = Path(scan).name
        for folder in RECORD_FOLDERS.get(stage, (stage,)):
            place = (self.out_dir / "logs" / folder / scan).parent
            for pattern in (f"{name}_*.log", f"{name}_*/**/*.log") if place.is_dir() else ():
                for log in place.glob(pattern):
                    if log.name.startswith(f"{name}{CHANNEL_LOG}") == (stage == "channel"):
                        yield log

    def _batch_logs(self, stage: str, scan: str) -> Iterator[Path]:
        for table, pattern in BATCH_LOGS.get(stage, {}).items():
            if scan in self.batches[table]:
                yield from (self.out_dir / "logs").glob(pattern.format(batch=self.batches[table][scan]))

    def _failed(self, log: Path) -> Iterator[tuple[int, Failure]]:
        """Yield when and why a job failed in this attempt."""
        failure, stamp = self.failure(log)
        if failure.reason:
            yield stamp, failure

    def failure(self, log: Path) -> tuple[Failure, int]:
        """Return why a job failed in this attempt, `NO_FAILURE` when it did not, and when.

        A job without a record died before its step began; the time of its log tells whether that was in this attempt.
        """
        path = log.with_name(f"{log.name}.json")
        try:
            record = read_json(path)
            attempt = record.get("attempt")
        except (InputError, AttributeError):
            path, record, attempt = log, {"state": "running"}, None
        if record.get("state") not in ("failed", "running") or not path.is_file():
            return NO_FAILURE, 0
        if attempt != self.attempt if attempt is not None else path.stat().st_mtime_ns < self.since:
            return NO_FAILURE, 0
        remedy = f"; remedy: {record['remedy']}" if record.get("remedy") else ""
        reason = " ".join(f"{record.get('message', '')}{remedy}".split()) if record["state"] == "failed" else KILLED
        code = str(record.get("code") or (code_of_words(reason) if reason != KILLED else UNKNOWN))
        return Failure(code, reason, str(log.relative_to(self.out_dir))), path.stat().st_mtime_ns


def _settle_scan(
    evidence: Evidence,
    scan: Mapping[Hashable, str],
    stage_outputs: Mapping[str, Sequence[str]],
    why_not: Callable[[str, str], str],
) -> list[dict[str, str]]:
    def row(stage: str, state: str, reason: str = "", code: str = "", log: str = "") -> dict[str, str]:
        keys = {"scan": scan["scan"], "subject": scan["subject"], "session": scan["session"]}
        return {**keys, "stage": stage, "state": state, "code": code, "reason": reason, "log": log}

    def stopped(stage: str) -> dict[str, str]:
        failure = evidence.find_failure(stage, scan["scan"])
        if not failure.reason:
            return row(stage, "pending", "not run yet")
        return row(stage, "failed", failure.reason, failure.code, failure.log)

    unusable = (scan["state"], scan["reason"], INPUT if scan["state"] == "unavailable" else "")
    rows = [row("index", *unusable)]
    waits_for, blocked = "", False
    for stage in STAGES[1:]:
        if scan.get("role") == "atlas" and stage in NOT_FOR_ATLASES:
            continue
        if scan["state"] != "ok":
            rows.append(row(stage, *unusable))
        elif not blocked and evidence.is_done(scan["scan"], stage, stage_outputs[stage]):
            rows.append(row(stage, "ok"))
        elif waits_for:
            rows.append(row(stage, "pending", f"waits for {waits_for}"))
        else:
            waits_for = stage
            rows.append(stopped(stage))
            blocked = rows[-1]["state"] == "failed"
    found = {entry["stage"]: entry["state"] for entry in rows}
    for stage, needed in SIDE_STAGES.items():
        patterns = _side_outputs(scan, stage, stage_outputs.get(stage, ()))
        if not patterns:
            continue
        if scan["state"] != "ok":
            rows.append(row(stage, *unusable))
        elif reason := why_not(scan["scan"], stage):
            rows.append(row(stage, "unavailable", reason, INPUT))
        elif found[needed] != "ok":
            rows.append(row(stage, "pending", f"waits for {needed}"))
        elif evidence.is_done(scan["scan"], stage, patterns):
            rows.append(row(stage, "ok"))
        else:
            rows.append(stopped(stage))
    return rows


def _side_outputs(scan: Mapping[Hashable, str], stage: str, patterns: Sequence[str]) -> list[str]:
    """Return the patterns that hold for a scan, one for each of its channels where they name `{channel}`."""
    if scan.get("role") == "atlas" and stage in NOT_FOR_ATLASES:
        return []
    channels = json.loads(scan.get("channels") or "{}")
    return [
        one
        for pattern in patterns
        for one in ([pattern.replace("{channel}", channel) for channel in channels] if "{channel}" in pattern else [pattern])
    ]


def read_failure(out_dir: Path, log: str) -> tuple[str, str]:
    """Return why the job of a log failed in this attempt, and the log; empty when it did not."""
    failure, _ = Evidence(out_dir).failure(out_dir / log)
    return failure.reason, failure.log


def read_failures(out_dir: Path) -> pd.DataFrame:
    """Return what failed at the last settling (scan, stage, reason)."""
    path = out_dir / FAILURES
    if not path.is_file():
        return pd.DataFrame(columns=FAILURE_COLUMNS)
    return read_table(path, dtype=str).reindex(columns=FAILURE_COLUMNS, fill_value="")


def failed_scans(out_dir: Path) -> dict[str, set[str]]:
    """Return the scans that failed at the last settling: by side stage, and "" for those that are out altogether."""
    failed: dict[str, set[str]] = {stage: set() for stage in ("", *SIDE_STAGES)}
    for row in read_failures(out_dir).to_dict("records"):
        failed[row["stage"] if row["stage"] in SIDE_STAGES else ""].add(row["scan"])
    return failed


def failed_atlases(out_dir: Path) -> set[str]:
    """Return the scans that failed too early to serve others as atlases; what a scan fails at later is its own affair."""
    rows = read_failures(out_dir).to_dict("records")
    return {row["scan"] for row in rows if row["stage"] in EARLY}


def read_ledger(out_dir: Path) -> pd.DataFrame:
    """Return the ledger.

    Raises
    ------
    InputError
        When nothing has been run in `out_dir` yet.
    """
    path = out_dir / LEDGER
    if not path.is_file():
        raise InputError("there is no ledger", file=path, remedy="start with `popatlas run BIDS_DIR OUT_DIR`")
    return read_table(path, dtype=str).fillna("").reindex(columns=COLUMNS, fill_value="")


def summary(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return the number of scans per stage (rows) and state (columns); side stages where there is something to do."""
    counts = pd.crosstab(ledger["stage"], ledger["state"])
    stages = [*STAGES, *(stage for stage in SIDE_STAGES if stage in counts.index)]
    return counts.reindex(index=stages, columns=list(STATES), fill_value=0)


def left_out(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return one row per scan that is not ok at its last stage: where it stopped first and why."""
    stopped = ledger[(ledger["state"] != "ok") & ledger["stage"].isin(STAGES)].copy()
    stopped["order"] = stopped["stage"].map({stage: number for number, stage in enumerate(STAGES)})
    return stopped.sort_values(["scan", "order"]).drop_duplicates("scan")[COLUMNS].reset_index(drop=True)


def incomplete(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return what scans in the group results lack: extra channels, tissues, the QC page, the bench."""
    beside = ledger["stage"].isin(list(SIDE_STAGES))
    usable = ledger["scan"].isin(ledger.loc[(ledger["stage"] == "index") & (ledger["state"] == "ok"), "scan"])
    lacking = (ledger["state"] == "failed") | ((ledger["state"] == "unavailable") & usable)
    return ledger.loc[beside & lacking, COLUMNS].reset_index(drop=True)
