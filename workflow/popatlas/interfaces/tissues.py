"""Tissues of a subject as a step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from nipype.interfaces.base import File, Str, isdefined, traits

from popatlas.errors import InputError
from popatlas.images.grid import Grid
from popatlas.images.header import check_header
from popatlas.images.io import load_image, save_image, write_table
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface
from popatlas.settings import settings_from

if TYPE_CHECKING:
    from popatlas.images.arrays import FloatArray


class SegmentTissuesInputSpec(PopatlasInputSpec):
    """Inputs of SegmentTissues; all images lie on the grid of the first."""

    in_images = traits.List(File(exists=True), mandatory=True, minlen=1, desc="contrasts of one subject")
    in_prior = File(exists=True, mandatory=True, desc="probability of each class from an atlas, classes along the last axis")
    in_mask = File(exists=True, desc="voxels to be labelled (where the prior is above 0)")
    names = traits.List(Str, desc="names of the classes for the table (class-1, ...)")
    options = traits.Dict(desc="settings to change (JSON), for example components, slices or deform")
    out_posterior = File(mandatory=True, desc="probability of each class, classes along the last axis")
    out_labels = File(desc="most probable class of each voxel, from 1; 0 outside")
    out_volumes = File(desc="table of name, volume_ml (sum of the probabilities) and label_ml (voxels of the label)")


class SegmentTissues(PopatlasInterface):
    """Find the tissues of a subject from its contrasts and an atlas prior, by mixtures of Gaussians (MvMM)."""

    input_spec = SegmentTissuesInputSpec

    def _execute(self) -> None:
        import pandas as pd
        import torch

        from popatlas.groupwise.mixture import MixtureSettings, segment
        from popatlas.images.place import read_mask_on

        inputs = self.inputs
        first = Path(inputs.in_images[0])
        grid = Grid.from_file(first)
        images = np.stack([self._volume(Path(path), grid, first) for path in inputs.in_images])
        prior = np.moveaxis(self._volume(Path(inputs.in_prior), grid, first, components=True), -1, 0)
        names = list(inputs.names) if isdefined(inputs.names) else [f"class-{k + 1}" for k in range(len(prior))]
        if len(names) != len(prior):
            raise InputError(f"{len(names)} names for {len(prior)} classes", remedy="give one name for each class")
        mask = None
        if isdefined(inputs.in_mask):
            mask = torch.from_numpy(read_mask_on(inputs.in_mask, first, inputs.subject or None).data > 0)
        plan = settings_from(MixtureSettings, inputs.options if isdefined(inputs.options) else {}, "options")
        there = torch.from_numpy(np.ascontiguousarray(prior))
        result = segment(torch.from_numpy(images), there, mask, plan, lambda line: print(line, flush=True))
        posterior, labels = result.posterior.numpy(), result.labels().numpy()
        save_image(np.moveaxis(posterior, 0, -1), grid.ras_affine, inputs.out_posterior, np.float32)
        if isdefined(inputs.out_labels):
            save_image(labels, grid.ras_affine, inputs.out_labels, np.uint8)
        voxel_ml = float(np.prod(grid.spacing)) / 1000
        volumes = [voxel_ml * float(one.sum(dtype=np.float64)) for one in posterior]
        counts = [voxel_ml * int((labels == k + 1).sum()) for k in range(len(posterior))]
        if isdefined(inputs.out_volumes):
            table = pd.DataFrame({"name": names, "volume_ml": volumes, "label_ml": counts})
            write_table(table, inputs.out_volumes)
        self.notes = {"volume_ml": dict(zip(names, volumes, strict=True))}

    def _volume(self, path: Path, grid: Grid, first: Path, *, components: bool = False) -> FloatArray:
        """Return an image that lies on the grid of the first, with or without a last axis of components."""
        subject = self.inputs.subject or None
        if not components:
            check_header(path)
        image = load_image(path)
        values = np.asarray(image.dataobj, dtype=np.float32)
        own = Grid.from_affine(values.shape[: grid.ndim], image.affine, path) if components else Grid.from_file(path)
        if values.ndim != grid.ndim + components or not own.same_as(grid, 1e-2 * min(grid.spacing)):
            message = f"it does not lie on the grid of {first.name}"
            remedy = "bring it there, for example with `popatlas apply`"
            raise InputError(message, file=path, subject=subject, remedy=remedy)
        return values
