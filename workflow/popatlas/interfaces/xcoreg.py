"""The registration of a group as a step."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces.base import File, isdefined, traits

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

        for name in ("out_warped", "out_warps", "out_inverse_warps", "out_affines"):
            self._check_count(name, paths(name))
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

    def _check_count(self, name: str, found: list[Path]) -> None:
        from popatlas.errors import InputError

        if found and len(found) != len(self.inputs.in_images):
            message = f"{len(self.inputs.in_images)} images and {len(found)} files for {name}"
            raise InputError(message, remedy="give one for each image, in the same order")
