"""Places where a study cannot be started, and folders that hide their images."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from popatlas import diskspace, surroundings
from popatlas.cohort import space
from popatlas.cohort.folders import hidden_folders
from popatlas.cohort.index import index_cohort
from popatlas.cohort.inspect import Inspection
from popatlas.config.load import load_config
from popatlas.failures import describe

from ...cohorts import noise_cohort, noise_image
from ...stranger import as_stranger, common_ground
from ..casebook import FAILED, SAID, STOPS, UNAVAILABLE, Case, indexed, refusal, said

TITLE = "Places"


def planned(out: str, bids: str = "bids", *options: str) -> Callable[[Path], str]:
    """Plan a study on a dataset that is there, with these folders."""

    def run(folder: Path) -> str:
        for path in ("bids/sub-01/anat", "odd/{x}/sub-01", "study/cohort", "other"):
            (folder / path).mkdir(parents=True)
        (folder / "bids" / "README").write_text("")
        (folder / "study" / "cohort" / "index.parquet").write_bytes(b"")
        (folder / "other" / "dataset_description.json").write_text('{"Name": "Legs"}')
        return said("plan", folder / bids, folder / out, *options)

    return run


def environment(**variables: str) -> Callable[[Path], str]:
    """Ask for the state of a study with these variables; return the notices."""

    def run(folder: Path) -> str:
        with pytest.MonkeyPatch.context() as patch:
            for name in (*surroundings.CHOSEN, *surroundings.TEMPORARY):
                patch.delenv(name, raising=False)
            for name, value in {"HOME": str(folder), **variables}.items():
                patch.setenv(name, value)
            text = said("status", folder / "nothing")
        return "\n".join(line for line in text.splitlines() if line.startswith("popatlas:")).removeprefix("popatlas: ")

    return run


def no_place_at_all(folder: Path) -> str:
    (folder / "bids" / "sub-01").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surroundings, "USUAL", ("/dev/null",))
        patch.setenv("TMPDIR", "/proc/nothing")
        return said("check", folder / "bids")


def full_disk(part: str) -> Callable[[Path], str]:
    """Meet a full disk in a folder beside that for temporary files, or in it."""

    def run(folder: Path) -> str:
        for name in ("out", "tmp"):
            (folder / name).mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tempfile.tempdir", str(folder / "tmp"))
            patch.setattr(diskspace, "free_bytes", lambda _: 0)
            return describe(OSError(errno.ENOSPC, "No space left on device", str(folder / part / "sub-01_T1w.nii.gz")))

    return run


def too_little_space(part: str) -> Callable[[Path], str]:
    def run(folder: Path) -> str:
        index = pd.DataFrame([{"scan": "sub-01", "state": "ok", "shape": "160x192x160", "spacing_mm": "1x1x1"}])
        for name in ("out", "tmp"):
            (folder / name).mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tempfile.tempdir", str(folder / "tmp"))
            patch.setattr(space, "free_bytes", lambda path: 5_000_000 if path == folder / part else 1e12)
            return refusal(lambda: space.check_space(load_config(), index, folder / "out"))

    return run


def denied(folder: Path) -> str:
    with common_ground() as place:
        (place / "bids" / "sub-2" / "anat").mkdir(parents=True)
        (place / "bids" / "sub-2").chmod(0o700)
        found = as_stranger(lambda: list(hidden_folders(place / "bids", ["sub-2"])))
        (place / "bids" / "sub-2").chmod(0o755)
    ((_, _, code, where),) = found
    return Inspection(code, where).reason


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.parent.rmdir()
    path.parent.symlink_to("/proc/nothing")


def name_in_latin1(folder: Path) -> str:
    noise_cohort(folder / "bids", ["sub-1"], labels=False)
    odd = b"/sub-1/anat/sub-1_acq-\xff_T1w.nii.gz"
    noise_image(Path(str(folder / "bids") + odd.decode(errors="surrogateescape")), seed=3)
    return refusal(lambda: index_cohort(load_config(bids_dir=str(folder / "bids")), folder / "out"))


HOME, GONE = "/dev/null/home", "/proc/nothing"

CASES = [
    Case("command", "output folder is the dataset", STOPS, "the dataset itself", planned("bids")),
    Case("command", "output folder in the folder of a subject", STOPS, "inside of sub-01", planned("bids/sub-01/anat/out")),
    Case("command", "output folder in sourcedata", STOPS, "inside of sourcedata", planned("bids/sourcedata/out")),
    Case("command", "dataset inside of the output folder", STOPS, "lies inside of the output folder", planned(".")),
    Case("command", "output folder is a file", STOPS, "is a file", planned("bids/README")),
    Case("command", "output folder cannot be written", STOPS, "cannot be written", planned("/proc/sys")),
    Case("command", "output folder cannot be made", STOPS, "cannot be written", planned("/proc/out")),
    Case("command", "output folder is another dataset", STOPS, "holds another dataset (Legs)", planned("other")),
    Case("command", "dataset is the output folder of a study", STOPS, "not a dataset", planned("out", "study")),
    Case("command", "braces in the path of the dataset", STOPS, "braces {}", planned("out", "odd/{x}")),
    Case("command", "line break in a path", STOPS, "a line break", planned("o\nut")),
    Case("command", "no label of a subject", STOPS, "is not the label", planned("out", "bids", "--participant-label", " ")),
    Case("machine", "home cannot be written", SAID, HOME, environment(HOME=HOME), remedy=False),
    Case("machine", "cache cannot be written", SAID, GONE, environment(XDG_CACHE_HOME=GONE), remedy=False),
    Case("machine", "TMPDIR does not exist", SAID, GONE, environment(TMPDIR=GONE), remedy=False),
    Case("machine", "nowhere to write temporary files", STOPS, "set TMPDIR", no_place_at_all),
    Case("machine", "too little space in OUT_DIR", STOPS, "will take 7 MB", too_little_space("out")),
    Case("machine", "too little space in TMPDIR", STOPS, "one job will take 10 MB", too_little_space("tmp")),
    Case("any step", "OUT_DIR full", FAILED, "on another disk", full_disk("out")),
    Case("any step", "TMPDIR full", FAILED, "set TMPDIR", full_disk("tmp")),
    Case("index", "folder of a subject cannot be read", UNAVAILABLE, "permission denied (sub-2)", denied),
    Case("index", "folder is a link to nothing", UNAVAILABLE, "a link to nothing", indexed(link_to_nothing)),
    Case("index", "name that is not UTF-8", STOPS, "not in UTF-8", name_in_latin1),
]
