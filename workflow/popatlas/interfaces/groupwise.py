"""Steps of the atlas stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from nipype.interfaces.base import File, Str, isdefined, traits

from popatlas.errors import InputError
from popatlas.images.header import check_header
from popatlas.images.io import atomic_path, load_image, read_json, save_image, save_plain, write_json, write_table
from popatlas.images.place import read_mask_on
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface

if TYPE_CHECKING:
    import SimpleITK as sitk

MOST_OUTSIDE = 0.25  # share of an existing template's intensity outside its mask: a soft rim, not a skull


class MakeReferenceInputSpec(PopatlasInputSpec):
    """Inputs of MakeReference."""

    resolution_mm = traits.Float(mandatory=True, desc="voxel size, mm")
    out_file = File(mandatory=True, desc="MNI152 brain on the template grid")
    out_mask = File(mandatory=True, desc="its mask")


class MakeReference(PopatlasInterface):
    """Write the reference brain that gives the template's pose and grid (MNI152, from the nilearn wheel)."""

    input_spec = MakeReferenceInputSpec

    def _execute(self) -> None:
        from popatlas.groupwise.template import reference_brain

        data, affine = reference_brain(self.inputs.resolution_mm)
        save_image(data, affine, self.inputs.out_file)
        save_image((data > 0.05).astype("uint8"), affine, self.inputs.out_mask)


class InitialiseTemplateInputSpec(PopatlasInputSpec):
    """Inputs of InitialiseTemplate."""

    in_images = traits.List(File(exists=True), mandatory=True, minlen=1, desc="members in the pose of the reference")
    out_template = File(mandatory=True, desc="template of iteration 0")
    out_mask = File(mandatory=True, desc="its brain mask")


class InitialiseTemplate(PopatlasInterface):
    """Average the rigidly aligned members: the start of the template."""

    input_spec = InitialiseTemplateInputSpec

    def _execute(self) -> None:
        import SimpleITK as sitk

        from popatlas.groupwise.template import mean_image

        mean = mean_image(self.inputs.in_images)
        mask = sitk.Cast(mean > 0.25, sitk.sitkUInt8)
        write_images({self.inputs.out_template: mean, self.inputs.out_mask: sitk.BinaryFillhole(mask)})


class AverageTemplateInputSpec(PopatlasInputSpec):
    """Inputs of AverageTemplate."""

    in_template = File(exists=True, mandatory=True, desc="template that the members were registered to")
    in_mask = File(exists=True, mandatory=True, desc="its brain mask")
    in_images = traits.List(File(exists=True), mandatory=True, minlen=1, desc="members on the template grid")
    in_masks = traits.List(File(exists=True), mandatory=True, minlen=1, desc="their brain masks on the template grid")
    in_affines = traits.List(File(exists=True), mandatory=True, minlen=1, desc="affine parts, ITK")
    in_warps = traits.List(File(exists=True), mandatory=True, minlen=1, desc="SyN fields, ITK")
    iteration = traits.Int(mandatory=True, desc="number of the iteration, from 1")
    shape_step = traits.Float(1.0, usedefault=True, desc="share of the mean deformation removed")
    sharpen = traits.Float(0.0, usedefault=True, desc="weight of unsharp masking")
    out_template = File(mandatory=True, desc="next template")
    out_mask = File(mandatory=True, desc="its brain mask")
    out_row = File(mandatory=True, desc="row of the convergence table, JSON")


class AverageTemplate(PopatlasInterface):
    """Average the registered members and move the average to their mean shape."""

    input_spec = AverageTemplateInputSpec

    def _execute(self) -> None:
        from popatlas.groupwise.template import update_template

        template, mask, row = update_template(
            self.inputs.iteration,
            (self.inputs.in_template, self.inputs.in_mask),
            self.inputs.in_images,
            self.inputs.in_masks,
            list(zip(self.inputs.in_affines, self.inputs.in_warps, strict=True)),
            shape_step=self.inputs.shape_step,
            sharpen_weight=self.inputs.sharpen,
        )
        write_images({self.inputs.out_template: template, self.inputs.out_mask: mask})
        write_json(self.inputs.out_row, row.row())


class DescribeTemplateInputSpec(PopatlasInputSpec):
    """Inputs of DescribeTemplate."""

    in_template = File(exists=True, mandatory=True, desc="template of the last iteration, or an existing one")
    in_mask = File(exists=True, desc="its brain mask; derived from the template (> 0) when left out")
    in_rows = traits.List(File(exists=True), desc="rows of the convergence table, in order")
    in_members = File(exists=True, desc="frozen cohort file")
    in_classes = File(exists=True, desc="classes that a registration of the members as one group found")
    label = Str(mandatory=True, desc="name of the template")
    version = Str(mandatory=True, desc="hash of members and settings")
    out_template = File(mandatory=True, desc="tpl-<label>_T1w.nii.gz")
    out_mask = File(mandatory=True, desc="brain mask")
    out_convergence = File(mandatory=True, desc="convergence table, TSV")
    out_description = File(mandatory=True, desc="template_description.json")
    out_classes = File(desc="tpl-<label>_desc-classes_probseg.nii.gz, these classes")


class DescribeTemplate(PopatlasInterface):
    """Publish a template with its mask, convergence table and description."""

    input_spec = DescribeTemplateInputSpec

    def _execute(self) -> None:
        import pandas as pd

        from popatlas.groupwise.template import Iteration, read_image
        from popatlas.images.io import read_table

        is_built = isdefined(self.inputs.in_members)
        if not is_built:
            check_header(self.inputs.in_template, "template")
        save_plain(self.inputs.in_template, self.inputs.out_template)
        if isdefined(self.inputs.in_mask):
            save_mask(self.inputs.in_mask, self.inputs.out_template, self.inputs.out_mask, is_judged=not is_built)
        else:
            write_images({self.inputs.out_mask: positive_mask(read_image(self.inputs.out_template))})
        files = self.inputs.in_rows if isdefined(self.inputs.in_rows) else []
        columns = list(Iteration.__dataclass_fields__)
        rows = pd.DataFrame([read_json(path) for path in files], columns=columns)
        write_table(rows, self.inputs.out_convergence)
        if isdefined(self.inputs.in_classes):
            classes = load_image(self.inputs.in_classes)
            save_image(np.asarray(classes.dataobj), classes.affine, self.inputs.out_classes, np.float32)
        members = read_table(self.inputs.in_members) if is_built else pd.DataFrame()
        image = read_image(self.inputs.out_template)
        write_json(
            self.inputs.out_description,
            {
                "Name": self.inputs.label,
                "Version": self.inputs.version,
                "Members": members.to_dict("records"),
                "Iterations": len(rows),
                "SpacingMm": list(image.GetSpacing()),
                "Shape": list(image.GetSize()),
                "Reference": "pose and grid: ICBM 152 nonlinear symmetric 2009a (Fonov et al., 2011)",
            },
        )


def positive_mask(image: sitk.Image) -> sitk.Image:
    """Return the filled foreground of a skull-stripped image; an empty one raises InputError."""
    import SimpleITK as sitk

    mask = sitk.BinaryFillhole(sitk.Cast(image > 0, sitk.sitkUInt8))
    if sitk.GetArrayViewFromImage(mask).all():
        raise InputError("the template has no empty background", remedy="give a skull-stripped template (atlas.template)")
    return mask


def save_mask(mask: str, template: str, out_file: str, *, is_judged: bool) -> None:
    """Write the mask of a template as 0 and 1.

    Parameters
    ----------
    mask, template : str
        Images on one grid.
    out_file : str
        The mask, uint8.
    is_judged : bool
        Raise InputError when much of the template lies outside the mask: a head is no brain to register brains to.
    """
    inside = read_mask_on(mask, template, names=("template", "its mask")).data > 0
    values = np.clip(np.asarray(load_image(template).dataobj), 0, None)
    share = float(values[~inside].sum() / max(values.sum(), 1e-9))
    if is_judged and share > MOST_OUTSIDE:
        raise InputError(
            f"{share:.0%} of the template's intensity lies outside its mask",
            file=mask,
            remedy="give a skull-stripped template (atlas.template) and its mask",
        )
    save_image(inside, load_image(template).affine, out_file, np.uint8)


def write_images(images: dict[str, sitk.Image]) -> None:
    """Write SimpleITK images atomically."""
    import SimpleITK as sitk

    for path, image in images.items():
        with atomic_path(path) as temporary:
            sitk.WriteImage(image, str(temporary), useCompression=True)
