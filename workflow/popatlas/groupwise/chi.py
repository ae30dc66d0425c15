"""The chi metric of Luo and Zhuang: how much the images of a group say, each for itself, about their common anatomy.

With images ``U_j`` and a map of classes ``Z`` in the common space, ``chi = sum_j I(U_j, Z)``. When the images are
independent given the class, it equals the total correlation of the group plus ``I(U, Z)``. It needs the histogram of one
image at a time only, and does not care which intensity an image gives to a class.

X. Luo, X. Zhuang, IEEE Transactions on Pattern Analysis and Machine Intelligence 2023;45(7):9206-9224,
doi:10.1109/TPAMI.2022.3225418.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from popatlas.groupwise import kernels_chi
from popatlas.similarity.parzen import Axis, intensity_range, tight_axis, window

ORDER = 3  # of the B-spline windows
FLOOR = 1e-12  # probabilities below count as this in logarithms


@dataclass(frozen=True)
class Intensities:
    """How the intensities of one image lie on the axis of its histogram.

    Attributes
    ----------
    axis : Axis
        Bins; one beyond each end holds the windows of the extremes.
    low, high : Tensor of shape (1,)
        Intensities of the ends; what lies beyond counts as the end.
    """

    axis: Axis
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, image: Tensor, weight: Tensor | None, bins: int, percentiles: tuple[float, float]) -> Intensities:
        """Return the axis of an image from the percentiles of the voxels that have weight."""
        flat = image.reshape(1, -1).float()
        inside = torch.ones_like(flat) if weight is None else weight.reshape(1, -1).float()
        low, high = intensity_range(flat, inside, percentiles)
        return cls(tight_axis(bins, ORDER), low, high)

    @property
    def scale(self) -> float:
        """Bins for each unit of intensity; 0 for a constant image."""
        width = float(self.high - self.low)
        return self.axis.cells / width if width > 0 else 0.0

    def positions(self, values: Tensor) -> Tensor:
        """Return intensities (V,) in bins; a little below the last cell's end, so that no window reaches beyond."""
        found = self.axis.positions(values.reshape(1, -1), self.low, self.high)[0]
        return found.clamp(max=self.axis.first + self.axis.cells - 1e-3)

    def counted(self, values: Tensor) -> Tensor:
        """Return 1 for intensities that lie within the ends, and 0 for those that count as an end."""
        return ((values > self.low) & (values < self.high)).to(values.dtype)


def joint_distribution(position: Tensor, weight: Tensor, classes: Tensor, bins: int) -> Tensor:
    """Return the joint distribution of an image's intensity and the class.

    Parameters
    ----------
    position : (V,) Tensor
        Intensities in bins, from `Intensities.positions`.
    weight : (V,) Tensor
        Weight of each voxel, 0 outside of the image or of its mask.
    classes : (K, V) Tensor
        Probability of each class at each voxel.
    bins : int
        Bins of the axis.

    Returns
    -------
    (K, bins) Tensor
        Sums to 1 when the classes do at each voxel; float64.

    Raises
    ------
    ValueError
        When no voxel has weight.
    """
    total = float((weight.double() * classes.double().sum(0)).sum())
    if total <= 0:
        raise ValueError("no voxel with weight: the image does not overlap the common space")
    if position.device.type == "cpu":
        sums = kernels_chi.class_histogram(_array(position), _array(weight), _array(classes), bins)
        return torch.from_numpy(sums) / total
    return _histogram(position, weight, classes, bins) / total


def _histogram(position: Tensor, weight: Tensor, classes: Tensor, bins: int) -> Tensor:
    """Do what `class_histogram` does, on any device."""
    count = len(classes)
    first, values, _ = window(position, Axis(bins, ORDER, 1, bins - 3))
    sums = torch.zeros(count, bins, dtype=torch.float64, device=position.device)
    for step, value in enumerate(values):
        sums.index_add_(1, first + step, (classes * (value * weight)).double())
    return sums


def information(joint: Tensor) -> Tensor:
    """Return the mutual information of the two variables of a joint distribution (..., K, bins), in nats."""
    rows, columns = joint.sum(-1, keepdim=True), joint.sum(-2, keepdim=True)
    ratio = joint.clamp(min=FLOOR).log() - rows.clamp(min=FLOOR).log() - columns.clamp(min=FLOOR).log()
    return torch.where(joint > 0, joint * ratio, 0.0).sum((-2, -1))


def information_slope(joint: Tensor) -> Tensor:
    """Return the derivative (K, bins) of `information` by the entries of a joint distribution, up to a constant."""
    rows, columns = joint.sum(-1, keepdim=True), joint.sum(-2, keepdim=True)
    return joint.clamp(min=FLOOR).log() - rows.clamp(min=FLOOR).log() - columns.clamp(min=FLOOR).log()


def log_appearance(joint: Tensor) -> Tensor:
    """Return the logarithm of the appearance model ``f_k(intensity)`` (K, bins) from a joint distribution."""
    return joint.clamp(min=FLOOR).log() - joint.sum(-1, keepdim=True).clamp(min=FLOOR).log()


def add_log_likelihood(total: Tensor, position: Tensor, weight: Tensor, appearance: Tensor) -> None:
    """Add what an image says of the classes to `total` (K, V): its log appearance at each voxel, times the weight."""
    if total.device.type == "cpu":
        table = np.ascontiguousarray(appearance.T.numpy(), dtype=np.float32)
        kernels_chi.add_log_density(_array(position), _array(weight), table, total.numpy())
        return
    lower = position.floor().long()
    part = position - lower
    logs = appearance.to(total)
    total += weight * (logs[:, lower] * (1 - part) + logs[:, lower + 1] * part)


def intensity_slope(position: Tensor, weight: Tensor, classes: Tensor, slope: Tensor) -> Tensor:
    """Return the derivative (V,) of a function of the joint distribution by the position of each voxel.

    Parameters
    ----------
    position, weight, classes
        As for `joint_distribution`.
    slope : (K, bins) Tensor
        Derivative of the function by the entries of the distribution.
    """
    total = float((weight.double() * classes.double().sum(0)).sum())
    if position.device.type == "cpu":
        table = np.ascontiguousarray((slope / total).T.numpy(), dtype=np.float32)
        out = torch.empty_like(position)
        kernels_chi.slopes(_array(position), _array(weight), _array(classes), table, out.numpy())
        return out
    return _slopes(position, weight, classes, slope / total)


def _slopes(position: Tensor, weight: Tensor, classes: Tensor, slope: Tensor) -> Tensor:
    """Do what `slopes` does, on any device."""
    first, _, changes = window(position, Axis(slope.shape[1], ORDER, 1, slope.shape[1] - 3))
    table = slope.to(position)
    terms = [(classes * table[:, first + step]).sum(0) * change for step, change in enumerate(changes)]
    return weight * torch.stack(terms).sum(0)


def _array(tensor: Tensor) -> kernels_chi.Vector:
    return tensor.detach().float().contiguous().numpy()


def normalised(log_values: Tensor, smallest: float) -> Tensor:
    """Return probabilities (K, V) from logarithms, none of them below `smallest`.

    An image that calls a class impossible would otherwise rule it out for ever, however many others see it.
    """
    shares = torch.softmax(log_values, 0)
    return shares * (1 - smallest * len(shares)) + smallest


def chi(joints: Sequence[Tensor]) -> float:
    """Return the chi metric from the joint distribution of each image with the classes, in nats."""
    return float(sum(information(joint) for joint in joints))
