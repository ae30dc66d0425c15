"""A small cohort, run once by an installed wheel: three good scans, one that fails, one that cannot be opened."""

from __future__ import annotations

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml

from popatlas.images.io import read_table

from ..cohorts import popatlas
from ..hostility import FOLDER, watched
from ..wheel import install_wheel

# Everything real, but coarse: 4 mm, one template iteration, the cheapest schedule
SETTINGS = {
    "preprocess": {"resolution_mm": 4.0, "n4": {"iterations": [20, 20]}},
    "register": {"preset": "quick", "gate": {"mask_dice": 0.8}},
    "atlas": {"label": "tiny", "iterations": 1, "presets": ["quick"]},
    "fuse": {"atlases": ["01", "02"]},
}
# what a page, a shell, Snakemake or a spreadsheet would run
HOSTILE = ("<script>alert('x')</script>", "$(touch pwned) `touch pwned`", "{scan} {input}", "=cmd|' /C calc'!A0", "a; exit")
GOOD, BROKEN, UNREADABLE = ("sub-01", "sub-02", "sub-03"), "sub-04", "sub-05"


class Workspace:
    """A dataset, its configuration and its results; where an installation is given, it is used, and not the checkout."""

    def __init__(self, root: Path, programs: Path | None = None) -> None:
        self.root, self.programs = root, programs
        self.bids, self.out, self.config = root / "bids", root / "out", root / "config.yaml"
        self.network = root / "network.txt"  # what any process asks a network
        self.network.touch()

    def popatlas(self, verb: str, *extra: str, check: bool = True):
        return self.call(verb, self.bids, self.out, "--config", self.config, "--cores", "2", *extra, check=check)

    def call(self, *line: str | Path, check: bool = True):
        """Call popatlas with the words of a line."""
        own, env = self.programs is not None, watched(self.network)
        env |= {"PYTHONPATH": str(FOLDER)} if own else {}
        return popatlas(*line, check=check, env=env, program=[self.programs / "popatlas"] if own else (), cwd=self.root)

    def digests(self, pattern: str) -> dict[str, tuple[str, int]]:
        """Content and time of the files that match a pattern."""
        return {
            str(path.relative_to(self.out)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
            for path in sorted(self.out.glob(pattern))
            if path.is_file()
        }


@pytest.fixture(scope="session")
def first_run(tmp_path_factory) -> tuple[Workspace, int, str]:
    """Return the finished workspace, the exit code and what was printed."""
    work = Workspace(tmp_path_factory.mktemp("cohort"), install_wheel(tmp_path_factory.mktemp("wheel")))
    work.call("simulate", work.bids, "--subjects", "5", "--seed", "3")
    work.config.write_text(yaml.safe_dump(SETTINGS))
    make_hostile(work.bids)
    spoil(work.bids / BROKEN / "anat" / f"{BROKEN}_T1w.nii.gz", brain=False)
    spoil(work.bids / UNREADABLE / "anat" / f"{UNREADABLE}_T1w.nii.gz", brain=True)
    result = work.popatlas("run", check=False)
    return work, result.returncode, result.stdout + result.stderr


def attempts(work: Workspace) -> pd.DataFrame:
    """Return the row of each registration in the group table that tells which attempt passed."""
    metrics = read_table(work.out / "group" / "metrics.parquet")
    return metrics[metrics["metric"] == "gate_passed"]


def make_hostile(bids: Path) -> None:
    """Let cells of participants.tsv and the name of a label be what a shell, a page or a spreadsheet would run."""
    people = bids / "participants.tsv"
    rows = people.read_text().splitlines()
    cells = ["note", *HOSTILE, *[""] * len(rows)]
    people.write_text("".join(f"{row}\t{cell}\n" for row, cell in zip(rows, cells, strict=False)))
    names = bids / "derivatives" / "truth" / "dseg.tsv"
    names.write_text(names.read_text().replace("\tleft insula\n", f"\t{HOSTILE[0]} {HOSTILE[1]} {HOSTILE[2]}\n"))


def spoil(path: Path, *, brain: bool) -> None:
    """Make an image unreadable for the index (NaN), or readable but without any brain (a small bright ball)."""
    image = nib.load(path)
    data = np.asarray(image.dataobj, dtype=np.float32)
    if brain:
        data[10:12] = np.nan
    else:
        distance = np.linalg.norm(np.indices(data.shape) - np.array(data.shape)[:, None, None, None] / 2, axis=0)
        data = np.random.default_rng(0).random(data.shape, dtype=np.float32) * 20 + 500 * (distance < 8)
    nib.save(nib.Nifti1Image(data.astype(np.float32), image.affine), path)
