"""What each command of popatlas takes for a cohort: seconds, CPU seconds and the memory of its largest process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.scale.cohort import add_subjects, make_cohort, subject_names
from benchmarks.scale.finished import MARK, finish, stub_python
from popatlas.config.load import load_config, make_absolute
from popatlas.config.sections import Config
from popatlas.study.shards import FEWEST, Request, read_shards

MEMBERS = 200  # of the template
TICK = 0.05
PATIENCE, GRACE = 1800.0, 60.0  # for a command, and for its end when it is stopped


# a small process between: the memory of a process counts what its parent had when it was made
LAUNCHER = """
import json, os, signal, sys
pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
signal.signal(signal.SIGUSR1, lambda *_: os.kill(pid, signal.SIGKILL))
_, status, usage = os.wait4(pid, 0)
found = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss
open(sys.argv[1], "w").write(json.dumps(found))
"""


@dataclass(frozen=True)
class Cost:
    """What a command took."""

    seconds: float
    cpu: float
    megabytes: float

    def row(self, subjects: int, what: str) -> Row:
        """Return it as a row of the table."""
        return Row(subjects, what, self.seconds, self.cpu, self.megabytes)


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    subjects: int
    what: str
    seconds: float
    cpu_s: float
    MB: float


def cost_of(line: Sequence[object], mark: Path | None = None, **variables: str) -> Cost:
    """Run a command to its end, or until a file appears: then it is stopped, and the seconds are those until there.

    Parameters
    ----------
    line : sequence
        Command.
    mark : Path, optional
        The file.
    **variables : str
        Environment, beside that of this process.
    """
    before, seconds, words = time.monotonic(), 0.0, [str(word) for word in line]
    with tempfile.TemporaryFile("w+") as said, tempfile.NamedTemporaryFile("r") as told:
        started = [sys.executable, "-ISc", LAUNCHER, told.name, *words]
        process = subprocess.Popen(started, env=os.environ | variables, stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None:
            time.sleep(TICK)
            if not seconds and mark is not None and mark.exists():
                seconds = time.monotonic() - before
                process.send_signal(signal.SIGTERM)
            if time.monotonic() - before > (seconds + GRACE if seconds else PATIENCE):
                process.send_signal(signal.SIGUSR1)
        code, cpu, kilobytes = json.loads(told.read())
        said.seek(0)
        last = said.read()[-4000:]
    if not (seconds if mark is not None else code in (0, 3)):
        raise RuntimeError(f"{' '.join(words)} ended with {code}\n{last}")
    return Cost(round(seconds or time.monotonic() - before, 2), round(cpu, 2), round(kilobytes / 1024))


class Measured:
    """A cohort of some size, its studies, and what the commands take.

    Parameters
    ----------
    folder : Path
        Where everything is; what lies there is used again.
    subjects : int
        How many.
    cores : int
        Of the runs.
    """

    def __init__(self, folder: Path, subjects: int, cores: int) -> None:
        self.folder, self.subjects, self.cores = folder / str(subjects), subjects, cores
        self.bids, self.new, self.done = (self.folder / name for name in ("bids", "new", "done"))
        self.mark = self.folder / "began"
        self.rows: list[Row] = []
        if not self.bids.exists():
            make_cohort(self.bids, subjects)
        self.python = self.folder / "venv" / "bin" / "python"
        if not self.python.exists():
            stub_python(self.folder / "venv", self.config(self.new))

    def config(self, out_dir: Path) -> Config:
        """Return the configuration of a study."""
        settings = {"atlas": {"members": min(MEMBERS, self.subjects)}}
        return make_absolute(load_config(settings, bids_dir=str(self.bids), out_dir=str(out_dir)))

    def file(self, out_dir: Path) -> Path:
        """Write the configuration of a study; return the file."""
        path = self.folder / f"{out_dir.name}.yaml"
        path.write_text(yaml.safe_dump(self.config(out_dir).content, sort_keys=False), encoding="utf-8")
        return path

    def add(self, what: str, *line: object, mark: Path | None = None, **variables: str) -> Cost:
        """Measure a command of popatlas."""
        cost = cost_of((self.python, "-m", "popatlas.cli.main", *line), mark, **variables)
        print(f"{self.subjects} {what}: {cost}", file=sys.stderr, flush=True)
        self.rows.append(cost.row(self.subjects, what))
        return cost

    def first_job(self, what: str, out_dir: Path, *options: str) -> Cost:
        """Measure the seconds until the first job of a run starts."""
        self.mark.unlink(missing_ok=True)
        line = ("run", "--config", self.file(out_dir), "--cores", self.cores, *options)
        return self.add(what, *line, mark=self.mark, **{MARK: str(self.mark)})

    def shards(self) -> None:
        """Measure the graph of the second shard of a new study, and tell what all of them take."""
        count = len(read_shards(self.new))
        if count < 2:
            return
        self.mark.unlink(missing_ok=True)
        asked = Request(1, FEWEST).variable()
        snakefile = Path(__file__).parents[2] / "Snakefile"
        line = ("-m", "snakemake", "preprocess", "--snakefile", snakefile, "--configfile", self.file(self.new), "--nolock")
        cost = cost_of((self.python, *line, "--cores", self.cores), self.mark, **asked, **{MARK: str(self.mark)})
        self.rows.append(cost.row(self.subjects, "start of a further shard"))
        total = Cost(round(cost.seconds * count, 1), round(cost.cpu * count, 1), cost.megabytes)
        self.rows.append(total.row(self.subjects, f"the graphs of all {count} shards"))

    def measure(self) -> list[Row]:
        """Measure everything."""
        more = subject_names(2, self.subjects + 1)
        for folder in (self.new, *(self.bids / name for name in more)):  # of a measurement before
            shutil.rmtree(folder, ignore_errors=True)
        self.add("check", "check", self.bids)
        self.add("plan of a new study", "plan", "--config", self.file(self.new))
        self.first_job("first job of a new study", self.new)
        self.shards()
        if not (self.done / "report").exists():
            finish(self.config(self.done))
        self.add("plan of a finished study", "plan", "--config", self.file(self.done))
        self.add("status", "status", self.done)
        self.group()
        add_subjects(self.bids, more)
        self.first_job("first job of two subjects more", self.done)
        return self.rows

    def group(self) -> None:
        """Measure tables and pages, by the real steps on what the stubs left."""
        out, cohort = self.done, self.done / "cohort"
        given = {"--in_index": cohort / "index.parquet", "--in_ledger": cohort / "ledger.tsv", "--derivatives": out,
                 "--in_participants": cohort / "participants.tsv", "--in_names": cohort / "label-names.tsv",
                 "--in_atlases": cohort / "label-atlases.tsv"}  # fmt: skip
        made = {"parquet": "metrics.parquet", "tsv": "metrics.tsv", "dictionary": "metrics.json", "volumes": "volumes.tsv",
                "summary": "summary.tsv", "members": "members.json"}  # fmt: skip
        given |= {f"--out_{name}": out / "group" / file for name, file in made.items()}
        self.add("tables", "step", "TabulateCohort", *(word for pair in given.items() for word in pair))
        stubbed = out / "group" / "trust.parquet"  # no Parquet
        aside = stubbed.rename(out / "trust.parquet")
        page = ("--out_dir", out, "--ledger", cohort / "ledger.tsv", "--template_label", "popatlas")
        self.add("pages", "step", "WriteReport", *page, "--out_page", out / "report" / "index.html",
                 "--methods", "majority", "staple", "jlf")  # fmt: skip
        aside.rename(stubbed)
