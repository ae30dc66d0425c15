"""Where a study reads and writes: refused before anything is written, where one of them would spoil the other."""

from __future__ import annotations

import os
from pathlib import Path

from popatlas.config.sections import Config
from popatlas.errors import InputError
from popatlas.paths import check_path
from popatlas.surroundings import unusable

OWN = "give a folder of its own, for example BIDS_DIR/derivatives/popatlas"
NOT_OURS = ("sourcedata", "code")  # folders of a dataset that hold no results


def check_places(config: Config, *, make: bool) -> None:
    """Check dataset, output folder and the files that a configuration names.

    Parameters
    ----------
    config : dict
        Complete configuration with absolute paths.
    make : bool
        Make the output folder when it is missing.

    Raises
    ------
    InputError
        When one cannot be read or written, or the output folder lies where it spoils a dataset.
    """
    bids_dir, out_dir = Path(config.bids_dir), Path(config.out_dir)
    check_dataset(bids_dir)
    _check_relation(bids_dir, out_dir)
    check_files(config)
    _check_output(out_dir, make=make)


def check_dataset(bids_dir: Path) -> None:
    """Raise InputError when a dataset does not exist, is the result of a study, or has a path that cannot be taken."""
    check_path(bids_dir, "the dataset")
    if not bids_dir.exists():
        spaces = " (its name begins or ends with a space)" * (bids_dir.name != bids_dir.name.strip())
        raise InputError(
            f"the dataset does not exist{spaces}",
            file=bids_dir,
            remedy="check the path, or draw one with `popatlas simulate` (`popatlas run` without arguments draws the demo)",
        )
    if _is_study(bids_dir):
        raise InputError(
            "this is the output folder of a study, not a dataset", file=bids_dir, remedy="give the dataset, then OUT_DIR"
        )


def _check_relation(bids_dir: Path, out_dir: Path) -> None:
    check_path(out_dir, "the output folder", is_input=False)
    if not bids_dir.is_dir():
        return
    if _same(out_dir, bids_dir):
        raise InputError("the output folder is the dataset itself", file=out_dir, remedy=OWN)
    if any(_same(folder, out_dir) for folder in bids_dir.parents):
        raise InputError("the dataset lies inside of the output folder", file=out_dir, remedy=OWN)
    above = next((folder for folder in out_dir.parents if _same(folder, bids_dir)), None)
    parts = out_dir.relative_to(above).parts if above is not None else ()
    if any(part.startswith("sub-") for part in parts) or (parts and parts[0] in NOT_OURS):
        place = next(part for part in parts if part.startswith("sub-") or part in NOT_OURS)
        raise InputError(f"the output folder lies inside of {place} of the dataset", file=out_dir, remedy=OWN)


def _check_output(out_dir: Path, *, make: bool) -> None:
    if out_dir.exists() and not out_dir.is_dir():
        raise InputError("the output folder is a file", file=out_dir, remedy="choose another OUT_DIR")
    if not _is_study(out_dir):
        check_results_folder(out_dir)
    if problem := unusable(str(out_dir)):
        raise InputError(f"the output folder {problem}", file=out_dir, remedy="choose another OUT_DIR")
    if make:
        out_dir.mkdir(parents=True, exist_ok=True)


def check_results_folder(folder: Path) -> None:
    """Raise InputError when a folder for results is the root of a dataset."""
    if name := _dataset_name(folder):
        remedy = f"check the order, BIDS_DIR before OUT_DIR; {OWN}"
        raise InputError(f"the output folder holds another dataset ({name})", file=folder, remedy=remedy)


def check_files(config: Config) -> None:
    """Check the files that a configuration names: there, and with paths that the workflow can take.

    Raises
    ------
    InputError
        Names the key and the absolute path that was looked for.
    """
    for key, value in (
        ("atlas.template", config.atlas.template),
        ("tissues.maps", config.tissues.maps),
        ("fuse.atlases", config.fuse.atlases),
    ):
        if not isinstance(value, str):
            continue
        check_path(value, f"the file of {key}")
        if not Path(value).is_file():
            problem = "is a folder" if Path(value).is_dir() else "does not exist"
            remedy = "correct the path; a relative one starts at the folder in which popatlas is started"
            raise InputError(f"the file of {key} {problem}", file=Path(value).absolute(), remedy=remedy)
        if not os.access(value, os.R_OK):
            raise InputError(f"the file of {key} cannot be read", file=value, remedy="ask for the right to read it")


def _same(one: Path, other: Path) -> bool:
    """Tell whether two paths are one folder, also by another name of it."""
    try:
        return one == other or one.samefile(other)
    except OSError:
        return False


def _is_study(folder: Path) -> bool:
    """Tell whether a folder is the output folder of a study."""
    return (folder / "cohort" / "index.parquet").is_file()


def _dataset_name(folder: Path) -> str:
    """Return the name of the dataset whose root a folder is, empty when it is none."""
    from popatlas.images.io import read_json

    path = folder / "dataset_description.json"
    if not path.is_file():
        return ""
    try:
        found = read_json(path)
    except InputError:
        found = None
    return str(found.get("Name") or "without a name") if isinstance(found, dict) else "with a broken description"
