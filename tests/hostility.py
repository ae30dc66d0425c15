"""Places where a study is hard to run, and what watches it there; see `hostile/sitecustomize.py`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from popatlas.images.io import save_image, write_json
from popatlas.surroundings import QUIET

FOLDER = Path(__file__).parent / "hostile"
ODD = 'it\'s "q" $HOME `w` ;&|%s #1 größe *?[1] ~!(p),:=@\\'
BALLS = {
    "preprocess": {"resolution_mm": 2.0, "n4": {"enabled": False}, "brain": {"method": "none", "volume_ml": [10, 2300]}},
    "fuse": {"methods": []},
}


def watched(notes: Path, **variables: str) -> dict[str, str]:
    """Return an environment in which each use of a network is noted."""
    paths = [str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    mine = {name: value for name, value in os.environ.items() if name not in QUIET}
    return mine | {"PYTHONPATH": os.pathsep.join(paths), "POPATLAS_TEST_SPY": str(notes)} | variables


def without_a_home(notes: Path) -> dict[str, str]:
    """Return the environment of a container with a user whom it does not know."""
    mine = watched(notes, HOME="/dev/null/home", TMPDIR="/proc/nothing", POPATLAS_TEST_STRANGER="1")
    gone = ("LOGNAME", "USER", "LNAME", "USERNAME", "TEMP", "TMP")
    return {name: value for name, value in mine.items() if name not in gone and not name.startswith("XDG_")}


def brains(root: Path, count: int = 2) -> Path:
    """Write a dataset of small brains without anything around them."""
    write_json(root / "dataset_description.json", {"Name": "balls", "BIDSVersion": "1.9.0"})
    distance = np.linalg.norm(np.indices((48, 48, 48)) - 23.5, axis=0)
    for number in range(1, count + 1):
        texture = np.random.default_rng(number).random(distance.shape, dtype=np.float32) * 0.5 + 1
        path = root / f"sub-0{number}" / "anat" / f"sub-0{number}_T1w.nii.gz"
        save_image(texture * (distance < 13 + number / 4), np.diag([2.0, 2.0, 2.0, 1.0]), path)
    return root
