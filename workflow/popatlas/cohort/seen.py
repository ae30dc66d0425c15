"""Images that were found good, remembered for the next command of the user: `check`, a plan and a run look at all of them.

The index of a study remembers them too, but `check` and `plan` leave OUT_DIR as it is. What is kept here lies below the
user's cache folder, under hashes of path, size and times: no name of a file or subject is in it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pandas as pd

from popatlas.cohort.inspect import Inspection, Stamp
from popatlas.cohort.opened import holds
from popatlas.config.sections import Cohort
from popatlas.errors import InputError
from popatlas.images.io import read_table, write_table

FEWEST = 20  # images that were opened; of fewer it is not worth a file
FACTS = ["sha256", "shape", "spacing_mm", "orientation", "voxels"]
CHECK = "check"  # hash of a row: what a disk or somebody has changed is not believed


def recall(source: Path, stamps: Mapping[str, Stamp], limits: Cohort) -> dict[str, Inspection]:
    """Return what is known of images of a dataset.

    Parameters
    ----------
    source : Path
        Dataset, or table of paths.
    stamps : mapping
        Path of each image to its stamp.
    limits : Cohort
        Section of the configuration; what does not hold under it is left out.
    """
    path = _file(source)
    if path is None or not stamps:
        return {}
    try:
        if not path.is_file():
            return {}
        rows = read_table(path)[["key", *FACTS, CHECK]].astype(str).to_numpy().tolist()
    except (OSError, InputError, KeyError):  # it only saves time
        return {}
    good = ((key, facts) for key, *facts, check in rows if check == _hash("\n".join((key, *facts))))
    known = {key: Inspection(**dict(zip(FACTS, facts, strict=True))) for key, facts in good}
    found = {image: known[key] for image, stamp in stamps.items() if (key := _key(image, stamp)) in known}
    return {image: inspection for image, inspection in found.items() if holds(inspection, limits)}


def remember(source: Path, found: Mapping[str, Inspection], stamps: Mapping[str, Stamp]) -> None:
    """Remember the good images of a dataset, all that it has now."""
    path = _file(source)
    good = [(image, one) for image, one in found.items() if not one.code]
    if path is None or not good:
        return
    rows = [(_key(image, stamps[image]), *(str(getattr(one, name)) for name in FACTS)) for image, one in good]
    rows = [(*row, _hash("\n".join(row))) for row in rows]
    with suppress(OSError):  # a folder that cannot be written, or a full disk
        write_table(pd.DataFrame(rows, columns=["key", *FACTS, CHECK]), path)


def forget(source: Path | None = None) -> None:
    """Remove what is remembered of a dataset; of all when left out."""
    folder = _folder()
    for path in folder.glob("*.parquet") if folder and source is None else [_file(source)] if source else []:
        with suppress(OSError):
            if path is not None:
                path.unlink(missing_ok=True)


def _folder() -> Path | None:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "popatlas" / "images"
    except RuntimeError:  # no home
        return None


def _file(source: Path) -> Path | None:
    folder = _folder()
    return None if folder is None else folder / f"{_hash(str(source.absolute()))}.parquet"


def _key(image: str, stamp: Stamp) -> str:
    return _hash("\n".join(map(str, (image, *stamp))))


def _hash(text: str) -> str:
    return hashlib.blake2b(os.fsencode(text), digest_size=16).hexdigest()
