"""Steps of the preprocessing stage."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import File, Str, isdefined, traits

import popatlas
from popatlas.errors import InputError
from popatlas.failures import describe
from popatlas.images.io import atomic_path, load_image, read_json, save_image, suffix_of, write_json
from popatlas.images.labels import read_mask
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface
from popatlas.interfaces.register import publish
from popatlas.preprocess import FINDER
from popatlas.reasons import CODES, DISK, OOM, SETUP, code_of
from popatlas.receipts import Receipt, digests_of, fingerprint, is_current
from popatlas.settings import Content, settings_from

# what to look at when no brain was found, or no plausible one
NOT_OF_IMAGES = (OOM, DISK, SETUP)  # codes of failures of which an image is not the cause
LOOK = "open {image} (it should show a whole T1-weighted head, with dark air round it) and the mask on it"


class CorrectAndConformInputSpec(PopatlasInputSpec):
    """Inputs of CorrectAndConform."""

    in_file = File(mandatory=True, desc="raw image")
    resolution_mm = traits.Float(mandatory=True, desc="voxel size of the isotropic grid, mm")
    n4 = traits.Dict(mandatory=True, desc="preprocess.n4 (JSON)")
    denoise = traits.Bool(False, usedefault=True, desc="non-local means before N4")
    out_file = File(mandatory=True, desc="corrected image, RAS, isotropic")


class CorrectAndConform(PopatlasInterface):
    """Reorient to RAS, bring the background to 0, correct the bias field, resample to the isotropic grid.

    World coordinates are kept. What was done to unusual intensities is noted in the record.
    """

    input_spec = CorrectAndConformInputSpec

    def _execute(self) -> None:
        from popatlas.preprocess.bias import correct_bias
        from popatlas.preprocess.conform import load_single_volume, resample_isotropic
        from popatlas.preprocess.levels import settle
        from popatlas.preprocess.settings import N4Settings

        n4 = settings_from(N4Settings, self.inputs.n4, "preprocess.n4")
        raw = load_single_volume(self.inputs.in_file, self.inputs.subject)
        settled, changes = settle(raw, self.inputs.in_file, self.inputs.subject)
        if changes:
            self.notes["intensities"] = changes
            print(f"{self.inputs.subject}: unusual intensities: {json.dumps(changes)}", flush=True)
        corrected = correct_bias(settled, n4, denoise=self.inputs.denoise)
        image = resample_isotropic(corrected, self.inputs.resolution_mm)
        save_image(np.asarray(image.dataobj, dtype=np.float32), image.affine, self.inputs.out_file)


class ExtractBrainInputSpec(PopatlasInputSpec):
    """Inputs of ExtractBrain."""

    in_files = traits.List(File(exists=True), mandatory=True, desc="preprocessed heads of one batch")
    scans = traits.List(Str, mandatory=True, desc="scan of each head")
    method = traits.Enum("deepbet", "none", usedefault=True, desc="network, or foreground of stripped images")
    threshold = traits.Float(0.5, usedefault=True, desc="probability above which a voxel is brain")
    dilate = traits.Int(0, usedefault=True, desc="voxels added to the mask, negative to remove")
    gpu = traits.Int(0, usedefault=True, desc="GPUs of this job; 0 for the CPU, also where a GPU is visible")
    out_masks = traits.List(File(), mandatory=True, desc="mask of each head")
    out_batch_record = File(mandatory=True, desc="batch record: state and message of each scan, JSON")


class ExtractBrain(PopatlasInterface):
    """Find the brains of a batch with one loaded network; a scan that fails is noted, the others go on.

    Beside each mask stands a receipt: fingerprint of method, settings and versions, checksums of image and mask. A mask
    whose receipt is what would be written now is kept, so that a batch that is run again touches only what is missing or
    was made otherwise. The network is loaded when the first mask has to be found.
    """

    input_spec = ExtractBrainInputSpec

    def _execute(self) -> None:
        record = {}
        settings, extractor = self._settings(), cache(self._extractor)
        for scan, image, mask in zip(self.inputs.scans, self.inputs.in_files, self.inputs.out_masks, strict=True):
            record[scan] = self._extract_one(extractor, settings, Path(image), Path(mask))
            print(f"{scan}: {record[scan]['state']} {record[scan]['message']}", flush=True)
        self.notes["scans"] = record
        write_json(self.inputs.out_batch_record, record)

    def _settings(self) -> Content:
        """Return what a mask depends on, besides its image."""
        settings = {"method": self.inputs.method, "popatlas": popatlas.__version__}
        if self.inputs.method == "none":
            return settings
        used = {"threshold": self.inputs.threshold, "dilate": self.inputs.dilate, "finder": FINDER}
        return settings | used | {"deepbet": metadata.version("deepbet")}

    def _extractor(self) -> Any:
        from popatlas.interfaces.base import limit_threads
        from popatlas.preprocess.brain import cuda_visible, deepbet_extractor, deepbet_weights, foreground

        if self.inputs.method == "none":
            return foreground
        gpu = self.inputs.gpu > 0 and cuda_visible()
        limit_threads(self.inputs.threads)
        self.notes |= {"device": "cuda" if gpu else "cpu", "weights": deepbet_weights()}
        return deepbet_extractor(self.inputs.threshold, self.inputs.dilate, gpu=gpu)

    def _extract_one(self, extractor: Any, settings: Content, image: Path, mask: Path) -> dict[str, str]:
        if is_current(receipt_of(mask), settings, [mask], [image]):
            return {"state": "ok", "message": "kept"}
        try:
            head = load_image(image)
            extract = extractor()
            found = extract(head)
            if not found.any():
                raise InputError(f"no brain was found in a field of view of {_field_of_view(head)} mm")
            note = getattr(extract, "note", "")
            save_image(found, head.affine, mask)
            facts = {"method": self.inputs.method} | ({"note": note} if note else {})
            Receipt.of(fingerprint(settings), digests_of([image]), [mask], facts).write(receipt_of(mask))
        except Exception as error:  # one bad scan must not stop its batch: the message goes into the batch record
            mask.unlink(missing_ok=True)
            return {"state": "failed", "code": code_of(error), "message": describe(error)}
        return {"state": "ok", "message": f"found: {note}" if note else "found"}


def _field_of_view(image: nib.Nifti1Image) -> str:
    lengths = np.array(image.shape[:3]) * np.linalg.norm(image.affine[:3, :3], axis=0)
    return "x".join(f"{length:.0f}" for length in lengths)


def receipt_of(mask: Path) -> Path:
    """Return the file beside a mask that tells how it was made."""
    return mask.with_name(f"{mask.name.removesuffix(suffix_of(mask))}.json")


class ExtractBrainTemplateInputSpec(PopatlasInputSpec):
    """Inputs of ExtractBrainTemplate."""

    in_file = File(exists=True, mandatory=True, desc="preprocessed head")
    out_mask = File(mandatory=True, desc="brain mask")


class ExtractBrainTemplate(PopatlasInterface):
    """Find the brain by registering the MNI152 brain to the head (ANTs): the classical fallback."""

    input_spec = ExtractBrainTemplateInputSpec

    def _execute(self) -> None:
        from popatlas.preprocess.brain import extract_by_template

        affine = load_image(self.inputs.in_file).affine
        save_image(extract_by_template(self.inputs.in_file), affine, self.inputs.out_mask)


class NormaliseBrainInputSpec(PopatlasInputSpec):
    """Inputs of NormaliseBrain."""

    in_file = File(exists=True, mandatory=True, desc="preprocessed head")
    in_mask = File(mandatory=True, desc="raw brain mask; missing when the extraction failed")
    in_batch_record = File(desc="record of the batch, which says why a mask is missing")
    method = traits.Enum("robust", "zscore", "none", usedefault=True, desc="normalisation")
    volume_ml = traits.List(traits.Float(), mandatory=True, minlen=2, maxlen=2, desc="plausible brain volume")
    out_brain = File(mandatory=True, desc="brain with normalised intensities")
    out_mask = File(mandatory=True, desc="brain mask")
    out_qc = File(mandatory=True, desc="mask quality, JSON")


class NormaliseBrain(PopatlasInterface):
    """Judge the brain mask, publish it, and scale the intensities of the brain."""

    input_spec = NormaliseBrainInputSpec

    def _execute(self) -> None:
        from popatlas.preprocess.intensity import normalise
        from popatlas.preprocess.quality import mask_quality

        inputs = self.inputs
        if not Path(inputs.in_mask).is_file():
            raise self._no_mask()
        image, mask = load_image(inputs.in_file), read_mask(inputs.in_mask, inputs.subject)
        data, brain = np.asarray(image.dataobj), mask.data.astype(np.uint8)
        if data.shape != brain.shape or not np.allclose(image.affine, mask.affine, atol=1e-3):
            raise InputError(
                "the brain mask is not on the grid of its image",
                file=inputs.in_mask,
                subject=inputs.subject,
                remedy="delete the mask and run again",
            )
        made = Receipt.read(receipt_of(Path(inputs.in_mask)))  # None for method template
        facts = {} if made is None else dict(made.facts)
        stripped = facts.pop("method", "") == "none"
        found = mask_quality(data, brain, image.affine, inputs.volume_ml, stripped=stripped)
        quality = found | facts
        self.notes["quality"] = quality
        self.said += [f"brain mask: {quality['note']}"] if quality.get("note") else []
        if found["verdict"] == "fail":
            raise InputError(
                f"the brain mask is not plausible: {'; '.join(found['reasons'])}",
                file=inputs.in_mask,
                subject=inputs.subject,
                remedy=LOOK.format(image=inputs.in_file) + "; then change preprocess.brain, or exclude the scan",
            )
        save_image(normalise(data, brain, inputs.method), image.affine, inputs.out_brain)
        save_image(brain, image.affine, inputs.out_mask)
        write_json(inputs.out_qc, quality)

    def _no_mask(self) -> InputError:
        """Return why there is no mask: its extraction failed, or it was made and is gone."""
        inputs, record = self.inputs, self.inputs.in_batch_record
        known = isdefined(record) and Path(record).suffix == ".json"
        entry = read_json(record).get(inputs.subject, {}) if known else {}
        if entry.get("state") == "ok":
            return InputError(
                "the brain mask was made and is gone",
                file=inputs.in_mask,
                subject=inputs.subject,
                remedy=f"delete {record} and run again",
            )
        code = entry.get("code")
        look = (
            f"{LOOK.format(image=inputs.in_file)}; then repair the image, try preprocess.brain.method template, or exclude"
        )
        return InputError(
            f"skull stripping failed: {entry.get('message', 'no mask was written')}",
            file=inputs.in_file,
            subject=inputs.subject,
            remedy=CODES[code][1] if code in NOT_OF_IMAGES else f"{look} the scan",
            code=code,
        )


class AlignChannelInputSpec(PopatlasInputSpec):
    """Inputs of AlignChannel."""

    in_channel = File(mandatory=True, desc="raw image of the extra channel")
    in_reference = File(exists=True, mandatory=True, desc="preprocessed T1w")
    in_mask = File(exists=True, mandatory=True, desc="brain mask of the T1w")
    n4 = traits.Dict(mandatory=True, desc="preprocess.n4 (JSON)")
    group = traits.Bool(False, usedefault=True, desc="align it as one of a group with the T1w and in_others (X-CoReg)")
    in_others = traits.List(File(exists=True), desc="raw images of the other channels of the session, for the group")
    out_file = File(mandatory=True, desc="channel on the T1w grid")
    out_transform = File(mandatory=True, desc="rigid transform, ITK, T1w to channel points")


class AlignChannel(PopatlasInterface):
    """Align an extra channel rigidly to the T1w and resample it once onto its grid."""

    input_spec = AlignChannelInputSpec

    def _execute(self) -> None:
        from popatlas.preprocess.channel import align_channel
        from popatlas.preprocess.settings import N4Settings

        inputs = self.inputs
        n4 = settings_from(N4Settings, inputs.n4, "preprocess.n4")
        with tempfile.TemporaryDirectory() as folder:
            image, transform = align_channel(
                inputs.in_channel,
                inputs.in_reference,
                inputs.in_mask,
                n4,
                Path(folder),
                inputs.subject,
                group=inputs.group,
                others=list(inputs.in_others) if isdefined(inputs.in_others) else [],
            )
            publish(transform, inputs.out_transform)
        with atomic_path(inputs.out_file) as temporary:
            image.to_filename(str(temporary))
