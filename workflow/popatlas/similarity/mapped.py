"""Local correlation after the intensities of one image were mapped to those of the other, where their contrasts differ.

The mapping is the mean intensity of one image for each intensity of the other, as the images lie now; it is learned anew at
each evaluation, so that it gets better with the alignment. Guimond et al., IEEE Transactions on Medical Imaging
2001;20:58-69, doi:10.1109/42.906425, do so with polynomials and squared differences; here it is a table, and local
correlation forgives what a table cannot know, such as bias fields. Images of one contrast are compared as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from popatlas.settings import option, settings
from popatlas.similarity.base import Similarity
from popatlas.similarity.lncc import LNCC
from popatlas.similarity.parzen import Axis, intensity_range, joint_histogram, tight_axis
from popatlas.transforms.fieldops import CompiledForce, PlaneForce, Share, Volume

Table = npt.NDArray[np.float32]
FLOOR = 1e-4  # squared intensity of images scaled to 0..1: mapped intensities span less than those of one contrast
FEWEST = 1e-5  # share of the voxels from which on a bin knows its mean
SMOOTH = (0.25, 0.5, 0.25)  # of a table


@dataclass(frozen=True)
class Mapping:
    """Which image is mapped, 0 or 1, from which intensities to which values; no image when `values` is None.

    Attributes
    ----------
    image : int
        0 the fixed one, 1 the moving one.
    low, high : float
        Intensities of the first and the last entry.
    values : (bins,) float32 ndarray or None
        Intensity of the other image.
    """

    image: int = 1
    low: float = 0.0
    high: float = 1.0
    values: Table | None = None

    def of(self, data: Volume) -> Volume:
        """Return mapped voxels; background of exactly 0 stays 0."""
        assert self.values is not None
        found = np.interp(data, np.linspace(self.low, self.high, len(self.values)), self.values).astype(np.float32)
        found[data == 0] = 0
        return found

    def of_tensor(self, data: Tensor) -> Tensor:
        """Return mapped intensities (C, *shape), with derivatives by the intensities."""
        assert self.values is not None
        table = torch.as_tensor(self.values, device=data.device)
        last = len(table) - 1
        position = ((data - self.low) * (last / (self.high - self.low))).clamp(0, last)
        lower = position.detach().floor().clamp(max=last - 1)
        index, share = lower.long(), position - lower
        return torch.where(data == 0, data, table[index] * (1 - share) + table[index + 1] * share)


@settings
class MappedLNCC(Similarity):
    """Local correlation of two images, one of them mapped to the contrast of the other where the contrasts differ."""

    radius: int = option(2, "Windows have 2 radius + 1 voxels along each axis", ge=1, le=64)
    floor: float = option(
        FLOOR,
        "Squared intensity that is added to both variances, so that windows that hold only noise neither count nor push",
        ge=0,
    )
    bins: int = option(64, "Entries of the table that maps intensities", ge=8, le=1024)
    gain: float = option(
        0.1, "Share of the variance that a mapping must explain beyond a linear one, else nothing is mapped", ge=0, le=1
    )

    def _local(self) -> LNCC:
        return LNCC(radius=self.radius, floor=self.floor)

    def _axis(self) -> Axis:
        return tight_axis(self.bins, 1)

    def compiled_force(self) -> CompiledForce | None:
        """Return the compiled force of the local correlation, after the mapping."""
        from popatlas.similarity.kernels_nmi import joint_sums  # numba

        local = self._local().compiled_force()
        assert local is not None

        def force(fixed: Volume, moving: Volume, weight: Volume, share: Share) -> PlaneForce:
            ends = [(float(image[image != 0].min(initial=0)), float(image.max())) for image in (fixed, moving)]
            low = np.array([low for low, _ in ends], np.float32)
            scale = np.array([(self.bins - 1) / (high - low) if high > low else 0.0 for low, high in ends], np.float32)
            present = ((fixed != 0) & (moving != 0)).astype(np.float32)
            if weight.shape[0] > 1:
                present *= weight
            joint = np.sum(share(partial(joint_sums, fixed, moving, present, low, scale, self.bins)), axis=0)
            found = find_mapping(joint, ends, self.gain)
            images = [fixed, moving]
            if found.values is not None:
                images[found.image] = found.of(images[found.image])
            return local(images[0], images[1], weight, share)

        return force

    def _compare(self, fixed: Tensor, moving: Tensor, weight: Tensor | None) -> Tensor:
        """Return the loss (B,), in [-1, 0]."""
        mapped = [fixed, moving]
        if fixed.shape[1] == 1:
            rows = [
                self._mapped(fixed[row], moving[row], None if weight is None else weight[row]) for row in range(len(fixed))
            ]
            mapped = [torch.stack(side) for side in zip(*rows, strict=True)]
        return self._local()(mapped[0], mapped[1], weight)

    def _mapped(self, fixed: Tensor, moving: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return a pair (1, *shape) each, one of the two mapped where the contrasts differ."""
        with torch.no_grad():
            present = ((fixed != 0) & (moving != 0)).to(fixed.dtype)
            weights = (present if weight is None else present * weight).flatten(1)
            if not bool(weights.any()):
                return fixed, moving
            flat = [image.detach().flatten(1) for image in (fixed, moving)]
            ranges = [intensity_range(values, weights, (0.0, 100.0)) for values in flat]
            axis = self._axis()
            positions = [axis.positions(values, *ends) for values, ends in zip(flat, ranges, strict=True)]
            joint = joint_histogram(positions[0], positions[1], weights, (axis, axis))[0].cpu().numpy()
            found = find_mapping(joint, [(float(low), float(high)) for low, high in ranges], self.gain)
        pair = [fixed, moving]
        if found.values is not None:
            pair[found.image] = found.of_tensor(pair[found.image])
        return pair[0], pair[1]


def find_mapping(joint: npt.NDArray[np.float64], ends: list[tuple[float, float]], gain: float) -> Mapping:
    """Return the mapping between two images, in the direction in which it explains more.

    Parameters
    ----------
    joint : (bins, bins) ndarray
        Joint histogram of the fixed (rows) and the moving image.
    ends : list of (float, float)
        Intensities of the first and the last bin of both images.
    gain : float
        Share of the variance that it must explain beyond a linear relation.

    Returns
    -------
    Mapping
        Without values where a linear relation is as good, or an image is constant.
    """
    total = joint.sum()
    if total <= 0 or any(high <= low for low, high in ends):
        return Mapping()
    shares = joint / total
    centres = [np.linspace(low, high, len(joint)) for low, high in ends]
    found = []
    for image in (0, 1):
        table = shares.T if image == 0 else shares  # rows: the other image, whose intensity is explained
        values, explained = _conditional_mean(table, centres[1 - image])
        found.append((explained, image, values))
    explained, image, values = max(found, key=lambda one: one[0])
    if explained - _linear(shares, centres) < gain:
        return Mapping()
    return Mapping(image, *ends[image], values)


def _conditional_mean(table: npt.NDArray[np.float64], centres: npt.NDArray[np.float64]) -> tuple[Table, float]:
    """Return the mean intensity of the rows for each column, and the share of their variance that it explains."""
    columns = table.sum(0)
    known = columns > FEWEST
    if not known.any():
        return np.zeros(len(columns), np.float32), 0.0
    means = (centres @ table)[known] / columns[known]
    place = np.arange(len(columns))
    filled = np.interp(place, place[known], means)
    values = np.convolve(np.pad(filled, 1, mode="edge"), SMOOTH, mode="valid")
    rows = table.sum(1)
    middle = float(rows @ centres)
    variance = float(rows @ (centres - middle) ** 2)
    between = float(columns[known] @ (means - middle) ** 2)
    return values.astype(np.float32), between / variance if variance > 0 else 0.0


def _linear(shares: npt.NDArray[np.float64], centres: list[npt.NDArray[np.float64]]) -> float:
    """Return the squared correlation of the two intensities; 0 for an inverted contrast, which is another one."""
    rows, columns = shares.sum(1), shares.sum(0)
    a, b = centres[0] - rows @ centres[0], centres[1] - columns @ centres[1]
    variance = float((rows @ a**2) * (columns @ b**2))
    covariance = float(a @ shares @ b)
    return covariance**2 / variance if variance > 0 and covariance > 0 else 0.0
