"""Where training pairs come from: scans of a table, images drawn from their label maps, or random shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.training.augment import augment_pair, changed_look
from popatlas.training.conform import Volume, load_labels, load_scan, load_slices, middle_of
from popatlas.training.grid import TrainingGrid
from popatlas.training.labelfiles import check_structures
from popatlas.training.motion import displacement_of, random_motion
from popatlas.training.objective import Batch
from popatlas.training.pairs import Pair, PairSampler
from popatlas.training.pose import about_centre
from popatlas.training.random_fields import uniform
from popatlas.training.randomness import step_generator
from popatlas.training.recipe import Recipe, learns_from_labels, slice_places
from popatlas.training.sections import AugmentSection
from popatlas.training.structures import foreground, renumbered
from popatlas.training.synthesis import SyntheticPairs
from popatlas.training.table import TrainingScan

NUMBERS = 2**62  # of pairs in the stream that the steps draw from


class ScanSource:
    """Pairs of scans, changed at random.

    Volumes are read when they are needed first and then kept.

    Parameters
    ----------
    recipe : Recipe
        Grid, data and augmentation.
    scans : sequence of TrainingScan
        The table.

    Raises
    ------
    InputError
        When the scans make no pair to learn from or none to validate on, some have an affine and others none, or the labels
        of a pair have different structures.
    """

    def __init__(self, recipe: Recipe, scans: Sequence[TrainingScan]) -> None:
        self.recipe = recipe
        self.sampler = PairSampler(scans, recipe.schedule.seed, order=recipe.data.order)
        if not self.sampler.validation_pairs(1):
            message = "there is no pair of scans for validation, which chooses the best network"
            raise InputError(message, remedy="give some subjects of a group the split validation")
        self.structures = check_structures(scans)
        self.grid = training_grid(recipe, scans)
        self.places = slice_places(recipe.grid)
        self._volumes: dict[str, list[Volume]] = {}

    def volumes(self, scan: TrainingScan) -> list[Volume]:
        """Return a scan on the training grid, from memory the second time; see `_volumes`."""
        if scan.name not in self._volumes:
            self._volumes[scan.name] = _volumes(self.recipe, scan, self.grid, self.places, self.structures)
        return self._volumes[scan.name]

    def draw(self, pairs: int, generator: torch.Generator) -> Batch:
        """Return a batch of random pairs."""
        return joined([self._pair(generator) for _ in range(pairs)])

    def _pair(self, generator: torch.Generator) -> Batch:
        number = int(torch.randint(NUMBERS, (), generator=generator))
        pair, place = self.sampler.pair(number), int(uniform(generator, 0, max(len(self.places), 1)))
        if self.recipe.data.pairs == "same":
            return moved_pair(self.volumes(pair.fixed)[place], self.recipe.augment, generator)
        fixed, moving = self._images(pair, place)
        return as_batch(*augment_pair(fixed, moving, self.recipe.augment.each, generator, self.recipe.augment.common))

    def _images(self, pair: Pair, place: int) -> tuple[Volume, Volume]:
        return self.volumes(pair.fixed)[place], self.volumes(pair.moving)[place]

    def validation(self) -> list[Batch]:
        """Return the validation pairs as they are, or with motions that are always the same; of slices some of them."""
        count = self.recipe.schedule.validation_pairs
        places = [0] if not self.places else list(np.linspace(0, len(self.places) - 1, 5)[1:-1].astype(int))
        chosen = [(pair, place) for pair in self.sampler.validation_pairs(count) for place in places]
        if self.recipe.data.pairs == "same":
            streams = (step_generator(0, number, purpose="validation") for number in range(len(chosen)))
            volumes = (self.volumes(pair.fixed)[place] for pair, place in chosen)
            return [moved_pair(volume, self.recipe.augment, stream) for volume, stream in zip(volumes, streams, strict=True)]
        return [as_batch(*self._images(pair, place)) for pair, place in chosen]


class SyntheticSource:
    """Pairs of images that are drawn from label maps, those of validation scans for validation.

    Parameters
    ----------
    recipe : Recipe
        Its number of validation pairs.
    train, held : SyntheticPairs
        Of the training and of the validation scans.
    """

    def __init__(self, recipe: Recipe, train: SyntheticPairs, held: SyntheticPairs) -> None:
        self.count = recipe.schedule.validation_pairs
        self.train, self.held = train, held

    def draw(self, pairs: int, generator: torch.Generator) -> Batch:
        """Return a batch of random pairs."""
        return joined([self._pair(self.train, generator) for _ in range(pairs)])

    def validation(self) -> list[Batch]:
        """Return the validation pairs, always the same."""
        return [self._pair(self.held, step_generator(0, number, purpose="validation")) for number in range(self.count)]

    @staticmethod
    def _pair(pairs: SyntheticPairs, generator: torch.Generator) -> Batch:
        drawn = pairs.draw(generator)
        mask = (drawn.fixed_labels > 0).float()
        labels, scans = (drawn.fixed_labels, drawn.moving_labels), (drawn.fixed_scan, drawn.moving_scan)
        return Batch(drawn.fixed, drawn.moving, *labels, mask, *scans)


def moved_pair(volume: Volume, settings: AugmentSection, generator: torch.Generator) -> Batch:
    """Return a scan and its copy after a random motion, which is known; looks are drawn for each.

    Parameters
    ----------
    volume : Volume
        Scan on the training grid.
    settings : AugmentSection
        `each` moves the copy, without bend and mirror, and gives both their looks; `common` moves both before that.
    generator : Generator
        Source of all that is random.
    """
    shape, device = volume.image.shape[2:], volume.image.device
    own = random_motion(shape, settings.each.motion, generator, volume.spacing)
    shared = [] if settings.common.still else [random_motion(shape, settings.common, generator, volume.spacing)]
    fixed = volume.moved(displacement_of(shared, shape, device)) if shared else volume
    moving = volume.moved(displacement_of([own, *shared], shape, device))
    looks = [changed_look(image.image, settings.each.look, generator) for image in (fixed, moving)]
    # a voxel y of the copy shows what lies at M y in the fixed image
    truth = about_centre(torch.linalg.inv(own.matrix), shape)
    return Batch(looks[0], looks[1], fixed.labels, moving.labels, fixed.mask, truth=truth)


def make_source(recipe: Recipe, scans: Sequence[TrainingScan]) -> ScanSource | SyntheticSource:
    """Return the source of a recipe.

    Parameters
    ----------
    recipe : Recipe
        Its section `data`.
    scans : sequence of TrainingScan
        The table; may be empty for random shapes.

    Raises
    ------
    InputError
        When the recipe needs scans or labels that the table does not have, or from `ScanSource`.
    """
    kind = recipe.data.source
    if kind == "shapes":
        return SyntheticSource(recipe, *[_synthetic(recipe, [], [])] * 2)
    if not scans:
        raise InputError(f"the recipe {recipe.name} learns from scans", remedy="give a table of them: --table FILE")
    if learns_from_labels(recipe):
        for scan in scans:
            if scan.labels is None and scan.split != "test":
                message = f"the recipe {recipe.name} learns from labels, and a scan has none"
                raise InputError(message, subject=scan.name, remedy="fill the column `labels` of the table")
    if kind == "scans":
        return ScanSource(recipe, scans)
    grid, places = training_grid(recipe, scans), slice_places(recipe.grid)
    drawn = []
    for split in ("train", "validation"):
        chosen = [scan for scan in scans if scan.split == split]
        maps = [labels for scan in chosen for labels in load_labels(scan, grid, places or [0.0])]
        if not maps:
            message = f"no scan has the split {split}"
            raise InputError(message, remedy=f"give some subjects of the table the split {split}")
        compared = chosen if recipe.synthesis.compare == "scans" else []
        volumes = [volume for scan in compared for volume in _volumes(recipe, scan, grid, places)]
        drawn.append(_synthetic(recipe, renumbered(*maps), [volume.image for volume in volumes]))
    return SyntheticSource(recipe, *drawn)


def _synthetic(recipe: Recipe, maps: Sequence[Tensor], scans: Sequence[Tensor]) -> SyntheticPairs:
    """Return pairs drawn from label maps and, where there are any, their scans."""
    settings = recipe.synthesis.options
    if "one_contrast" not in recipe.content["synthesis"]["options"]:
        settings = replace(settings, one_contrast=recipe.synthesis.contrast == "same")
    return SyntheticPairs(maps, settings, recipe.grid.shape, (recipe.grid.spacing_mm,) * recipe.ndim, scans)


def _volumes(
    recipe: Recipe, scan: TrainingScan, grid: TrainingGrid, places: Sequence[float], structures: int = 0
) -> list[Volume]:
    """Return a scan on the training grid: one volume, or its slices at the places."""
    intensity, stripped = recipe.data.intensity, recipe.grid.stripped
    if places:
        return load_slices(scan, grid, places, intensity, stripped=stripped, structures=structures)
    return [load_scan(scan, grid, intensity, stripped=stripped, structures=structures)]


def training_grid(recipe: Recipe, scans: Sequence[TrainingScan]) -> TrainingGrid:
    """Return the grid of a recipe, its middle where the training scans are in their common space."""
    shape, spacing, across = recipe.grid.shape, (recipe.grid.spacing_mm,) * recipe.ndim, recipe.grid.slice_axis
    plain = TrainingGrid(shape, spacing, slice_axis=across)
    used = [scan for scan in scans if scan.split != "test"]
    without = [scan for scan in used if scan.affine is None]
    if without and len(without) < len(used):
        message = f"{len(without)} of {len(used)} scans have no affine to the common space that the others have one to"
        raise InputError(message, subject=without[0].name, remedy="fill the column `affine` of the table, or empty it")
    if without:
        return plain
    centres = [middle_of(scan) for scan in scans if scan.split == "train"]
    return TrainingGrid(shape, spacing, centre=tuple(np.median(centres, axis=0)), slice_axis=across)


def as_batch(fixed: Volume, moving: Volume) -> Batch:
    """Return a batch of one pair; without a mask the labels, without those the image tell where the fixed image counts."""
    mask = fixed.mask
    if mask is None:
        mask = (fixed.image > 0).float() if fixed.labels is None else foreground(fixed.labels)
    return Batch(fixed.image, moving.image, fixed.labels, moving.labels, mask)


def joined(batches: Sequence[Batch]) -> Batch:
    """Return batches as one; labels only where all have them."""
    found = {name: [getattr(batch, name) for batch in batches] for name in Batch.__dataclass_fields__}
    return Batch(**{name: torch.cat(parts) for name, parts in found.items() if all(part is not None for part in parts)})
