"""Opening every input: what is wrong with an image, said in a sentence, never as an exception."""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import nibabel as nib
import numpy as np

from popatlas.config.sections import Cohort
from popatlas.images.bounds import SizeError, read_announced, voxel_pieces
from popatlas.images.header import FAULTS, Finding, file_fault, geometry_fault, orientation, told, type_fault
from popatlas.images.io import sha256
from popatlas.paths import unworkable

PROGRESS_FILES, PROGRESS_SECONDS = 100, 5.0
LARGEST = float(np.finfo(np.float32).max)  # voxels are computed with in 32 bits
Stamp = tuple[int, int, int]
NO_FILE: Stamp = (-1, -1, -1)
SECOND = 1_000_000_000  # ns; some file systems count in whole ones
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
    "filter": ("no image passes cohort.filter", "correct cohort.filter, or exclude the subject"),
    "phase": ("not a magnitude image", "give the magnitude (part-mag), or name this one in cohort.filter"),
    "selection": ("not selected", "change cohort.query, include or exclude"),
}


@dataclass(frozen=True)
class Inspection:
    """What opening an image told.

    `voxels` is a checksum of the voxels alone: it is the same for two files that only differ in header or compression.
    What is not `lasting`, such as a file that may not be read, can change while the file does not.
    """

    code: str = ""
    detail: str = ""
    sha256: str = ""
    shape: str = ""
    spacing_mm: str = ""
    orientation: str = ""
    voxels: str = ""
    lasting: bool = True

    @property
    def problem(self) -> str:
        """What is wrong in words, empty for a good image."""
        return f"{CHECKS[self.code][0]}{f' ({self.detail})' if self.detail else ''}" if self.code else ""

    @property
    def remedy(self) -> str:
        """What can be done about it, empty for a good image."""
        return CHECKS[self.code][1] if self.code else ""

    @property
    def reason(self) -> str:
        """Problem and remedy in one line, empty for a good image."""
        return f"{self.problem}; remedy: {self.remedy}" if self.code else ""


def inspect_image(path: Path | str, limits: Cohort) -> Inspection:
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
    if problem := unworkable(path):
        return Inspection("name", problem)
    try:
        code, detail = file_fault(file)
        return Inspection(code, detail, lasting=code != "absent") if code else _judge(file, limits)
    except SizeError as error:
        return Inspection("unreadable", str(error))
    except PermissionError:
        return Inspection("denied", file.name, lasting=False)
    except Exception as error:  # nibabel and zlib raise many kinds on damaged files
        lasting = not isinstance(error, (OSError, MemoryError)) or isinstance(error, gzip.BadGzipFile)
        return Inspection("unreadable", told(error, file), lasting=lasting)


def _judge(file: Path, limits: Cohort) -> Inspection:
    """Look at the header first; a file that it does not rule out is read once, piece by piece."""
    image = nib.load(file)
    spacing = np.asarray(image.header.get_zooms()[:3], dtype=float)
    known = Inspection(
        shape="x".join(str(n) for n in image.shape),
        spacing_mm="x".join(f"{value:.3g}" for value in spacing),
        orientation=orientation(image.affine),
    )
    checks: tuple[Callable[[], Finding], ...] = (
        lambda: type_fault(image.get_data_dtype()),
        lambda: _shape_fault(image.shape, limits.min_shape),
        lambda: geometry_fault(image, limits.spacing_mm),
    )
    code, detail = next((found for check in checks if (found := check())[0]), ("", ""))
    if code:
        return replace(known, code=code, detail=detail)
    code, detail, voxels = _check_values(file, image)
    return replace(known, code=code, detail=detail, sha256=sha256(file), voxels=voxels)


def _shape_fault(shape: tuple[int, ...], least: int) -> Finding:
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        return "dimensions", "x".join(str(n) for n in shape)
    if min(shape[:3]) < least:
        return "shape", f"{'x'.join(str(n) for n in shape[:3])}, expected at least {least}"
    return "", ""


def _check_values(file: Path, image: nib.Nifti1Image) -> tuple[str, str, str]:
    """Read all voxels; return the finding and the checksum of the voxels."""
    announced = read_announced(file)
    if announced is None:
        return "unreadable", "no NIfTI header", ""
    digest, lost, low, high = hashlib.sha256(), 0, np.inf, -np.inf
    for piece in voxel_pieces(file, announced):
        digest.update(piece.data)
        finite = piece if piece.dtype.kind != "f" else piece[np.isfinite(piece)]
        lost += piece.size - finite.size
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    return *_value_fault(lost, low * slope + intercept, high * slope + intercept), digest.hexdigest()


def _value_fault(lost: int, low: float, high: float) -> Finding:
    if lost:
        return "nan", f"{lost} voxels"
    if max(abs(low), abs(high)) > LARGEST:
        return "nan", f"values from {low:.3g} to {high:.3g} exceed 32 bits"
    if low == high:
        return "constant", f"value {low:g}"
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


def stamp_of(path: Path | str) -> Stamp:
    """Return size in bytes and times of modification and of change (ns) of a file; `NO_FILE` where there is none.

    Where times are whole seconds, a file that has just been changed may be changed once more without getting another time:
    its stamp is like no other.
    """
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return NO_FILE
    now, changed = time.time_ns(), status.st_ctime_ns
    if changed % SECOND == 0 and abs(now - changed) < 2 * SECOND:
        changed = -now
    return status.st_size, status.st_mtime_ns, changed
