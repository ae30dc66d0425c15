"""Random poses whose truth is known: how far the corners of an image end from where they belong, in voxels.

The protocol of the CSNGF paper on our data: a brain or a head of IXI, turned by a random rotation of all orientations and
shifted by up to 30 mm along each axis, resampled (cubic) and in another contrast, is brought back to what it was. Of both a
central block is kept, so that neither outline nor centre tell the pose. It is found when the eight corners of the block lie
within 5 voxels (10 mm) of their places on average. Starts are compared as they are: nothing refines them. ANTs' rigid stage,
which begins at the centres of mass, is what most pipelines begin with.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from benchmarks.dataset import LPS
from benchmarks.starts.brains import CONTRASTS, Brain, about, labelled, labelled_scans
from benchmarks.starts.cases import SEED
from benchmarks.starts.methods import quiet
from benchmarks.starts.rows import Row
from benchmarks.starts.scans import scan_of
from popatlas.preprocess.conform import load_single_volume, resample_isotropic
from popatlas.registration.engines.ants.core import register_linear
from popatlas.registration.global_search.csngf import search
from popatlas.registration.initialisation import centre_of_mass, moments
from popatlas.registration.linear import ANTS_ITERATIONS
from popatlas.registration.pair import Pair, load_pair
from popatlas.transforms.affine import Matrix, read_affine

KIND = "pose"
FOUND = 5.0  # voxels
SHIFT = 15.0  # voxels
VOXEL = 2.0  # mm
AIR = 0.1  # of the 99th percentile of a head: what is darker is air or bone, and made 0
TITLE = "Random poses in other contrasts: mean distance of the corners from their places"


@dataclass(frozen=True)
class Posed:
    """An image, its turned copy in another contrast, and the way from fixed to moving points, LPS millimetres."""

    fixed: Brain
    moving: Brain
    truth: Matrix

    def error(self, found: Matrix) -> float:
        """Return how far the corners of the fixed image are from their places on average, voxels."""
        corners = np.array(list(product(*[(0, n - 1) for n in self.fixed.image.shape])), float)
        points = np.c_[corners, np.ones(len(corners))] @ (LPS @ self.fixed.affine).T
        return float(np.linalg.norm((points @ (found - self.truth).T)[:, :3], axis=1).mean() / VOXEL)


def posed(brain: Brain, contrast: str, side: int, rng: np.random.Generator) -> Posed:
    """Turn, shift and recolour an image, and keep a central block of both: each shows something that the other does not."""
    turn, shift = Rotation.random(rng=rng).as_matrix(), rng.uniform(-SHIFT, SHIFT, 3)
    middle, new = np.argwhere(brain.mask > 0).mean(0), np.full(3, (side - 1) / 2)
    back = about(middle, turn)  # voxel of the turned image to voxel of the image
    back[:3, 3] -= turn @ (shift + new - middle)  # ... to voxel of its block
    straight = np.eye(4)
    straight[:3, 3] = middle - new
    affine = VOXEL * np.eye(4)
    affine[:, 3] = [*(brain.centre - VOXEL * new), 1.0]
    fixed, moving = _block(brain, straight, side), replace(_block(brain, back, side), affine=affine)
    truth = LPS @ affine @ np.linalg.inv(back) @ np.linalg.inv(brain.affine) @ LPS
    return Posed(fixed, moving.recoloured(contrast), truth)


def _block(brain: Brain, to_image: np.ndarray, side: int) -> Brain:
    """Resample a cube of voxels, from a matrix to voxels of the image; cubic, mask and labels by the nearest voxel."""
    parts: tuple[tuple[np.ndarray, Literal[0, 3]], ...] = ((brain.image, 3), (brain.mask, 0), (brain.labels, 0))
    image, mask, labels = (
        affine_transform(np.asarray(part, np.float32), to_image[:3, :3], to_image[:3, 3], (side,) * 3, order=order)
        for part, order in parts
    )
    return Brain(brain.name, image.clip(0) * mask, mask, labels, brain.affine @ to_image)


def head(data: Path, scan: str) -> Brain:
    """Return a whole head at 2 mm, 0 in the air; what is not air is mask and label."""
    raw = load_single_volume(next(data.glob(f"{scan}/**/anat/{scan}*_T1w.nii.gz")), scan)
    found = resample_isotropic(raw, VOXEL)
    image = np.asarray(found.dataobj, np.float32)
    image = image / np.percentile(image[image > image.mean()], 99)
    mask = (image > AIR).astype(np.uint8)
    return Brain(scan, image * mask, mask, mask.astype(np.int16), found.affine)


# what makes the images, and how many voxels of 2 mm their blocks have along each side
SOURCES: dict[str, tuple[Callable[[Path, str], Brain], int]] = {"IXI, brains": (labelled, 60), "IXI, heads": (head, 75)}


@dataclass(frozen=True)
class Asked:
    """A pair as scans, as the images of ANTs, and a folder for its files."""

    posed: Posed
    pair: Pair
    folder: Path

    def rigid_of_ants(self) -> Matrix:
        """Return ANTs' rigid transform from the centres of mass."""
        return read_affine(
            register_linear(self.pair.fixed, self.pair.moving, "Rigid", None, ANTS_ITERATIONS, self.folder / "rigid-")
        )

    def by(self, start: Callable[..., Matrix]) -> Matrix:
        """Return what one of our starts finds."""
        return start(scan_of(self.posed.fixed), scan_of(self.posed.moving))


STARTS: dict[str, Callable[[Asked], Matrix]] = {
    "CSNGF": lambda asked: asked.by(lambda fixed, moving: search(fixed, moving).matrix),
    "moments": lambda asked: asked.by(moments),
    "centres of mass": lambda asked: asked.by(centre_of_mass),
    "ANTs rigid": Asked.rigid_of_ants,
}


def pose_rows(data: Path, count: int, has: Callable[..., bool]) -> Iterator[Row]:
    """Yield a row for each image and start that `has` does not know; the contrasts take turns over the subjects."""
    scans = np.random.default_rng(SEED).permutation(labelled_scans(data))[:count]
    for source, (make, side) in SOURCES.items():
        for number, scan in enumerate(map(str, scans)):
            contrast = list(CONTRASTS)[number % len(CONTRASTS)]
            key: Row = {"data": source, "pair": scan, "kind": KIND, "case": contrast}
            todo = [name for name in STARTS if not has(**key, method=name)]
            if not todo:
                continue
            case = posed(make(data, scan), contrast, side, np.random.default_rng([SEED, number]))
            with tempfile.TemporaryDirectory() as scratch:
                asked = _asked(case, Path(scratch))
                for name in todo:
                    started = time.process_time()
                    with quiet():
                        found = STARTS[name](asked)
                    seconds = time.process_time() - started
                    yield {**key, "method": name, "error": case.error(found), "seconds": seconds}


def _asked(case: Posed, folder: Path) -> Asked:
    fixed, moving = (brain.write(folder / name) for name, brain in (("fixed", case.fixed), ("moving", case.moving)))
    files = [str(side / f"{part}.nii.gz") for side in (fixed, moving) for part in ("brain", "mask")]
    return Asked(case, load_pair(*files), folder)


def pose_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how many poses each start finds, the median and the worst error in voxels, and CPU seconds."""
    groups = rows.assign(found=rows["error"] < FOUND).groupby(["data", "method"], sort=False)
    return groups.agg(
        cases=("error", "size"),
        found=("found", "sum"),
        error_median=("error", "median"),
        error_worst=("error", "max"),
        seconds=("seconds", "mean"),
    ).reset_index()
