"""Preprocessing as the rules ask for it: raw images, batches of brain extraction, and the evidence that a mask is there."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from popatlas.cohort.batches import Batches
from popatlas.config.sections import Config
from popatlas.study.rules import Wildcards, option

CONFORMED = "{scan}_desc-preproc_T1w.nii.gz"
BRAIN, MASK = "{scan}_desc-brain_T1w.nii.gz", "{scan}_desc-brain_mask.nii.gz"


def brain_folder(config: Config) -> str:
    """Return the folder of the raw brain masks: one for each method, so that none is taken for another's."""
    return f"work/brain/{config.preprocess.brain.method}"


@dataclass(frozen=True)
class Preprocess:
    """What the rules of preprocessing ask.

    Attributes
    ----------
    config : dict
        Complete configuration.
    images : dict
        Scan to its T1w.
    channels : dict
        Scan to its extra channels and their images.
    batches : Batches
        Of brain extraction.
    """

    config: Config
    images: Mapping[str, str]
    channels: Mapping[str, Mapping[str, str]]
    batches: Batches

    @property
    def brain_folder(self) -> str:
        """Folder of the raw brain masks."""
        return brain_folder(self.config)

    @property
    def n4(self) -> str:
        """Settings of the correction of the bias field, as JSON."""
        return json.dumps(self.config.content["preprocess"]["n4"])

    def raw_image(self, wildcards: Wildcards) -> str:
        """Return the T1w image of a scan."""
        return self.images[wildcards.scan]

    def channel_image(self, wildcards: Wildcards) -> str:
        """Return an extra channel of a scan."""
        return self.channels[wildcards.scan][wildcards.channel]

    def others(self, scan: str, channel: str) -> list[str]:
        """Return the other channels of a session that a channel is aligned together with."""
        found = self.channels.get(scan, {}) if self.config.preprocess.channels == "group" else {}
        return [name for name in found if name != channel]

    def group_option(self, wildcards: Wildcards) -> str:
        """Return AlignChannel's option for a channel that is aligned as one of a group."""
        if self.config.preprocess.channels != "group":
            return ""
        images = self.channels[wildcards.scan]
        others = [images[name] for name in self.others(wildcards.scan, wildcards.channel)]
        return f"--group True {option('--in_others', others)}"

    def batch_images(self, wildcards: Wildcards) -> list[str]:
        """Return the conformed images of a batch."""
        return self.batches.files(int(wildcards.batch), CONFORMED)

    def raw_mask(self, scan: str) -> str:
        """Return the brain mask of a scan as it was found; `{scan}` makes a pattern."""
        return f"{self.brain_folder}/{scan}_mask.nii.gz"

    def batch_options(self, wildcards: Wildcards) -> str:
        """Return ExtractBrain's options for the scans of a batch: they, their images, and the raw masks that it writes."""
        files = {"scans": "", "in_files": CONFORMED, "out_masks": self.raw_mask("{scan}")}
        return " ".join(f"--{name} {self.batches.named(int(wildcards.batch), file)}" for name, file in files.items())

    def brain_evidence(self, wildcards: Wildcards) -> str:
        """Return the file that tells that the raw mask of a scan has been made."""
        return f"{self.brain_folder}/batch-{self.batches.of[wildcards.scan]}.json"

    def brain_record(self, wildcards: Wildcards) -> str:
        """Return the record of a scan whose brain is found in a job of its own, which says why a mask is missing."""
        return f"{self.brain_folder}/{wildcards.scan}_found.json"

    def extraction(self, wildcards: Wildcards) -> str:
        """Return the step that finds the brain of one scan, with its options but for those that each step has."""
        brain, image, mask = (
            self.config.preprocess.brain,
            CONFORMED.format(scan=wildcards.scan),
            self.raw_mask(wildcards.scan),
        )
        if brain.method == "template":
            return f"ExtractBrainTemplate --in_file {shlex.quote(image)} --out_mask {shlex.quote(mask)}"
        return (
            f"ExtractBrain --method {brain.method} --threshold {brain.threshold} --dilate {brain.dilate} "
            f" --in_files {shlex.quote(image)} --scans {shlex.quote(wildcards.scan)} --out_masks {shlex.quote(mask)}"
            f" --out_batch_record {shlex.quote(self.brain_record(wildcards))}"
        )
