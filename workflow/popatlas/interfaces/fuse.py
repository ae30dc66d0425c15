"""Steps of the fusion stage: atlases onto the target grid, then one label image from many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nipype.interfaces.base import File, TraitedSpec, isdefined, traits

from popatlas.errors import InputError
from popatlas.images.io import load_image, save_image
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface


class PropagateLabelsInputSpec(PopatlasInputSpec):
    """Inputs of PropagateLabels."""

    in_target = File(exists=True, mandatory=True, desc="image that defines the grid of the target")
    in_dsegs = traits.List(File(exists=True), mandatory=True, desc="label image of each atlas")
    in_brains = traits.List(File(exists=True), mandatory=True, desc="brain image of each atlas")
    in_warps = traits.List(File(exists=True), mandatory=True, desc="forward warp of each atlas (to template or target)")
    in_affines = traits.List(File(exists=True), mandatory=True, desc="forward affine of each atlas")
    in_target_affine = File(exists=True, desc="affine of the target to the template; leave out for direct registrations")
    in_target_inverse_warp = File(exists=True, desc="inverse warp of the target, template to T1w; goes with the affine")
    interpolator = traits.Enum("nearestNeighbor", "genericLabel", usedefault=True, desc="interpolation of labels")
    out_labels = File(mandatory=True, desc="candidate labels, 4D int32, volume i is atlas i")
    out_images = File(mandatory=True, desc="candidate images, 4D float32, volume i is atlas i")


class PropagateLabelsOutputSpec(TraitedSpec):
    """Outputs of PropagateLabels."""

    out_labels = File(exists=True)
    out_images = File(exists=True)


class PropagateLabels(PopatlasInterface):
    """Resample labels and images of all atlases onto the target grid, each with one composed transform."""

    input_spec = PropagateLabelsInputSpec
    output_spec = PropagateLabelsOutputSpec

    def _execute(self) -> None:
        from popatlas.fusion.propagate import chain, propagate

        inputs = self.inputs
        target, subject = Path(inputs.in_target), inputs.subject or None
        if isdefined(inputs.in_target_affine) != isdefined(inputs.in_target_inverse_warp):
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
        through = [
            Path(value) if isdefined(value) else None for value in (inputs.in_target_affine, inputs.in_target_inverse_warp)
        ]
        chains = [
            chain(Path(warp), Path(affine), *through)
            for warp, affine in zip(inputs.in_warps, inputs.in_affines, strict=True)
        ]
        dsegs, brains = [Path(file) for file in inputs.in_dsegs], [Path(file) for file in inputs.in_brains]
        labels, images = propagate(target, dsegs, brains, chains, inputs.interpolator, subject)
        affine = load_image(target).affine
        save_image(np.moveaxis(labels, 0, -1), affine, inputs.out_labels, np.int32)
        save_image(np.moveaxis(images, 0, -1), affine, inputs.out_images, np.float32)


class FuseLabelsInputSpec(PopatlasInputSpec):
    """Inputs of FuseLabels."""

    method = traits.Enum("majority", "staple", "jlf", mandatory=True, desc="fusion method")
    in_labels = File(exists=True, mandatory=True, desc="candidate labels, 4D")
    in_images = File(exists=True, desc="candidate images, 4D; jlf needs them")
    in_target = File(exists=True, desc="brain of the target, intensities comparable with the candidates; jlf needs it")
    ties = traits.Enum("nearest", "lowest", usedefault=True, desc="rule at ties (majority, and undecided STAPLE voxels)")
    beta = traits.Float(4.0, usedefault=True, desc="jlf: exponent of intensity differences")
    radius = traits.Int(2, usedefault=True, desc="jlf: patch radius in voxels")
    search = traits.Int(1, usedefault=True, desc="jlf: search radius in voxels")
    rho = traits.Float(0.1, usedefault=True, desc="jlf: ridge weight")
    memory_mb = traits.Float(800.0, usedefault=True, desc="jlf: budget for probability maps; smaller is slower, same result")
    out_file = File(mandatory=True, desc="fused labels, int32")


class FuseLabelsOutputSpec(TraitedSpec):
    """Outputs of FuseLabels."""

    out_file = File(exists=True)


class FuseLabels(PopatlasInterface):
    """Fuse candidate labels into one label image by majority vote, multi-label STAPLE or joint label fusion."""

    input_spec = FuseLabelsInputSpec
    output_spec = FuseLabelsOutputSpec

    def _execute(self) -> None:
        inputs = self.inputs
        image = load_image(inputs.in_labels, dtype=np.int32)
        labels = _stack(np.asarray(image.dataobj, dtype=np.int32))
        spacing = np.sqrt((image.affine[:3, :3] ** 2).sum(axis=0)).tolist()
        self.notes = {"atlases": len(labels), "method": inputs.method}
        if inputs.method == "majority":
            from popatlas.fusion.majority import majority_vote

            fused, _ = majority_vote(labels, inputs.ties, spacing)
        elif inputs.method == "staple":
            from popatlas.fusion.staple import multilabel_staple

            fused = multilabel_staple(labels, inputs.ties, spacing)
        else:
            fused = self._joint(labels)
        save_image(fused, image.affine, inputs.out_file, np.int32)

    def _joint(self, labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        from popatlas.fusion.joint import joint_label_fusion

        inputs = self.inputs
        if not isdefined(inputs.in_images) or not isdefined(inputs.in_target):
            raise InputError(
                "joint label fusion needs the candidate images and the target",
                file=inputs.in_labels,
                subject=inputs.subject,
                remedy="give in_images and in_target",
            )
        images = _stack(np.asarray(load_image(inputs.in_images).dataobj))
        target = np.asarray(load_image(inputs.in_target).dataobj)
        return joint_label_fusion(
            target, images, labels, inputs.beta, inputs.radius, inputs.search, inputs.rho, inputs.memory_mb
        )


def _stack(data: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a 3D or 4D image as stack (atlases, x, y, z)."""
    return data[None] if data.ndim == 3 else np.ascontiguousarray(np.moveaxis(data, -1, 0))
