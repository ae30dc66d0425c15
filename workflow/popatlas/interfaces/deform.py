"""The instance engine as a step of its own, with all that it can take; no rule needs it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from nipype.interfaces.base import File, Str, isdefined, traits

from popatlas.errors import InputError
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface
from popatlas.interfaces.register import publish
from popatlas.settings import as_content, settings_from


class DeformImagesInputSpec(PopatlasInputSpec):
    """Inputs of DeformImages; masks and labels lie on the grid of their image."""

    in_fixed = File(exists=True, mandatory=True, desc="fixed image, isotropic voxels, 2D or 3D")
    in_moving = File(exists=True, mandatory=True, desc="moving image")
    in_affine = File(exists=True, desc="ITK affine from fixed to moving points (identity)")
    in_initial = File(exists=True, desc="displacement field on the fixed grid to start from")
    in_fixed_mask = File(exists=True, desc="voxels of the fixed image that count")
    in_moving_mask = File(exists=True, desc="voxels of the moving image that count")
    in_fixed_labels = File(exists=True, desc="labels of the fixed image")
    in_moving_labels = File(exists=True, desc="labels of the moving image; common ones draw together")
    in_fixed_landmarks = File(exists=True, desc="landmarks of the fixed image (name, x, y, z in RAS mm)")
    in_moving_landmarks = File(exists=True, desc="landmarks of the moving image; those of the same name draw together")
    preset = Str("default", usedefault=True, desc="quick, fast, default or accurate")
    options = traits.Dict(desc="settings of the preset to change (JSON), for example label_weight or similarity")
    out_warp = File(mandatory=True, desc="displacement field, fixed grid, ITK")
    out_inverse_warp = File(desc="displacement field of the way back, fixed grid")


class DeformImages(PopatlasInterface):
    """Run the instance engine on two images, with masks, labels, landmarks or a field to start from."""

    input_spec = DeformImagesInputSpec

    def _execute(self) -> None:
        from popatlas.registration.engines.instance.settings import PRESETS, Settings
        from popatlas.registration.engines.instance.terms import Side, deform_files

        inputs = self.inputs

        def file(name: str) -> Path | None:
            value = getattr(inputs, f"in_{name}")
            return Path(value) if isdefined(value) else None

        def side(name: str) -> Side:
            parts = {part: file(f"{name}_{part}") for part in ("mask", "labels", "landmarks")}
            return Side(Path(getattr(inputs, f"in_{name}")), **parts)

        if inputs.preset not in PRESETS:
            raise InputError(f"no preset is called '{inputs.preset}'", remedy=f"use one of {', '.join(PRESETS)}")
        changed = inputs.options if isdefined(inputs.options) else {}
        settings = settings_from(Settings, as_content(PRESETS[inputs.preset]) | changed, "options")
        with tempfile.TemporaryDirectory() as folder:
            found, result = deform_files(
                side("fixed"), side("moving"), settings, Path(folder), affine=file("affine"), initial=file("initial"),
                subject=inputs.subject or None, threads=inputs.threads,
            )  # fmt: skip
            publish(found.warp, inputs.out_warp)
            if isdefined(inputs.out_inverse_warp):
                publish(found.inverse_warp, inputs.out_inverse_warp)
        self.notes = {"levels": [str(level) for level in result.levels], "diverged": result.diverged}
