"""How faults are injected into a real run: a small study, and what is done to its files, jobs and processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
import yaml

from popatlas.images.io import load_image, read_json, save_image
from popatlas.receipts import FOLDER, Receipt

from ..hostility import BALLS, brains

SUBJECTS = ("sub-01", "sub-02", "sub-03")
NOTHING = "nothing runs"
MEMORY_GROUPS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max"),
)  # fmt: skip
PATIENCE = 120  # seconds until something must have happened


class Study:
    """A dataset of three scans and its results, in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.bids, self.out = root, root / "bids", root / "out"
        self.config = root / "config.yaml"
        self.settings = BALLS
        self.config.write_text(yaml.safe_dump(self.settings))

    def line(self, *options: str) -> list[str]:
        places = [str(self.bids), str(self.out), "--config", str(self.config)]
        return [sys.executable, "-m", "popatlas.cli.main", "run", *places, "--until", "preprocess", "--cores", "2", *options]

    def run(self, *options: str) -> tuple[int, str]:
        """Run, and return the exit code and all that was said."""
        result = subprocess.run(self.line(*options), capture_output=True, text=True, check=False, cwd=self.root)
        return result.returncode, result.stdout + result.stderr

    @contextmanager
    def running(self) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
        """Start a run, and yield it when its first job has ended; its words stand in the list when it has."""
        process = subprocess.Popen(
            self.line(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.root, start_new_session=True
        )
        said: list[str] = []
        try:
            wait(lambda: "\nd\t" in self.journal() or process.poll() is not None)
            yield process, said
            said.append(process.communicate(timeout=PATIENCE)[0])
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def journal(self) -> str:
        path = self.out / "logs" / "journal.tsv"
        return path.read_text() if path.is_file() else ""

    def image(self, subject: str) -> Path:
        return self.bids / subject / "anat" / f"{subject}_T1w.nii.gz"

    def results(self) -> dict[str, str]:
        """Return the SHA-256 of each result of a scan."""
        files = [path for path in sorted(self.out.glob("sub-*/**/*")) if path.is_file() and not path.name.startswith(".")]
        return {str(path.relative_to(self.out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def receipts(self) -> dict[str, int]:
        """Return when each job of a scan ended well."""
        return {str(path): path.stat().st_mtime_ns for path in (self.out / FOLDER).glob("preprocess/**/*.json")}

    def broken(self) -> list[str]:
        """Return the results that are cut, or are not what their receipt says."""
        made = {}
        for path in (self.out / FOLDER).rglob("*.json"):
            receipt = Receipt.read(path)
            made |= receipt.outputs if receipt is not None else {str(path): (0, "")}
        found = self.results().items()
        return [path for path, digest in found if not whole(self.out / path) or made.get(path, (0, digest))[1] != digest]


def whole(path: Path) -> bool:
    """Tell whether a result can be read to its end."""
    try:
        if path.name.endswith(".nii.gz"):
            np.asarray(nib.load(path).dataobj)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        return path.stat().st_size > 0
    except (OSError, EOFError, ValueError):
        return False


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes
    ----------
    name : str
        What is injected.
    inject : callable
        Injects it into a study, runs, and returns the exit code and what was said.
    code : int
        Exit code.
    words : str
        Part of what is said.
    follows : str
        What the next run does, after `mend`.
    fresh : bool
        The study has not run before.
    again : int
        Exit code of the next run.
    remade : tuple of str
        Subjects whose results are made again for it, and may be others.
    mend : callable
        Undoes the fault.
    is_quick : bool
        Runs always.
    tells : str
        Part of what the next run says.
    reason : str
        Code of the failure in the ledger.
    """

    name: str
    inject: Callable[[Study], tuple[int, str]]
    code: int
    words: str
    follows: str = NOTHING
    fresh: bool = False
    again: int = 0
    remade: tuple[str, ...] = ()
    mend: Callable[[Study], object] = field(default=lambda study: None)
    is_quick: bool = False
    tells: str = ""
    reason: str = ""


# Ways to inject


def damaged(damage: Callable[[Path], object]) -> Callable[[Study], tuple[int, str]]:
    """Add a subject with an image that is damaged."""

    def inject(study: Study) -> tuple[int, str]:
        image = study.image("sub-04")
        image.parent.mkdir(parents=True)
        shutil.copy(study.image("sub-01"), image)
        damage(image)
        return study.run()

    return inject


def put_right(study: Study) -> None:
    shutil.rmtree(study.bids / "sub-04")


def with_nan(path: Path) -> None:
    image = load_image(path)
    data = np.asarray(image.dataobj, dtype=np.float32)
    data[20:22] = np.nan
    nib.save(nib.Nifti1Image(data, image.affine), path)


def stopped(number: int) -> Callable[[Study], tuple[int, str]]:
    """Send a signal to a run while its jobs run."""

    def inject(study: Study) -> tuple[int, str]:
        with study.running() as (process, said):
            process.send_signal(number)
        return process.returncode, "".join(said)

    return inject


def with_step(study: Study, hurt: Callable[[psutil.Process], object]) -> tuple[int, str]:
    """Do something to the first process of a step of a scan that is seen."""

    def hit() -> bool:
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            with suppress(psutil.Error):
                if "CorrectAndConform" in words and "sub-02/anat/sub-02" in words and process.cwd() == str(study.out):
                    hurt(process)
                    return True
        return False

    process = subprocess.Popen(study.line(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=study.root)
    wait(hit)
    said = process.communicate(timeout=PATIENCE)[0]
    return process.returncode, said


def killed_job(study: Study) -> tuple[int, str]:
    return with_step(study, psutil.Process.kill)


@contextmanager
def little_memory(megabytes: int) -> Iterator[Path]:
    """Make a control group whose processes the kernel ends when they take more memory."""
    for root, limit in MEMORY_GROUPS:
        folder = root / f"popatlas-test-{os.getpid()}"
        with suppress(OSError):
            folder.mkdir()
            try:
                (folder / limit).write_text(str(megabytes << 20))
                yield folder
            finally:
                folder.rmdir()
            return
    pytest.skip("no control group can be made")


def out_of_memory(study: Study) -> tuple[int, str]:
    """Let the kernel end a job that takes more memory than it may."""
    with little_memory(20) as folder:
        return with_step(study, lambda process: (folder / "cgroup.procs").write_text(str(process.pid)))


def killed_run(study: Study) -> tuple[int, str]:
    """Kill the run; status tells of it, and its last jobs end by themselves."""
    with study.running() as (process, said):
        process.kill()
    line = [sys.executable, "-m", "popatlas.cli.main", "status", str(study.out)]
    holder = read_json(study.out / "popatlas.lock")
    wait(lambda: not any(psutil.pid_exists(int(pid)) for pid, _ in holder["helpers"]))
    status = subprocess.run(line, capture_output=True, text=True, check=False)
    return process.returncode, status.stdout + "".join(said)


def killed_snakemake(study: Study) -> tuple[int, str]:
    with study.running() as (process, said):
        (pid, _), *_ = read_json(study.out / "popatlas.lock")["helpers"]
        os.kill(int(pid), signal.SIGKILL)
    return process.returncode, "".join(said)


def second_run(study: Study) -> tuple[int, str]:
    """Start a second run beside the first; what it is told counts, and that the first ends well."""
    with study.running() as (process, _):
        found = study.run()
    assert process.returncode == 0
    return found


def with_times(seconds: Callable[[int], float]) -> Callable[[Study], tuple[int, str]]:
    """Give all files of dataset and results other times."""

    def inject(study: Study) -> tuple[int, str]:
        for number, path in enumerate(sorted([*study.bids.rglob("*"), *study.out.rglob("*")])):
            os.utime(path, (seconds(number), seconds(number)))
        return study.run()

    return inject


def without_snakemake(study: Study) -> tuple[int, str]:
    shutil.rmtree(study.out / ".snakemake")
    return study.run()


def other_settings(study: Study) -> tuple[int, str]:
    shutil.rmtree(study.out / ".snakemake")
    study.config.write_text(yaml.safe_dump(BALLS | {"preprocess": BALLS["preprocess"] | {"intensity": "zscore"}}))
    return study.run()


def replaced(study: Study) -> tuple[int, str]:
    image = load_image(study.image("sub-02"))
    save_image(np.asarray(image.dataobj)[::-1] * 1.5, image.affine, study.image("sub-02"))
    return study.run()


def put_back(study: Study) -> None:
    brains(study.bids, len(SUBJECTS))


def with_session(study: Study) -> tuple[int, str]:
    """Let a subject get its first session: its only scan has another name from now on."""
    (study.bids / "sub-02" / "ses-1").mkdir()
    (study.bids / "sub-02" / "anat").rename(study.bids / "sub-02" / "ses-1" / "anat")
    old = study.bids / "sub-02/ses-1/anat/sub-02_T1w.nii.gz"
    old.rename(old.with_name("sub-02_ses-1_T1w.nii.gz"))
    return study.run()


def moved(study: Study) -> tuple[int, str]:
    for name in ("bids", "out"):
        (study.root / name).rename(study.root / f"other {name}")
    study.bids, study.out = study.root / "other bids", study.root / "other out"
    return study.run()


def removed(study: Study) -> tuple[int, str]:
    (study.bids / "sub-02").rename(study.root / "sub-02")
    return study.run()


def damaged_result(study: Study) -> tuple[int, str]:
    path = study.out / "sub-02/anat/sub-02_desc-brain_T1w.nii.gz"
    path.write_bytes(path.read_bytes()[:500])
    return study.run()


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """Mount a small disk on a folder; False where that is not allowed."""
    options = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    is_there = subprocess.run(options, capture_output=True, check=False).returncode == 0
    try:
        yield is_there
    finally:
        if is_there:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(study: Study) -> tuple[int, str]:
    """Let the disk of OUT_DIR become full while jobs run; what it held is kept when it gets room again."""
    kept = study.root / "kept"
    study.out.mkdir()
    with small_disk(study.out, 24) as is_there:
        if not is_there:
            pytest.skip("no disk can be mounted")
        process = subprocess.Popen(study.line(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=study.root)
        wait(lambda: "\nb\t" in study.journal() or process.poll() is not None)
        with suppress(OSError), (study.out / "filler").open("wb") as stream:
            while True:
                stream.write(b"0" * 4096)
                stream.flush()
        said = process.communicate(timeout=PATIENCE)[0]
        (study.out / "filler").unlink()
        shutil.copytree(study.out, kept)
    study.out.rmdir()
    kept.rename(study.out)
    return process.returncode, said


def read_only(study: Study) -> tuple[int, str]:
    line = ["mount", "--bind", str(study.out), str(study.out)]
    if subprocess.run(line, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(study.out)], check=True)
        return study.run()
    finally:
        subprocess.run(["umount", "-l", str(study.out)], check=True)
