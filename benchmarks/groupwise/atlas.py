"""Atlas of real heads by X-CoReg beside the pipeline's mean template, in one run and from the same brains.

Brains are T1w at 2 mm, without skull. X-CoReg registers all at once, from their affines. The mean template is
built as the pipeline does (`atlas` of the shipped configuration), and the brains are registered to its last form once more.
Then the parcellations of all heads are compared in the space of each atlas, pair by pair. The classes of X-CoReg are scored
against the tissue that most of the warped parcellations have.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch
from scipy.ndimage import binary_dilation
from torch import Tensor

from benchmarks.common import Bar, Record, at_least
from benchmarks.deep.cohort import prepare
from benchmarks.groupwise.tissues import CSF, GREY, TISSUES, WHITE
from benchmarks.registration.worker import memory_mb
from popatlas.config.load import default_content
from popatlas.groupwise.template import reference_brain, sharpness, update_template
from popatlas.groupwise.xcoreg.core import coregister
from popatlas.groupwise.xcoreg.settings import XCoRegSettings
from popatlas.images.arrays import IntArray
from popatlas.images.grid import Grid
from popatlas.images.io import load_image, save_image
from popatlas.measures.scan import resample_labels
from popatlas.registration.attempt import register
from popatlas.registration.engines.io import between_voxels
from popatlas.registration.engines.registry import shipped_attempt
from popatlas.registration.pair import load_pair
from popatlas.training.table import TrainingScan, read_training_table
from popatlas.transforms.affine import mean_affine, read_affine, stretch_about
from popatlas.transforms.fields import coordinates, sample
from popatlas.transforms.itk import read_displacement
from popatlas.transforms.linear import move, voxel_matrix

SPACING_MM, RIM_VOXELS = 2.0, 3
HEADS = 16
# real brains differ in finer ways than the simulated groups, and their tissues need more than four classes
GROUP = XCoRegSettings(classes=8, fluid=1.5, elastic=0.3, iterations=(80, 80, 60, 12))
MUSE_TISSUES = dict(zip(TISSUES, (CSF, GREY, WHITE), strict=True))


@dataclass(frozen=True)
class Found:
    """What a method made: where a common voxel lies in each brain, classes if it has any, seconds and memory."""

    points: list[Tensor]  # (1, 3, *shape), voxels of each brain
    labels: Tensor | None
    cpu_s: float
    peak_mb: float


def common_grid() -> Grid:
    """Return the grid of both atlases."""
    image, affine = reference_brain(SPACING_MM)
    return Grid.from_affine(image.shape, affine)


def volume(path: Path) -> Tensor:
    """Return an image as (1, 1, *shape)."""
    return torch.from_numpy(np.asarray(load_image(path).dataobj, dtype=np.float32))[None, None]


def starts_of(scans: Sequence[TrainingScan], grid: Grid) -> list[Tensor]:
    """Return the affine of each scan (1, 3, 4), from common voxels to its own.

    They are those to MNI152 without their mean stretch, so that the common space has the mean size of the heads, as the
    template has: in a larger one edges would be less steep.
    """
    assert all(scan.affine is not None for scan in scans)
    affines = [read_affine(scan.affine) for scan in scans if scan.affine is not None]
    smaller = np.linalg.inv(stretch_about(mean_affine(affines), grid.centre))
    return [
        voxel_matrix(torch.from_numpy(affine @ smaller)[None], grid, Grid.from_file(scan.image))[:, :3].float()
        for affine, scan in zip(affines, scans, strict=True)
    ]


def points_of(matrix: Tensor, field: Tensor) -> Tensor:
    """Return where displaced common voxels lie in a brain."""
    whole = torch.cat([matrix, torch.tensor([[[0.0, 0, 0, 1]]])], 1)
    return move(whole, coordinates(field.shape[2:]) + field)


def affine_only(scans: Sequence[TrainingScan], folder: Path) -> Found:
    """Return the brains as they start."""
    grid = common_grid()
    still = torch.zeros(1, 3, *grid.shape)
    return Found([points_of(start, still) for start in starts_of(scans, grid)], None, 0.0, 0.0)


def by_xcoreg(scans: Sequence[TrainingScan], folder: Path) -> Found:
    """Return the atlas of X-CoReg."""
    grid = common_grid()
    before, started = memory_mb(peak=False), time.process_time()
    masks: list[Tensor | None] = []
    for scan in scans:
        assert scan.mask is not None
        inside = np.asarray(load_image(scan.mask).dataobj) > 0
        masks.append(torch.from_numpy(binary_dilation(inside, iterations=RIM_VOXELS).astype(np.float32))[None, None])
    found = coregister(
        [volume(scan.image) for scan in scans],
        GROUP,
        shape=grid.shape,
        matrices=starts_of(scans, grid),
        masks=masks,
        names=[scan.name for scan in scans],
        progress=lambda line: print(line, flush=True),
    )
    points = [points_of(matrix, field) for matrix, field in zip(found.matrices, found.displacements, strict=True)]
    return Found(points, found.labels(), time.process_time() - started, memory_mb(peak=True) - before)


def by_template(scans: Sequence[TrainingScan], folder: Path) -> Found:
    """Return the mean template of the pipeline, and the brains registered to it once more."""
    before, started = memory_mb(peak=False), time.process_time()
    image, affine = reference_brain(SPACING_MM)
    current = folder / "template.nii.gz", folder / "mask.nii.gz"
    save_image(image, affine, current[0])
    save_image((image > 0).astype(np.uint8), affine, current[1])
    content = default_content()["atlas"]
    presets = content["presets"]
    transforms: list[tuple[Path, Path]] = []
    for turn in range(content["iterations"] + 1):  # the last one registers to the finished template
        attempt = shipped_attempt("instance", presets[min(turn, len(presets) - 1)])
        transforms = []
        warped: list[Path] = []
        masks: list[Path] = []
        for number, scan in enumerate(scans):
            assert scan.mask is not None
            place = folder / f"{turn}-{number}"
            place.mkdir()
            made = register(load_pair(*current, scan.image, scan.mask, scan.subject), attempt, place)
            transforms.append((made.affine, made.warp))
            for kind, source in (("brain", scan.image), ("mask", scan.mask)):
                moved = sample(
                    volume(source), _points(made.affine, made.warp, scan), "linear" if kind == "brain" else "nearest"
                )
                save_image(moved[0, 0].numpy(), affine, place / f"{kind}.nii.gz", np.float32)
            warped.append(place / "brain.nii.gz")
            masks.append(place / "mask.nii.gz")
        if turn == content["iterations"]:
            break
        template, mask, row = update_template(
            turn + 1, current, warped, masks, transforms, shape_step=content["shape_step"], sharpen_weight=content["sharpen"]
        )
        print(row, flush=True)
        current = folder / f"template{turn}.nii.gz", folder / f"mask{turn}.nii.gz"
        sitk.WriteImage(template, str(current[0]))
        sitk.WriteImage(mask, str(current[1]))
    points = [_points(*transform, scan) for transform, scan in zip(transforms, scans, strict=True)]
    return Found(points, None, time.process_time() - started, memory_mb(peak=True) - before)


def _points(affine: Path, warp: Path, scan: TrainingScan) -> Tensor:
    field, grid = read_displacement(warp)
    return points_of(between_voxels(affine, grid, Grid.from_file(scan.image)), torch.from_numpy(field)[None].float())


METHODS: dict[str, Callable[[Sequence[TrainingScan], Path], Found]] = {
    "affine": affine_only,
    "mean-template": by_template,
    "xcoreg-diffeomorphic": by_xcoreg,
}


def pairwise_dice(maps: Sequence[IntArray]) -> float:
    """Return the mean Dice over all pairs of label maps, mean over the labels that either has."""
    numbers = np.unique(np.concatenate([np.unique(one) for one in maps]))
    places = [np.searchsorted(numbers, one.ravel()) for one in maps]
    sizes = [np.bincount(place, minlength=len(numbers)) for place in places]
    found = []
    for j, one in enumerate(places):
        for i in range(j):
            both = np.bincount(one[one == places[i]], minlength=len(numbers))
            total = sizes[i] + sizes[j]
            used = (total > 0) & (numbers > 0)
            found.append(float((2 * both[used] / total[used]).mean()))
    return float(np.mean(found))


def tissues_of(labels: IntArray) -> IntArray:
    """Return the tissue of each voxel of a parcellation, from 1; 0 where it counts for none."""
    found = np.zeros(labels.shape, np.int32)
    for number, muse in enumerate(MUSE_TISSUES.values(), 1):
        found[np.isin(labels, muse)] = number
    return found


def class_rows(labels: IntArray, maps: Sequence[IntArray], method: str) -> list[Record]:
    """Return the Dice of the classes of an atlas with the tissue that most warped parcellations have.

    Each class counts for the tissue that it shares most voxels with, background among them.
    """
    shares = np.stack([np.mean([one == number for one in maps], 0) for number in range(len(TISSUES) + 1)])
    known = shares.argmax(0)
    table = np.array([[((labels == k) & (known == t)).sum() for t in range(len(shares))] for k in range(labels.max() + 1)])
    mine = table.argmax(1)[labels]
    rows: list[Record] = []
    for number, tissue in enumerate(TISSUES, 1):
        a, b = mine == number, known == number
        score = 2 * float((a & b).sum()) / float(a.sum() + b.sum())
        rows.append({"method": method, "tissue": tissue, "dice": score, "classes": float((table.argmax(1) == number).sum())})
    return rows


def scored(method: str, found: Found, scans: Sequence[TrainingScan], grid: Grid) -> tuple[Record, list[Record]]:
    """Return the scores of an atlas, and those of its classes."""
    maps, total, inside = [], torch.zeros(1, 1, *grid.shape), torch.zeros(1, 1, *grid.shape)
    for scan, at in zip(scans, found.points, strict=True):
        assert scan.labels is not None
        assert scan.mask is not None
        own = resample_labels(scan.labels, load_image(scan.image)).astype(np.float32)
        maps.append(sample(torch.from_numpy(own)[None, None], at, "nearest")[0, 0].numpy().astype(np.int32))
        total += sample(volume(scan.image), at) / len(scans)
        inside += sample(volume(scan.mask), at) / len(scans)
    mean = sitk.GetImageFromArray(total[0, 0].numpy())
    mean.SetSpacing((SPACING_MM,) * 3)
    tissues = [tissues_of(one) for one in maps]
    row: Record = {
        "method": method,
        "dice": pairwise_dice(maps),
        "tissue_dice": pairwise_dice(tissues),
        "sharpness": sharpness(mean, inside[0, 0].numpy() >= 0.5),
        "cpu_s": found.cpu_s,
        "peak_mb_more": found.peak_mb,
        "heads": float(len(scans)),
    }
    classes = [] if found.labels is None else class_rows(found.labels.numpy().astype(np.int32), tissues, method)
    return row, classes


def _work(method: str, scans: Sequence[TrainingScan], pipe: Connection) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pipe.send(scored(method, METHODS[method](scans, Path(folder)), scans, common_grid()))


def atlas_tables(data: Path, cohort: Path, heads: int, names: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the scores of each atlas and those of the classes; each method in a fresh process."""
    scans = read_training_table(prepare(data, cohort))[:heads]
    context = multiprocessing.get_context("spawn")
    rows: list[Record] = []
    classes: list[Record] = []
    for method in names:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(method, scans, sender))
        process.start()
        row, more = receiver.recv()
        process.join()
        print(row, more, flush=True)
        rows.append(row)
        classes += more
    return pd.DataFrame(rows), pd.DataFrame(classes)


def atlas_bars(table: pd.DataFrame) -> list[Bar]:
    """Return what has to hold."""
    found = {score: table.set_index("method")[score].to_dict() for score in ("dice", "tissue_dice", "sharpness")}
    return [
        at_least(f"atlas: {score} of X-CoReg against the mean template", of["xcoreg-diffeomorphic"], of["mean-template"])
        for score, of in found.items()
    ]
