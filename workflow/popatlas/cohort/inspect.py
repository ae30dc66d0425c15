"""Opening every input: what is wrong with an image, said in a sentence, never as an exception."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from popatlas.images.io import SHEAR_COSINE

SPACING_SHARE = 0.02  # ITK takes the spacing from pixdim, nibabel from the affine: they may differ by rounding only
HALF_A_VOXEL = 0.5  # sform and qform may differ by rounding; beyond, programs place the image differently
NIFTI = (".nii", ".nii.gz")

# code -> (what is wrong, what to do); the docs' table of bad input is made from it
CHECKS: dict[str, tuple[str, str]] = {
    "missing": ("no T1w image was found", "add the image, or exclude the subject"),
    "label": ("the folder's name is not a BIDS label, so it was not read", "use letters and digits only after sub-"),
    "absent": ("the file does not exist", "correct the path in the table"),
    "empty": ("the file is empty (0 bytes)", "copy it again from the source"),
    "unreadable": ("the file cannot be read", "convert the image again, for example with dcm2niix"),
    "dtype": ("the voxels are not real numbers", "convert to a real scalar type"),
    "dimensions": ("the image is not 3D", "extract one volume"),
    "shape": ("too few voxels along an axis", "check the acquisition, or lower cohort.min_shape"),
    "format": ("the file is not NIfTI", "convert it to .nii.gz"),
    "shear": ("the voxel axes are not orthogonal", "resample to an orthogonal grid, or repair the sform"),
    "spacing": ("the voxel size is not plausible", "correct the header, or widen cohort.spacing_mm"),
    "orientation": ("the orientation is unknown or contradicts itself", "set sform and qform in the header"),
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
    try:
        if not file.is_file():
            return Inspection("absent", file.name)
        if file.stat().st_size == 0:
            return Inspection("empty")
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if not file.name.endswith(NIFTI):
            return Inspection("format", file.name, digest)
        _check_stream(file)
        return _judge(file, digest, limits)
    except Exception as error:  # nibabel and zlib raise many kinds on damaged files
        return Inspection("unreadable", " ".join(f"{type(error).__name__}: {str(error)[:120]}".split()), digest)


def _check_stream(file: Path) -> None:
    """Decompress to the end: nibabel stops at the last voxel and never sees the checksum that follows it."""
    with file.open("rb") as stored:
        if stored.read(2) != b"\x1f\x8b":
            return
        stored.seek(0)
        with gzip.open(stored) as stream:
            while stream.read(1 << 24):
                pass


def _judge(file: Path, digest: str, limits: Mapping[str, Any]) -> Inspection:
    image = nib.load(file)
    data = np.asanyarray(image.dataobj)
    spacing = np.asarray(image.header.get_zooms()[:3], dtype=float)
    known = {
        "sha256": digest,
        "shape": "x".join(str(n) for n in image.shape),
        "spacing_mm": "x".join(f"{value:.3g}" for value in spacing),
        "orientation": _orientation(image.affine),
    }
    for check in (_check_type, _check_shape, _check_geometry, _check_values):
        code, detail = check(image, data, limits)
        if code:
            return Inspection(code, detail, **known)
    return Inspection(**known)


Finding = tuple[str, str]


def _check_type(image: Any, data: Any, limits: Mapping[str, Any]) -> Finding:
    if data.dtype.names or not np.issubdtype(data.dtype, np.number) or np.iscomplexobj(data):
        return "dtype", str(image.get_data_dtype())
    return "", ""


def _check_shape(image: Any, data: Any, limits: Mapping[str, Any]) -> Finding:
    shape = data.shape
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        return "dimensions", "x".join(str(n) for n in shape)
    if min(shape[:3]) < limits["min_shape"]:
        return "shape", f"{'x'.join(str(n) for n in shape[:3])}, expected at least {limits['min_shape']}"
    return "", ""


def _check_geometry(image: Any, data: Any, limits: Mapping[str, Any]) -> Finding:
    affine = image.affine
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        return "orientation", "the voxel-to-world matrix is singular"
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = limits["spacing_mm"]
    if spacing.min() < low or spacing.max() > high:
        return "spacing", f"{'x'.join(f'{value:.3g}' for value in spacing)} mm outside {low:g} to {high:g}"
    cosines = affine[:3, :3] / spacing
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > SHEAR_COSINE:
        return "shear", ""
    pixdim = np.asarray(image.header.get_zooms()[:3], dtype=float)
    if np.abs(pixdim - spacing).max() > SPACING_SHARE * spacing.max():
        texts = ["x".join(f"{value:.3g}" for value in sizes) for sizes in (pixdim, spacing)]
        return "orientation", f"pixdim says {texts[0]} mm, the affine {texts[1]} mm"
    sform, s_code = image.get_sform(coded=True)
    try:
        qform, q_code = image.get_qform(coded=True)
    except Exception:  # nibabel: a quaternion that is not a rotation
        return "orientation", "the qform is not a rotation"
    if s_code == 0 and q_code == 0:
        return "orientation", "neither sform nor qform is set"
    if s_code > 0 and q_code > 0 and _orientation(sform) != _orientation(qform):
        return "orientation", f"sform says {_orientation(sform)}, qform says {_orientation(qform)}"
    if s_code > 0 and q_code > 0:
        corners = np.array(list(product(*((0, n - 1) for n in data.shape[:3]))))
        apart = np.linalg.norm(nib.affines.apply_affine(sform, corners) - nib.affines.apply_affine(qform, corners), axis=1)
        if apart.max() > HALF_A_VOXEL * spacing.min():
            return "orientation", f"sform and qform place the image up to {apart.max():.3g} mm apart"
    return "", ""


def _check_values(image: Any, data: Any, limits: Mapping[str, Any]) -> Finding:
    if not np.isfinite(data).all():
        return "nan", f"{int((~np.isfinite(data)).sum())} voxels"
    if data.max() == data.min():
        return "constant", f"value {float(data.max()):g}"
    return "", ""


def _orientation(affine: Any) -> str:
    if affine is None or not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        return ""
    return "".join(nib.aff2axcodes(affine))
