"""`popatlas apply`: images, labels and points through transforms, interpolated once; there and back.

Whatever is given lies in the space of the moving image and comes out in that of the fixed one; the inverse takes it back.
Images are read at the places where fixed points go, so that points themselves go the other way through the same transforms:
here both are asked for by the same words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from popatlas.errors import InputError
from popatlas.images.arrays import FloatArray
from popatlas.images.grid import Grid
from popatlas.images.io import suffix_of, write_table
from popatlas.images.labels import seem_labels
from popatlas.images.tables import read_text_table
from popatlas.measures.landmarks import AXES, RAS_TO_LPS, read_landmarks
from popatlas.pairwise import files as names
from popatlas.pairwise.files import Outputs
from popatlas.pairwise.scores import Structures
from popatlas.pairwise.space import Registered, Space, read_voxels
from popatlas.transforms.affine import read_affine
from popatlas.transforms.chain import Affine, Chain, Field
from popatlas.transforms.composed import read_step

PLANE = 2  # axes
INVERSE = "inverse:"  # before the name of a transform file
LINEAR = (".mat", ".txt", ".tfm")
TABLE, IMAGES = ".tsv", (".nii", ".nii.gz")
LABELS = re.compile(r"(^|_)(dseg|mask|labels)\.nii(\.gz)?$")  # names of label images in BIDS, and of `popatlas register`
# name of a composed field of a study: scan, and the ends of the way
WHOLE = re.compile(r"(sub-[^/]+)_from-([0-9A-Za-z]+)_to-([0-9A-Za-z]+)_mode-image_xfm\.nii\.gz")


@dataclass(frozen=True)
class Way:
    """A chain from fixed to moving points, the chain back, and the images at both ends where they are known."""

    forward: Chain
    inverse: Chain
    fixed: Registered | None = None
    moving: Registered | None = None
    is_forced: bool = False  # the gate has refused a registration of it

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.forward.steps[0].ndim

    def turned(self) -> Way:
        """Return the way back."""
        return Way(self.inverse, self.forward, self.moving, self.fixed, self.is_forced)

    def then(self, other: Way) -> Way:
        """Return the way through this one and then the other, as a fixed point goes."""
        forward, inverse = self.forward.then(other.forward), other.inverse.then(self.inverse)
        return Way(forward, inverse, self.fixed, other.moving, self.is_forced or other.is_forced)


def way_of_registrations(prefixes: Sequence[str]) -> Way:
    """Return the chain of registrations by `popatlas register`.

    Parameters
    ----------
    prefixes : sequence of str
        Their `--out`: the first one has the image at the end of the way as fixed, the next one registers to the moving image
        of the first one, and so on.

    Raises
    ------
    InputError
        See `Outputs.read`; and when one does not begin where that before it ends.
    """
    way = _registration(prefixes[0])
    for prefix in prefixes[1:]:
        other = _registration(prefix)
        if way.moving is None or other.fixed is None or way.moving.sha256 != other.fixed.sha256:
            ends = [side.image if side else "an unknown image" for side in (other.fixed, way.moving)]
            message = f"{prefix} registers to {ends[0]}, and the way before it ends in {ends[1]}"
            if ends[0] == ends[1]:
                message += ", which was another image then"
            remedy = "give the registrations in the order of a fixed point's way, or their files by --transforms"
            raise InputError(message, remedy=remedy)
        way = way.then(other)
    return way


def _registration(prefix: str) -> Way:
    outputs = Outputs(prefix)
    record = outputs.read()
    affine = Affine(torch.as_tensor(read_affine(outputs.path(names.AFFINE))))
    forward, inverse = Chain((affine,)), Chain((affine.inverse(),))
    if names.WARP in record["files"]:
        forward = Chain((read_step(outputs.path(names.WARP)),)).then(forward)
        inverse = inverse.then(Chain((read_step(outputs.path(names.INVERSE_WARP)),)))
    fixed, moving = (Registered.of_record(record[side]) for side in ("fixed", "moving"))
    return Way(forward, inverse, fixed, moving, is_forced=record["verdict"] != "pass")


def way_of_files(transforms: Sequence[str]) -> Way:
    """Return the chain of transform files, as a fixed point goes through them: usually a warp, then an affine.

    Parameters
    ----------
    transforms : sequence of str
        ITK/ANTs files of affines and displacement fields; ``inverse:FILE`` stands for the inverse of one. Fields are
        inverted by iteration.

    Raises
    ------
    InputError
        For a file that is missing or no transform, and for a mix of 2D and 3D.
    """
    steps = [_step(text) for text in transforms]
    for text, step in zip(transforms, steps, strict=True):
        if step.ndim != steps[0].ndim:
            message = f"a transform of {step.ndim} axes in a chain of {steps[0].ndim}"
            raise InputError(message, file=text.removeprefix(INVERSE), remedy="give transforms of as many axes")
    return Way(Chain(tuple(steps)), Chain(tuple(step.inverse() for step in reversed(steps))))


def _step(text: str) -> Affine | Field:
    path = Path(text.removeprefix(INVERSE))
    if not path.is_file():
        raise InputError("the transform does not exist", file=path, remedy=_remedy_of_missing(path))
    step = Affine(torch.as_tensor(read_affine(path))) if path.suffix in LINEAR else read_step(path)
    return step.inverse() if text.startswith(INVERSE) else step


def _remedy_of_missing(path: Path) -> str:
    """Return what to do about a missing file; a study that is kept small has the parts of its composed fields only."""
    way = WHOLE.fullmatch(path.name)
    if way is None:
        return "check the path"
    scan, source, target = way.groups()
    warp = path.with_name(f"{scan}_from-{source}_to-{target}_mode-image_desc-warp_xfm.nii.gz")
    is_back = target == "T1w"
    affine = path.with_name(f"{scan}_from-T1w_to-{source if is_back else target}_mode-image_desc-affine_xfm.mat")
    if not (warp.is_file() and affine.is_file()):
        return "check the path"
    parts = f"{INVERSE}{affine} {warp}" if is_back else f"{warp} {affine}"
    return f"it is not kept, for it follows from others: give these, --transforms {parts}, or `popatlas retain` makes it"


def apply_to_image(source: Path, target: Space, chain: Chain, out: Path) -> None:
    """Resample an image (linear); a 4D one volume by volume.

    Parameters
    ----------
    source : Path
        Image in the moving space.
    target : Space
        Where the voxels of the result are.
    chain : Chain
        Fixed to moving points.
    out : Path
        NIfTI, float32; 0 outside of what the source shows (its least value, where that is below 0).
    """
    space = Space.of_file(source)
    data, grid = read_voxels(space, source), space.grid
    volumes = np.moveaxis(data.reshape(*grid.shape, -1), -1, 0)
    moved = np.stack([resampled(one, grid, target.grid, chain) for one in volumes], axis=-1)
    target.save(moved if data.ndim > grid.ndim else moved[..., 0], out)


def resampled(data: FloatArray, grid: Grid, target: Grid, chain: Chain) -> FloatArray:
    """Return an image on another grid (linear); outside of its view 0, or its least value where that is below 0."""
    fill = np.float32(min(data.min(), 0))
    values = torch.from_numpy(np.ascontiguousarray(data - fill))[None, None]
    return chain.apply(values, grid, target)[0, 0].numpy() + fill


def apply_to_labels(source: Path, target: Space, chain: Chain, out: Path, image: Grid | None = None) -> None:
    """Resample labels: each voxel gets the label with the largest linear weight; overlapping ones (4D) each for itself.

    Where the grid of their image is known they must lie on it.
    """
    found = Structures.read(source, target.grid.ndim, image)
    target.save_labels(found.through(chain, target.grid), out)


def apply_to_points(source: Path, way: Way, out: Path) -> None:
    """Move landmarks (name, x, y, z in RAS mm) from the moving to the fixed space; what else the table holds is kept."""
    table, found = read_text_table(source), read_landmarks(source)
    start = found[AXES].to_numpy()
    moved = start.copy()
    moved[:, : way.ndim] = way.inverse.points(start[:, : way.ndim] * RAS_TO_LPS[: way.ndim]).numpy() * RAS_TO_LPS[: way.ndim]
    if way.ndim == PLANE and way.fixed and way.moving:
        moved[:, PLANE:] += way.fixed.space.height - way.moving.space.height
    rows = {name: row for row, name in table["name"].items()}
    for name, place in zip(found["name"], moved.tolist(), strict=True):
        table.loc[rows[name], AXES] = [repr(value) for value in place]
    write_table(table, out)


def apply_file(
    source: Path,
    out: Path,
    way: Way,
    reference: Path | None = None,
    *,
    labels: bool | None = None,
    others: Sequence[Path] = (),
) -> None:
    """Bring a file from the moving to the fixed space.

    Parameters
    ----------
    source : Path
        Image, labels, or a table of landmarks (.tsv).
    out : Path
        Where the result goes.
    way : Way
        See `way_of_registrations` and `way_of_files`.
    reference : Path, optional
        Image whose grid the result has: that of the registration when left out.
    labels : bool, optional
        Whether the file holds labels. When left out, those that BIDS calls `dseg` or `mask` do.
    others : sequence of Path
        Files that must not be written over, besides the source.

    Raises
    ------
    InputError
        When no grid is known, a file cannot be read, has other axes than the transforms or lies elsewhere, or nobody said
        what it holds and it seems to be labels.
    """
    if not source.is_file():
        raise InputError("the file does not exist", file=source, remedy="check the path")
    _check_out(source, out, [*others, *([reference] if reference else [])])
    if source.suffix == TABLE:
        apply_to_points(source, way, out)
        return
    if reference:
        target = Space.of_file(reference, "reference")
    elif way.fixed:
        target = way.fixed.space
    else:
        remedy = "name an image of the space that it goes to by --reference"
        raise InputError("it is not known on which grid the result is wanted", file=source, remedy=remedy)
    space = Space.of_file(source)
    for one in (space, target):
        if one.grid.ndim != way.ndim:
            message = f"the image has {one.grid.ndim} axes and the transforms have {way.ndim}"
            raise InputError(message, file=one.file, remedy="give images and transforms of as many axes")
    _check_place(source, space, target, way)
    if _holds_labels(source, space) if labels is None else labels:
        apply_to_labels(source, target, way.forward, out, way.moving.space.grid if way.moving else None)
    else:
        apply_to_image(source, target, way.forward, out)


def _check_out(source: Path, out: Path, others: Sequence[Path]) -> None:
    """Refuse what is neither image nor table, and a result of another kind or in its place."""
    if suffix_of(source) not in (TABLE, *IMAGES):
        message = "the file is no image (.nii, .nii.gz) and no table of landmarks (.tsv)"
        raise InputError(message, file=source, remedy="convert it")
    wanted = (TABLE,) if source.suffix == TABLE else IMAGES
    if suffix_of(out) not in wanted:
        kind = "a table" if source.suffix == TABLE else "an image"
        raise InputError(f"the result is {kind} and cannot be written there", file=out, remedy=f"let it end in {wanted[-1]}")
    for path in (source, *others):
        if out.exists() and path.exists() and out.samefile(path):
            raise InputError(
                "the result would take the place of what it is made from", file=out, remedy="give another --out"
            )


def _check_place(source: Path, space: Space, target: Space, way: Way) -> None:
    """Refuse an image of the wrong end of the way, another one than was registered, and one that shows nothing there."""
    ends = [end is not None and end.image.exists() and end.image.samefile(source) for end in (way.fixed, way.moving)]
    if ends == [True, False]:
        remedy = "turn the way round: with --inverse, or without it"
        raise InputError("the image is the one that others are brought to", file=source, remedy=remedy)
    if ends[1] and way.moving and not way.moving.space.grid.same_as(space.grid):
        message = "the image has another grid than when it was registered"
        raise InputError(message, file=source, remedy="register it again, or give the image that was registered")
    view = torch.ones((1, 1, *space.grid.shape))
    if not bool(way.forward.apply(view, space.grid, target.grid, "nearest").any()):
        remedy = "check that it lies in the space that the way begins in, and whether --inverse is meant"
        raise InputError("the image shows nothing of where it is brought to", file=source, remedy=remedy)


def _holds_labels(source: Path, space: Space) -> bool:
    """Tell by its name whether a file holds labels; refuse one that seems to without being called so."""
    if LABELS.search(source.name):
        return True
    data = read_voxels(space, source)
    volumes = [data] if data.ndim == space.grid.ndim else [one for one in np.moveaxis(data, -1, 0) if one.any()]
    if volumes and all(seem_labels(one) for one in volumes):
        remedy = "say --labels, or --image to have its values interpolated all the same"
        raise InputError(
            "the image seems to hold labels, between which nothing can be interpolated", file=source, remedy=remedy
        )
    return False
