"""Steps of the registration stage."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from nipype.interfaces.base import File, TraitedSpec, isdefined, traits

from popatlas.errors import InputError
from popatlas.images.io import atomic_path, write_json
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface


class RegisterRigidInputSpec(PopatlasInputSpec):
    """Inputs of RegisterRigid."""

    in_fixed = File(exists=True, mandatory=True, desc="brain that gives the pose")
    in_moving = File(exists=True, mandatory=True, desc="brain to be aligned")
    schedule = traits.Dict(mandatory=True, desc="preset of register.presets (JSON)")
    out_affine = File(mandatory=True, desc="rigid transform, ITK")
    out_warped = File(mandatory=True, desc="moving image on the fixed grid")


class RegisterRigidOutputSpec(TraitedSpec):
    """Outputs of RegisterRigid."""

    out_affine = File(exists=True)
    out_warped = File(exists=True)


class RegisterRigid(PopatlasInterface):
    """Bring a brain into the pose of a reference: rotation and translation only."""

    input_spec = RegisterRigidInputSpec
    output_spec = RegisterRigidOutputSpec

    def _execute(self) -> None:
        from popatlas.registration.ants import Schedule, deterministic_ants, register_linear

        ants = deterministic_ants()
        schedule = Schedule.from_config(self.inputs.schedule)
        fixed, moving = (ants.image_read(path) for path in (self.inputs.in_fixed, self.inputs.in_moving))
        with tempfile.TemporaryDirectory() as folder:
            rigid = register_linear(fixed, moving, "Rigid", None, schedule, Path(folder) / "stage-")
            publish(rigid, self.inputs.out_affine)
        warped = ants.apply_transforms(fixed, moving, [self.inputs.out_affine])
        with atomic_path(self.inputs.out_warped) as temporary:
            ants.image_write(warped, str(temporary))


class RegisterImagesInputSpec(PopatlasInputSpec):
    """Inputs of RegisterImages."""

    in_fixed = File(exists=True, mandatory=True, desc="fixed brain (template or target)")
    in_fixed_mask = File(exists=True, mandatory=True, desc="brain mask of the fixed image")
    in_moving = File(exists=True, mandatory=True, desc="moving brain")
    in_moving_mask = File(exists=True, mandatory=True, desc="brain mask of the moving image")
    schedule = traits.Dict(mandatory=True, desc="preset of register.presets (JSON)")
    gate = traits.Dict(mandatory=True, desc="limits, register.gate (JSON)")
    out_affine = File(mandatory=True, desc="affine part, ITK, fixed to moving points")
    out_warp = File(mandatory=True, desc="SyN field, fixed to moving points, before the affine")
    out_inverse_warp = File(desc="SyN field of the way back, after the inverted affine")
    out_composed = File(desc="affine and warp as one field on the fixed grid")
    out_inverse_composed = File(desc="the way back as one field on the moving grid")
    out_warped = File(mandatory=True, desc="moving image on the fixed grid")
    out_warped_mask = File(desc="moving brain mask on the fixed grid")
    out_logjacobian = File(desc="log Jacobian determinant of the composed transform on the fixed grid")
    out_gate = File(mandatory=True, desc="gate metrics and verdict of each attempt, JSON")


class RegisterImagesOutputSpec(TraitedSpec):
    """Outputs of RegisterImages."""

    out_affine = File(exists=True)
    out_warp = File(exists=True)
    out_inverse_warp = File()
    out_composed = File()
    out_inverse_composed = File()
    out_warped = File(exists=True)
    out_warped_mask = File()
    out_logjacobian = File()
    out_gate = File(exists=True)


class RegisterImages(PopatlasInterface):
    """Register two brains with ANTs (rigid, affine, SyN) and judge the result.

    A registration that fails the gate is tried once more from a multi-start search; when that fails too, the step fails
    and the attempts are in `out_gate`.
    """

    input_spec = RegisterImagesInputSpec
    output_spec = RegisterImagesOutputSpec

    def _execute(self) -> None:
        from popatlas.registration.pair import Pair, attempt

        inputs = self.inputs
        pair = Pair.load(inputs.in_fixed, inputs.in_fixed_mask, inputs.in_moving, inputs.in_moving_mask, inputs.subject)
        attempts: list[dict[str, Any]] = []
        for start in ("centre of mass", "multi-start search"):
            with tempfile.TemporaryDirectory() as folder:
                outcome = attempt(
                    pair, self.inputs.schedule, self.inputs.gate, Path(folder), search=start != "centre of mass"
                )
                attempts.append({"start": start, "metrics": outcome.metrics, "reasons": outcome.reasons})
                if not outcome.reasons:
                    self._publish(outcome, pair)
            if not outcome.reasons:
                break
        verdict = "fail" if outcome.reasons else "pass"
        write_json(self.inputs.out_gate, {"verdict": verdict, **outcome.metrics, "attempts": attempts})
        self.notes["attempts"] = attempts
        if outcome.reasons:
            raise InputError(
                f"registration gate failed: {'; '.join(outcome.reasons)}",
                file=self.inputs.in_moving,
                subject=self.inputs.subject,
                remedy="look at the brain mask and orientation of the image, or widen register.gate",
            )

    def _publish(self, outcome: Any, pair: Any) -> None:
        files = outcome.files
        for name, source in (
            ("out_affine", files.affine),
            ("out_warp", files.warp),
            ("out_inverse_warp", files.inverse_warp),
            ("out_composed", outcome.composed),
            ("out_logjacobian", outcome.logjacobian),
        ):
            target = getattr(self.inputs, name)
            if isdefined(target):
                publish(source, target)
        if isdefined(self.inputs.out_inverse_composed):
            from popatlas.transforms.displacement import compose

            chain = [files.affine, files.inverse_warp]
            fixed, moving = self.inputs.in_fixed, self.inputs.in_moving
            compose(moving, fixed, chain, [True, False], self.inputs.out_inverse_composed)
        for name, image in (("out_warped", outcome.warped), ("out_warped_mask", outcome.warped_mask)):
            target = getattr(self.inputs, name)
            if isdefined(target):
                with atomic_path(target) as temporary:
                    pair.ants.image_write(image, str(temporary))


def publish(source: Path, target: str) -> None:
    """Copy a finished file to its place, atomically."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
