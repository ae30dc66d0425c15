"""What a recipe minimises: similarity, smoothness, affine penalties and supervision by labels, boxes or masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from popatlas.errors import InputError
from popatlas.images.filters import gaussian_smooth
from popatlas.networks.registration import Prediction
from popatlas.regularisers.affine import determinant_penalty, orthogonality_penalty
from popatlas.regularisers.registry import entry_of, find_regulariser
from popatlas.similarity.overlap import MultiscaleDice
from popatlas.similarity.registry import make
from popatlas.training.boxes import box_maps
from popatlas.training.pose import euler_error, grid_distance
from popatlas.training.recipe import Recipe
from popatlas.training.structures import painted, sample_structures, structure_maps
from popatlas.transforms.fields import warp

TINY = 1e-5  # smallest probability of the cross-entropy


@dataclass(frozen=True)
class Batch:
    """Pairs to learn from.

    Attributes
    ----------
    fixed, moving : (B, 1, *shape) Tensor
        Images on one grid.
    fixed_labels, moving_labels : (B, C, *shape) int Tensor or None
        Their labels, see `popatlas.training.structures`.
    fixed_mask : (B, 1, *shape) Tensor or None
        Where the fixed image counts, for the mask branch.
    fixed_scan, moving_scan : (B, 1, *shape) Tensor or None
        What the similarity compares where it is not what the network sees: the scans behind synthetic images.
    truth : (B, D, D + 1) Tensor or None
        Where the motion is known: fixed voxel to moving voxel, counted from the centre, as `Prediction.matrices`.
    """

    fixed: Tensor
    moving: Tensor
    fixed_labels: Tensor | None = None
    moving_labels: Tensor | None = None
    fixed_mask: Tensor | None = None
    fixed_scan: Tensor | None = None
    moving_scan: Tensor | None = None
    truth: Tensor | None = None


class Objective:
    """The losses of a recipe.

    Parameters
    ----------
    recipe : Recipe
        Its section `loss`, and the voxel size of its grid: Gaussians are in mm.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.loss = recipe.loss
        self.spacing = recipe.grid.spacing_mm
        loss, similarity = recipe.loss, recipe.loss.similarity
        self.similarity = make(similarity.name, **similarity.options)
        self.regulariser = find_regulariser(loss.regulariser.name)
        self.divisor = entry_of(loss.regulariser.name).divisor(loss.regulariser.reduction, recipe.ndim)
        self.terms: dict[str, tuple[float, Callable[[Batch, Prediction, torch.Generator], Tensor]]] = {
            "similarity": (similarity.weight, self._similarity),
            "smoothness": (loss.regulariser.weight, self._smoothness),
            "determinant": (loss.affine.determinant, self._determinant),
            "orthogonality": (loss.affine.orthogonality, self._orthogonality),
            "labels": (loss.labels.weight, self._labels),
            "painted": (loss.painted.weight, self._painted),
            "boxes": (loss.boxes.weight, self._boxes),
            "mask": (loss.mask.weight, self._mask),
            "pose": (loss.pose.weight, self._pose),
        }

    def __call__(self, batch: Batch, found: Prediction, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch and its terms before their weights.

        Parameters
        ----------
        batch : Batch
            What was registered.
        found : Prediction
            What the network says.
        generator : Generator
            Chooses labels and moves boxes, on the CPU.

        Returns
        -------
        loss : () Tensor
            Weighted sum of the terms, each averaged over the batch.
        parts : dict
            Name of each term with a weight to its value.
        """
        values = {name: term(batch, found, generator).mean() for name, (weight, term) in self.terms.items() if weight}
        total = torch.stack([self.terms[name][0] * value for name, value in values.items()]).sum()
        return total, {name: float(value.detach()) for name, value in values.items()}

    def _similarity(self, batch: Batch, found: Prediction, generator: torch.Generator) -> Tensor:
        """Compare where the mask branch, if there is one, says that there is something to compare.

        The mask learns from its own loss only: by this one it would shrink to where the images agree anyway.
        """
        weight = None if found.mask is None else found.mask.detach().float().sigmoid()
        fixed = batch.fixed if batch.fixed_scan is None else batch.fixed_scan
        moving = batch.moving if batch.moving_scan is None else batch.moving_scan
        return self.similarity(fixed, warp(moving, found.displacement), weight)

    def _smoothness(self, batch: Batch, found: Prediction, generator: torch.Generator) -> Tensor:
        fields = found.smooth or (found.displacement,)
        return torch.stack([self.regulariser(field) for field in fields]).sum(0) / self.divisor

    def _determinant(self, batch: Batch, found: Prediction, generator: torch.Generator) -> Tensor:
        return _summed(determinant_penalty, found, batch)

    def _orthogonality(self, batch: Batch, found: Prediction, generator: torch.Generator) -> Tensor:
        return _summed(orthogonality_penalty, found, batch)

    def _labels(self, batch: Batch, found: Prediction, generator: torch.Generator) -> Tensor:
        """Compare labels drawn for each pair: first the pair was drawn, then its labels (Hu et al. 2018)."""
        options = self.loss.labels
        shrink: int = options.shrink
        compare = OVERLAPS[options.kind]
        values = []
        for row in range(len(batch.fixed)):
            fixed, moving = _label_rows(batch, row)
            numbers = sample_structures(fixed, moving, options.count, generator)
            if not len(numbers):  # nothing in common, as between slices of different heights
                values.append(_nothing(found))
                continue
            maps = [shrunk(structure_maps(image, numbers), shrink) for image in (fixed, moving)]
            voxel = self.spacing * shrink
            sigmas = [sigma / voxel for sigma in options.sigmas]
            field = shrunk(found.displacement[row : row + 1], shrink) / shrink
            if options.prefilter:
                scales = [[_blurred(image, sigma) for image in maps] for sigma in sigmas]
                found_at = [compare(one, warp(other, field), [0.0]) for one, other in scales]
                values.append(torch.stack(found_at).mean(0))
            else:
                values.append(compare(maps[0], warp(maps[1], field), sigmas))
        return torch.cat(values)

    def _painted(self, batch: Batch, found: Prediction, generator: torch.Generator) -> Tensor:
        """Compare the labels of both, painted with the same random grey values, as the images are compared.

        All labels push at once, and where they overlap nowhere yet their neighbours do: at the start it teaches more than
        the overlap of a few of them.
        """
        values = []
        for row in range(len(batch.fixed)):
            fixed, moving = painted(*_label_rows(batch, row), generator)
            values.append(
                self.similarity(fixed.to(batch.fixed), warp(moving.to(batch.fixed), found.displacement[row : row + 1]))
            )
        return torch.cat(values)

    def _boxes(self, batch: Batch, found: Prediction, generator: torch.Generator) -> Tensor:
        """Compare the boxes around labels; a warped box stays a soft map."""
        options = self.loss.boxes
        values = []
        for row in range(len(batch.fixed)):
            fixed, moving = _label_rows(batch, row)
            numbers = sample_structures(fixed, moving, options.count, generator)
            if not len(numbers):
                values.append(_nothing(found))
                continue
            maps = [box_maps(image, numbers, options.jitter, generator) for image in (fixed, moving)]
            values.append((maps[0] - warp(maps[1], found.displacement[row : row + 1])).square().mean().reshape(1))
        return torch.cat(values)

    def _mask(self, batch: Batch, found: Prediction, generator: torch.Generator) -> Tensor:
        if found.mask is None or batch.fixed_mask is None:
            raise InputError("the loss 'mask' needs a network with a mask branch, and masks or labels", remedy="set it to 0")
        logits = functional.binary_cross_entropy_with_logits(
            found.mask, batch.fixed_mask.to(found.mask.dtype), reduction="none"
        )
        return logits.flatten(1).mean(1)

    def _pose(self, batch: Batch, found: Prediction, generator: torch.Generator) -> Tensor:
        if batch.truth is None or not found.matrices:
            message = "the loss 'pose' needs a network with an affine stage, and pairs whose motion is known"
            raise InputError(message, remedy="set network.name to rigid and data.pairs to same, or loss.pose.weight to 0")
        if self.loss.pose.kind == "euler":
            return euler_error(found.matrices[-1], batch.truth, self.spacing)
        return grid_distance(found.matrices[-1], batch.truth, batch.fixed.shape[2:], self.spacing)


def _summed(penalty: Callable[[Tensor], Tensor], found: Prediction, batch: Batch) -> Tensor:
    if not found.matrices:
        return batch.fixed.new_zeros(1)
    return torch.stack([penalty(matrix) for matrix in found.matrices]).sum(0)


def _nothing(found: Prediction) -> Tensor:
    """Return a loss (1,) of 0 that the network still takes part in."""
    return 0 * found.displacement[:1].flatten(1).sum(1)


def _label_rows(batch: Batch, row: int) -> tuple[Tensor, Tensor]:
    if batch.fixed_labels is None or batch.moving_labels is None:
        raise InputError(
            "the recipe learns from labels, and the scans have none", remedy="add a column `labels` to the table"
        )
    return batch.fixed_labels[row : row + 1], batch.moving_labels[row : row + 1]


def shrunk(values: Tensor, factor: int) -> Tensor:
    """Average blocks of ``factor`` voxels along each axis: (B, C, *shape) to (B, C, *shape / factor)."""
    if factor == 1:
        return values
    pool = functional.avg_pool3d if values.ndim == 5 else functional.avg_pool2d
    pooled: Tensor = pool(values, factor)
    return pooled


def _dice(fixed: Tensor, moving: Tensor, sigmas: list[float]) -> Tensor:
    return MultiscaleDice(sigmas=(0.0,))(fixed, moving)


def _multiscale_dice(fixed: Tensor, moving: Tensor, sigmas: list[float]) -> Tensor:
    return MultiscaleDice(sigmas=tuple(sigmas))(fixed, moving)


def _blurred(values: Tensor, sigma: float) -> Tensor:
    """Smooth maps; outside of the grid there are no labels. A deviation of 0 voxels leaves them as they are."""
    return gaussian_smooth(values, sigma, renormalise=False)


def _cross_entropy(fixed: Tensor, moving: Tensor, sigmas: list[float]) -> Tensor:
    """Average the cross-entropy of smoothed maps over Gaussians, labels and voxels; probabilities are clipped."""
    losses = []
    for sigma in sigmas:
        wanted, given = _blurred(fixed, sigma), _blurred(moving, sigma).clamp(TINY, 1 - TINY)
        losses.append(-(wanted * given.log() + (1 - wanted) * (1 - given).log()).flatten(1).mean(1))
    return torch.stack(losses).mean(0)


OVERLAPS: dict[str, Callable[[Tensor, Tensor, list[float]], Tensor]] = {
    "dice": _dice,
    "multiscale_dice": _multiscale_dice,
    "cross_entropy": _cross_entropy,
}
