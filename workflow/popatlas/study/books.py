"""The books of a study after a pass: stock is taken, what ended without a word gets a record, the ledger is settled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from popatlas.config.sections import Config
from popatlas.errors import InputError
from popatlas.images.io import read_json, read_table, write_json
from popatlas.reasons import CODES, code_of_words
from popatlas.receipts import read_attempt
from popatlas.study.inventory import Inventory
from popatlas.study.joblist import Job
from popatlas.study.study import Study

SILENT = "it ended without its results and without a word"


def take_stock(config: Config, out_dir: Path) -> Inventory | None:
    """Return the inventory of a study as it is now; None where the cohort has not been indexed."""
    if not (out_dir / "cohort" / "index.parquet").is_file():
        return None
    study = Study.read(config, out_dir)
    inventory = Inventory(study)
    study.digests.write()
    return inventory


def leave_records(inventory: Inventory, left: Sequence[str], why: Callable[[Job], str]) -> list[Job]:
    """Write a record for each job that could run, was not made, and has none of this attempt that tells why.

    Parameters
    ----------
    inventory : Inventory
        Taken after the pass.
    left : sequence of str
        Jobs that are left to do.
    why : callable
        Returns what is known of a job's end; empty when nothing is.

    Returns
    -------
    list of Job
        The jobs that could run and were not made, those with a record of their own too.
    """
    out_dir, jobs = inventory.study.out_dir, inventory.jobs.jobs
    waiting = set(left)
    ready = [jobs[name] for name in left if not waiting & set(jobs[name].needs)]
    attempt = read_attempt(out_dir)
    for job in ready:
        path = out_dir / f"{inventory.log(job)}.json"
        try:
            record = read_json(path)
        except InputError:
            record = {}
        if record.get("state") == "failed" and record.get("attempt", "") == attempt:
            continue
        said = why(job)
        code = code_of_words(said)
        told = {"code": code, "message": f"{job.rule}: {said or SILENT}", "remedy": CODES[code][1]}
        write_json(path, {"state": "failed", "attempt": attempt, "subject": job.scan, **told})
        (out_dir / inventory.log(job)).touch()  # a step that had not begun has none, and the ledger goes by logs
    return ready


def settle_study(inventory: Inventory, settled: Config) -> dict[tuple[str, str], str]:
    """Write the ledger of a study, and what has to be said of its scans.

    Parameters
    ----------
    inventory : Inventory
        Stock of the study, with the bench where that runs.
    settled : dict
        Configuration that the ledger follows, but for the bench.

    Returns
    -------
    dict
        Scan and stage of each failure to its reason and code.
    """
    from popatlas.cohort.freeze import read_label_atlases
    from popatlas.cohort.ledger import settle
    from popatlas.cohort.outputs import stage_outputs
    from popatlas.cohort.remarks import write_remarks

    study, out_dir = inventory.study, inventory.study.out_dir
    labelled = len(read_label_atlases(out_dir)) > 0
    outputs = stage_outputs(settled, labelled=labelled)
    outputs["bench"] = stage_outputs(study.config, labelled=labelled)["bench"]
    whole = inventory if settled == study.config else Inventory(Study.read(settled, out_dir))

    def is_done(scan: str, stage: str) -> bool:
        return (inventory if stage == "bench" else whole).is_done(scan, stage)

    def why_not(scan: str, stage: str) -> str:
        return whole.study.tissues.why_not(scan) if stage == "tissues" else ""

    ledger = settle(out_dir, read_table(out_dir / "cohort" / "index.parquet"), outputs, is_done, why_not)
    done = [(row["scan"], row["stage"]) for row in ledger[ledger["state"] == "ok"].to_dict("records")]
    said = [(scan, stage, line) for scan, stage in done for line in whole.said(scan, stage)]
    write_remarks(out_dir, said, {scan: study.template.gate(scan) for scan, stage in done if stage == "register"})
    rows = ledger[ledger["state"] == "failed"].to_dict("records")
    return {(str(row["scan"]), str(row["stage"])): f"{row['reason']} [{row['code']}]" for row in rows}
