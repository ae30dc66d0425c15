"""Steps of the fusion stage: atlases onto the target grid, then one label image from many."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nipype.interfaces.base import File, Str, isdefined, traits

from popatlas.errors import InputError
from popatlas.fusion.fuse import fuse
from popatlas.fusion.methods import MAPS, METHODS
from popatlas.fusion.sections import given_options
from popatlas.images.io import load_image, save_image, write_table
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface
from popatlas.interfaces.device import torch_device
from popatlas.settings import Content

if TYPE_CHECKING:
    import numpy.typing as npt

    from popatlas.fusion.candidates import Candidates
    from popatlas.fusion.propagate import LabelInterpolator
    from popatlas.fusion.result import Fusion

VOTING = ("votes", "network_weight")  # of the section dataparams: what the consensus takes, beside gate_quality


class _AtlasesInputSpec(PopatlasInputSpec):
    """Inputs of steps that bring atlases onto the grid of a target."""

    in_target = File(exists=True, mandatory=True, desc="image that defines the grid of the target")
    in_dsegs = traits.List(File(exists=True), mandatory=True, desc="label image of each atlas")
    in_brains = traits.List(File(exists=True), mandatory=True, desc="brain image of each atlas")
    in_warps = traits.List(File(exists=True), mandatory=True, desc="forward warp of each atlas (to template or target)")
    in_affines = traits.List(File(exists=True), mandatory=True, desc="forward affine of each atlas")
    in_target_affine = File(exists=True, desc="affine of the target to the template; leave out for direct registrations")
    in_target_inverse_warp = File(exists=True, desc="inverse warp of the target, template to T1w; goes with the affine")
    interpolator = traits.Enum("nearestNeighbor", "genericLabel", usedefault=True, desc="interpolation of labels")


class PropagateLabelsInputSpec(_AtlasesInputSpec):
    """Inputs of PropagateLabels."""

    out_labels = File(mandatory=True, desc="candidate labels, 4D int32, volume i is atlas i")
    out_images = File(mandatory=True, desc="candidate images, 4D float32, volume i is atlas i")


class PropagateLabels(PopatlasInterface):
    """Resample labels and images of all atlases onto the target grid, each with one composed transform."""

    input_spec = PropagateLabelsInputSpec

    def _execute(self) -> None:
        labels, images = _propagated(self.inputs)
        affine = load_image(self.inputs.in_target).affine
        save_image(np.moveaxis(labels, 0, -1), affine, self.inputs.out_labels, np.int32)
        save_image(np.moveaxis(images, 0, -1), affine, self.inputs.out_images, np.float32)


def _propagated(inputs: Any) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return labels and images of all atlases on the grid of the target; those of the last target are remembered."""
    subject, target = inputs.subject or None, Path(inputs.in_target)
    through = [
        Path(value) if isdefined(value) else None for value in (inputs.in_target_affine, inputs.in_target_inverse_warp)
    ]
    if (through[0] is None) != (through[1] is None):
        raise InputError(
            "the affine of the target was given without its inverse warp, or the other way round",
            file=target,
            subject=subject,
            remedy="give both to go through the template, none for direct registrations",
        )
    if len(inputs.in_warps) != len(inputs.in_affines):
        raise InputError(
            f"{len(inputs.in_warps)} warps and {len(inputs.in_affines)} affines",
            subject=subject,
            remedy="give one of each for every atlas",
        )
    names = (inputs.in_dsegs, inputs.in_brains, inputs.in_warps, inputs.in_affines)
    files = tuple(tuple(Path(file) for file in given) for given in names)
    return _on_target(target, files, tuple(through), str(inputs.interpolator), subject)


@lru_cache(maxsize=1)
def _on_target(
    target: Path,
    atlases: tuple[tuple[Path, ...], ...],
    through: tuple[Path | None, ...],
    interpolator: LabelInterpolator,
    subject: str | None,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    from popatlas.fusion.propagate import chain, propagate

    dsegs, brains, warps, affines = atlases
    chains = [chain(warp, affine, *through) for warp, affine in zip(warps, affines, strict=True)]
    labels, images = propagate(target, dsegs, brains, chains, interpolator, subject, forms=True)
    for found in (labels, images):
        found.setflags(write=False)
    return labels, images


class FuseLabelsInputSpec(PopatlasInputSpec):
    """Inputs of FuseLabels."""

    method = traits.Enum(*METHODS, mandatory=True, desc="fusion method")
    in_labels = File(exists=True, desc="candidate labels, 4D; made of the atlases where left out")
    in_images = File(exists=True, desc="candidate images, 4D; most methods and a selection need them")
    in_dsegs = traits.List(File(exists=True), desc="in place of in_labels: label image of each atlas")
    in_brains = traits.List(File(exists=True), desc="brain image of each atlas; these as for PropagateLabels")
    in_warps = traits.List(File(exists=True), desc="forward warp of each atlas (to template or target)")
    in_affines = traits.List(File(exists=True), desc="forward affine of each atlas")
    in_target_affine = File(exists=True, desc="affine of the target to the template; leave out for direct registrations")
    in_target_inverse_warp = File(exists=True, desc="inverse warp of the target, template to T1w; goes with the affine")
    interpolator = traits.Enum("nearestNeighbor", "genericLabel", usedefault=True, desc="interpolation of labels")
    in_target = File(
        exists=True, desc="brain of the target, intensities comparable with the candidates; goes with the images"
    )
    names = traits.List(Str, desc="atlas of each candidate; 1, 2, ... when left out")
    settings = traits.Dict(desc="section fuse of the configuration (JSON); keys left out keep their defaults")
    in_network = File(desc="dataparams: trained network of TrainDataParameters")
    in_parameters = File(
        desc="dataparams: data parameters of TrainDataParameters; estimated when left out or of other scans"
    )
    in_gates = traits.List(
        File(exists=True), desc="dataparams: gate of the registration of each atlas (JSON), for gate_quality"
    )
    gpu = traits.Int(0, usedefault=True, desc="dataparams: GPUs of this job; 0 for the CPU, also where a GPU is visible")
    out_file = File(mandatory=True, desc="fused labels, int32")
    out_probability = File(desc="probability of the fused label, float32")
    out_agreement = File(desc="share of the candidates with the fused label, float32")
    out_entropy = File(desc="entropy of the label probabilities in bits, float32")
    out_atlas_weights = File(desc="atlas weight of each candidate, TSV")


class FuseLabels(PopatlasInterface):
    """Fuse candidate labels into one label image, and say how sure it is and how much each candidate counted.

    With `select` only the best candidates are used; `select_by` trust is for dataparams, other methods take similarity.
    """

    input_spec = FuseLabelsInputSpec

    def _execute(self) -> None:
        from popatlas.fusion.dataparams.scan import atlas_weights_table

        inputs = self.inputs
        candidates = self._candidates()
        self.notes |= {"atlases": len(candidates.labels), "method": inputs.method}
        if METHODS[inputs.method].trained:
            found, parameters = self._by_data_parameters(candidates)
        else:
            options = self._options() | {"select": self._settings().get("select", 0)}
            found, parameters = fuse(candidates, method=inputs.method, **options), None
        self.notes |= {"left_out": []} | found.notes
        affine = load_image(inputs.in_target if isdefined(inputs.in_dsegs) else inputs.in_labels).affine
        save_image(found.dseg, affine, inputs.out_file, np.int32)
        for name in MAPS:
            file = getattr(inputs, f"out_{name}")
            if isdefined(file):
                save_image(getattr(found, name)(), affine, file, np.float32)
        if isdefined(inputs.out_atlas_weights):
            write_table(
                atlas_weights_table(candidates, found.atlas_weights, found.dseg, inputs.method, parameters),
                inputs.out_atlas_weights,
            )

    def _source(self) -> str | None:
        """Return the file that a message about the candidates names."""
        return next((file for file in (self.inputs.in_labels, self.inputs.in_target) if isdefined(file)), None)

    def _settings(self) -> Content:
        return self.inputs.settings if isdefined(self.inputs.settings) else {}

    def _options(self) -> Content:
        """Return the options of the method that the settings give."""
        settings = self._settings()
        ties = {"ties": settings["ties"]} if "ties" in settings else {}
        return given_options(self.inputs.method, settings) | ties

    def _candidates(self) -> Candidates:
        from popatlas.fusion.candidate_files import make_candidates, read_candidates

        inputs, method = self.inputs, METHODS[self.inputs.method]
        names = tuple(inputs.names) if isdefined(inputs.names) else ()
        if isdefined(inputs.in_dsegs) and isdefined(inputs.in_target):
            return make_candidates(inputs.in_target, *_propagated(inputs), names, inputs.subject or None)
        if not isdefined(inputs.in_labels):
            raise InputError(
                "there are no candidates",
                subject=inputs.subject,
                remedy="give in_labels, or target, label images, brains, warps and affines of the atlases",
            )
        needed = method.needs_images or bool(self._settings().get("select", 0))
        if needed and not (isdefined(inputs.in_images) and isdefined(inputs.in_target)):
            raise InputError(
                f"{method.title if method.needs_images else 'atlas selection'} needs the candidate images and the target",
                file=self._source(),
                subject=inputs.subject,
                remedy="give in_images and in_target",
            )
        return read_candidates(
            inputs.in_labels,
            inputs.in_target if isdefined(inputs.in_target) else None,
            inputs.in_images if needed else None,
            names,
            inputs.subject or None,
        )

    def _by_data_parameters(self, candidates: Candidates) -> tuple[Fusion, npt.NDArray[np.float64]]:
        from popatlas.fusion.dataparams.files import load_parameters, load_trained
        from popatlas.fusion.dataparams.fuse import fuse_by_data_parameters

        inputs, settings = self.inputs, self._settings()
        if not isdefined(inputs.in_network):
            remedy = "train it with TrainDataParameters and give in_network"
            message = "data-parameter consensus needs a trained network"
            raise InputError(message, file=self._source(), subject=inputs.subject, remedy=remedy)
        trained, known = load_trained(inputs.in_network), isdefined(inputs.in_parameters)
        own = settings.get("dataparams", {})
        device = torch_device(self)
        found = fuse_by_data_parameters(
            candidates,
            trained,
            partial(load_parameters, inputs.in_parameters, inputs.subject, labels=trained.labels) if known else None,
            select=settings.get("select", 0),
            select_by=settings.get("select_by", "similarity"),
            quality=self._quality(candidates) if own.get("gate_quality", False) else None,
            device=device,
            **{key: own[key] for key in VOTING if key in own},
            **self._options(),
        )
        self.notes["parameters"] = found.source
        return found.fusion, found.parameters

    def _quality(self, candidates: Candidates) -> npt.NDArray[np.float64] | None:
        """Return the quality of the registration of each atlas; None where no gates are given."""
        from popatlas.fusion.dataparams.files import gate_quality

        inputs = self.inputs
        if not isdefined(inputs.in_gates):
            return None
        if len(inputs.in_gates) != len(candidates.labels):
            message = f"{len(inputs.in_gates)} gates for {len(candidates.labels)} candidates"
            raise InputError(message, file=self._source(), subject=inputs.subject, remedy="give the gate of each atlas")
        return np.array([gate_quality(file, inputs.subject) for file in inputs.in_gates])
