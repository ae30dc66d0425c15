"""Training data of data parameters: targets with candidate classes, sampled voxels, class weights, augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.fusion.candidates import Candidates
from popatlas.fusion.labels import Box, bounding_box
from popatlas.images.arrays import FloatArray

# share of the sampled voxels that are disputed, where there are as many
DISPUTED_SHARE = 0.7
# augmentation: standard deviations of affine entries, of shifts in voxels, of the log intensity scale, and of the noise
# relative to the image's
TILT, SHIFT, GAIN, NOISE = 0.03, 2.0, 0.1, 0.03
KNOTS = 12.0  # voxels between control points
CLASS_POWER = 0.35
MARGIN = 2  # voxels round the head


@dataclass(frozen=True)
class TrainingTarget:
    """An image and the classes that its candidates give it.

    Attributes
    ----------
    name : str
        Of the target.
    image : (x, y[, z]) float32 ndarray
        Standardised, and cropped to `box`.
    labels : (n_candidates, x, y[, z]) uint16 ndarray
        Class numbers on the same grid.
    box : tuple of slice
        Where the crop lies on the grid of the target.
    """

    name: str
    image: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint16]
    box: Box = ()

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.image.ndim

    @cached_property
    def foreground(self) -> npt.NDArray[np.float32]:
        """Voxels of each candidate that are not background."""
        return np.array([np.count_nonzero(one) for one in self.labels], dtype=np.float32)

    @cached_property
    def disputed(self) -> npt.NDArray[np.int32]:
        """Flat numbers of the voxels where candidates differ; of those with a label when there is one candidate."""
        return np.flatnonzero(self._first).astype(np.int32)

    @cached_property
    def unanimous(self) -> npt.NDArray[np.int32]:
        """Flat numbers of all other voxels."""
        return np.flatnonzero(~self._first).astype(np.int32)

    @property
    def _first(self) -> npt.NDArray[np.bool_]:
        """Voxels that are looked at first."""
        one = len(self.labels) == 1
        return np.asarray(self.labels[0] > 0 if one else (self.labels != self.labels[:1]).any(axis=0))


@dataclass(frozen=True)
class Sample:
    """One target in a training step.

    Attributes
    ----------
    image : (1, 1, *shape) Tensor
        Augmented or not.
    voxels : (n,) int64 Tensor
        Flat numbers of the voxels where the loss is computed.
    labels : (n_candidates, n) int64 Tensor
        Class of each candidate there.
    importance : (n,) Tensor
        Voxels of the image that each one stands for.
    foreground : (n_candidates,) Tensor
        Foreground voxels of the whole candidates.
    """

    image: Tensor
    voxels: Tensor
    labels: Tensor
    importance: Tensor
    foreground: Tensor


def standardised(image: FloatArray) -> tuple[npt.NDArray[np.float32], Box]:
    """Return an image as the network sees it, and the box of the grid that it covers: the voxels that are not 0.

    Mean 0 and standard deviation 1 over the voxels that are not 0. Training and labelling crop alike, so that a position in
    the crop is a position in the head.
    """
    box = bounding_box(image != 0, margin=MARGIN)
    inside = image[image != 0]
    if inside.size == 0 or inside.std() == 0:
        box = tuple(slice(0, count) for count in image.shape)
        return np.zeros(image.shape, dtype=np.float32), box
    return np.asarray((image[box] - inside.mean()) / inside.std(), dtype=np.float32), box


def label_values(stacks: Sequence[Candidates]) -> npt.NDArray[np.int64]:
    """Return the label values of all candidates of all targets, background first."""
    found = {0}
    for candidates in stacks:
        found |= set(np.unique(candidates.labels).tolist())
    return np.array(sorted(found), dtype=np.int64)


def training_target(candidates: Candidates, labels: npt.NDArray[np.int64], name: str = "") -> TrainingTarget:
    """Return candidates as training data.

    Parameters
    ----------
    candidates : Candidates
        With a target image; those of the atlases are not used.
    labels : (n_labels,) int64 ndarray
        Sorted label values that the network knows.
    name : str
        Of the target; the subject of the candidates when left out.

    Raises
    ------
    InputError
        No target image, or a label that the network does not know.
    """
    name = name or candidates.subject or ""
    if candidates.target is None:
        raise InputError("data parameters need the image of the target", subject=name, remedy="give it too")
    unknown = np.setdiff1d(np.unique(candidates.labels), labels)
    if unknown.size:
        raise InputError(
            f"{unknown.size} label(s) that the network was not trained on, such as {unknown[0]}",
            subject=name,
            remedy="train again: remove the network, or use the atlases that it was trained on",
        )
    image, box = standardised(candidates.target)
    classes = np.searchsorted(labels, candidates.labels[(slice(None), *box)]).astype(np.uint16)
    return TrainingTarget(name, image, classes, box)


def label_counts(targets: Sequence[TrainingTarget], n_labels: int) -> npt.NDArray[np.int64]:
    """Return the voxels of each class over all candidates of all targets, (n_labels,)."""
    counts = [np.bincount(target.labels.ravel(), minlength=n_labels) for target in targets]
    return np.asarray(np.sum(counts, axis=0))


def class_weights(targets: Sequence[TrainingTarget], n_labels: int) -> Tensor:
    """Return the weight of each class, its number of voxels to the power -0.35, scaled to a mean of 1 over those present."""
    counts = label_counts(targets, n_labels)
    weights = np.where(counts > 0, np.maximum(counts, 1.0) ** -CLASS_POWER, 0.0)
    return torch.as_tensor(weights / weights[counts > 0].mean(), dtype=torch.float32)


def draw(
    target: TrainingTarget,
    voxels: int,
    rng: np.random.Generator,
    augment: bool = False,
    bend: float = 0.0,
    device: str = "cpu",
) -> Sample:
    """Return a target with the voxels of a training step: all, or a random part that stands for all.

    Parameters
    ----------
    target : TrainingTarget
        Where from.
    voxels : int
        Most voxels.
    rng : Generator
        Random numbers.
    augment : bool
        Change image and labels at random: an affine, the scale of the intensities, noise.
    bend : float
        With `augment`, also a B-spline deformation; standard deviation of its control points, voxels.
    device : str
        Of the tensors.
    """
    disputed, unanimous = target.disputed, target.unanimous
    many = min(len(disputed), max(round(voxels * DISPUTED_SHARE), voxels - len(unanimous)))
    parts = []
    for numbers, count in ((disputed, many), (unanimous, min(len(unanimous), voxels - many))):
        chosen = numbers if count == len(numbers) else rng.choice(numbers, count, replace=False)
        parts.append((chosen, np.full(len(chosen), len(numbers) / max(len(chosen), 1), dtype=np.float32)))
    source = np.concatenate([chosen for chosen, _ in parts])
    importance = np.concatenate([weight for _, weight in parts])
    image, where = torch.from_numpy(target.image)[None, None], source
    if augment:
        motion = _Motion.random(target.image.shape, rng, bend)
        image = motion.of_image(image)
        image = image * float(np.exp(rng.normal(0, GAIN)))
        image = image + torch.as_tensor(rng.normal(0, NOISE, target.image.shape), dtype=torch.float32)
        where, source, inside = motion.of_voxels(source)
        importance = importance[inside]
    flat = target.labels.reshape(len(target.labels), -1)
    return Sample(
        image.to(device),
        torch.as_tensor(where, device=device),
        torch.as_tensor(flat[:, source].astype(np.int64), device=device),
        torch.as_tensor(importance, device=device),
        torch.as_tensor(target.foreground, device=device),
    )


@dataclass(frozen=True)
class _Motion:
    """A deformation: the moved image at voxel p is the image at ``linear p + offset + curve(p)``."""

    linear: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]
    curve: npt.NDArray[np.float64]

    @classmethod
    def random(cls, shape: Sequence[int], rng: np.random.Generator, bend: float) -> _Motion:
        """Draw a motion of an image."""
        from popatlas.transforms.ffd import control_shape, dense_from_control

        ndim, centre = len(shape), (np.array(shape) - 1) / 2
        linear = np.eye(ndim) + rng.normal(0, TILT, (ndim, ndim))
        offset = centre - linear @ centre + rng.normal(0, SHIFT, ndim)
        curve = np.zeros((ndim, *shape))
        if bend:
            control = torch.as_tensor(rng.normal(0, bend, (1, ndim, *control_shape(shape, KNOTS))))
            curve = dense_from_control(control, shape, KNOTS)[0].numpy()
        return cls(linear, offset, curve)

    def of_image(self, image: Tensor) -> Tensor:
        """Return the moved image, (1, 1, *shape)."""
        from popatlas.transforms.fields import sample

        shape = image.shape[2:]
        grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")).reshape(len(shape), -1)
        points = torch.as_tensor(self._source(grid), dtype=torch.float32).reshape(1, len(shape), *shape)
        return sample(image, points)

    def of_voxels(
        self, source: npt.NDArray[np.intp]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """Return where voxels (n,) of the image are seen, the voxels whose labels count there, and which of them stay.

        A voxel is seen at the voxel of the moved image that is nearest to showing it; what is shown there may be a voxel
        near by, whose labels are taken.
        """
        shape = self.curve.shape[1:]
        size = np.array(shape)[:, None]
        wanted = np.stack(np.unravel_index(source, shape)).astype(float)
        place = np.rint(np.linalg.solve(self.linear, wanted - self.offset[:, None])).astype(int)
        bent = self.curve[(slice(None), *np.clip(place, 0, size - 1))]
        place = np.rint(np.linalg.solve(self.linear, wanted - self.offset[:, None] - bent)).astype(int)
        inside = ((place >= 0) & (place < size)).all(axis=0)
        place = place[:, inside]
        shown = np.clip(np.rint(self._source(place)).astype(int), 0, size - 1)
        return np.ravel_multi_index(tuple(place), shape), np.ravel_multi_index(tuple(shown), shape), inside

    def _source(self, place: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """Return the coordinates of the image (D, n) that voxels (D, n) of the moved one show."""
        return np.asarray(self.linear @ place + self.offset[:, None] + self.curve[(slice(None), *place)])
