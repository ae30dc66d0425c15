"""Preprocessing as the rules ask for it: raw images, batches of brain extraction, and the evidence that a mask is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from popatlas.cohort.batches import Batches
from popatlas.config.sections import Config
from popatlas.study.rules import Wildcards

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

    def batch_scans(self, wildcards: Wildcards) -> list[str]:
        """Return the scans of a batch of brain extraction."""
        return self.batches.scans(int(wildcards.batch))

    def batch_images(self, wildcards: Wildcards) -> list[str]:
        """Return the conformed images of a batch."""
        return self.batches.files(int(wildcards.batch), CONFORMED)

    def raw_mask(self, scan: str) -> str:
        """Return the brain mask of a scan as it was found; `{scan}` makes a pattern."""
        return f"{self.brain_folder}/{scan}_mask.nii.gz"

    def batch_masks(self, wildcards: Wildcards) -> list[str]:
        """Return the raw masks that a batch writes."""
        return [self.raw_mask(scan) for scan in self.batch_scans(wildcards)]

    def brain_evidence(self, wildcards: Wildcards) -> str:
        """Return the file that tells that the raw mask of a scan has been made."""
        if self.config.preprocess.brain.method == "template":
            return self.raw_mask(wildcards.scan)
        return f"{self.brain_folder}/batch-{self.batches.of[wildcards.scan]}.json"
