"""Opening every input: what is wrong with an image, said in a sentence, never as an exception."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np

from popatlas.images.header import FAULTS, Finding, check_stream, file_fault, geometry_fault, orientation, type_fault
from popatlas.images.io import sha256
from popatlas.paths import unworkable

PROGRESS_FILES, PROGRESS_SECONDS = 100, 5.0
Item = TypeVar("Item")
Found = TypeVar("Found")

# code -> (what is wrong, what to do); the docs' table of bad input is made from it
CHECKS: dict[str, tuple[str, str]] = FAULTS | {
    "missing": ("no T1w image was found", "add the image, or exclude the subject"),
    "label": ("the folder's name is not a BIDS label, so it was not read", "use letters and digits only after sub-"),
    "denied": ("permission denied", "ask for the right to read it (chmod -R a+rX), or exclude the subject"),
    "link": ("a link to nothing", "mount or fetch what it refers to, for example: datalad get"),
    "name": ("a path that the workflow cannot take", "rename the file or folder, or give a link to it without them"),
    "dimensions": ("the image is not 3D", "extract one volume"),
    "shape": ("too few voxels along an axis", "check the acquisition, or lower cohort.min_shape"),
    "nan": ("the image has voxels that are not finite", "export the image again or replace them"),
    "constant": ("all voxels have the same value", "copy the image again from the source"),
    "duplicate": ("the same image stands under another scan", "remove one of the two"),
    "selection": ("not selected", "change cohort.query, include or exclude"),
}


@dataclass(frozen=True)
class Inspection:
    """What opening an image told."""

    code: str = ""
    detail: str = ""
    sha256: str = ""
    shape: str = ""
    spacing_mm: str = ""
    orientation: str = ""

    @property
    def reason(self) -> str:
        """Problem and remedy in one line, empty for a good image."""
        if not self.code:
            return ""
        problem, remedy = CHECKS[self.code]
        detail = f" ({self.detail})" if self.detail else ""
        return f"{problem}{detail}; remedy: {remedy}"


def inspect_image(path: Path | str, limits: Mapping[str, Any]) -> Inspection:
    """Open an image and look for everything that would break a later stage.

    Parameters
    ----------
    path : path
        NIfTI file.
    limits : mapping
        The configuration's `cohort`: `spacing_mm` (lowest, highest) and `min_shape`.

    Returns
    -------
    Inspection
        `code` is empty for a good image, else a key of `CHECKS`.
    """
    file = Path(path)
    digest = ""
    if problem := unworkable(path):
        return Inspection("name", problem)
    try:
        code, detail = file_fault(file)
        if code in ("absent", "empty"):
            return Inspection(code, detail)
        digest = sha256(file)
        if code:
            return Inspection(code, detail, digest)
        check_stream(file)
        return _judge(file, digest, limits)
    except PermissionError:
        return Inspection("denied", file.name, digest)
    except Exception as error:  # nibabel and zlib raise many kinds on damaged files
        return Inspection("unreadable", " ".join(f"{type(error).__name__}: {str(error)[:120]}".split()), digest)


def _judge(file: Path, digest: str, limits: Mapping[str, Any]) -> Inspection:
    image = nib.load(file)
    data = np.asanyarray(image.dataobj)
    spacing = np.asarray(image.header.get_zooms()[:3], dtype=float)
    known = {
        "sha256": digest,
        "shape": "x".join(str(n) for n in image.shape),
        "spacing_mm": "x".join(f"{value:.3g}" for value in spacing),
        "orientation": orientation(image.affine),
    }
    checks: tuple[Callable[[], Finding], ...] = (
        lambda: type_fault(image, data),
        lambda: _shape_fault(data.shape, limits["min_shape"]),
        lambda: geometry_fault(image, limits["spacing_mm"]),
        lambda: _value_fault(data),
    )
    code, detail = next((found for check in checks if (found := check())[0]), ("", ""))
    return Inspection(code, detail, **known)


def _shape_fault(shape: tuple[int, ...], least: int) -> Finding:
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        return "dimensions", "x".join(str(n) for n in shape)
    if min(shape[:3]) < least:
        return "shape", f"{'x'.join(str(n) for n in shape[:3])}, expected at least {least}"
    return "", ""


def _value_fault(data: Any) -> Finding:
    if not np.isfinite(data).all():
        return "nan", f"{int((~np.isfinite(data)).sum())} voxels"
    if data.max() == data.min():
        return "constant", f"value {float(data.max()):g}"
    return "", ""


def in_threads(look: Callable[[Item], Found], items: Sequence[Item], what: str) -> list[Found]:
    """Open files in threads (zlib, hashlib and NumPy release the interpreter lock), and say how far it is.

    Parameters
    ----------
    look : callable
        Opens one; does not raise.
    items : sequence
        What it is called with.
    what : str
        Kind of files, for the progress on stderr.

    Returns
    -------
    list
        What was found, in the order of the items.
    """
    found: list[Found] = []
    said = time.monotonic()
    with ThreadPoolExecutor(max_workers=min(8, len(os.sched_getaffinity(0)))) as pool:
        for one in pool.map(look, items):
            found.append(one)
            if len(found) % PROGRESS_FILES == 0 or time.monotonic() - said > PROGRESS_SECONDS:
                said = time.monotonic()
                print(f"popatlas: opened {len(found)} of {len(items)} {what}", file=sys.stderr, flush=True)
    return found


def stamp_of(path: Path | str) -> tuple[int, int]:
    """Return size in bytes and time of modification in nanoseconds of a file; -1 and -1 where there is none."""
    try:
        status = Path(path).stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
