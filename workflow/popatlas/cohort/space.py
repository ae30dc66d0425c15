"""Disk space that a study needs, against what is free: a full disk is told before the run, not in its middle."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from popatlas.diskspace import existing, free_bytes, remedy_for, temporary_folder
from popatlas.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from popatlas.config.sections import Config

# float32 volumes of the isotropic grid: what a scan takes with template, fusion and reports, what its results alone take at
# least (measured 3.3, at `retention: minimal`), and what a single job writes to the folder for temporary files at least
VOLUMES_PER_SCAN = 20
VOLUMES_AT_LEAST = 3
VOLUMES_OF_A_JOB = 4
VOXEL_BYTES = 4


def megavoxels(row: Mapping[Hashable, str], config: Config) -> float:
    """Return the size of a scan on the isotropic grid, millions of voxels, from its row of the index."""
    shape = [int(n) for n in row["shape"].split("x")[:3]]
    spacing = [float(value) for value in row["spacing_mm"].split("x")[:3]]
    millimetres = [n * size for n, size in zip(shape, spacing, strict=True)]
    return float(millimetres[0] * millimetres[1] * millimetres[2] / config.preprocess.resolution_mm**3 / 1e6)


def needed_bytes(scans: pd.DataFrame, config: Config, volumes: int = VOLUMES_PER_SCAN) -> float:
    """Return the bytes that scans take in the output folder.

    Parameters
    ----------
    scans : DataFrame
        Usable rows of the index.
    config : dict
        Complete configuration.
    volumes : int
        Volumes of a scan.
    """
    return sum(megavoxels(row, config) for row in scans.to_dict("records")) * 1e6 * VOXEL_BYTES * volumes


def check_space(config: Config, index: pd.DataFrame, out_dir: Path) -> None:
    """Refuse a run that cannot end for lack of space.

    Parameters
    ----------
    config : dict
        Complete configuration.
    index : DataFrame
        Cohort index.
    out_dir : Path
        Output folder; scans whose metrics are there need no more.

    Raises
    ------
    InputError
        When the output folder has less than the results of the scans to come take, or the folder for temporary files less
        than one job takes.
    """
    usable = index[index["state"] == "ok"]
    done = [(out_dir / f"{scan}_desc-metrics_table.tsv").is_file() for scan in usable["scan"]]
    waiting = usable[[not one for one in done]]
    if waiting.empty:
        return
    largest = max(megavoxels(row, config) for row in waiting.to_dict("records"))
    needs = [(out_dir, needed_bytes(waiting, config, VOLUMES_AT_LEAST), f"{len(waiting)} scan(s)")]
    if (temporary := temporary_folder()) is not None:
        needs.append((temporary, largest * 1e6 * VOXEL_BYTES * VOLUMES_OF_A_JOB, "one job"))
    for folder, needed, what in needs:
        if (free := free_bytes(folder)) < needed:
            message = f"{free / 1e6:.0f} MB are free, {what} will take {needed / 1e6:.0f} MB at least"
            raise InputError(message, file=existing(folder), remedy=remedy_for(existing(folder)))
