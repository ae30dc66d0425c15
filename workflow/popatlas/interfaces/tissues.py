"""Steps of tissues: their probabilities on a template, and those of a subject."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from nipype.interfaces.base import File, Str, isdefined, traits

from popatlas.errors import InputError
from popatlas.groupwise.settings import TISSUES
from popatlas.images.grid import Grid
from popatlas.images.header import check_header
from popatlas.images.io import load_image, save_image, write_json, write_table
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface
from popatlas.settings import settings_from

if TYPE_CHECKING:
    from torch import Tensor

    from popatlas.groupwise.tissues import Brain
    from popatlas.images.arrays import FloatArray

ORDER = f"give maps of {', '.join(TISSUES)}, between 0 and 1, in this order"
LINE_UP = "bring it there, for example with `popatlas apply`"


class SegmentTissuesInputSpec(PopatlasInputSpec):
    """Inputs of SegmentTissues; all images lie on the grid of the first."""

    in_images = traits.List(File(exists=True), mandatory=True, minlen=1, desc="contrasts of one subject")
    in_prior = File(
        exists=True,
        mandatory=True,
        desc="probability of each class from an atlas, classes along the last axis; on the grid of the first image, or on "
        "that of a template where affine and inverse warp are given",
    )
    in_affine = File(exists=True, desc="affine part of the registration of the subject to that template, ITK")
    in_inverse_warp = File(exists=True, desc="its displacement field of the way back, ITK")
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

        from popatlas.groupwise.mixture import segment
        from popatlas.groupwise.settings import MixtureSettings
        from popatlas.images.place import read_mask_on

        inputs = self.inputs
        subject, first = inputs.subject or None, Path(inputs.in_images[0])
        grid = Grid.from_file(first)
        images = np.stack([read_on(Path(path), grid, first, subject) for path in inputs.in_images])
        prior = self._prior(grid, first)
        names = list(inputs.names) if isdefined(inputs.names) else [f"class-{k + 1}" for k in range(len(prior))]
        if len(names) != len(prior):
            raise InputError(f"{len(names)} names for {len(prior)} classes", remedy="give one name for each class")
        mask = None
        if isdefined(inputs.in_mask):
            mask = torch.from_numpy(read_mask_on(inputs.in_mask, first, subject).data > 0)
        plan = settings_from(MixtureSettings, inputs.options if isdefined(inputs.options) else {}, "options")
        try:
            result = segment(torch.from_numpy(images), prior, mask, plan, lambda line: print(line, flush=True))
        except InputError as error:
            raise InputError(error.message, file=first, subject=subject, remedy=error.remedy) from error
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
        if tuple(names) == TISSUES:
            self._doubt(images[0], posterior, grid)

    def _doubt(self, image: FloatArray, tissues: FloatArray, grid: Grid) -> None:
        """Say when tissues do not look or lie as those of a T1w."""
        from popatlas.groupwise.tissues import not_brighter, not_deeper

        if doubts := [words for words in (not_brighter(image, tissues), not_deeper(tissues, grid.spacing)) if words]:
            notice = f"{'; '.join(doubts)}: is it a T1w? The tissues may be mistaken for each other"
            self.said.append(notice)
            print(notice, flush=True)

    def _prior(self, grid: Grid, first: Path) -> Tensor:
        """Return the class probabilities (K, *shape) on the grid of the subject."""
        import torch

        inputs, path = self.inputs, Path(self.inputs.in_prior)
        subject = inputs.subject or None
        if not isdefined(inputs.in_affine) and not isdefined(inputs.in_inverse_warp):
            return torch.from_numpy(read_on(path, grid, first, subject, components=True))
        if not (isdefined(inputs.in_affine) and isdefined(inputs.in_inverse_warp)):
            message = "one of affine and inverse warp is given, and a registration has both"
            raise InputError(message, subject=subject, remedy="give in_affine and in_inverse_warp")
        from popatlas.transforms.composed import way_back

        values, own = read_maps(path, subject)
        return way_back(Path(inputs.in_affine), Path(inputs.in_inverse_warp)).apply(values[None], own, grid)[0]


class ClassifyTemplateInputSpec(PopatlasInputSpec):
    """Inputs of ClassifyTemplate; all images lie on the grid of the template."""

    in_template = File(exists=True, mandatory=True, desc="template")
    in_brains = traits.List(File(exists=True), mandatory=True, minlen=1, desc="T1w brains on its grid, or the template")
    in_masks = traits.List(File(exists=True), mandatory=True, minlen=1, desc="mask of each")
    in_maps = File(exists=True, desc="maps that are there already, classes along the last axis: they are checked and taken")
    out_maps = File(mandatory=True, desc="probability of CSF, GM and WM along the last axis")
    out_description = File(mandatory=True, desc="names of the maps, JSON")


class ClassifyTemplate(PopatlasInterface):
    """Find the tissue probabilities of a template from the brains that were registered to it."""

    input_spec = ClassifyTemplateInputSpec

    def _execute(self) -> None:
        from popatlas.groupwise.tissues import tissue_maps

        inputs = self.inputs
        template = Path(inputs.in_template)
        grid = Grid.from_file(template)
        if isdefined(inputs.in_maps):
            maps, source = self._given(Path(inputs.in_maps), grid, template), "given (tissues.maps)"
        else:
            brains, masks = list(inputs.in_brains), list(inputs.in_masks)
            if len(brains) != len(masks):
                raise InputError(f"{len(brains)} brains and {len(masks)} masks", remedy="give one mask for each brain")
            pairs = list(zip(brains, masks, strict=True))
            readers = [lambda pair=pair: self._brain(*pair, grid=grid, template=template) for pair in pairs]
            try:
                found = tissue_maps(readers, progress=lambda line: print(line, flush=True))
            except InputError as error:
                raise InputError(error.message, file=error.file or self.brain, remedy=error.remedy) from error
            maps, source = found.numpy(), f"mixtures of Gaussians in {len(brains)} brains"
        save_image(np.moveaxis(maps, 0, -1), grid.ras_affine, inputs.out_maps, np.float32)
        shares = [float(one.sum(dtype=np.float64)) for one in maps]
        voxel_ml = float(np.prod(grid.spacing)) / 1000
        self.notes = {"volume_ml": {name: voxel_ml * share for name, share in zip(TISSUES, shares, strict=True)}}
        write_json(inputs.out_description, {"LabelMap": list(TISSUES), "Description": f"Tissue probabilities: {source}"})

    def _brain(self, brain: str, mask: str, *, grid: Grid, template: Path) -> Brain:
        import torch

        from popatlas.images.place import read_mask_on

        self.brain = brain
        image = read_on(Path(brain), grid, template, None)
        inside = read_mask_on(mask, brain).data > 0
        return torch.from_numpy(image), torch.from_numpy(inside)

    def _given(self, path: Path, grid: Grid, template: Path) -> FloatArray:
        from popatlas.groupwise.tissues import not_brighter

        maps = read_on(path, grid, template, None, components=True)
        if len(maps) != len(TISSUES) or not np.isfinite(maps).all() or maps.min() < 0 or maps.sum(0).max() > 1.01:
            message = f"it holds no probabilities of {', '.join(TISSUES)} along the last axis"
            raise InputError(message, file=path, remedy=ORDER)
        image = read_on(template, grid, template, None)
        if nowhere := [name for name, one in zip(TISSUES, maps, strict=True) if not one[image > 0].any()]:
            raise InputError(f"{nowhere[0]} is nowhere in the template", file=path, remedy=ORDER)
        if words := not_brighter(image, maps):
            raise InputError(f"in the template, a T1w, {words}", file=path, remedy=ORDER)
        return maps


def read_maps(path: Path, subject: str | None) -> tuple[Tensor, Grid]:
    """Return class probabilities (K, *shape) and their grid."""
    import torch

    image = load_image(path)
    values = np.asarray(image.dataobj, dtype=np.float32)
    if values.ndim not in (3, 4):
        message = f"shape {values.shape} is no stack of class maps"
        raise InputError(message, file=path, subject=subject, remedy="give one map for each class along the last axis")
    grid = Grid.from_affine(values.shape[:-1], image.affine, path)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 0))), grid


def read_on(path: Path, grid: Grid, first: Path, subject: str | None, *, components: bool = False) -> FloatArray:
    """Return an image that lies on a grid; one with components along its last axis has them first."""
    if components:
        maps, own = read_maps(path, subject)
        values: FloatArray = maps.numpy()
    else:
        check_header(path)
        values, own = np.asarray(load_image(path).dataobj, dtype=np.float32), Grid.from_file(path)
    if values.ndim != grid.ndim + components or not own.same_as(grid, 1e-2 * min(grid.spacing)):
        raise InputError(f"it does not lie on the grid of {first.name}", file=path, subject=subject, remedy=LINE_UP)
    return values
