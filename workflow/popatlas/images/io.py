"""Files: images, tables and JSON, written to a temporary name first so that nothing is ever half there."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import math
import os
import re
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError
from popatlas.images.arrays import RealArray
from popatlas.images.bounds import SizeError, size_fault

if TYPE_CHECKING:
    import pandas as pd

PathLike = str | os.PathLike[str]

MASKS = ("desc-brain_mask", "mask")
BREAKS = re.compile(r"\r\n|[\t\n\r\x00]")
# how TSV files are read: no quoting, no column taken for names of rows, numbers exactly as they are written
TSV: dict[str, Any] = {
    "sep": "\t", "quoting": csv.QUOTE_NONE, "index_col": False, "na_values": ["n/a"], "keep_default_na": False,
    "float_precision": "round_trip",
}  # fmt: skip
FOUR_GIGABYTES = 1 << 32
SHEAR_COSINE = 0.01  # ITK refuses direction cosines that are further from orthogonal


def suffix_of(path: PathLike) -> str:
    """Return the extension of a file name, `.nii.gz` being one extension."""
    name = Path(path).name
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


@contextmanager
def atomic_path(path: PathLike, *, check: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path` and rename it onto `path` when the block succeeds.

    Parameters
    ----------
    path : path-like
        The final file; its folder is made when missing.
    check : bool
        Look whether an image is whole, see `require_whole`.

    Yields
    ------
    Path
        A name in the same folder with the same extension; removed when the block raises.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".tmp-{secrets.token_hex(6)}{suffix_of(target)}"
    try:
        yield temporary
        if check:
            require_whole(temporary)
        temporary.replace(target)
    except OSError as error:
        error.filename = error.filename or str(target)  # a write that fails does not tell where
        raise
    finally:
        temporary.unlink(missing_ok=True)


def require_whole(path: PathLike) -> None:
    """Raise the OSError of a full disk when an image that was just written is cut off: ITK writes what fits and is content.

    Parameters
    ----------
    path : path-like
        A file of any kind; only NIfTI is looked at.
    """
    file = Path(path)
    if suffix_of(file) not in (".nii", ".nii.gz") or not file.is_file():
        return
    try:
        image = nib.load(file)
        expected = image.dataobj.offset + math.prod(image.shape) * image.header.get_data_dtype().itemsize
        packed = _packed_bytes(file)
        whole = file.stat().st_size >= expected if packed is None else packed == expected % FOUR_GIGABYTES
    except Exception:  # nibabel raises many kinds on damaged files
        whole = False
    if not whole:
        raise OSError(errno.ENOSPC, "an image was written in part only", str(file))


def _packed_bytes(file: Path) -> int | None:
    """Return how many bytes a gzip file says that it holds, modulo 4 GB, at its end; None for other files."""
    with file.open("rb") as stream:
        if stream.read(2) != b"\x1f\x8b":
            return None
        stream.seek(-4, os.SEEK_END)
        return int.from_bytes(stream.read(4), "little")


def write_text(path: PathLike, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path, check=False) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_if_changed(path: PathLike, text: str) -> bool:
    """Write `text` unless the file holds it already, so that time stamps mean something; tell whether it wrote."""
    target = Path(path)
    if target.exists() and target.read_bytes() == text.encode():
        return False
    write_text(target, text)
    return True


def write_json(path: PathLike, obj: object) -> None:
    """Write `obj` as indented JSON, atomically; NumPy scalars and paths are converted."""
    write_text(path, json.dumps(obj, indent=2, default=_plain, sort_keys=False) + "\n")


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def read_json(path: PathLike) -> Any:
    """Read a JSON file; a broken one raises InputError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read JSON: {error}", file=path, remedy="delete the file and run again") from error


def table_text(table: pd.DataFrame) -> str:
    """Return a table as TSV text with BIDS's `n/a` for missing values.

    BIDS knows no quoting: cells are written as they are, and a tab or line end inside one becomes a space.
    """
    plain = table.rename(columns=_one_line).apply(_one_line_cells)
    if plain.shape[1] == 1:
        plain = plain.replace("", "n/a")  # an empty line is no row
    return str(plain.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n", quoting=csv.QUOTE_NONE))


def _one_line_cells(cells: pd.Series) -> pd.Series:
    if cells.dtype.kind != "O" or not any(isinstance(cell, str) and BREAKS.search(cell) for cell in cells.unique()):
        return cells
    return cells.map(_one_line)


def _one_line(cell: object) -> object:
    return BREAKS.sub(" ", cell) if isinstance(cell, str) else cell


def write_table(table: pd.DataFrame, path: PathLike) -> None:
    """Write a table atomically, as TSV or Parquet by its extension."""
    if suffix_of(path) == ".parquet":
        with atomic_path(path) as temporary:
            table.to_parquet(temporary, index=False)
    else:
        write_text(path, table_text(table))


def read_table(path: PathLike, **options: Any) -> pd.DataFrame:
    """Read a TSV (`n/a` is missing) or Parquet table that popatlas wrote; a broken one raises InputError.

    Columns of text need a `dtype`: what looks like numbers is read as numbers. For tables of users see `images.tables`.
    """
    import pandas as pd

    try:
        if suffix_of(path) == ".parquet":
            table: pd.DataFrame = pd.read_parquet(path, **options)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # of lines that are longer than the header
                table = pd.read_csv(path, **{**TSV, **options})
        return table
    except (OSError, ValueError, TypeError, pd.errors.ParserWarning) as error:  # TypeError: unknown options
        raise InputError(f"cannot read table: {error}", file=path, remedy="check that it is a TSV file") from error


def load_image(path: PathLike, dtype: npt.DTypeLike = np.float32) -> nib.Nifti1Image:
    """Load an image into memory.

    Parameters
    ----------
    path : path-like
        NIfTI file.
    dtype : dtype
        Type of the returned data.

    Returns
    -------
    nibabel.Nifti1Image
        Data of type `dtype`, the affine in RAS millimetres.

    Raises
    ------
    InputError
        When the file is missing or unreadable, or announces more voxels than any image has.
    """
    try:
        if fault := size_fault(Path(path)):
            raise SizeError(fault)
        image = nib.load(path)
        return nib.Nifti1Image(np.asanyarray(image.dataobj).astype(dtype), image.affine)
    except Exception as error:  # nibabel raises many kinds on damaged files
        raise InputError(f"cannot read image: {error}", file=path, remedy="replace or exclude the file") from error


def save_image(data: RealArray, affine: RealArray, path: PathLike, dtype: npt.DTypeLike | None = None) -> None:
    """Write an array as NIfTI, atomically, with sform and qform set.

    Parameters
    ----------
    data : ndarray
        Voxels.
    affine : (4, 4) ndarray
        Voxel to RAS millimetres.
    path : path-like
        Output file, `.nii` or `.nii.gz`.
    dtype : dtype, optional
        Type on disk, that of `data` when left out.
    """
    image = nib.Nifti1Image(np.asarray(data, dtype=dtype), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def save_as_raw(data: RealArray, raw: PathLike, path: PathLike, dtype: npt.DTypeLike = np.int32) -> None:
    """Write an array on the grid of an image with the sform and qform of that image, and their codes.

    So whatever program shows both lays one on the other, whichever form it follows.

    Parameters
    ----------
    data : ndarray
        Voxels.
    raw : path-like
        Image of the same grid, NIfTI; anything else of its header is left out.
    path : path-like
        Output file, `.nii` or `.nii.gz`.
    dtype : dtype
        Type on disk.
    """
    given = nib.load(raw)
    image = nib.Nifti1Image(np.asarray(data, dtype=dtype), given.affine)
    image.set_qform(*given.get_qform(coded=True))
    image.set_sform(*given.get_sform(coded=True))
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def save_plain(source: PathLike, target: PathLike, dtype: npt.DTypeLike = np.float32) -> None:
    """Write an image of somebody else again, so that ITK and nibabel place it alike.

    Where sform and qform differ, nibabel takes the sform and ITK, by their codes, often the qform. popatlas follows
    nibabel everywhere: the copy has the sform (the qform where no sform is set) as both.

    Parameters
    ----------
    source : path-like
        NIfTI file; trailing axes of length one are dropped.
    target : path-like
        Output file, `.nii` or `.nii.gz`.
    dtype : dtype
        Type on disk; values are rounded to an integer type.

    Raises
    ------
    InputError
        When the image cannot be read, is not 3D, has voxels that are not finite, or axes that are not orthogonal.
    """
    image = load_image(source, np.float64)
    data, affine = np.asarray(image.dataobj), image.affine
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise InputError(f"the image has {data.ndim} dimensions, expected 3", file=source, remedy="extract one volume")
    if not np.isfinite(data).all():
        raise InputError("the image has voxels that are not finite", file=source, remedy="export the image again")
    cosines = affine[:3, :3] / np.maximum(np.linalg.norm(affine[:3, :3], axis=0), 1e-12)
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > SHEAR_COSINE:
        raise InputError("the voxel axes are not orthogonal", file=source, remedy="resample to an orthogonal grid")
    save_image(np.rint(data) if np.issubdtype(dtype, np.integer) else data, affine, target, dtype)


def mask_beside(image: PathLike) -> Path | None:
    """Find the brain mask beside an image: `*_desc-brain_mask` or `*_mask`, in BIDS without the modality (`_T1w`)."""
    path = Path(image)
    name = path.name.removesuffix(suffix_of(path))
    bare = re.sub(r"_(T1w|T2w|PDw|FLAIR)$", "", name)
    stems = dict.fromkeys((bare, re.sub(r"_desc-[0-9A-Za-z]+$", "", bare), name))
    places = (path.with_name(f"{stem}_{end}{ext}") for stem in stems for end in MASKS for ext in (".nii.gz", ".nii"))
    return next((place.resolve() for place in places if place.is_file()), None)


def sha256(path: PathLike) -> str:
    """Return the SHA-256 of a file as hexadecimal text."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
