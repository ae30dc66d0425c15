"""Datasets for tests that need files but no anatomy: tiny images of seeded noise in a BIDS tree."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from popatlas.images.io import save_image, write_json, write_table


def noise_image(path: Path, seed: int, shape: tuple[int, ...] = (36, 36, 36), spacing: float = 2.0) -> Path:
    """Write positive noise with sform and qform set."""
    data = np.random.default_rng(seed).integers(1, 1000, shape).astype(np.int16)
    save_image(data, np.diag([spacing, spacing, spacing, 1.0]), path)
    return path


def noise_labels(path: Path, seed: int) -> Path:
    """Write cubes of seeded label numbers on the grid of `noise_image`, background round them."""
    cubes = np.random.default_rng(seed).integers(1, 1000, (5, 5, 5)).astype(np.int16)
    save_image(np.pad(np.kron(cubes, np.ones((6, 6, 6), np.int16)), 3), np.diag([2.0, 2.0, 2.0, 1.0]), path)
    return path


def noise_cohort(root: Path, names: list[str], *, labels: bool = True) -> Path:
    """Write a BIDS dataset with one T1w per subject, ages, and labels in derivatives/truth."""
    write_json(root / "dataset_description.json", {"Name": "noise", "BIDSVersion": "1.9.0"})
    for number, name in enumerate(names):
        noise_image(root / name / "anat" / f"{name}_T1w.nii.gz", seed=100 + number)
        if labels:
            noise_labels(root / f"derivatives/truth/{name}/anat/{name}_desc-truth_dseg.nii.gz", seed=number)
    ages = [20.0 + 5 * number for number in range(len(names))]
    sexes = ["F" if number < (len(names) + 1) // 2 else "M" for number in range(len(names))]  # so that a draw is one by age
    people = pd.DataFrame({"participant_id": names, "age": ages, "sex": sexes})
    write_table(people, root / "participants.tsv")
    return root


def popatlas(
    *arguments: str | Path,
    check: bool = True,
    env: dict[str, str] | None = None,
    program: Sequence[str | Path] = (),
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does, in an environment, and return what it printed; `program` for another popatlas."""
    words = [*(program or (sys.executable, "-m", "popatlas.cli.main")), *arguments]
    line = [str(word) for word in words]
    result = subprocess.run(line, capture_output=True, text=True, check=False, env=env, cwd=cwd)
    if check and result.returncode:
        raise AssertionError(f"{' '.join(line)} ended with {result.returncode}\n{result.stdout}\n{result.stderr}")
    return result


if __name__ == "__main__":  # for tools that need a dataset, whatever is in it
    noise_cohort(Path(sys.argv[1]), ["sub-01", "sub-02"])
