"""How large an image file says it is, judged before a voxel is read, and its voxels piece by piece.

A header of 348 bytes can announce terabytes, and a compressed file of 3 MB can hold gigabytes that its header does not
mention. So the announced size is held against limits first; then never more than that is decompressed, and never more
than one piece of it is in memory.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np

from popatlas.images.arrays import RealArray

MOST_VOXELS_PER_AXIS = 2048
MOST_PIXELS_PER_AXIS = 1 << 15  # of a section: one plane
MOST_BYTES = 4 << 30  # of voxels: 0.25 mm of a whole head are half of it
MOST_HEADER_BYTES = 64 << 20  # of header and extensions
TAIL_BYTES = 1 << 20  # that may follow the voxels
GZIP_GROWTH = 1.01  # bytes that do not compress grow by less
PIECE_VOXELS = 1 << 22
GZIP, HEADERS = b"\x1f\x8b", {348: nib.Nifti1Header, 540: nib.Nifti2Header}
# files that stand for content that was not fetched: a link or pointer of git-annex or DataLad, a pointer of Git LFS
ANNEX_LINK, POINTERS, POINTER_BYTES = ".git/annex/", (b"/annex/objects/", b"version https://git-lfs"), 1024


class SizeError(ValueError):
    """A file announces more than any image has, or holds less or more than it announces."""


@dataclass(frozen=True)
class Announced:
    """What a header says: numbers of voxels, type of a voxel as it is stored, and the byte that the voxels begin at."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    offset: int

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return prod(self.shape)

    @property
    def end(self) -> int:
        """Bytes of the uncompressed file up to the last voxel."""
        return self.offset + self.voxels * self.dtype.itemsize


def is_unfetched(file: Path) -> bool:
    """Tell whether a file only stands for content that git-annex, DataLad or Git LFS has not fetched."""
    if file.is_symlink() and not file.exists():
        return ANNEX_LINK in str(file.readlink())
    if not file.is_file() or file.stat().st_size > POINTER_BYTES:
        return False
    return file.read_bytes().startswith(POINTERS)


def read_announced(file: Path) -> Announced | None:
    """Read what a NIfTI file announces, from the first bytes of it.

    Parameters
    ----------
    file : Path
        `.nii` or `.nii.gz`.

    Returns
    -------
    Announced or None
        None when the file does not begin with the header of a NIfTI file; nibabel then says what is wrong.

    Raises
    ------
    Exception
        Of many kinds, from zlib and nibabel, for a damaged file.
    """
    with _opened(file) as stream:
        block = stream.read(max(HEADERS))
    sizes = [int.from_bytes(block[:4], order) for order in ("little", "big")]
    kind = next((HEADERS[size] for size in sizes if size in HEADERS), None)
    if kind is None or len(block) < kind.template_dtype.itemsize:
        return None
    header = kind(block[: kind.template_dtype.itemsize], check=False)
    shape = tuple(int(count) for count in header.get_data_shape())
    return Announced(shape, header.get_data_dtype(), int(max(header["vox_offset"], 0)))


def size_fault(file: Path) -> str:
    """Return why a file is not read: what it announces is beyond all images, or it is larger than what it announces.

    Parameters
    ----------
    file : Path
        `.nii` or `.nii.gz`.

    Returns
    -------
    str
        What is wrong, in words; empty when the file can be read within the limits of this module.

    Raises
    ------
    Exception
        As `read_announced`.
    """
    announced = read_announced(file)
    if announced is None:
        return ""
    shape, amount = "x".join(str(count) for count in announced.shape), announced.end - announced.offset
    most = MOST_PIXELS_PER_AXIS if 1 in announced.shape[:3] else MOST_VOXELS_PER_AXIS
    if announced.shape and not 0 < min(announced.shape) <= max(announced.shape) <= most:
        return f"{shape}, expected 1 to {most} along an axis"
    if amount > MOST_BYTES:
        return f"{shape} voxels of {announced.dtype} are {_size(amount)}, expected at most {_size(MOST_BYTES)}"
    if announced.offset > MOST_HEADER_BYTES:
        return f"a header of {_size(announced.offset)}, expected at most {_size(MOST_HEADER_BYTES)}"
    stored = file.stat().st_size
    if stored > announced.end * GZIP_GROWTH + TAIL_BYTES:
        return f"the file has {_size(stored)}, its header announces {_size(announced.end)}"
    return ""


def voxel_pieces(file: Path, announced: Announced) -> Iterator[RealArray]:
    """Yield the voxels of a file as they are stored (without slope and intercept), and read it to its end.

    Parameters
    ----------
    file : Path
        `.nii` or `.nii.gz`; the checksum at the end of a compressed file is tested.
    announced : Announced
        What its header says.

    Yields
    ------
    ndarray
        Some of the voxels, in the order of the file.

    Raises
    ------
    SizeError
        As soon as the file turns out to hold less or more than it announces.
    """
    with _opened(file) as stream:
        stream.read(announced.offset)
        left = announced.voxels
        while left:
            count = min(left, PIECE_VOXELS)
            piece = stream.read(count * announced.dtype.itemsize)
            if len(piece) < count * announced.dtype.itemsize:
                held = announced.end - left * announced.dtype.itemsize + len(piece)
                raise SizeError(f"it holds {held} of the {announced.end} bytes that its header announces")
            yield np.frombuffer(piece, announced.dtype)
            left -= count
        if len(stream.read(TAIL_BYTES + 1)) > TAIL_BYTES:
            raise SizeError(f"it holds more than the {_size(announced.end)} that its header announces")


def decompressed(stored: bytes, announced: Announced | None) -> bytes:
    """Return the content of a file, whose checksum is tested when it is compressed.

    Parameters
    ----------
    stored : bytes
        All bytes of the file.
    announced : Announced or None
        What its header says.

    Raises
    ------
    SizeError
        When it holds more than it announces.
    """
    if announced is None:
        raise SizeError("no NIfTI header")
    content = stored
    if stored.startswith(GZIP):
        with gzip.open(io.BytesIO(stored)) as stream:
            content = stream.read(announced.end + TAIL_BYTES + 1)
    if len(content) > announced.end + TAIL_BYTES:
        raise SizeError(f"it holds more than the {_size(announced.end)} that its header announces")
    return content


def _opened(file: Path) -> gzip.GzipFile | BinaryIO:
    with file.open("rb") as stream:
        compressed = stream.read(2) == GZIP
    return gzip.open(file) if compressed else file.open("rb")


def _size(amount: int) -> str:
    return f"{amount / 2**20:,.0f} MB" if amount >= 1 << 20 else f"{amount:,} bytes"
