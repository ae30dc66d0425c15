"""The registration of a group as a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nipype.interfaces.base import Directory, File, Str, isdefined, traits

from popatlas.errors import InputError
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface
from popatlas.settings import settings_from


class CoRegisterGroupInputSpec(PopatlasInputSpec):
    """Inputs of CoRegisterGroup; lists have one entry for each image, in the same order."""

    in_images = traits.List(File(exists=True), mandatory=True, minlen=1, desc="images of any contrasts, 2D or 3D")
    in_masks = traits.List(File(exists=True), desc="where each may be trusted, on the grid of its image")
    in_affines = traits.List(File(exists=True), desc="ITK affines from the common space to each image (identity)")
    in_reference = File(exists=True, desc="image whose grid is the common one, isotropic voxels (the first image)")
    in_prior = File(exists=True, desc="class probabilities on the common grid, classes along the last axis")
    options = traits.Dict(desc="settings to change (JSON), for example motion or classes")
    out_warped = traits.List(File, desc="images in the common space")
    out_warps = traits.List(File, desc="displacement fields from the common space to each image, ITK")
    out_inverse_warps = traits.List(File, desc="displacement fields of the way back, on the common grid")
    out_affines = traits.List(File, desc="ITK affines from the common space to each image, linear moves included")
    out_posterior = File(mandatory=True, desc="probability of each class in the common space, classes along the last axis")
    out_labels = File(desc="most probable class of each voxel, from 1 (dark in the first image); 0 where nothing is known")


class CoRegisterGroup(PopatlasInterface):
    """Register a group of images of any contrasts to their common anatomy (X-CoReg), and write its classes."""

    input_spec = CoRegisterGroupInputSpec

    def _execute(self) -> None:
        from popatlas.groupwise.xcoreg.files import GroupFiles, coregister_files, write_group
        from popatlas.groupwise.xcoreg.settings import XCoRegSettings
        from popatlas.images.grid import Grid

        inputs = self.inputs

        def paths(name: str) -> list[Path]:
            value = getattr(inputs, name)
            return [Path(item) for item in value] if isdefined(value) else []

        def path(name: str) -> Path | None:
            value = getattr(inputs, name)
            return Path(value) if isdefined(value) else None

        lists = ("out_warped", "out_warps", "out_inverse_warps", "out_affines")
        check_counts(inputs.in_images, {name: paths(name) for name in lists}, "images")
        settings = settings_from(XCoRegSettings, inputs.options if isdefined(inputs.options) else {}, "options")
        files = GroupFiles(
            images=paths("in_images"),
            masks=paths("in_masks") or None,
            affines=paths("in_affines") or None,
            reference=path("in_reference"),
            prior=path("in_prior"),
        )
        result, common = coregister_files(files, settings, subject=inputs.subject or None, threads=inputs.threads)
        write_group(
            result,
            common,
            grids=[Grid.from_file(image) for image in files.images],
            warped=paths("out_warped"),
            warps=paths("out_warps"),
            inverse_warps=paths("out_inverse_warps"),
            affines=paths("out_affines"),
            posterior=path("out_posterior"),
            labels=path("out_labels"),
            threads=inputs.threads,
        )
        shares = [] if result.proportions is None else [round(float(share), 4) for share in result.proportions]
        if result.vanished():
            nowhere = ", ".join(map(str, result.vanished()))
            notice = f"classes {nowhere} of {settings.classes} are nowhere the most probable: the images show fewer tissues"
            self.said.append(notice)
            print(notice, flush=True)
        self.notes = {"chi": [max(level, default=None) for level in result.history], "proportions": shares}


class CoRegisterMembersInputSpec(PopatlasInputSpec):
    """Inputs of CoRegisterMembers; lists have one entry for each member, in the same order."""

    in_reference = File(exists=True, mandatory=True, desc="brain that gives pose and grid")
    in_brains = traits.List(File(exists=True), mandatory=True, minlen=2, desc="brains of the members")
    in_masks = traits.List(File(exists=True), mandatory=True, minlen=2, desc="their masks")
    in_affines = traits.List(File(exists=True), mandatory=True, minlen=2, desc="rigid, from the reference to each, ITK")
    scans = traits.List(Str, mandatory=True, desc="scan of each member")
    options = traits.Dict(desc="settings to change (JSON), atlas.xcoreg")
    out_template = File(mandatory=True, desc="mean of the members in their common space")
    out_mask = File(mandatory=True, desc="its brain mask: what at least half of the brains cover")
    out_classes = File(
        mandatory=True, desc="probability of each class, classes along the last axis; the first is background"
    )
    out_folder = Directory(mandatory=True, desc="gets a folder for each scan: affine, displacement field and its inverse")
    out_batch_record = File(mandatory=True, desc="record: state and message of each scan, JSON")


class CoRegisterMembers(PopatlasInterface):
    """Register the members of a template as one group to their common anatomy (X-CoReg): the start of the template."""

    input_spec = CoRegisterMembersInputSpec

    def _execute(self) -> None:
        import numpy as np

        from popatlas.groupwise.xcoreg.files import GroupFiles
        from popatlas.groupwise.xcoreg.members import MARGIN_MM, coregister_members
        from popatlas.groupwise.xcoreg.settings import XCoRegSettings
        from popatlas.images.io import save_image, write_json
        from popatlas.registration.batch import FILES

        inputs = self.inputs
        settings = settings_from(XCoRegSettings, inputs.options if isdefined(inputs.options) else {}, "atlas.xcoreg")
        folders = [Path(inputs.out_folder) / scan for scan in inputs.scans]
        lists = {"masks": inputs.in_masks, "affines": inputs.in_affines, "scans": inputs.scans}
        check_counts(inputs.in_brains, lists, "brains")
        files = GroupFiles(
            images=[Path(path) for path in inputs.in_brains],
            masks=[Path(path) for path in inputs.in_masks],
            margin_mm=MARGIN_MM,
            affines=[Path(path) for path in inputs.in_affines],
            reference=Path(inputs.in_reference),
        )
        found = coregister_members(files, folders, settings, inputs.threads)
        to_ras = found.grid.ras_affine
        save_image(found.template, to_ras, inputs.out_template, np.float32)
        save_image(found.mask, to_ras, inputs.out_mask, np.uint8)
        save_image(np.moveaxis(found.classes, 0, -1), to_ras, inputs.out_classes, np.float32)
        self.also_made = [folder / name for folder in folders for name in FILES]
        self.notes = {"chi": [max(level, default=None) for level in found.history]}
        entry = {"state": "ok", "message": "registered as one group", "diverged": False}
        write_json(inputs.out_batch_record, dict.fromkeys(inputs.scans, entry))


def check_counts(images: Sequence[str], lists: Mapping[str, Sequence[object]], what: str) -> None:
    """Refuse lists that are not as long as that of the images; empty ones are not given."""
    for name, found in lists.items():
        if found and len(found) != len(images):
            message = f"{len(images)} {what} and {len(found)} files for {name}"
            raise InputError(message, remedy="give one for each, in the same order")
