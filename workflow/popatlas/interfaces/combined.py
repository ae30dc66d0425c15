"""Steps of deep combined computing: train on groups, and use the network on a new group."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from nipype.interfaces.base import Directory, File, Str, isdefined, traits

from popatlas.errors import InputError
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface
from popatlas.settings import as_content, settings_from

if TYPE_CHECKING:
    from torch import Tensor

    from popatlas.groupwise.deepcc.network import CombinedNet
    from popatlas.groupwise.deepcc.settings import CombinedSettings
    from popatlas.images.grid import Grid


class TrainCombinedInputSpec(PopatlasInputSpec):
    """Inputs of TrainCombined."""

    in_table = File(exists=True, mandatory=True, desc="TSV of group, contrast, image and labels (where there are any)")
    in_prior = File(exists=True, desc="class probabilities of an atlas on the grid of the groups, along the last axis")
    supervised = traits.List(Str, desc="contrasts whose labels are used (all that have any); 'none' for none")
    options = traits.Dict(desc="settings to change (JSON), for example classes, features or steps")
    minutes = traits.Float(0.0, usedefault=True, desc="minutes after which it stops with a checkpoint; 0 for no limit")
    out_folder = Directory(mandatory=True, desc="gets checkpoint.pt and curve.csv; the same call goes on from there")
    out_network = File(mandatory=True, desc="trained network (safetensors)")


class TrainCombined(PopatlasInterface):
    """Train a network that registers groups of contrasts and segments their images (DeepCC)."""

    input_spec = TrainCombinedInputSpec

    def _execute(self) -> None:
        import math

        import torch

        from popatlas.groupwise.deepcc.files import write_combined
        from popatlas.groupwise.deepcc.network import CombinedNet
        from popatlas.groupwise.deepcc.settings import CombinedSettings
        from popatlas.images.io import sha256
        from popatlas.receipts import fingerprint
        from popatlas.training.combined import CombinedTrainer
        from popatlas.training.groups import Groups, digest_of, read_groups

        inputs = self.inputs
        plan = settings_from(CombinedSettings, inputs.options if isdefined(inputs.options) else {}, "options")
        contrasts, groups = read_groups(Path(inputs.in_table), plan.classes)
        used = self._supervised(contrasts)
        groups = [one.with_labels([name in used for name in contrasts]) for one in groups]
        prior = self._prior(plan, groups[0].images[0])
        torch.manual_seed(plan.seed)
        net = CombinedNet(groups[0].images[0].ndim - 2, len(contrasts), plan.classes, plan.features)
        folder = Path(inputs.out_folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = digest_of(Path(inputs.in_table))
        given = [files, sha256(inputs.in_prior) if prior is not None else "", sorted(used)]
        way = {key: value for key, value in as_content(plan).items() if key != "checkpoint_every"}
        trainer = CombinedTrainer(net, Groups(groups, plan, prior), plan, folder, fingerprint([given, way]))
        trainer.resume()
        done = trainer.run(60 * inputs.minutes or math.inf)
        self.notes = {"steps": trainer.state.step, "contrasts": contrasts, "supervised": sorted(used)}
        if not done:
            message = f"the training stopped after {trainer.state.step} of {plan.steps} steps; its checkpoint is kept"
            raise InputError(message, file=trainer.path, remedy="run the same command again, it goes on from there")
        write_combined(net.eval(), plan, contrasts, inputs.out_network)

    def _supervised(self, contrasts: list[str]) -> set[str]:
        wanted = list(self.inputs.supervised) if isdefined(self.inputs.supervised) else contrasts
        if wanted == ["none"]:
            return set()
        if unknown := sorted(set(wanted) - set(contrasts)):
            message = f"no contrast is called {', '.join(unknown)}"
            raise InputError(message, file=self.inputs.in_table, remedy=f"choose from {', '.join(contrasts)}")
        return set(wanted)

    def _prior(self, plan: CombinedSettings, image: Tensor) -> Tensor | None:
        return read_prior(self.inputs.in_prior, plan, image) if isdefined(self.inputs.in_prior) else None


class PredictGroupInputSpec(PopatlasInputSpec):
    """Inputs of PredictGroup; lists have one entry for each image, in the same order."""

    in_network = File(exists=True, mandatory=True, desc="network of TrainCombined")
    in_images = traits.List(File(exists=True), mandatory=True, minlen=1, desc="images of a group, on one grid")
    contrasts = traits.List(Str, mandatory=True, minlen=1, desc="contrast of each, as in the table of the training")
    in_prior = File(exists=True, desc="class probabilities of an atlas in the common space, classes along the last axis")
    out_warped = traits.List(File, desc="images in the common space")
    out_warps = traits.List(File, desc="displacement fields from the common space to each image, ITK")
    out_inverse_warps = traits.List(File, desc="displacement fields of the way back, on the common grid")
    out_segmentations = traits.List(File, desc="most probable class of each voxel of each image, numbered as in the labels")
    out_posterior = File(mandatory=True, desc="probability of each class in the common space, classes along the last axis")
    out_labels = File(desc="most probable class of each voxel of the common space, numbered as in the labels")


class PredictGroup(PopatlasInterface):
    """Register a group of contrasts to its common anatomy and segment each image, by a trained network (DeepCC)."""

    input_spec = PredictGroupInputSpec

    def _execute(self) -> None:
        from popatlas.groupwise.deepcc.files import read_combined
        from popatlas.groupwise.deepcc.group import predict_group
        from popatlas.groupwise.xcoreg.files import write_group
        from popatlas.images.grid import Grid
        from popatlas.images.header import check_header
        from popatlas.images.io import save_image
        from popatlas.images.scan import read_volume
        from popatlas.interfaces.xcoreg import check_counts

        inputs = self.inputs
        names = ("out_warped", "out_warps", "out_inverse_warps", "out_segmentations")
        lists = {name: list(value) for name in names if isdefined(value := getattr(inputs, name))}
        check_counts(inputs.in_images, {**lists, "contrasts": inputs.contrasts}, "images")
        net, plan, known = read_combined(inputs.in_network)
        for path in inputs.in_images:
            check_header(path)
        grids = [Grid.from_file(path) for path in inputs.in_images]
        self._check_grids(grids)
        images = [read_volume(path) for path in inputs.in_images]
        prior = read_prior(inputs.in_prior, plan, images[0]) if isdefined(inputs.in_prior) else None
        domains = self._domains(net, known)
        result, maps = predict_group(net, images, domains, plan, prior=prior, names=[str(path) for path in inputs.in_images])
        write_group(
            result,
            grids[0],
            grids=grids,
            warped=[Path(path) for path in lists.get("out_warped", [])],
            warps=[Path(path) for path in lists.get("out_warps", [])],
            inverse_warps=[Path(path) for path in lists.get("out_inverse_warps", [])],
            posterior=Path(inputs.out_posterior),
            threads=inputs.threads,
        )
        assert result.posterior is not None
        if isdefined(inputs.out_labels):
            save_image(result.posterior.argmax(0).numpy(), grids[0].ras_affine, inputs.out_labels, np.uint8)
        for path, one in zip(lists.get("out_segmentations", []), maps, strict=False):
            save_image(one.argmax(0).numpy(), grids[0].ras_affine, path, np.uint8)

    def _check_grids(self, grids: list[Grid]) -> None:
        first = grids[0]
        for path, grid in zip(self.inputs.in_images, grids, strict=True):
            if not first.same_as(grid, 1e-2 * min(first.spacing)):
                message = "it lies on another grid than the first image"
                raise InputError(message, file=path, remedy="bring the images of a group to one grid")

    def _domains(self, net: CombinedNet, known: list[str]) -> list[int]:
        if unknown := sorted(set(self.inputs.contrasts) - set(known)):
            message = f"the network knows no contrast {', '.join(unknown)}"
            raise InputError(message, file=self.inputs.in_network, remedy=f"choose from {', '.join(known)}")
        return [known.index(name) for name in self.inputs.contrasts]


def read_prior(path: str, plan: CombinedSettings, image: Tensor) -> Tensor:
    """Return the class probabilities (K, *shape) of an atlas on the grid of an image."""
    from popatlas.interfaces.tissues import read_maps

    values, _ = read_maps(Path(path), None)
    if tuple(values.shape) != (plan.classes, *image.shape[2:]) or float(values.min()) < 0:
        message = f"maps of shape {tuple(values.shape)}, where {(plan.classes, *image.shape[2:])} is needed"
        raise InputError(message, file=path, remedy="give the probability of each class on the grid of the images")
    return values
