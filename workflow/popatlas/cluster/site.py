"""What a site has: programs of Slurm, partitions, GPUs, accounting; and whether jobs come through."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

PROGRAMS = ("sbatch", "squeue", "sinfo", "scancel", "scontrol")
PLUGIN = "snakemake-executor-plugin-slurm"
FAST = (2, 8)  # of the plugin: older ones sleep 5 s at each job
FAST_LINE = f"pip install --no-deps {PLUGIN}==2.8.0"
ANSWERS_IN = 20  # seconds
HELLO_IN = 300
GPU_WORDS = re.compile(r"\bgpu\b", re.IGNORECASE)


@dataclass(frozen=True)
class Finding:
    """One line of what was found.

    Attributes
    ----------
    good : bool
        False where something has to be done.
    what : str
        What was found, in words.
    remedy : str
        What to do; empty where nothing has to be.
    """

    good: bool
    what: str
    remedy: str = ""


@dataclass(frozen=True)
class Partition:
    """A partition of the cluster.

    Attributes
    ----------
    name : str
        Its name.
    is_default : bool
        Whether jobs go there that name none.
    limit : str
        Longest time of a job, as Slurm writes it.
    memory_mb : int
        Of a node.
    cores : int
        Of a node.
    has_gpu : bool
        Whether its nodes have GPUs.
    """

    name: str
    is_default: bool
    limit: str
    memory_mb: int
    cores: int
    has_gpu: bool


def asked(*line: str, seconds: float = ANSWERS_IN) -> tuple[int, str]:
    """Run a program; return its exit code, 124 where it does not answer in time, and what it printed."""
    try:
        done = subprocess.run(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return 124, f"no answer within {seconds:g} s"
    except OSError as error:
        return 127, str(error)
    return done.returncode, done.stdout.strip()


def missing_programs() -> list[str]:
    """Return the programs of Slurm that are not on the PATH."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def partitions() -> list[Partition]:
    """Return the partitions; none where Slurm does not answer."""
    code, text = asked("sinfo", "--noheader", "--format=%P|%l|%m|%c|%G")
    found: dict[str, Partition] = {}
    for line in text.splitlines() if code == 0 else ():
        name, limit, memory, cores, gres = (*line.split("|"), *[""] * 5)[:5]
        plain = name.rstrip("*")
        former = found.get(plain)
        has_gpu = bool(GPU_WORDS.search(gres)) or (former is not None and former.has_gpu)
        found[plain] = Partition(plain, name.endswith("*"), limit, _number(memory), _number(cores), has_gpu)
    return list(found.values())


def has_accounting() -> bool | None:
    """Tell whether `sacct` knows of jobs; None where Slurm does not say."""
    code, text = asked("scontrol", "show", "config")
    kind = re.search(r"AccountingStorageType\s*=\s*(\S+)", text)
    return None if code or kind is None else not re.search(r"none", kind[1])


def accounts() -> list[str]:
    """Return the accounts that the user may bill jobs to; none where that is not known."""
    if shutil.which("sacctmgr") is None:
        return []
    user = os.environ.get("USER", str(os.getuid()))
    code, text = asked("sacctmgr", "--noheader", "--parsable2", "show", "assoc", f"user={user}", "format=account")
    return (
        sorted({line.strip() for line in text.splitlines() if re.fullmatch(r"[\w.@-]+", line.strip())}) if code == 0 else []
    )


def plugin_finding() -> Finding:
    """Tell which version of Snakemake's plugin is here, and whether it is quick."""
    try:
        version = metadata.version(PLUGIN)
    except metadata.PackageNotFoundError:
        return Finding(False, f"{PLUGIN} is not installed", "pip install 'popatlas[slurm]'")
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < FAST:
        return Finding(False, f"{PLUGIN} {version} submits a job in 2.5 s", FAST_LINE)
    return Finding(True, f"{PLUGIN} {version}")


def hello(options: Sequence[str], script: str) -> Finding:
    """Send a small job through Slurm and wait for it."""
    told = " ".join(options) or "no options"
    line = ["sbatch", "--wait", "--parsable", "--time=5", "--mem=100", "--output=/dev/null", *options, "--wrap", script]
    code, text = asked(*line, seconds=HELLO_IN)
    if code == 124:
        return Finding(
            False, f"a job with {told} did not end within {HELLO_IN} s", "look at it with squeue, end it with scancel"
        )
    if code:
        return Finding(False, f"a job with {told} failed: {text.splitlines()[-1] if text else f'exit code {code}'}",
                       "ask for what your site wants: partition, account (docs/hpc.md)")  # fmt: skip
    return Finding(True, f"a job with {told} came through")


def _number(text: str) -> int:
    digits = re.match(r"\d+", text)
    return int(digits[0]) if digits else 0
