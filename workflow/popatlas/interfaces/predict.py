"""The step of the network engine: predictions for a batch of brains."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from nipype.interfaces.base import Directory, File, Str, isdefined, traits

import popatlas
from popatlas.config.attempts import with_weights
from popatlas.config.load import load_config
from popatlas.images.io import read_json, write_json
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface
from popatlas.interfaces.device import torch_device
from popatlas.receipts import Receipt, digests_of, fingerprint, is_current
from popatlas.registration.engines.registry import planned_attempt
from popatlas.registration.types import RECEIPT
from popatlas.settings import Content

if TYPE_CHECKING:
    from popatlas.registration.batch import Outcome, Predictor, Request


class PredictDeformationsInputSpec(PopatlasInputSpec):
    """Inputs of PredictDeformations."""

    in_fixed = File(exists=True, mandatory=True, desc="fixed brain (template)")
    in_fixed_mask = File(exists=True, mandatory=True, desc="brain mask of the fixed image")
    in_brains = traits.List(File(exists=True), mandatory=True, desc="moving brains of one batch")
    in_masks = traits.List(File(exists=True), mandatory=True, desc="brain mask of each moving image")
    scans = traits.List(Str, mandatory=True, desc="scan of each brain")
    attempt = traits.Dict(mandatory=True, desc="start, linear stage and preset of the engine network (JSON)")
    settings = File(exists=True, desc="resolved configuration that tells where the weights are")
    gpu = traits.Int(0, usedefault=True, desc="GPUs of this job; 0 for the CPU, also where a GPU is visible")
    out_folder = Directory(mandatory=True, desc="gets a folder for each scan: affine, displacement field and its inverse")
    out_batch_record = File(mandatory=True, desc="batch record: state and message of each scan, JSON")


class PredictDeformations(PopatlasInterface):
    """Register a batch of brains by one loaded network; a scan that fails is noted, the others go on.

    On a GPU the brains of the batch go through the network at once, on the CPU, which is no faster with several, one by one.
    The files of a scan have a receipt: what is newer than its inputs and was made from the same in the same way is kept, so
    that a batch that is run again does only what is missing.
    """

    input_spec = PredictDeformationsInputSpec

    def _execute(self) -> None:
        from popatlas.registration.batch import Request

        inputs = self.inputs
        device, predictor = torch_device(self), cache(self._predictor)
        files = zip(inputs.scans, map(Path, inputs.in_brains), map(Path, inputs.in_masks), strict=True)
        requests = [Request(scan, brain, mask, Path(inputs.out_folder) / scan) for scan, brain, mask in files]
        entries = {one.scan: entry for one in requests if (entry := self._kept(one)) is not None}
        missing = [one for one in requests if one.scan not in entries]
        size = max(1, len(missing)) if device == "cuda" else 1
        for start in range(0, len(missing), size):
            for request, outcome in predictor(device).run(missing[start : start + size]):
                entries[request.scan] = self._settle(request, outcome, device)
                print(f"{request.scan}: {_line(entries[request.scan])}", flush=True)
        self.also_made = [file for one in requests if entries[one.scan]["state"] == "ok" for file in one.files]
        self.notes["scans"] = {scan: entries[scan] for scan in inputs.scans}
        write_json(inputs.out_batch_record, self.notes["scans"])

    def _predictor(self, device: str) -> Predictor:
        from popatlas.registration.batch import Predictor

        inputs = self.inputs
        way = with_weights(inputs.attempt, load_config(inputs.settings)) if isdefined(inputs.settings) else inputs.attempt
        attempt = planned_attempt(way, inputs.gpu)
        return Predictor(attempt, inputs.in_fixed, inputs.in_fixed_mask, device, inputs.threads)

    def _settings(self) -> Content:
        """Return what a prediction depends on, besides its images; the weights are told by their SHA-256."""
        preset = {key: value for key, value in self.inputs.attempt["preset"].items() if key != "weights"}
        return {"attempt": {**self.inputs.attempt, "preset": preset}, "popatlas": popatlas.__version__}

    def _kept(self, request: Request) -> Content | None:
        """Return the entry of a scan whose files are there already."""
        receipt = request.folder / RECEIPT
        if not is_current(receipt, self._settings(), request.files, self._images(request)):
            return None
        print(f"{request.scan}: ok, kept", flush=True)
        return {**read_json(receipt)["facts"], "message": "kept"}

    def _images(self, request: Request) -> list[Path]:
        """Return what a prediction is made from."""
        return [request.brain, request.mask, Path(self.inputs.in_fixed), Path(self.inputs.in_fixed_mask)]

    def _settle(self, request: Request, outcome: Outcome, device: str) -> Content:
        """Write the receipt of a scan, or remove what it had before, and return its entry."""
        message = outcome.error or "predicted"
        spent = {"device": device, "seconds": outcome.seconds, "peak_mb": outcome.peak_mb}
        state = "failed" if outcome.error else "ok"
        why = {"code": outcome.code} if outcome.error else {}
        facts = {"state": state, **why, "message": message, "diverged": outcome.diverged, **spent}
        receipt = request.folder / RECEIPT
        if outcome.error:
            _remove([receipt, *request.files])
        else:
            images = digests_of(self._images(request))
            Receipt.of(fingerprint(self._settings()), images, request.files, facts).write(receipt)
        return facts


def _remove(files: Sequence[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _line(entry: Content) -> str:
    spent = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in entry["seconds"].items())
    return f"{entry['state']}, {spent}{'' if entry['state'] == 'ok' else ': ' + entry['message']}"
