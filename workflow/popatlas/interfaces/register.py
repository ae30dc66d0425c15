"""Steps of the registration stage."""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nipype.interfaces.base import Directory, File, isdefined, traits

from popatlas.config.attempts import resolve_fallback, with_weights
from popatlas.config.load import default_config, default_content, load_config
from popatlas.errors import GateError, InputError
from popatlas.images.antspy import deterministic_ants
from popatlas.images.io import atomic_path, write_json
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface
from popatlas.registration.gate import GATE_REVISION
from popatlas.settings import Content

if TYPE_CHECKING:
    from popatlas.registration.linear import Aligned
    from popatlas.registration.pair import Pair
    from popatlas.registration.types import Made, Registration

REMEDY = (
    "look at the brain mask and at the orientation in the header (sform, qform): convert the scan again, exclude it, or "
    "widen register.gate"
)


class RegisterRigidInputSpec(PopatlasInputSpec):
    """Inputs of RegisterRigid."""

    in_fixed = File(exists=True, mandatory=True, desc="brain that gives the pose")
    in_moving = File(exists=True, mandatory=True, desc="brain to be aligned")
    in_fixed_mask = File(exists=True, mandatory=True, desc="brain mask of the fixed image")
    in_moving_mask = File(exists=True, mandatory=True, desc="brain mask of the moving image")
    attempt = traits.Dict(mandatory=True, desc="start and engine (JSON)")
    settings = File(exists=True, desc="resolved configuration with the limits of register.gate; the shipped ones without it")
    out_affine = File(mandatory=True, desc="rigid transform, ITK")
    out_warped = File(mandatory=True, desc="moving image on the fixed grid")


class RegisterRigid(PopatlasInterface):
    """Bring a brain into the pose of a reference: rotation and translation only.

    Where the pose is not clearly right, or left and right are exchanged, the step fails: what is averaged into a template
    has no other gate.
    """

    input_spec = RegisterRigidInputSpec

    def _execute(self) -> None:
        from popatlas.registration.engines.registry import planned_attempt
        from popatlas.registration.linear import find_affine, write_aligned
        from popatlas.registration.pair import load_pair

        inputs = self.inputs
        pair = load_pair(inputs.in_fixed, inputs.in_fixed_mask, inputs.in_moving, inputs.in_moving_mask, inputs.subject)
        with tempfile.TemporaryDirectory() as folder:
            found = find_affine(pair, planned_attempt(inputs.attempt), Path(folder), kinds=("rigid",))
            self._judge(pair, found)
            publish(write_aligned(found, Path(folder)), inputs.out_affine)
        ants = deterministic_ants()
        warped = ants.apply_transforms(pair.fixed, pair.moving, [inputs.out_affine])
        with atomic_path(inputs.out_warped) as temporary:
            ants.image_write(warped, str(temporary))

    def _judge(self, pair: Pair, found: Aligned) -> None:
        """Refuse what would spoil the average, and note what is doubtful."""
        from popatlas.registration.evidence import of_pose
        from popatlas.registration.gate import doubts, judge
        from popatlas.registration.pose import turn_of

        metrics = of_pose(pair, found.matrix, found.pose)
        inputs = self.inputs
        config = load_config(inputs.settings) if isdefined(inputs.settings) else default_config()
        limits = config.content["register"]["gate"]
        said = doubts(metrics, limits, turn_of(found.matrix)[1])
        self.notes |= {"pose": metrics, "found_from": found.start}
        self.said = said
        if reasons := judge(metrics, limits):
            message = f"the alignment to the reference failed: {'; '.join([*reasons, *said])}"
            raise InputError(message, file=inputs.in_moving, subject=inputs.subject, remedy=REMEDY)


class RegisterImagesInputSpec(PopatlasInputSpec):
    """Inputs of RegisterImages."""

    in_fixed = File(exists=True, mandatory=True, desc="fixed brain (template or target)")
    in_fixed_mask = File(exists=True, mandatory=True, desc="brain mask of the fixed image")
    in_moving = File(exists=True, mandatory=True, desc="moving brain")
    in_moving_mask = File(exists=True, mandatory=True, desc="brain mask of the moving image")
    attempt = traits.Dict(mandatory=True, desc="what is tried first: start, engine and preset (JSON)")
    fallback = traits.List(traits.Dict(), desc="what is tried after a failed gate, in order (JSON)")
    gate = traits.Dict(desc="limits, register.gate (JSON)")
    settings = File(
        exists=True,
        desc="resolved configuration: where the weights of a network are, and fallback and gate where they are left out",
    )
    in_prediction = Directory(desc="folder with what a batch predicted for this scan: the first try takes it")
    in_batch_record = File(exists=True, desc="record of that batch, which says whether the prediction failed")
    gpu = traits.Int(0, usedefault=True, desc="GPUs of this job; 0 for the CPU, also where a GPU is visible")
    out_affine = File(mandatory=True, desc="affine part, ITK, fixed to moving points")
    out_warp = File(mandatory=True, desc="displacement field, fixed to moving points, before the affine")
    out_inverse_warp = File(desc="displacement field of the way back, after the inverted affine")
    out_composed = File(desc="affine and warp as one field on the fixed grid")
    out_inverse_composed = File(desc="the way back as one field on the moving grid")
    out_warped = File(mandatory=True, desc="moving image on the fixed grid")
    out_warped_mask = File(desc="moving brain mask on the fixed grid")
    out_logjacobian = File(desc="log Jacobian determinant of the composed transform on the fixed grid")
    out_gate = File(mandatory=True, desc="gate metrics and verdict of each attempt, JSON")


class RegisterImages(PopatlasInterface):
    """Register two brains and judge the result; when it fails the gate, fall back to other attempts.

    Each fallback is another start or another engine; one that raises an error that an image may have caused counts as
    failed, and errors of the set-up or the code end the step. The attempts are in `out_gate` and in the record of the step;
    when the last one fails too, the step fails and the scan goes to quarantine.
    """

    input_spec = RegisterImagesInputSpec

    def _execute(self) -> None:
        from popatlas.registration.engines.registry import planned_attempt
        from popatlas.registration.fallback import try_in_turn
        from popatlas.registration.pair import load_pair

        inputs = self.inputs
        pair = load_pair(inputs.in_fixed, inputs.in_fixed_mask, inputs.in_moving, inputs.in_moving_mask, inputs.subject)
        planned, gate = self._attempts_and_gate()
        attempts = [
            planned_attempt(attempt, inputs.gpu) for attempt in planned
        ]  # all of them: what is no settings is no attempt either
        rows: list[Content] = []
        self.notes["attempts"] = rows
        predicted = self._predicted if isdefined(inputs.in_prediction) else None
        publish_all = partial(self._publish, pair=pair)
        for row in try_in_turn(pair, attempts, gate, publish_all, predicted=predicted, threads=inputs.threads):
            rows.append(row)  # one by one: an error must not hide those before it
        judged = [row for row in rows if row["metrics"]]
        last = (judged or rows)[-1]
        made = {"verdict": "fail" if last["reasons"] else "pass", "engine": last["engine"], "start": last["start"]}
        self.said = last.get("notes", [])
        judged_by = {"revision": GATE_REVISION, "limits": gate, "notes": self.said}
        write_json(inputs.out_gate, {**made, **judged_by, **last["metrics"], "attempts": rows})
        if last["reasons"]:
            raise self._refusal(rows, judged)

    def _predicted(self) -> Registration:
        from popatlas.registration.batch import read_prediction

        return read_prediction(Path(self.inputs.in_prediction), Path(self.inputs.in_batch_record), self.inputs.subject)

    def _refusal(self, rows: list[Content], judged: list[Content]) -> InputError:
        """Return the error when no attempt passed: what the gate said last or, when every one raised, all reasons."""
        named = {"file": self.inputs.in_moving, "subject": self.inputs.subject}
        if judged:
            said = "; ".join([*judged[-1]["reasons"], *judged[-1].get("notes", [])])
            return GateError(f"registration gate failed: {said}", remedy=REMEDY, **named)
        reasons = "; ".join(f"{row['engine']} from {row['start']}: {row['reasons'][0]}" for row in rows)
        remedy = "correct what the errors name, or choose another register.engine"
        codes = {row["code"] for row in rows}
        code = codes.pop() if len(codes) == 1 else None
        return InputError(f"every attempt at the registration raised an error: {reasons}", remedy=remedy, code=code, **named)

    def _attempts_and_gate(self) -> tuple[list[Content], Content]:
        """Return all attempts, as the configuration resolves them, and the limits.

        Neither the limits nor the fallback nor the place of the weights comes as a parameter from the rule, so that widening
        a limit or moving a file repeats no registration.
        """
        inputs = self.inputs
        first = inputs.attempt
        fallback = inputs.fallback if isdefined(inputs.fallback) else None
        gate = inputs.gate if isdefined(inputs.gate) else None
        if isdefined(inputs.settings):
            config = load_config(inputs.settings)
            fallback = resolve_fallback(config, inputs.attempt["name"]) if fallback is None else fallback
            gate = config.content["register"]["gate"] if gate is None else gate
            first = with_weights(first, config)
        if gate is None:
            raise InputError("no gate", subject=inputs.subject, remedy="give gate or settings")
        shipped = default_content()["register"]["gate"]  # a limit that is left out is no reason to let everything pass
        return [first, *(fallback or [])], {**shipped, **gate}

    def _publish(self, made: Made, pair: Pair) -> None:
        files = made.files
        for name, source in (
            ("out_affine", files.affine),
            ("out_warp", files.warp),
            ("out_inverse_warp", files.inverse_warp),
            ("out_composed", made.composed),
            ("out_logjacobian", made.logjacobian),
        ):
            target = getattr(self.inputs, name)
            if isdefined(target):
                publish(source, target)
        if isdefined(self.inputs.out_inverse_composed):
            from popatlas.transforms.composed import write_composed

            write_composed(self.inputs.out_inverse_composed, made.inverse, pair.scans()[1].grid)
        for name, image in (("out_warped", made.warped), ("out_warped_mask", made.warped_mask)):
            target = getattr(self.inputs, name)
            if isdefined(target):
                with atomic_path(target) as temporary:
                    deterministic_ants().image_write(image, str(temporary))


def publish(source: Path, target: str) -> None:
    """Copy a finished file to its place, atomically."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
