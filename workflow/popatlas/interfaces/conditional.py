"""Conditional atlas as a step: a template for each value of a covariate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from nipype.interfaces.base import File, Str, isdefined, traits

from popatlas.errors import InputError
from popatlas.images.grid import Grid
from popatlas.images.header import check_header
from popatlas.images.io import read_table, save_image, write_table
from popatlas.images.labels import read_labels
from popatlas.interfaces.along import in_millilitres, row_of
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface
from popatlas.settings import settings_from

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


class BuildConditionalAtlasInputSpec(PopatlasInputSpec):
    """Inputs of BuildConditionalAtlas; images and labels lie on one grid with isotropic voxels, in one pose."""

    in_images = traits.List(File(exists=True), mandatory=True, minlen=1, desc="subjects, rigidly aligned, on one grid")
    in_labels = traits.List(File(exists=True), desc="label image of each subject, for the volumes")
    in_covariates = File(exists=True, mandatory=True, desc="table with a row for each image, in the same order")
    along = Str("age", usedefault=True, desc="its column that the templates follow")
    values = traits.List(traits.Float, mandatory=True, minlen=1, desc="where templates are made")
    labels = traits.List(traits.Int, desc="labels whose volume is asked for (all)")
    options = traits.Dict(desc="settings to change (JSON), for example width or bootstrap")
    out_templates = File(mandatory=True, desc="templates, values along the last axis")
    out_table = File(mandatory=True, desc="table of value, mean, subjects, effective subjects, iterations and last change")
    out_volumes = File(desc="table of value, label, volume_ml, low_ml and high_ml")


class BuildConditionalAtlas(PopatlasInterface):
    """Make a template for each value of a covariate such as age, and the volumes of structures along it."""

    input_spec = BuildConditionalAtlasInputSpec

    def _execute(self) -> None:
        import pandas as pd

        from popatlas.groupwise.conditional import conditional_atlas, structure_volumes
        from popatlas.groupwise.neighbours import ConditionalSettings
        from popatlas.registration.engines.io import check_isotropic

        inputs = self.inputs
        files = [Path(path) for path in inputs.in_images]
        grid = Grid.from_file(files[0])
        check_isotropic(grid, files[0], None)
        covariate = self._covariate(len(files))
        plan = settings_from(ConditionalSettings, inputs.options if isdefined(inputs.options) else {}, "options")
        found = conditional_atlas(
            [self._image(path, grid) for path in files],
            covariate,
            inputs.values,
            plan,
            names=[path.name for path in files],
            threads=inputs.threads,
            progress=lambda line: print(line, flush=True),
        )
        templates = np.stack([one.template[0, 0].numpy() for one in found], -1)
        save_image(templates, grid.ras_affine, inputs.out_templates, np.float32)
        write_table(pd.DataFrame([row_of(one, covariate) for one in found]), inputs.out_table)
        if not isdefined(inputs.out_volumes):
            return
        labels = self._labels(grid, len(files))
        numbers = list(inputs.labels) if isdefined(inputs.labels) else _numbers(labels)
        volumes = [row for one in found for row in structure_volumes(one, labels, numbers, plan)]
        write_table(in_millilitres(pd.DataFrame(volumes), grid), inputs.out_volumes)

    def _covariate(self, count: int) -> list[float]:
        table, column = read_table(self.inputs.in_covariates), self.inputs.along
        if column not in table or len(table) != count:
            message = f"it has {len(table)} rows and the columns {', '.join(map(str, table.columns))}"
            remedy = f"give a table with a row for each of the {count} images and a column '{column}'"
            raise InputError(message, file=self.inputs.in_covariates, remedy=remedy)
        self._check_rows(table)
        try:
            return [float(value) for value in table[column]]
        except ValueError as error:
            message = f"the column '{column}' is not of numbers: {error}"
            raise InputError(message, file=self.inputs.in_covariates, remedy="name another column") from error

    def _check_rows(self, table: pd.DataFrame) -> None:
        """Refuse a table whose rows are of other subjects than the images: ages would be those of others."""
        if "participant_id" not in table:
            return
        for path, name in zip(self.inputs.in_images, table["participant_id"].astype(str), strict=True):
            subject = f"sub-{name.removeprefix('sub-')}"
            if not any(word == subject for part in Path(path).parts for word in part.split("_")):
                message = f"the row of {subject} stands where {Path(path).name} is among the images"
                remedy = "give rows and images in the same order, or a table without participant_id"
                raise InputError(message, file=self.inputs.in_covariates, remedy=remedy)

    def _image(self, path: Path, grid: Grid) -> Tensor:
        from popatlas.images.scan import read_volume

        check_header(path)
        _on(Grid.from_file(path), grid, path)
        return read_volume(path)

    def _labels(self, grid: Grid, count: int) -> list[Tensor]:
        import torch

        files = list(self.inputs.in_labels) if isdefined(self.inputs.in_labels) else []
        if len(files) != count:
            message = f"volumes are asked for, with {count} images and {len(files)} label images"
            raise InputError(message, remedy="give in_labels, one for each image in the same order")
        found = []
        for path in files:
            image = read_labels(path, axes=(grid.ndim,))
            _on(image.grid, grid, path)
            found.append(torch.from_numpy(image.data.astype(np.int32))[None, None])
        return found


def _on(own: Grid, grid: Grid, path: Path | str) -> None:
    if not own.same_as(grid, 1e-2 * min(grid.spacing)):
        remedy = "bring all subjects to one grid, rigidly aligned"
        raise InputError("it lies on another grid than the first image", file=path, remedy=remedy)


def _numbers(labels: list[Tensor]) -> list[int]:
    """Return the labels that all subjects have, but 0."""
    common = set.intersection(*(set(image.unique().tolist()) for image in labels)) - {0}
    return sorted(int(number) for number in common)
