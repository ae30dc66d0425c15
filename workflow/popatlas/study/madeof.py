"""What a result is made of: a fingerprint of its settings, its raw files and everything upstream of it.

A job gets its fingerprint from its rule and leaves it in its receipt; a result whose receipt holds another one than the
study would give it today is out of date. Fingerprints follow from the configuration and the dataset alone, so they are known
before anything runs, and neither times nor places of files are in them. What only judges a result (limits of the gate) or
says where it is computed (GPUs, batches) is left out. Of the code, what counts are the revisions of parts that once made
wrong results in silence: those are made again, others stay when popatlas is brought up to date.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from popatlas.cohort.digests import Digests
from popatlas.cohort.targets import fusion_settings
from popatlas.config.attempts import registration_settings
from popatlas.config.sections import Config
from popatlas.fusion.methods import SEGMENTER
from popatlas.images.io import sha256
from popatlas.measures.dictionary import REFERENCE, REVISION
from popatlas.preprocess import FINDER, LEVELS
from popatlas.receipts import fingerprint
from popatlas.settings import Content
from popatlas.study.along import Along
from popatlas.study.bench import Bench
from popatlas.study.fuse import Fuse
from popatlas.study.measure import Measure
from popatlas.study.network import Network
from popatlas.study.preprocess import Preprocess
from popatlas.study.register import Register
from popatlas.study.report import Report
from popatlas.study.scans import Scans
from popatlas.study.template import Template
from popatlas.study.tissues import Tissues

# keys of the configuration that say where or how fast something is computed, or where it lies
EXECUTION = ("gpu", "gpus", "batch", "minutes", "bids_dir", "out_dir", "weights", "simulate", "network", "retention")


def science(config: Mapping[str, Any]) -> Content:
    """Return a configuration without the keys that change no result."""
    return {
        key: science(value) if isinstance(value, Mapping) else value for key, value in config.items() if key not in EXECUTION
    }


@dataclass(frozen=True)
class MadeOf:
    """Fingerprints of the jobs of a study; each method is called as its rule, with its wildcards.

    Attributes
    ----------
    config : dict
        Complete configuration.
    out_dir : Path
        Output folder.
    scans, template, preprocess, register, tissues, fuse, bench, along, network, measure, report
        The parts of the study that the fingerprints follow from.
    digests : Digests
        Checksums of files that lie beside the images.
    """

    config: Config
    out_dir: Path
    scans: Scans
    template: Template
    preprocess: Preprocess
    register: Register
    tissues: Tissues
    fuse: Fuse
    bench: Bench
    along: Along
    network: Network | None
    measure: Measure
    report: Report
    digests: Digests
    _known: dict[tuple[str, ...], str] = field(default_factory=dict, init=False)
    _compared: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict, init=False)

    def __call__(self, rule: str, **wildcards: str) -> str:
        """Return the fingerprint of a job."""
        key = (rule, *wildcards.values())
        if key not in self._known:
            self._known[key] = fingerprint(getattr(self, rule)(**wildcards))
        return self._known[key]

    def given(self, rule: str, scan: str = "", **wildcards: str) -> dict[str, str]:
        """Return the files of the dataset that a job reads, with the digests that its fingerprint follows from."""
        if rule in ("conform_image", "labels_to_native"):
            return {self.scans.images[scan]: self.scans.raw_digests[scan]}
        if rule == "align_channel":
            names = (wildcards["channel"], *self.preprocess.others(scan, wildcards["channel"]))
            return {self.scans.channels[scan][name]: self.scans.channel_digests[scan][name] for name in names}
        if rule in ("propagate_labels", "fuse_labels"):
            used = (self.fuse.atlases[atlas] for atlas in self.fuse.atlases_for(scan))
            return {path: self._atlas_labels[path] for path in used}
        if rule == "measure_scan":
            return dict(self._references(scan).values())
        return {}

    def _references(self, scan: str) -> dict[str, tuple[str, str]]:
        """Return what a scan is compared with, by name: file and digest."""
        if scan not in self._compared:
            found = self.measure.given(scan).items()
            self._compared[scan] = {name: (path, self.digests.of(path)) for name, path in found}
        return self._compared[scan]

    @cached_property
    def _atlas_labels(self) -> dict[str, str]:
        return {path: self.digests.of(path) for path in self.fuse.atlases.values()}

    # Preprocessing

    def conform_image(self, scan: str) -> object:
        """Return what the conformed image of a scan is made of."""
        section = self.config.content["preprocess"]
        return [
            self.scans.raw_digests[scan],
            {key: section[key] for key in ("n4", "resolution_mm", "denoise")},
            LEVELS,
        ]

    def raw_mask(self, scan: str) -> object:
        """Return what the raw brain mask of a scan is made of, whatever batch it was in."""
        brain = self.config.content["preprocess"]["brain"]
        used = {"deepbet": ("method", "threshold", "dilate")}.get(brain["method"], ("method",))
        finder = [FINDER] if brain["method"] == "deepbet" else []
        return [self("conform_image", scan=scan), {key: brain[key] for key in used}, *finder]

    def extract_brain(self, scan: str) -> object:
        """Return what the raw brain mask of a scan is made of."""
        return self.raw_mask(scan)

    def extract_brains(self, batch: str) -> object:
        """Return what the raw masks of a batch are made of."""
        return self._each("raw_mask", self.preprocess.batches.scans(int(batch)))

    def _each(self, rule: str, scans: Iterable[str]) -> dict[str, str]:
        """Return the fingerprints of the scans of a batch, those that have failed too."""
        return {scan: self(rule, scan=scan) for scan in scans if scan in self.scans.raw_digests}

    def brain(self, scan: str) -> object:
        """Return what the brain of a scan is made of; what judges its mask does not count."""
        return [self("raw_mask", scan=scan), self.config.preprocess.intensity]

    def normalise_brain(self, scan: str) -> object:
        """Return what the brain of a scan is made of and how its mask is judged."""
        return [self("brain", scan=scan), self.config.content["preprocess"]["brain"]["volume_ml"]]

    def align_channel(self, scan: str, channel: str) -> object:
        """Return what an extra channel of a scan is made of."""
        digests = self.scans.channel_digests[scan]
        others = [digests[name] for name in self.preprocess.others(scan, channel)]
        way = ["group", *others] if self.config.preprocess.channels == "group" else []
        return [digests[channel], self("brain", scan=scan), self.config.content["preprocess"]["n4"], *way]

    # Template: its version is a fingerprint of members, their images and all settings

    def _template(self, **wildcards: str) -> object:
        return self.template.version

    make_reference = align_to_reference = initialise_template = predict_members = _template
    register_member = average_template = publish_template = coregister_members = _template

    # Registration

    def _way(self) -> object:
        return registration_settings(self.config, self.config.register.preset)

    def predict_deformations(self, batch: str) -> object:
        """Return what the predictions of a batch are made of."""
        return [self._each("brain", self.register.batches.scans(int(batch))), self.template.version, self._way()]

    def register_to_template(self, scan: str) -> object:
        """Return what the registration of a scan is made of."""
        return [self("brain", scan=scan), self.template.version, self._way()]

    def register_atlas_to_target(self, scan: str, atlas: str) -> object:
        """Return what the registration of an atlas to a target is made of."""
        return [self("brain", scan=scan), self("brain", scan=atlas), self._way()]

    # Tissues

    def classify_template(self) -> object:
        """Return what the tissue maps of the template are made of, once the template is there."""
        maps = self.config.tissues.maps
        return [self.template.version, self._way(), self.digests.of(maps) if maps else ""]

    def segment_tissues(self, scan: str) -> object:
        """Return what the tissues of a scan are made of."""
        section = self.config.content["tissues"]
        channels = [self("align_channel", scan=scan, channel=channel) for channel in self.config.tissues.channels]
        return [self("register_to_template", scan=scan), self("classify_template"), section["mixture"], channels]

    # Fusion

    def propagate_labels(self, scan: str) -> object:
        """Return what the candidates of a target are made of."""
        direct = self.config.fuse.through == "direct"

        def way(atlas: str) -> str:
            if direct:
                return self("register_atlas_to_target", scan=scan, atlas=atlas)
            return self("register_to_template", scan=atlas)

        atlases = self.fuse.atlases_for(scan)
        candidates = [[atlas, self.digests.of(self.fuse.atlases[atlas]), way(atlas)] for atlas in atlases]
        return [candidates, self("brain" if direct else "register_to_template", scan=scan)]

    def fuse_labels(self, scan: str, method: str) -> object:
        """Return what the labels of a scan by a method are made of."""
        trained = [self.fuse.trainings["trust"].version] if method == "dataparams" else []
        return [self("propagate_labels", scan=scan), method, fusion_settings(self.config, method), *trained]

    def train_trust(self) -> object:
        """Return the version of the network and data parameters."""
        return self.fuse.trainings["trust"].version

    def train_segmenter(self) -> object:
        """Return the version of the network."""
        return self.fuse.trainings[SEGMENTER].version

    def segment_scan(self, scan: str) -> object:
        """Return what the labels of a scan by the network are made of."""
        return [self("brain", scan=scan), self("train_segmenter")]

    def labels_to_native(self, scan: str, method: str) -> object:
        """Return what the labels of a scan on the grid of its raw image are made of."""
        return [self.labels(scan)[method], self.scans.raw_digests[scan]]

    def _network(self) -> object:
        if self.network is None:
            raise RuntimeError("no registration network is trained: train.recipe is null")
        return self.network.plan.version

    write_training_table = train_registration = _network

    # Measures and group results

    def labels(self, scan: str) -> dict[str, str]:
        """Return the fingerprint of the labels of a scan by method."""
        return {
            method: self("segment_scan", scan=scan) if method == SEGMENTER else self("fuse_labels", scan=scan, method=method)
            for method in self.fuse.scan_methods(scan)
        }

    def measure_scan(self, scan: str) -> object:
        """Return what the metrics of a scan are made of."""
        section = self.config.content["measure"]
        tissues = [self("segment_tissues", scan=scan)] if self.tissues.has(scan) else []
        return [
            self("register_to_template", scan=scan),
            self.labels(scan),
            {name: digest for name, (_, digest) in self._references(scan).items()},
            self._names(),
            self.template.column,
            {key: section[key] for key in ("surface", "min_voxels")},
            *tissues,
        ]

    def _names(self) -> str:
        return self.digests.of("cohort/label-names.tsv")

    def draw_subject(self, scan: str) -> object:
        """Return what the page of a scan is made of."""
        return [self("measure_scan", scan=scan), self.report.methods, self.template.label]

    def settle_ledger(self) -> object:
        """Return what the ledger tells: what was measured, and who is out and why."""
        return [{scan: self("measure_scan", scan=scan) for scan in self.scans.own}, self.scans.outside]

    def score_truth(self) -> object:
        """Return what the truth scores are made of."""
        from popatlas.measures.truth import truth_files

        scans, folder = self.scans, self.measure.truth_folder
        truth = {name: self.digests.of(folder / name) for name in truth_files(scans.own)} if folder else {}
        return [{scan: self("register_to_template", scan=scan) for scan in scans.own}, truth, scans.outside, REVISION]

    def tabulate_cohort(self) -> object:
        """Return what the group tables are made of."""
        truth = [self("score_truth")] if self.measure.truth_tables else []
        people = self.out_dir / "cohort" / "participants.tsv"
        return [self("settle_ledger"), sha256(people) if people.is_file() else "", *truth, self._names(), REVISION]

    def tabulate_trust(self) -> object:
        """Return what the group table of atlas weights is made of."""
        return [{scan: self.labels(scan) for scan in self.scans.own}, sorted(self.fuse.atlases), REVISION]

    def bench_fusion(self) -> object:
        """Return what the comparison of the fusion methods is made of."""
        labels = {
            scan: {method: self("fuse_labels", scan=scan, method=method) for method in self.fuse.methods}
            for scan in self.bench.scans
        }
        references = [self.digests.of(path) for path in self.bench.references]
        return [labels, references, self._names(), self.config.fuse.maps, self.config.measure.min_voxels]

    def make_along(self, place: str) -> object:
        """Return what the template at a value of a covariate is made of: of whom, with which values and weights."""
        method, scans = self.along.method, self.along.members(place)
        if method == REFERENCE:
            labels = {scan: self._references(scan)[REFERENCE][1] for scan in scans}
        else:
            labels = {scan: self.labels(scan)[method] for scan in scans} if method else {}
        made = {scan: self("register_to_template", scan=scan) for scan in scans}
        return [self.along.request(place), made, labels, self.template.version]

    def publish_along(self) -> object:
        """Return what the series of templates along a covariate is made of."""
        return [[self("make_along", place=place) for place in self.along.places], self._names()]

    def write_report(self) -> object:
        """Return what the pages of the cohort are made of."""
        along = [self("publish_along")] if self.along.places else []
        weights = [self("tabulate_trust")] if self.fuse.atlas_weights_tables() else []
        bench = [self("bench_fusion")] if self.bench.shown else []
        scans = self.scans
        failed = [sorted(scans.undrawn), sorted(scans.unaligned), sorted(scans.unbenched)]
        failed += [sorted(scans.undivided)] if scans.undivided else []
        without = [*failed, *scans.incomplete]
        pages = {scan: self("draw_subject", scan=scan) for scan in self.report.drawn}
        made = [self("tabulate_cohort"), weights, bench, without, pages, self.template.version, science(self.config.content)]
        return made + along
