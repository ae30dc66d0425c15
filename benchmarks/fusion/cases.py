"""Registered candidates of real targets, by engines of different quality, kept as files so that a second run is quick.

Each pair is registered three ways: linearly and then with the instance engine (`deformable`), linearly only (`affine`), and
linearly with a random rigid error on top (`displaced`), which is what a failed registration looks like.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from benchmarks.arrays import save_arrays
from benchmarks.dataset import LPS, label_box, parcellations, scans_of
from popatlas.fusion.candidates import Candidates
from popatlas.images.grid import Grid
from popatlas.images.scan import Scan
from popatlas.measures.scan import resample_labels
from popatlas.registration.engines.affine import register as register_linear
from popatlas.registration.engines.instance.core import register
from popatlas.registration.engines.instance.settings import preset
from popatlas.transforms.fields import displaced, sample
from popatlas.transforms.linear import move, voxel_matrix

QUALITIES = ("deformable", "affine", "displaced")
# rigid error of a failed registration: standard deviations
DEGREES, MILLIMETRES = 12.0, 8.0


@dataclass(frozen=True)
class Labelled:
    """One image with its labels on a regular grid; the image is 0 outside of the head or crop and about 1 inside."""

    name: str
    image: np.ndarray
    labels: np.ndarray
    grid: Grid

    @property
    def scan(self) -> Scan:
        """The image as input of an engine."""
        return Scan(torch.from_numpy(self.image)[None, None], self.grid)


def load_hippocampus(data: Path) -> list[Labelled]:
    """Return the crops of the Medical Segmentation Decathlon's Task04, in order of their names."""
    return [
        _labelled(path.name.removesuffix(".nii.gz"), nib.load(path), data / "labels" / path.name)
        for path in sorted((data / "images").glob("*.nii.gz"))
    ]


def load_heads(data: Path, smallest: int = 100) -> list[Labelled]:
    """Return the heads of a BIDS dataset with one parcellation each, without skull; labels of few voxels are background.

    Parameters
    ----------
    data : Path
        Dataset with `derivatives/*/{scan}_*dseg.nii.gz`.
    smallest : int
        A label counts when it has that many voxels in each head.
    """
    heads = []
    for scan in scans_of(data):
        image = nib.load(data / f"{scan}_T1w.nii.gz")
        heads.append(_labelled(scan.split("/")[0], image, parcellations(data, scan)[0], strip=True))
    sizes = np.min([np.bincount(head.labels.ravel(), minlength=1000) for head in heads], axis=0)
    kept = sizes >= smallest
    return [Labelled(head.name, head.image, np.where(kept[head.labels], head.labels, 0), head.grid) for head in heads]


def _labelled(name: str, image: nib.Nifti1Image, labels: Path, strip: bool = False) -> Labelled:
    """Return an image in RAS order, cropped to its labels when it is stripped."""
    image = nib.as_closest_canonical(image)
    values = np.asarray(image.dataobj, np.float32)
    dseg = resample_labels(labels, image)
    affine = image.affine.copy()
    if strip:
        box = label_box(dseg, 3)
        affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
        values, dseg = np.where(dseg > 0, values, 0)[box], dseg[box]
    scale = np.percentile(values[values > 0], 99)
    grid = Grid(values.shape, LPS @ affine)
    return Labelled(name, np.ascontiguousarray(values / scale, np.float32), np.ascontiguousarray(dseg), grid)


def register_pair(target: Labelled, atlas: Labelled) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return (labels, image) of the atlas on the grid of the target, for each quality; each resampled once."""
    fixed, moving = target.scan, atlas.scan
    matrix = register_linear(fixed, moving).matrix
    world = torch.as_tensor(matrix, dtype=torch.float64)[None]
    to_moving = voxel_matrix(world, fixed.grid, moving.grid)[:, :3].float()
    found = register(fixed.image, moving.image, preset("default"), matrix=to_moving)
    still = torch.zeros_like(found.forward)
    wrong = voxel_matrix(world @ _rigid_error(target, atlas)[None], fixed.grid, moving.grid)[:, :3].float()
    ways = {"deformable": (to_moving, found.forward), "affine": (to_moving, still), "displaced": (wrong, still)}
    return {quality: _resampled(atlas, *way) for quality, way in ways.items()}


def _resampled(atlas: Labelled, to_moving: Tensor, displacement: Tensor) -> tuple[np.ndarray, np.ndarray]:
    points = move(to_moving, displaced(displacement))
    labels = sample(torch.from_numpy(atlas.labels)[None, None], points, mode="nearest", padding="zeros")
    image = sample(torch.from_numpy(atlas.image)[None, None], points, padding="zeros")
    return labels[0, 0].numpy(), image[0, 0].numpy()


def _rigid_error(target: Labelled, atlas: Labelled) -> Tensor:
    """Return a rigid motion about the centre of the target, LPS mm, (4, 4); the same for the same names."""
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(crc32(f"{target.name} {atlas.name}".encode()))
    size = min(1.0, min(target.grid.shape) * min(target.grid.spacing) / 100)  # a crop is lost with less
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_rotvec(rng.normal(0, DEGREES, 3), degrees=True).as_matrix()
    centre = (target.grid.affine @ [*(np.array(target.grid.shape) - 1) / 2, 1])[:3]
    motion[:3, 3] = centre - motion[:3, :3] @ centre + rng.normal(0, MILLIMETRES * size, 3)
    return torch.as_tensor(motion)


def registered(targets: Sequence[Labelled], atlases: Sequence[Labelled], folder: Path) -> Iterator[Path]:
    """Yield the file of each target with all its candidates; atlases of the target itself are left out.

    A file holds target, truth, spacing, names, and `labels_{quality}` and `images_{quality}` of :data:`QUALITIES`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for target in targets:
        path = folder / f"{target.name}.npz"
        if not path.is_file():
            others = [atlas for atlas in atlases if atlas.name != target.name]
            pairs = [register_pair(target, atlas) for atlas in others]
            arrays = {
                "target": target.image,
                "truth": target.labels,
                "spacing": np.array(target.grid.spacing),
                "names": np.array([atlas.name for atlas in others]),
            }
            arrays |= {
                f"{kind}_{quality}": np.stack([pair[quality][number] for pair in pairs])
                for quality in QUALITIES
                for number, kind in enumerate(("labels", "images"))
            }
            save_arrays(path, arrays, compress=True)
            print(f"{target.name}: {len(others)} atlases registered", flush=True)
        yield path


def candidates(path: Path, qualities: Sequence[str]) -> tuple[Candidates, np.ndarray]:
    """Return the candidates of a file, the i-th one in the i-th quality (repeated when there are more), and the truth."""
    with np.load(path, allow_pickle=False) as content:
        chosen = [qualities[number % len(qualities)] for number in range(len(content["names"]))]
        stacks = {kind: {quality: content[f"{kind}_{quality}"] for quality in set(chosen)} for kind in ("labels", "images")}
        labels, images = (
            np.stack([stacks[kind][quality][number] for number, quality in enumerate(chosen)])
            for kind in ("labels", "images")
        )
        spacing, names = tuple(content["spacing"].tolist()), tuple(content["names"].tolist())
        return Candidates(labels, content["target"], images, spacing, names, path.stem), content["truth"]
