"""Whether an image file opens, and whether its header says in one way where its voxels lie: one truth for all that is read.

Scans, label images and masks are judged alike: `cohort.inspect` judges scans by it, `images.labels` labels and masks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np

from popatlas.errors import InputError
from popatlas.images.arrays import FloatArray
from popatlas.images.bounds import decompressed, is_unfetched, read_announced, size_fault
from popatlas.images.io import SHEAR_COSINE, PathLike

SPACING_SHARE = 0.02  # ITK takes the spacing from pixdim, nibabel from the affine: they may differ by rounding only
SINGULAR = 1e-6  # volume of a voxel over that of one with right angles: voxels may be as small as those of a microscope
HALF_A_VOXEL = 0.5  # sform and qform may differ by rounding; beyond, programs place the image differently
NIFTI = (".nii", ".nii.gz")
MOST_WORDS = 120  # characters of an error of another library
NIFTI2_BYTES = 540  # size of a NIfTI-2 header
Finding = tuple[str, str]  # a key of FAULTS and what is special; two empty texts: nothing is wrong

# code -> (what is wrong, what to do)
FAULTS: dict[str, tuple[str, str]] = {
    "absent": ("the file does not exist", "correct the path in the table"),
    "unfetched": (
        "the file only stands for content that was not fetched",
        "run `git annex get`, `datalad get` or `git lfs pull` in the dataset",
    ),
    "empty": ("the file is empty (0 bytes)", "copy it again from the source"),
    "unreadable": ("the file cannot be read", "convert the image again, for example with dcm2niix"),
    "size": ("the header announces too much, or something else than the file holds", "convert the image again"),
    "dtype": ("the voxels are not real numbers", "convert to a real scalar type"),
    "format": ("the file is not NIfTI", "convert it to .nii.gz"),
    "shear": ("the voxel axes are not orthogonal", "resample to an orthogonal grid, or repair the sform"),
    "spacing": ("the voxel size is not plausible", "correct the header, or widen cohort.spacing_mm"),
    "orientation": ("the orientation is unknown or contradicts itself", "set sform and qform in the header"),
}


def file_fault(file: Path) -> Finding:
    """Return why a file cannot be an image before it is read: not there, empty, of another format, or beyond all images.

    Raises
    ------
    Exception
        Of many kinds, from zlib and nibabel, for a damaged file.
    """
    if is_unfetched(file):
        return "unfetched", file.name
    if not file.is_file():
        return "absent", f"{file.name}{' is a folder' if file.is_dir() else ''}"
    if file.stat().st_size == 0:
        return "empty", ""
    if not file.name.endswith(NIFTI):
        return "format", file.name
    fault = size_fault(file)
    return ("size", fault) if fault else ("", "")


def told(error: Exception, file: Path) -> str:
    """Return what an error of zlib or nibabel says, in a line, cut where it gets long; its file by name alone."""
    words = str(error).replace(str(file), file.name)
    return " ".join(f"{type(error).__name__}: {words[:MOST_WORDS]}".split())


def load_whole(file: Path) -> tuple[nib.Nifti1Image, str]:
    """Read a NIfTI file once and to its end, the checksum of a compressed one included.

    Parameters
    ----------
    file : Path
        `.nii` or `.nii.gz`.

    Returns
    -------
    image : nibabel.Nifti1Image
        In memory.
    sha256 : str
        Of the file as it is stored.

    Raises
    ------
    Exception
        Of many kinds, from zlib and nibabel, for a damaged file.
    """
    stored, announced = file.read_bytes(), read_announced(file)
    content = decompressed(stored, announced)
    sizes = {int.from_bytes(content[:4], order) for order in ("little", "big")}
    kind = nib.Nifti2Image if NIFTI2_BYTES in sizes else nib.Nifti1Image
    return kind.from_bytes(content), hashlib.sha256(stored).hexdigest()


def type_fault(dtype: np.dtype[np.generic]) -> Finding:
    """Return whether voxels, as they are stored, are colours or complex numbers."""
    return ("", "") if dtype.kind in "iuf" else ("dtype", str(dtype))


def geometry_fault(image: nib.Nifti1Image, spacing_mm: Sequence[float] | None = None, *, forms: bool = True) -> Finding:
    """Return what is wrong with the geometry that a header tells.

    Parameters
    ----------
    image : nibabel image
        Of at least 2 axes; axes after the third are not looked at.
    spacing_mm : (float, float), optional
        Least and largest plausible voxel size, millimetres.
    forms : bool
        A sform and a qform that lie apart, with the same axes, are a fault. False where popatlas places the image by its
        sform and nobody else sees the file.

    Returns
    -------
    (str, str)
        Code, a key of `FAULTS`, and detail; both empty when all is well.
    """
    affine, axes = image.affine, min(len(image.shape), 3)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= SINGULAR * np.prod(spacing):
        return "orientation", "the voxel-to-world matrix is singular"
    if spacing_mm is not None and (spacing.min() < spacing_mm[0] or spacing.max() > spacing_mm[1]):
        return "spacing", f"{_by(spacing)} mm outside {spacing_mm[0]:g} to {spacing_mm[1]:g}"
    cosines = affine[:3, :3] / spacing
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > SHEAR_COSINE:
        return "shear", ""
    pixdim = np.asarray(image.header.get_zooms()[:axes], dtype=float)
    if np.abs(pixdim - spacing[:axes]).max() > SPACING_SHARE * spacing.max():
        return "orientation", f"pixdim says {_by(pixdim)} mm, the affine {_by(spacing[:axes])} mm"
    return _forms_fault(image, HALF_A_VOXEL * float(spacing[:axes].min()) if forms else np.inf)


def check_header(path: PathLike, what: str = "image") -> None:
    """Refuse an image of somebody else that does not open, or whose header does not say in one way where it lies.

    Raises
    ------
    InputError
        Names `what` it is, the file, and the remedy.
    """
    try:
        finding = geometry_fault(nib.load(path))
    except Exception as error:  # nibabel raises many kinds on damaged files
        raise InputError(f"cannot read image: {error}", file=path, remedy="replace or exclude the file") from error
    refuse(finding, what, path)


def refuse(finding: Finding, what: str, path: PathLike | None = None) -> None:
    """Raise InputError for a finding that is one."""
    code, detail = finding
    if code:
        problem, remedy = FAULTS[code]
        shown = f" ({detail})" if detail else ""
        raise InputError(f"the {what} cannot be used: {problem}{shown}", file=path, remedy=remedy)


def _forms_fault(image: nib.Nifti1Image, most_mm: float) -> Finding:
    sform, s_code = image.get_sform(coded=True)
    try:
        qform, q_code = image.get_qform(coded=True)
    except Exception:  # nibabel: a quaternion that is not a rotation
        return "orientation", "the qform is not a rotation"
    if s_code == 0 and q_code == 0:
        return "orientation", "neither sform nor qform is set"
    if s_code == 0 or q_code == 0:
        return "", ""
    if orientation(sform) != orientation(qform):
        return "orientation", f"sform says {orientation(sform)}, qform says {orientation(qform)}"
    corners = np.array(list(product(*((0, n - 1) for n in (*image.shape, 1)[:3]))))
    apart = np.linalg.norm(nib.affines.apply_affine(sform, corners) - nib.affines.apply_affine(qform, corners), axis=1)
    if apart.max() > most_mm:
        return "orientation", f"sform and qform place the image up to {apart.max():.3g} mm apart"
    return "", ""


def orientation(affine: FloatArray | None) -> str:
    """Return the directions of the axes, for example RAS; nothing for a matrix that has none."""
    if affine is None or not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        return ""
    return "".join(nib.aff2axcodes(affine))


def _by(sizes: Iterable[float]) -> str:
    return "x".join(f"{value:.3g}" for value in sizes)
