"""Image pairs of any contrast, made of label maps (SynthMorph: Hoffmann et al. 2022, doi:10.1109/TMI.2021.3116879).

A network that learns to align the labels of such pairs, whose images have nothing in common but their shapes, works on
images of contrasts that it has never seen. Maps of brains make it good at brains; random shapes need no data at all. The
scans of the maps, where there are any, may be recoloured instead of painted, and are what a loss can compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from popatlas.training.contrast import random_contrast, random_recolouring, random_table, table_size
from popatlas.training.motion import displacement_of, flow, random_motion, random_velocity
from popatlas.training.random_fields import chance, log_uniform, smooth_noise, uniform
from popatlas.training.settings import ShapeSettings, SynthesisSettings
from popatlas.transforms.fields import warp, warp_labels


@dataclass(frozen=True, eq=False)
class SyntheticPair:
    """Images (1, 1, *shape) float32 in 0..1 and the labels (1, 1, *shape) that they show, of the type of the maps.

    The scans (1, 1, *shape) are those whose label maps these were, moved alike, where there are scans.
    """

    fixed: Tensor
    moving: Tensor
    fixed_labels: Tensor
    moving_labels: Tensor
    fixed_scan: Tensor | None = None
    moving_scan: Tensor | None = None


def random_labels(shape: Sequence[int], settings: ShapeSettings, generator: torch.Generator) -> Tensor:
    """Draw a map of random shapes: for each voxel the number of the smooth noise image that is largest there, then a warp.

    Parameters
    ----------
    shape : sequence of int
        Voxels along each axis.
    settings : ShapeSettings
        Number of labels and size of the shapes.
    generator : Generator
        Source of the noise.

    Returns
    -------
    (1, 1, *shape) int32 Tensor
        Labels 0 to ``count - 1``; with large shapes in a small image some may be missing.
    """
    gap = log_uniform(generator, settings.spacing)
    best = smooth_noise(generator, shape, gap)
    labels = torch.zeros_like(best, dtype=torch.int32)
    for number in range(1, settings.count):  # one after the other: the memory does not grow with the labels
        values = smooth_noise(generator, shape, gap)
        labels.masked_fill_(values > best, number)
        best = torch.maximum(best, values)
    warp = flow(random_velocity(shape, gap / 8, (gap / 2, gap), generator), shape)
    return warp_labels(labels, warp)


class SyntheticPairs:
    """Random pairs with exact labels.

    Parameters
    ----------
    maps : sequence of (1, 1, *shape) integer Tensor
        Label maps on one grid; none for random shapes.
    settings : SynthesisSettings
        How pairs are made.
    shape : sequence of int, optional
        Shape of the images; needed without maps.
    spacing : sequence of float, optional
        Voxel size, millimetres; 1 along each axis when left out.
    scans : sequence of (1, 1, *shape) float Tensor, optional
        The scan of each map; they come with the pairs.

    Raises
    ------
    ValueError
        For maps of different shapes or with impossible values, neither maps nor a shape, or not a scan for each map.
    """

    def __init__(
        self,
        maps: Sequence[Tensor],
        settings: SynthesisSettings | None = None,
        shape: Sequence[int] | None = None,
        spacing: Sequence[float] | None = None,
        scans: Sequence[Tensor] = (),
    ) -> None:
        self.maps, self.settings, self.spacing = list(maps), settings or SynthesisSettings(), spacing
        self.scans = list(scans)
        if self.settings.recoloured and self.maps and not self.scans:
            raise ValueError("to recolour scans, each label map needs its scan")
        if self.scans and [one.shape for one in self.scans] != [one.shape for one in self.maps]:
            raise ValueError("each label map needs a scan of its shape, or none has one")
        shapes = {tuple(labels.shape) for labels in self.maps}
        if not self.maps and shape is None:
            raise ValueError("without label maps the shape is needed")
        if any(len(one) not in (4, 5) or one[:2] != (1, 1) for one in shapes) or len(shapes) > 1:
            raise ValueError(f"label maps are (1, 1, *shape) with one shape for all, not {sorted(shapes)}")
        self.shape = tuple(shape) if shape is not None else shapes.copy().pop()[2:]
        if shapes and shapes != {(1, 1, *self.shape)}:
            raise ValueError(f"label maps of shape {self.maps[0].shape} for images of shape {self.shape}")
        self.table_size = table_size(self.maps) if self.maps else self.settings.shapes.count

    def draw(self, generator: torch.Generator) -> SyntheticPair:
        """Make a pair.

        Parameters
        ----------
        generator : Generator
            Source of all that is random; with the same state it gives the same pair.

        Returns
        -------
        SyntheticPair
            On the device of the maps; random shapes on that of the generator.
        """
        sources, numbers = self._sources(generator)
        motions = [self._motion(one, generator) for one in sources]
        labels = [warp_labels(one, motion, padding="zeros") for one, motion in zip(sources, motions, strict=True)]
        contrast = self.settings.contrast
        tables = [random_table(self.table_size, contrast, generator) for _ in sources]
        if self.settings.one_contrast:
            tables[1] = tables[0]
        if not self.scans:
            images = [random_contrast(one, contrast, generator, table) for one, table in zip(labels, tables, strict=True)]
            return SyntheticPair(*images, *labels)
        scans = [warp(self.scans[n], motion, padding="zeros") for n, motion in zip(numbers, motions, strict=True)]
        share = self.settings.recoloured
        images = [
            random_recolouring(scan, contrast, generator)
            if share and chance(generator, share)
            else random_contrast(one, contrast, generator, table)
            for scan, one, table in zip(scans, labels, tables, strict=True)
        ]
        return SyntheticPair(*images, *labels, *scans)

    def _sources(self, generator: torch.Generator) -> tuple[list[Tensor], list[int]]:
        """Choose the maps of the fixed and of the moving image; return them and their numbers."""
        if not self.maps:
            shapes = random_labels(self.shape, self.settings.shapes, generator)
            return [shapes, shapes], []
        first = int(uniform(generator, 0, len(self.maps)))
        numbers = [first, first]
        if len(self.maps) > 1 and not chance(generator, self.settings.same):
            numbers[1] = (first + 1 + int(uniform(generator, 0, len(self.maps) - 1))) % len(self.maps)
        return [self.maps[number] for number in numbers], numbers

    def _motion(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        motion = random_motion(self.shape, self.settings.motion, generator, self.spacing)
        return displacement_of([motion], self.shape, labels.device)
