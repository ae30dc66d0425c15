"""Steps that train networks on the cohort: data parameters of the atlases, and a segmentation network and its use."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from nipype.interfaces.base import File, Str, isdefined, traits

from popatlas.errors import InputError
from popatlas.images.io import load_image, save_image, write_table
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface
from popatlas.interfaces.device import torch_device
from popatlas.settings import settings_from

if TYPE_CHECKING:
    import numpy.typing as npt

    from popatlas.fusion.candidates import Candidates
    from popatlas.fusion.dataparams.data import TrainingTarget


class Progress:
    """Prints a line after each epoch, with the time that the others will take."""

    def __init__(self, epochs: int) -> None:
        self.epochs, self.done, self.started = epochs, 0, time.monotonic()

    def __call__(self, line: str) -> None:
        """Print the line of an epoch that is over."""
        self.done += 1
        left = (time.monotonic() - self.started) / self.done * (self.epochs - self.done)
        print(f"{line}, {left:.0f} s left", flush=True)


class TrainDataParametersInputSpec(PopatlasInputSpec):
    """Inputs of TrainDataParameters."""

    in_labels = traits.List(File(exists=True), mandatory=True, desc="candidate labels of each training target, 4D")
    in_targets = traits.List(File(exists=True), mandatory=True, desc="brain of each training target")
    in_dsegs = traits.List(File(exists=True), desc="labels of the atlases: those lost in all targets get a class too")
    scans = traits.List(Str, mandatory=True, desc="scan of each training target")
    atlases = traits.Dict(mandatory=True, desc="scan to the list of its atlases, one for each candidate (JSON)")
    settings = traits.Dict(desc="section fuse.dataparams of the configuration (JSON)")
    gpu = traits.Int(0, usedefault=True, desc="GPUs of this job; 0 for the CPU, also where a GPU is visible")
    out_network = File(mandatory=True, desc="trained network, safetensors")
    out_parameters = File(mandatory=True, desc="data parameters of each candidate, Parquet")
    out_curve = File(mandatory=True, desc="cross-entropy of each epoch, TSV")


class TrainDataParameters(PopatlasInterface):
    """Train a network and the data parameters of all candidates of some targets, together.

    Candidates without any label are left out, and so are targets with fewer than two others: nothing can be compared there.
    """

    input_spec = TrainDataParametersInputSpec

    def _execute(self) -> None:
        from popatlas.fusion.dataparams.files import save_data_parameters
        from popatlas.fusion.dataparams.train import train_data_parameters
        from popatlas.fusion.settings import DataParametersSettings

        inputs = self.inputs
        _check_lists(inputs.scans, in_labels=inputs.in_labels, in_targets=inputs.in_targets)
        self.notes |= {"left_out": {}, "skipped": {}}
        targets, labels, atlases = self._targets()
        given = inputs.settings if isdefined(inputs.settings) else {}
        settings = settings_from(DataParametersSettings, DataParametersSettings.completed(given), "fuse.dataparams")
        self.notes |= {"targets": [target.name for target in targets], "labels": len(labels)}
        device = torch_device(self)
        result = train_data_parameters(targets, labels, settings, device, Progress(settings.epochs))
        save_data_parameters(result, targets, atlases, settings, inputs.out_network, inputs.out_parameters)
        write_table(_curve(result.losses), inputs.out_curve)

    def _targets(self) -> tuple[list[TrainingTarget], npt.NDArray[np.int64], dict[str, tuple[str, ...]]]:
        """Return what is trained on, the label values of it and of the atlases, and the candidates' names by target."""
        from popatlas.fusion.dataparams.data import label_values, training_target

        inputs, found, atlases = self.inputs, [], {}
        for scan, file, brain in zip(inputs.scans, inputs.in_labels, inputs.in_targets, strict=True):
            candidates = self._candidates(scan, file, brain)
            if candidates is not None:
                # one target at a time is in memory with all of its labels: it is numbered by its own ones first
                own = label_values([candidates])
                found.append((training_target(candidates, own, scan), own))
                atlases[scan] = candidates.names
        if not found:
            raise InputError(
                "no target with two candidates to train data parameters on",
                file=inputs.in_labels[0] if inputs.in_labels else None,
                remedy="set fuse.atlases to at least 2, and look at the registrations of the atlases",
            )
        labels = np.unique(np.concatenate([*(own for _, own in found), *self._atlas_labels()]))
        targets = [
            replace(target, labels=np.searchsorted(labels, own).astype(np.uint16)[target.labels]) for target, own in found
        ]
        return targets, labels, atlases

    def _atlas_labels(self) -> Iterator[npt.NDArray[np.int64]]:
        """Return the label values of each atlas, background first."""
        from popatlas.images.labels import read_labels

        for file in self.inputs.in_dsegs if isdefined(self.inputs.in_dsegs) else []:
            yield np.append(0, read_labels(file).values)

    def _candidates(self, scan: str, file: str, brain: str) -> Candidates | None:
        """Return the candidates of a target that have labels; None, and a note, where there are fewer than two."""
        from popatlas.fusion.candidate_files import read_candidates

        if scan not in self.inputs.atlases:
            raise InputError("the atlases of a target are not named", file=file, subject=scan, remedy="name them in atlases")
        names = self.inputs.atlases[scan]
        if len(set(names)) < len(names):
            raise InputError("an atlas is named twice", file=file, subject=scan, remedy="give each atlas its own name")
        candidates = read_candidates(file, brain, names=names, subject=scan)
        if empty := candidates.empty:
            self.notes["left_out"][scan] = [candidates.names[number] for number in empty]
            candidates = candidates.pick([number for number in range(len(candidates.labels)) if number not in empty])
        if len(candidates.labels) > 1 and candidates.labels.any():
            return candidates
        self.notes["skipped"][scan] = "fewer than two candidates with labels"
        return None


class TrainSegmenterInputSpec(PopatlasInputSpec):
    """Inputs of TrainSegmenter."""

    in_targets = traits.List(File(exists=True), mandatory=True, desc="brain of each training target")
    in_dsegs = traits.List(File(exists=True), mandatory=True, desc="fused labels of each training target")
    scans = traits.List(Str, mandatory=True, desc="scan of each training target")
    settings = traits.Dict(desc="section fuse.segmenter of the configuration (JSON)")
    gpu = traits.Int(0, usedefault=True, desc="GPUs of this job; 0 for the CPU, also where a GPU is visible")
    out_network = File(mandatory=True, desc="trained network, safetensors")
    out_curve = File(mandatory=True, desc="cross-entropy of each epoch, TSV")


class TrainSegmenter(PopatlasInterface):
    """Train a segmentation network on fused labels; targets without any label are left out."""

    input_spec = TrainSegmenterInputSpec

    def _execute(self) -> None:
        from popatlas.fusion.candidate_files import read_pair
        from popatlas.fusion.sections import SegmenterSettings
        from popatlas.fusion.segmenter import save_segmenter, train_segmenter

        inputs = self.inputs
        _check_lists(inputs.scans, in_targets=inputs.in_targets, in_dsegs=inputs.in_dsegs)
        given = inputs.settings if isdefined(inputs.settings) else {}
        settings = settings_from(SegmenterSettings, given, "fuse.segmenter").training()
        files = zip(inputs.in_targets, inputs.in_dsegs, inputs.scans, strict=True)
        read = {scan: read_pair(brain, dseg, scan) for brain, dseg, scan in files}
        pairs = {scan: pair for scan, pair in read.items() if pair[1].any()}
        skipped = {scan: "no label" for scan in read if scan not in pairs}
        self.notes |= {"targets": list(pairs), "skipped": skipped}
        images, dsegs = [image for image, _ in pairs.values()], [dseg for _, dseg in pairs.values()]
        device = torch_device(self)
        trained = train_segmenter(images, dsegs, list(pairs), settings, device, Progress(settings.epochs))
        self.notes["labels"] = len(trained.labels)
        save_segmenter(trained, settings, inputs.out_network)
        write_table(_curve(trained.losses), inputs.out_curve)


class SegmentScanInputSpec(PopatlasInputSpec):
    """Inputs of SegmentScan."""

    in_target = File(exists=True, mandatory=True, desc="brain to label")
    in_network = File(mandatory=True, desc="trained network of TrainSegmenter")
    gpu = traits.Int(0, usedefault=True, desc="GPUs of this job; 0 for the CPU, also where a GPU is visible")
    out_file = File(mandatory=True, desc="labels, int32")
    out_probability = File(desc="probability of the label, float32")


class SegmentScan(PopatlasInterface):
    """Label a brain with a trained segmentation network."""

    input_spec = SegmentScanInputSpec

    def _execute(self) -> None:
        from popatlas.fusion.segmenter import load_segmenter, segment

        inputs = self.inputs
        network, labels = load_segmenter(inputs.in_network)
        image = load_image(inputs.in_target)
        device = torch_device(self)
        try:
            dseg, probability = segment(network, labels, np.asarray(image.dataobj), device)
        except InputError as error:
            named = {"file": inputs.in_target, "subject": inputs.subject}
            raise InputError(error.message, remedy=error.remedy, **named) from error
        save_image(dseg, image.affine, inputs.out_file, np.int32)
        if isdefined(inputs.out_probability):
            save_image(probability, image.affine, inputs.out_probability, np.float32)


def _check_lists(scans: Sequence[str], **files: Sequence[str]) -> None:
    """Refuse lists that do not have one file for each scan, and scans that are named twice."""
    if twice := {scan for scan in scans if scans.count(scan) > 1}:
        raise InputError("the scan is named twice", subject=min(twice), remedy="name each training target once")
    for name, some in files.items():
        if len(some) != len(scans):
            raise InputError(f"{len(some)} files in {name} for {len(scans)} scans", remedy="give one file for each scan")


def _curve(losses: Sequence[float]) -> pd.DataFrame:
    return pd.DataFrame({"epoch": range(1, len(losses) + 1), "cross_entropy": losses})
