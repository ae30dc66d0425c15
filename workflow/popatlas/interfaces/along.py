"""Steps of the templates along a covariate: one template of the scans near a value, and the series of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from nipype.interfaces.base import File, Str, isdefined, traits

from popatlas.errors import InputError
from popatlas.images.grid import Grid
from popatlas.images.io import load_image, read_table, save_image, write_json, write_table
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface
from popatlas.settings import settings_from

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from popatlas.groupwise.conditional import ConditionalTemplate

BRAIN = "brain"  # row of the whole brain among those of the labels
MARGIN_MM = 16.0  # that is left round the brain of the template: others are larger
MILLILITRES = {name: f"{name}_ml" for name in ("volume", "low", "high")}


class BuildTemplateAlongInputSpec(PopatlasInputSpec):
    """Inputs of BuildTemplateAlong; all lists are of the same scans in the same order."""

    in_brains = traits.List(File(exists=True), mandatory=True, minlen=1, desc="brains of the scans near the value")
    in_masks = traits.List(File(exists=True), mandatory=True, minlen=1, desc="their brain masks")
    in_affines = traits.List(File(exists=True), mandatory=True, minlen=1, desc="their affines from the template (ITK)")
    in_labels = traits.List(File(exists=True), desc="their labels, on their grids, for the volumes")
    in_covariates = File(exists=True, mandatory=True, desc="table of scan and value, in the same order")
    in_template = File(exists=True, mandatory=True, desc="template that gives pose and voxels")
    in_template_mask = File(exists=True, mandatory=True, desc="its brain mask")
    value = traits.Float(mandatory=True, desc="where the template is made")
    options = traits.Dict(mandatory=True, desc="settings (JSON), at least the width of the kernel")
    out_template = File(mandatory=True, desc="the template")
    out_row = File(mandatory=True, desc="table of value, mean, subjects, effective subjects, iterations and last change")
    out_volumes = File(mandatory=True, desc="table of value, label, volume_ml, low_ml and high_ml")
    out_members = File(mandatory=True, desc="table of value, scan, its value and its weight")


class BuildTemplateAlong(PopatlasInterface):
    """Make the template at one value of a covariate from the scans near it, brought rigidly into the template's pose."""

    input_spec = BuildTemplateAlongInputSpec

    def _execute(self) -> None:
        import pandas as pd

        from popatlas.groupwise.conditional import template_of, volumes_of
        from popatlas.groupwise.neighbours import ConditionalSettings, near
        from popatlas.images.scan import check_image

        inputs = self.inputs
        people = self._people()
        plan = settings_from(ConditionalSettings, inputs.options, "options")
        grid = brain_grid(Path(inputs.in_template), Path(inputs.in_template_mask))
        scans = people["scan"].tolist()
        members, weights = near(people["value"].tolist(), inputs.value, plan.width, scans)
        images = [self._posed(i, "in_brains", grid) for i in range(len(people))]
        for scan, image in zip(scans, images, strict=True):
            check_image(image, subject=scan)
        found = template_of(inputs.value, images, members, weights, plan, threads=inputs.threads)
        print(found.describe(), flush=True)
        save_image(found.template[0, 0].numpy(), grid.ras_affine, inputs.out_template, np.float32)
        write_table(pd.DataFrame([row_of(found, people["value"].tolist())]), inputs.out_row)
        taken = people.iloc[members].assign(at=found.value, weight=weights)
        write_table(taken[["at", "scan", "value", "weight"]], inputs.out_members)
        masks = {i: self._posed(i, "in_masks", grid) > 0 for i in members}
        labels = {i: self._posed(i, "in_labels", grid) for i in members} if isdefined(inputs.in_labels) else {}
        numbers = sorted({int(number) for image in labels.values() for number in image.unique().tolist()} - {0})

        def share_of(number: int) -> Callable[[int], Tensor]:
            return lambda i: (labels[i] == number).float()

        volumes = volumes_of(found, {BRAIN: lambda i: masks[i].float(), **{str(n): share_of(n) for n in numbers}}, plan)
        table = pd.DataFrame([{"value": found.value, "label": name, **row} for name, row in volumes.items()])
        write_table(in_millilitres(table, grid), inputs.out_volumes)

    def _people(self) -> pd.DataFrame:
        """Return the table of scan and value, that it has the scans of the images."""
        table = read_table(self.inputs.in_covariates, dtype={"scan": str})
        lengths = {name: len(files) for name in LISTS if isdefined(files := getattr(self.inputs, name))}
        if list(table.columns) != ["scan", "value"] or set(lengths.values()) != {len(table)}:
            counts = ", ".join(f"{count} {name}" for name, count in lengths.items())
            message = f"the table has {len(table)} rows and the columns {', '.join(map(str, table.columns))}; {counts}"
            remedy = "give a table of scan and value, and lists of files of these scans"
            raise InputError(message, file=self.inputs.in_covariates, remedy=remedy)
        return table

    def _posed(self, number: int, name: str, grid: Grid) -> Tensor:
        """Return an image of a scan (1, 1, *shape) in the template's pose by the rotation nearest to its affine."""
        import torch

        from popatlas.transforms.affine import read_affine, rigid_part
        from popatlas.transforms.chain import Affine, Chain

        path = Path(getattr(self.inputs, name)[number])
        motion = rigid_part(read_affine(self.inputs.in_affines[number]), grid.centre)
        data = np.asarray(load_image(path).dataobj, dtype=np.float32)
        own, chain = Grid.from_file(path), Chain((Affine(torch.from_numpy(motion)),))
        image = torch.from_numpy(data)[None, None]
        if name == "in_brains":
            return chain.apply(image, own, grid)
        return chain.apply(image, own, grid, "nearest").round().to(torch.int32)


LISTS = ("in_brains", "in_masks", "in_affines", "in_labels")


def brain_grid(template: Path, mask: Path) -> Grid:
    """Return the part of a template's grid that holds its brain, with a margin.

    Raises
    ------
    InputError
        When its voxels are far from cubes, or the mask lies on another grid.
    """
    from popatlas.images.place import read_mask_on
    from popatlas.registration.engines.io import check_isotropic

    grid = Grid.from_file(template)
    check_isotropic(grid, template, None)
    inside = np.argwhere(read_mask_on(mask, template, names=("template", "its mask")).data > 0)
    margin = np.ceil(MARGIN_MM / np.array(grid.spacing)).astype(int)
    low = np.maximum(inside.min(0) - margin, 0)
    high = np.minimum(inside.max(0) + margin + 1, grid.shape)
    affine = grid.affine.copy()
    affine[:-1, -1] += grid.affine[:-1, :-1] @ low
    return Grid(tuple(int(n) for n in high - low), affine)


def row_of(found: ConditionalTemplate, covariate: Sequence[float]) -> dict[str, float]:
    """Return what is told of a template; the covariate is that of all subjects."""
    return {
        "value": found.value,
        "mean_value": sum(weight * covariate[i] for i, weight in zip(found.members, found.weights, strict=True)),
        "subjects": len(found.members),
        "effective_subjects": found.effective,
        "iterations": len(found.changes),
        "last_change": found.changes[-1],
    }


def in_millilitres(volumes: pd.DataFrame, grid: Grid) -> pd.DataFrame:
    """Return a table of volumes with those in voxels of a grid turned into millilitres."""
    voxel_ml = float(np.prod(grid.spacing)) / 1000
    table = volumes.rename(columns=MILLILITRES)
    table[list(MILLILITRES.values())] *= voxel_ml
    return table


class PublishAlongInputSpec(PopatlasInputSpec):
    """Inputs of PublishAlong; lists have what BuildTemplateAlong wrote for each value."""

    in_templates = traits.List(File(exists=True), mandatory=True, minlen=1, desc="templates")
    in_rows = traits.List(File(exists=True), mandatory=True, minlen=1, desc="tables of one row about each")
    in_volumes = traits.List(File(exists=True), mandatory=True, minlen=1, desc="volumes")
    in_members = traits.List(File(exists=True), mandatory=True, minlen=1, desc="scans, their values and weights")
    in_names = File(exists=True, mandatory=True, desc="names of the labels")
    along = Str(mandatory=True, desc="column of participants.tsv that the templates follow")
    method = Str("", usedefault=True, desc="label fusion method whose labels the volumes are of")
    options = traits.Dict(desc="settings they were made with (JSON), told in the description")
    out_templates = File(mandatory=True, desc="templates, values along the last axis")
    out_description = File(mandatory=True, desc="column, values, settings (JSON)")
    out_table = File(mandatory=True, desc="table of a row for each template")
    out_table_dictionary = File(mandatory=True, desc="its columns")
    out_volumes = File(mandatory=True, desc="table of the volumes along the values")
    out_volumes_dictionary = File(mandatory=True, desc="its columns")
    out_members = File(mandatory=True, desc="table of who is in each template")
    out_members_dictionary = File(mandatory=True, desc="its columns")


class PublishAlong(PopatlasInterface):
    """Publish the templates along a covariate as one series, with the volumes along it and who is in."""

    input_spec = PublishAlongInputSpec

    def _execute(self) -> None:
        import pandas as pd

        from popatlas.measures.dictionary import ALONG_COLUMN_TEXT, described
        from popatlas.measures.names import read_names

        inputs = self.inputs
        images = [load_image(path) for path in inputs.in_templates]
        series = np.stack([np.asarray(image.dataobj, dtype=np.float32) for image in images], -1)
        save_image(series, images[0].affine, inputs.out_templates, np.float32)
        table, volumes, members = (
            pd.concat([read_table(path, dtype={"label": str, "scan": str}) for path in paths], ignore_index=True)
            for paths in (inputs.in_rows, inputs.in_volumes, inputs.in_members)
        )
        names = {str(number): name for number, name in read_names(Path(inputs.in_names)).items()}
        is_brain = volumes["label"] == BRAIN
        methods = np.where(is_brain, "mask", inputs.method)
        volumes.insert(1, "method", methods)
        volumes["label"] = volumes["label"].map(lambda label: names.get(label, label))
        for kind, (name, found) in zip(
            ALONG_COLUMN_TEXT, (("table", table), ("volumes", volumes), ("members", members)), strict=True
        ):
            write_table(found, getattr(inputs, f"out_{name}"))
            write_json(getattr(inputs, f"out_{name}_dictionary"), described(ALONG_COLUMN_TEXT[kind]))
        options = inputs.options if isdefined(inputs.options) else {}
        write_json(
            inputs.out_description,
            {
                "Description": f"Templates along {inputs.along}, in the order of Values along the last axis",
                "Along": inputs.along,
                "Values": table["value"].tolist(),
                "Scans": sorted(set(members["scan"])),
                "Method": inputs.method,
                "Settings": dict(options),
            },
        )
