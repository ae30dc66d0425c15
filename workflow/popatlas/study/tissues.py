"""Tissues as the rules ask for them: the maps of the template, and what each scan is divided by."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from popatlas.cohort.outputs import RULES, fill
from popatlas.config.sections import Config
from popatlas.groupwise.settings import TISSUES
from popatlas.settings import as_content
from popatlas.study.preprocess import BRAIN, MASK
from popatlas.study.rules import Files, Together, Wildcards
from popatlas.study.template import Template

CHANNEL = RULES["align_channel"].files["image"]
VOLUMES = RULES["segment_tissues"].files["volumes"]
MAPS = RULES["classify_template"].files["maps"]
MOVED = {name: RULES["register_to_template"].files[name] for name in ("warped", "warped_mask", "affine", "inverse_warp")}

MOST = 32  # brains that the maps are found in; more change them little


@dataclass(frozen=True)
class Tissues:
    """What the rules of tissues ask.

    Attributes
    ----------
    config : dict
        Complete configuration.
    template : Template
        What the scans are registered to.
    members : tuple of str
        Members of the template that can be used; none of an existing one.
    channels : dict
        Scan to its extra channels and their images.
    unaligned, failed : collection of str
        Scans whose channels, or whose tissues, failed.
    """

    config: Config
    template: Template
    members: tuple[str, ...]
    channels: Mapping[str, Mapping[str, str]]
    unaligned: Collection[str]
    failed: Collection[str]

    def why_not(self, scan: str) -> str:
        """Return why a scan is to have no tissues: it lacks a contrast that is used; empty when it has all."""
        wanted = self.config.tissues.channels
        if lacking := [name for name in wanted if name not in self.channels.get(scan, ())]:
            return f"it has no {', '.join(lacking)} (tissues.channels)"
        return "its channels could not be aligned (tissues.channels)" if wanted and scan in self.unaligned else ""

    def can_have(self, scan: str) -> bool:
        """Tell whether tissues of a scan are asked for."""
        return self.config.tissues.enabled and not self.why_not(scan)

    def has(self, scan: str) -> bool:
        """Tell whether a scan is to have tissues, and has not failed at them."""
        return self.can_have(scan) and scan not in self.failed

    @property
    def seen(self) -> list[str]:
        """Scans that the maps of the template are found in; none where the template is all that there is."""
        return [] if self.config.tissues.maps or not self.members else spread_evenly(self.members)

    def _filled(self, pattern: str, scan: str = "") -> str:
        return fill(pattern, {"label": self.template.label, "scan": scan})

    @property
    def maps(self) -> str:
        """Tissue maps of the template."""
        return self._filled(MAPS)

    # Maps of the template

    def classified(self, wildcards: Wildcards) -> dict[str, Files]:
        """Return what the maps are made of: the template, and the brains that were registered to it."""
        files = self.template.files
        found: dict[str, Files] = {"template": files["fixed"], "mask": files["fixed_mask"]}
        if self.seen:
            found["brains"] = [self._filled(MOVED["warped"], scan) for scan in self.seen]
            found["masks"] = [self._filled(MOVED["warped_mask"], scan) for scan in self.seen]
        return found

    def listed(self) -> dict[str, list[str]]:
        """Return the lines of the lists of brains and masks."""
        return {
            path: [self._filled(MOVED[name], scan) for scan in self.seen]
            for path, name in zip(self._lists, ("warped", "warped_mask"), strict=True)
            if self.seen
        }

    @property
    def _lists(self) -> tuple[str, str]:
        stem = f"cohort/lists/tissues-{self.template.label}-{self.template.version}"
        return f"{stem}-brains.txt", f"{stem}-masks.txt"

    def map_options(self, wildcards: Wildcards) -> str:
        """Return ClassifyTemplate's options for what `classified` lists, and for maps that are given."""
        given, files = self.config.tissues.maps, self.template.files
        if self.seen:
            brains, masks = (f"@{path}" for path in self._lists)
        else:
            brains, masks = files["fixed"], files["fixed_mask"]
        options = f"--in_brains {shlex.quote(brains)} --in_masks {shlex.quote(masks)}"
        return f"{options} --in_maps {shlex.quote(given)}" if given else options

    # Tissues of a scan

    def divided(self, wildcards: Wildcards) -> dict[str, Files]:
        """Return what the tissues of a scan are found in, besides what is measured anyway; nothing where it has none."""
        scan = wildcards.scan
        return {"channels": self._images(scan)[1:], "prior": self.maps} if self.has(scan) else {}

    def _images(self, scan: str) -> list[str]:
        channels = [fill(CHANNEL, {"scan": scan, "channel": channel}) for channel in self.config.tissues.channels]
        return [BRAIN.format(scan=scan), *channels]

    def step(self, jobs: Together) -> Callable[[Wildcards, int], str]:
        """Return the function of the step before the measures and what joins them; nothing for a scan without tissues."""
        mixture = json.dumps(as_content(self.config.tissues.mixture))
        same = f"--names {' '.join(TISSUES)} --options {shlex.quote(mixture)} --in_prior {shlex.quote(self.maps)}"

        def options(wildcards: Wildcards, threads: int) -> str:
            scan = wildcards.scan
            if not self.has(scan):
                return ""
            made = {name: shlex.quote(fill(path, {"scan": scan})) for name, path in jobs.outputs("segment_tissues").items()}
            affine, back = (shlex.quote(self._filled(MOVED[name], scan)) for name in ("affine", "inverse_warp"))
            return (
                f"SegmentTissues --subject {shlex.quote(scan)} --threads {threads} --in_images"
                f" {shlex.join(self._images(scan))} --in_mask {shlex.quote(MASK.format(scan=scan))} {same}"
                f" --in_affine {affine} --in_inverse_warp {back} --out_posterior {made['maps']} --out_labels {made['dseg']}"
                f" --out_volumes {made['volumes']} {jobs.proof_of('segment_tissues', {'scan': scan})} --then"
            )

        return options

    # What is measured of them

    def measure_option(self, wildcards: Wildcards) -> str:
        """Return MeasureScan's option for the volumes of the tissues of a scan that has them."""
        scan = wildcards.scan
        return f"--in_tissues {shlex.quote(VOLUMES.format(scan=scan))}" if self.has(scan) else ""


def spread_evenly(scans: Sequence[str], most: int = MOST) -> list[str]:
    """Return at most so many of some scans, evenly over their order."""
    if len(scans) <= most:
        return list(scans)
    return [scans[round(place * (len(scans) - 1) / (most - 1))] for place in range(most)]
