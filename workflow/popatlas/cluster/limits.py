"""What a site limits: room, number of files and quotas of a folder, and the jobs that Slurm takes of a user."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from popatlas.cluster.site import Finding, asked
from popatlas.diskspace import existing, free_bytes

LEAST_FREE_GB = 5
LEAST_FREE_FILES = 100_000
FULL = 0.9  # share of a quota
GB, KB_IN_GB = 1e9, 1e6
COLUMNS = 8  # of a quota: used, soft, hard limit, grace; of bytes, then of files
ASSOCIATION = (
    *("account", "partition", "maxjobs", "maxsubmitjobs", "grpjobs", "grpsubmitjobs", "grptres", "maxtres", "maxwall"),
    *("defaultqos", "qos"),
)
QOS = ("name", "maxjobsperuser", "maxsubmitjobsperuser", "grpjobs", "grpsubmitjobs", "grptres", "maxtresperuser", "maxwall")
SUBMITTED = ("maxsubmitjobs", "grpsubmitjobs", "maxsubmitjobsperuser")
RUNNING = ("maxjobs", "grpjobs", "maxjobsperuser")
OTHERS = ("grptres", "maxtres", "maxtresperuser", "maxwall")


def room(folder: Path, what: str, remedy: str) -> Finding:
    """Tell how many bytes and files a folder takes, or the first one above it that exists.

    Parameters
    ----------
    folder : Path
        The folder.
    what : str
        How it is called.
    remedy : str
        What to do when that is too little.
    """
    place, free = existing(folder), free_bytes(folder) / GB
    found = os.statvfs(place)
    files = found.f_favail if found.f_files else None  # some file systems have no limit
    told = "" if files is None else f" and {files} files"
    good = free >= LEAST_FREE_GB and (files is None or files >= LEAST_FREE_FILES)
    return Finding(good, f"{what} {folder}: {free:.0f} GB{told} are free", "" if good else remedy)


def quotas(folder: Path) -> Iterator[Finding]:
    """Yield what is used of the quotas of the user, by `quota`, and on a Lustre folder by `lfs quota`."""
    if shutil.which("quota"):
        for line in asked("quota", "--no-wrap", "--raw-grace")[1].splitlines():
            yield from _quota(line.split())
    if shutil.which("lfs"):
        user = os.environ.get("USER", str(os.getuid()))
        code, text = asked("lfs", "quota", "-q", "-u", user, str(existing(folder)))
        if code == 0:
            yield from _quota(text.split())  # a long path has a line of its own


def _quota(words: list[str]) -> Iterator[Finding]:
    """Yield what a line of a table of quotas says; nothing of other lines, and where nothing is limited."""
    if len(words) != COLUMNS + 1 or not all(re.fullmatch(r"\d+\*?|-", word) for word in words[1:]):
        return
    numbers = [int(word.rstrip("*").replace("-", "0") or 0) for word in words[1:]]
    parts, is_full = [], False
    for (used, soft, hard), size, unit in ((numbers[:3], KB_IN_GB, "GB"), (numbers[4:7], 1, "files")):
        if limit := min((one for one in (soft, hard) if one), default=0):
            parts.append(f"{used / size:.0f} of {limit / size:.0f} {unit}")
            is_full = is_full or used >= FULL * limit
    if parts:
        remedy = "remove what is not needed, ask for a larger quota, or give an OUT_DIR on another disk" if is_full else ""
        yield Finding(not is_full, f"quota on {words[0]}: {', '.join(parts)} used", remedy)


@dataclass(frozen=True)
class JobLimits:
    """How many jobs Slurm takes.

    Attributes
    ----------
    submitted, running : (int, str) or None
        Jobs in the queue, and of them such that run; what says so. None without a limit.
    others : list of str
        Other limits, in the words of Slurm.
    """

    submitted: tuple[int, str] | None
    running: tuple[int, str] | None
    others: list[str]


def job_limits(account: str | None = None) -> JobLimits:
    """Return the limits of Slurm's configuration, of the user's associations (of one account), and of their QOS."""
    code, text = asked("scontrol", "show", "config")
    whole = {name: int(number) for name, number in re.findall(r"(?m)^(Max(?:JobCount|ArraySize))\s*=\s*(\d+)", text)}
    submitted = [(whole["MaxJobCount"], "MaxJobCount")] if code == 0 and "MaxJobCount" in whole else []
    others = [f"{name} {number}" for name, number in whole.items()]
    running: list[tuple[int, str]] = []
    for row, where in _rows(account):
        submitted += [(int(row[name]), f"{name} of {where}") for name in SUBMITTED if row.get(name, "").isdigit()]
        running += [(int(row[name]), f"{name} of {where}") for name in RUNNING if row.get(name, "").isdigit()]
        others += [f"{name} of {where}: {row[name]}" for name in OTHERS if row.get(name)]
    return JobLimits(min(submitted, default=None), min(running, default=None), others)


def _rows(account: str | None) -> Iterator[tuple[dict[str, str], str]]:
    """Yield associations of the user, and the QOS that their jobs get, each with how it is called."""
    if shutil.which("sacctmgr") is None:
        return
    user, names = os.environ.get("USER", str(os.getuid())), set[str]()
    for row in _told("assoc", ASSOCIATION, f"user={user}"):
        if account and row["account"] != account:
            continue
        yield row, f"account {row['account']}{' on ' * bool(row['partition'])}{row['partition']}"
        listed = row["qos"].split(",")
        names |= {row["defaultqos"]} if row["defaultqos"] else set(listed) if len(listed) == 1 else set()
    for row in _told("qos", QOS) if names - {""} else ():
        if row["name"] in names:
            yield row, f"QOS {row['name']}"


def _told(what: str, columns: tuple[str, ...], *conditions: str) -> list[dict[str, str]]:
    line = ("sacctmgr", "--noheader", "--parsable2", "show", what, *conditions, f"format={','.join(columns)}")
    code, text = asked(*line)
    rows = [line.split("|") for line in text.splitlines()] if code == 0 else []
    return [dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)]


def limit_findings(limits: JobLimits, wanted: int, *, is_written: bool = False) -> Iterator[Finding]:
    """Yield whether Slurm takes as many jobs as a profile keeps in its queue.

    Parameters
    ----------
    limits : JobLimits
        From `job_limits`.
    wanted : int
        `jobs` of the profile.
    is_written : bool
        A profile with a number that fits is being written.
    """
    if limits.submitted is not None and limits.submitted[0] < wanted:
        number, where = limits.submitted
        what = f"Slurm takes {number} jobs of yours at a time ({where}), and the profile sends {wanted}"
        fits = fitting(limits, wanted)
        remedy = f"--jobs {fits}, or jobs: {fits} in a copy of the profile (--write does it)"
        yield Finding(is_written, what, "" if is_written else remedy)
    if limits.running is not None:
        yield Finding(True, f"{limits.running[0]} jobs of yours run at a time ({limits.running[1]})")
    if limits.others:
        yield Finding(True, f"limits of Slurm: {', '.join(limits.others)} (popatlas sends single jobs, no arrays)")


def fitting(limits: JobLimits, wanted: int) -> int:
    """Return how many jobs a profile should keep in the queue, with some room for other jobs of the user."""
    return wanted if limits.submitted is None or limits.submitted[0] >= wanted else max(limits.submitted[0] * 9 // 10, 1)
