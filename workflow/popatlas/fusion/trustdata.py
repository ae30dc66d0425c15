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

# share of the sampled voxels that are disputed, where there are as many
DISPUTED_SHARE = 0.7
# augmentation: standard deviations of affine entries, of shifts in voxels, of the log intensity scale, and of the noise
# relative to the image's
TILT, SHIFT, GAIN, NOISE = 0.03, 2.0, 0.1, 0.03
CLASS_POWER = 0.35
MARGIN = 2  # voxels round the head


@dataclass(frozen=True)
class TrustTarget:
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
    def disputed(self) -> npt.NDArray[np.intp]:
        """Flat numbers of the voxels where candidates differ."""
        return np.flatnonzero((self.labels != self.labels[:1]).any(axis=0))

    @cached_property
    def unanimous(self) -> npt.NDArray[np.intp]:
        """Flat numbers of all other voxels."""
        return np.flatnonzero((self.labels == self.labels[:1]).all(axis=0))


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


def standardised(image: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.float32], Box]:
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


def trust_target(candidates: Candidates, labels: npt.NDArray[np.int64], name: str = "") -> TrustTarget:
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
    return TrustTarget(name, image, classes, box)


def label_counts(targets: Sequence[TrustTarget], n_labels: int) -> npt.NDArray[np.int64]:
    """Return the voxels of each class over all candidates of all targets, (n_labels,)."""
    counts = [np.bincount(target.labels.ravel(), minlength=n_labels) for target in targets]
    return np.asarray(np.sum(counts, axis=0))


def class_weights(targets: Sequence[TrustTarget], n_labels: int) -> Tensor:
    """Return the weight of each class, its number of voxels to the power -0.35, scaled to a mean of 1 over those present."""
    counts = label_counts(targets, n_labels)
    weights = np.where(counts > 0, np.maximum(counts, 1.0) ** -CLASS_POWER, 0.0)
    return torch.as_tensor(weights / weights[counts > 0].mean(), dtype=torch.float32)


def draw(target: TrustTarget, voxels: int, rng: np.random.Generator, augment: bool = False, device: str = "cpu") -> Sample:
    """Return a target with the voxels of a training step: all, or a random part that stands for all.

    Parameters
    ----------
    target : TrustTarget
        Where from.
    voxels : int
        Most voxels.
    rng : Generator
        Random numbers.
    augment : bool
        Change image and labels at random.
    device : str
        Of the tensors.
    """
    disputed, unanimous = target.disputed, target.unanimous
    many = min(len(disputed), max(round(voxels * DISPUTED_SHARE), voxels - len(unanimous)))
    parts = []
    for numbers, count in ((disputed, many), (unanimous, min(len(unanimous), voxels - many))):
        chosen = numbers if count == len(numbers) else rng.choice(numbers, count, replace=False)
        parts.append((chosen, np.full(len(chosen), len(numbers) / max(len(chosen), 1), dtype=np.float32)))
    index = np.concatenate([chosen for chosen, _ in parts])
    importance = np.concatenate([weight for _, weight in parts])
    image = torch.from_numpy(target.image)[None, None]
    if augment:
        image, index, importance = _augmented(image, index, importance, rng)
    flat = target.labels.reshape(len(target.labels), -1)
    # after augmentation voxels of the image and of the labels differ: `index` holds both
    where, source = index if index.ndim == 2 else (index, index)
    return Sample(
        image.to(device),
        torch.as_tensor(where, device=device),
        torch.as_tensor(flat[:, source].astype(np.int64), device=device),
        torch.as_tensor(importance, device=device),
        torch.as_tensor(target.foreground, device=device),
    )


def _augmented(
    image: Tensor, index: npt.NDArray[np.intp], importance: npt.NDArray[np.float32], rng: np.random.Generator
) -> tuple[Tensor, npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Return the image moved, scaled and with noise, and (2, n) numbers: voxels of it, and where their labels come from.

    The value at p of the moved image is that of the image at A p. A sampled voxel q is looked at where A p is nearest to it,
    and gets the labels of the voxel nearest to A p.
    """
    from popatlas.transforms.fields import coordinates, sample
    from popatlas.transforms.linear import move

    shape = image.shape[2:]
    ndim = len(shape)
    centre = (np.array(shape) - 1) / 2
    linear = np.eye(ndim) + rng.normal(0, TILT, (ndim, ndim))
    offset = centre - linear @ centre + rng.normal(0, SHIFT, ndim)
    matrix = torch.as_tensor(np.column_stack([linear, offset]), dtype=torch.float32)[None]
    moved = sample(image, move(matrix, coordinates(shape)))
    moved = moved * float(np.exp(rng.normal(0, GAIN)))
    moved = moved + torch.as_tensor(rng.normal(0, NOISE, shape), dtype=torch.float32)
    source = np.stack(np.unravel_index(index, shape)).astype(float)
    place = np.rint(np.linalg.solve(linear, source - offset[:, None])).astype(int)
    inside = ((place >= 0) & (place < np.array(shape)[:, None])).all(axis=0)
    place = place[:, inside]
    nearest = np.rint(linear @ place + offset[:, None]).astype(int)
    nearest = np.clip(nearest, 0, np.array(shape)[:, None] - 1)
    both = np.stack([np.ravel_multi_index(tuple(place), shape), np.ravel_multi_index(tuple(nearest), shape)])
    return moved, both, importance[inside]
