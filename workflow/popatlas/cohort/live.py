"""The state of each scan while a run works: the ledger of the last settling, and what has happened since.

The Snakemake that runs the jobs writes a journal: what is left to do when it begins, then each job that begins, ends or
fails. Whoever looks, from any process and without opening a result, lays the journal over the ledger. A job that had begun
when its run died is done when it left its receipt, and to be done again when it did not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from popatlas.cohort.journal import Jobs, Journal, Place, job_of
from popatlas.cohort.ledger import COLUMNS, LEDGER, NOT_FOR_ATLASES, STATES, Evidence, read_ledger
from popatlas.cohort.lock import Look, look
from popatlas.images.io import read_table
from popatlas.reasons import INPUT
from popatlas.receipts import FOLDER
from popatlas.stages import SIDE_STAGES, STAGES

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

RUNNING, QUEUED = "running", "queued"
INTERRUPTED = "had begun when its run died; the next run goes on with it"


@dataclass(frozen=True)
class State:
    """The state of a study at a moment.

    Attributes
    ----------
    ledger : DataFrame
        As `cohort/ledger.tsv`, with the states `running` and `queued` (it waits in the queue of a cluster) besides.
    journal : Journal
        What has happened since the last settling.
    run : Look
        Who works in the folder, or did.
    queued : set of str
        Numbers in the journal of what waits in the queue of a cluster.
    """

    ledger: pd.DataFrame
    journal: Journal
    run: Look
    queued: set[str] = field(default_factory=set)

    @property
    def jobs(self) -> tuple[int, int]:
        """How many jobs run and how many are queued."""
        queued, all_of_them = ({job_of(number) for number in found} for found in (self.queued, self.journal.running))
        return len(all_of_them - queued), len(queued)

    @property
    def is_interrupted(self) -> bool:
        """Tell whether a run has left off without a word."""
        return not self.run.alive and (self.run.found or bool(self.journal.running))

    def summary(self) -> pd.DataFrame:
        """Return the number of scans per stage (rows) and state (columns)."""
        counts = pd.crosstab(self.ledger["stage"], self.ledger["state"])
        stages = [*STAGES, *(stage for stage in SIDE_STAGES if stage in counts.index)]
        found = counts.reindex(index=stages, columns=[*STATES, RUNNING, QUEUED], fill_value=0)
        return found.rename_axis(index="stage", columns="state")


def read_state(out_dir: Path) -> State:
    """Return the state of a study as it is now.

    Raises
    ------
    InputError
        When nothing has been run in `out_dir` yet.
    """
    run, journal = look(out_dir), Journal.read(out_dir)
    ledger = _base(out_dir, journal)
    for number, job in list(journal.running.items()) if not run.alive else ():
        if (out_dir / FOLDER / f"{job.name}.json").is_file():
            journal.settle(job)
            del journal.running[number]
    queued = journal.queued(out_dir) if run.alive else set()
    for number, job in journal.running.items():
        if job.group and run.alive:
            group = journal.groups.setdefault(job.group, Jobs())
            group.running, group.queued = group.running + (number not in queued), group.queued + (number in queued)
    if not journal.goal:
        return State(ledger, journal, run, queued)
    return State(_overlaid(ledger, journal, out_dir, queued, alive=run.alive), journal, run, queued)


def _base(out_dir: Path, journal: Journal) -> pd.DataFrame:
    """Return the ledger of the last settling with the scans of today; nothing has been run yet of those that are new."""
    index_file = out_dir / "cohort" / "index.parquet"
    known = read_ledger(out_dir) if (out_dir / LEDGER).is_file() else None
    if not index_file.is_file() or (known is not None and not journal.goal):
        return read_ledger(out_dir) if known is None else known
    index = read_table(index_file)[["scan", "subject", "session", "state", "reason", "role"]].fillna("").astype(str)
    old = set() if known is None else set(known["scan"])
    new = index[~index["scan"].isin(old)]
    side: dict[str, list[str]] = {}
    for scan, stage in journal.left:
        if stage in SIDE_STAGES:
            side.setdefault(scan, []).append(stage)
    rows = [row for scan in new.to_dict("records") for row in _new_rows(scan, side.get(scan["scan"], ()))]
    added = pd.DataFrame(rows, columns=COLUMNS)
    if known is None:
        return added
    return pd.concat([known[known["scan"].isin(set(index["scan"]))], added], ignore_index=True)


def _new_rows(scan: Mapping[Hashable, str], side: Iterable[str]) -> Iterator[list[str]]:
    keys, is_usable = [scan["scan"], scan["subject"], scan["session"]], scan["state"] == "ok"
    code = INPUT if scan["state"] == "unavailable" else ""
    for stage in (*STAGES, *side):
        if scan["role"] == "atlas" and stage in NOT_FOR_ATLASES:
            continue
        if stage == STAGES[0] or not is_usable:
            yield [*keys, stage, scan["state"], code, scan["reason"], ""]
        else:
            yield [*keys, stage, "pending", "", "not run yet", ""]


def _overlaid(ledger: pd.DataFrame, journal: Journal, out_dir: Path, queued: set[str], *, alive: bool) -> pd.DataFrame:
    """Lay a journal over a ledger."""
    places = {place: number for number, place in enumerate(zip(ledger["scan"], ledger["stage"], strict=True))}
    columns = {name: ledger[name].to_list() for name in ("state", "code", "reason", "log")}

    def put(place: Place, state: str, reason: str = "", code: str = "", log: str = "") -> None:
        number = places.get(place)
        if number is not None and columns["state"][number] not in ("excluded", "unavailable"):
            for name, value in zip(columns, (state, code, reason, log), strict=True):
                columns[name][number] = value

    for place, count in journal.left.items():
        put(place, *(("ok",) if count <= 0 else ("pending", "not run yet")))
    for number, job in sorted(journal.running.items(), key=lambda item: item[0] not in queued):  # what runs comes last
        for scan in job.scans if not job.group else ():
            state = QUEUED if number in queued else RUNNING
            put((scan, job.stage), *((state,) if alive else ("pending", INTERRUPTED)))
    evidence = Evidence(out_dir) if journal.failed else None
    for place, log in journal.failed.items():
        if evidence is not None:
            failure, _ = evidence.failure(out_dir / log)
            put(place, "failed", failure.reason, failure.code, log)
    return ledger.assign(**columns)
