"""What a result is made of: a fingerprint of its settings, its raw files and everything upstream of it.

A job gets its fingerprint from its rule and leaves it in its receipt; a result whose receipt holds another one than the
study would give it today is out of date. Fingerprints follow from the configuration and the dataset alone, so they are known
before anything runs, and neither times nor places of files are in them. What only judges a result (limits of the gate) or
says where it is computed (GPUs, batches) is left out. Of the code, what counts are the revisions of parts that once made
wrong results in silence: those are made again, others stay when popatlas is brought up to date.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from popatlas.cohort.targets import fusion_settings
from popatlas.config.attempts import registration_settings
from popatlas.fusion.methods import SEGMENTER
from popatlas.images.io import sha256
from popatlas.preprocess import FINDER, LEVELS
from popatlas.receipts import fingerprint
from popatlas.settings import Content

if TYPE_CHECKING:
    from popatlas.study.study import Study

# keys of the configuration that say where or how fast something is computed, or where it lies
EXECUTION = ("gpu", "gpus", "batch", "minutes", "bids_dir", "out_dir", "weights", "simulate", "network")


def science(config: Mapping[str, Any]) -> Content:
    """Return a configuration without the keys that change no result."""
    return {
        key: science(value) if isinstance(value, Mapping) else value for key, value in config.items() if key not in EXECUTION
    }


class MadeOf:
    """Fingerprints of the jobs of a study; each method is called as its rule, with its wildcards."""

    def __init__(self, study: Study) -> None:
        self.study, self.config = study, study.config
        self._known: dict[tuple[str, ...], str] = {}

    def __call__(self, rule: str, **wildcards: str) -> str:
        """Return the fingerprint of a job."""
        key = (rule, *wildcards.values())
        if key not in self._known:
            self._known[key] = fingerprint(getattr(self, rule)(**wildcards))
        return self._known[key]

    # Preprocessing

    def conform_image(self, scan: str) -> Any:
        """Return what the conformed image of a scan is made of."""
        section = self.config.content["preprocess"]
        return [
            self.study.scans.raw_digests[scan],
            {key: section[key] for key in ("n4", "resolution_mm", "denoise")},
            LEVELS,
        ]

    def raw_mask(self, scan: str) -> Any:
        """Return what the raw brain mask of a scan is made of, whatever batch it was in."""
        brain = self.config.content["preprocess"]["brain"]
        used = {"deepbet": ("method", "threshold", "dilate")}.get(brain["method"], ("method",))
        finder = [FINDER] if brain["method"] == "deepbet" else []
        return [self("conform_image", scan=scan), {key: brain[key] for key in used}, *finder]

    def extract_brain_by_template(self, scan: str) -> Any:
        """Return what the raw brain mask of a scan is made of."""
        return self.raw_mask(scan)

    def extract_brains(self, batch: str) -> Any:
        """Return what the raw masks of a batch are made of."""
        return self._each("raw_mask", self.study.preprocess.batches.scans(int(batch)))

    def _each(self, rule: str, scans: Iterable[str]) -> dict[str, str]:
        """Return the fingerprints of the scans of a batch, those that have failed too."""
        return {scan: self(rule, scan=scan) for scan in scans if scan in self.study.scans.raw_digests}

    def brain(self, scan: str) -> Any:
        """Return what the brain of a scan is made of; what judges its mask does not count."""
        return [self("raw_mask", scan=scan), self.config.preprocess.intensity]

    def normalise_brain(self, scan: str) -> Any:
        """Return what the brain of a scan is made of and how its mask is judged."""
        return [self("brain", scan=scan), self.config.content["preprocess"]["brain"]["volume_ml"]]

    def align_channel(self, scan: str, channel: str) -> Any:
        """Return what an extra channel of a scan is made of."""
        raw = self.study.scans.channel_digests[scan][channel]
        return [raw, self("brain", scan=scan), self.config.content["preprocess"]["n4"]]

    # Template: its version is a fingerprint of members, their images and all settings

    def _template(self, **wildcards: str) -> Any:
        return self.study.template.version

    make_reference = align_to_reference = initialise_template = predict_members = _template
    register_member = average_template = publish_template = _template

    # Registration

    def _way(self) -> Any:
        return registration_settings(self.config, self.config.register.preset)

    def predict_deformations(self, batch: str) -> Any:
        """Return what the predictions of a batch are made of."""
        return [self._each("brain", self.study.register.batches.scans(int(batch))), self.study.template.version, self._way()]

    def register_to_template(self, scan: str) -> Any:
        """Return what the registration of a scan is made of."""
        return [self("brain", scan=scan), self.study.template.version, self._way()]

    def register_atlas_to_target(self, scan: str, atlas: str) -> Any:
        """Return what the registration of an atlas to a target is made of."""
        return [self("brain", scan=scan), self("brain", scan=atlas), self._way()]

    # Fusion

    def propagate_labels(self, scan: str) -> Any:
        """Return what the candidates of a target are made of."""
        direct = self.config.fuse.through == "direct"

        def way(atlas: str) -> str:
            if direct:
                return self("register_atlas_to_target", scan=scan, atlas=atlas)
            return self("register_to_template", scan=atlas)

        atlases = self.study.atlases_for(scan)
        candidates = [[atlas, self.study.digests.of(self.study.atlases[atlas]), way(atlas)] for atlas in atlases]
        return [candidates, self("brain" if direct else "register_to_template", scan=scan)]

    def fuse_labels(self, scan: str, method: str) -> Any:
        """Return what the labels of a scan by a method are made of."""
        trained = [self.study.trainings["trust"].version] if method == "dataparams" else []
        return [self("propagate_labels", scan=scan), method, fusion_settings(self.config, method), *trained]

    def train_trust(self) -> Any:
        """Return the version of the network and data parameters."""
        return self.study.trainings["trust"].version

    def train_segmenter(self) -> Any:
        """Return the version of the network."""
        return self.study.trainings[SEGMENTER].version

    def segment_scan(self, scan: str) -> Any:
        """Return what the labels of a scan by the network are made of."""
        return [self("brain", scan=scan), self("train_segmenter")]

    def _network(self) -> Any:
        return self.study.plan.version

    write_training_table = train_registration = _network

    # Measures and group results

    def labels(self, scan: str) -> dict[str, str]:
        """Return the fingerprint of the labels of a scan by method."""
        return {
            method: self("segment_scan", scan=scan) if method == SEGMENTER else self("fuse_labels", scan=scan, method=method)
            for method in self.study.scan_methods(scan)
        }

    def measure_scan(self, scan: str) -> Any:
        """Return what the metrics of a scan are made of."""
        section, study = self.config.content["measure"], self.study
        given = {key: study.input_file("measure", key, scan) for key in ("reference", "landmarks")}
        return [
            self("register_to_template", scan=scan),
            self.labels(scan),
            {key: study.digests.of(path) for key, path in given.items() if path},
            self._names(),
            study.template.column,
            {key: section[key] for key in ("surface", "min_voxels")},
        ]

    def _names(self) -> str:
        return self.study.digests.of("cohort/label-names.tsv")

    def draw_subject(self, scan: str) -> Any:
        """Return what the page of a scan is made of."""
        return [self("measure_scan", scan=scan), self.study.methods, self.study.template.label]

    def settle_ledger(self) -> Any:
        """Return what the ledger tells: what was measured, and who is out and why."""
        return [{scan: self("measure_scan", scan=scan) for scan in self.study.scans.own}, self.study.scans.outside]

    def score_truth(self) -> Any:
        """Return what the truth scores are made of."""
        from popatlas.measures.truth import truth_files

        study, folder = self.study, self.study.truth_folder()
        truth = {name: study.digests.of(folder / name) for name in truth_files(study.scans.own)} if folder else {}
        return [{scan: self("register_to_template", scan=scan) for scan in study.scans.own}, truth, study.scans.outside]

    def tabulate_cohort(self) -> Any:
        """Return what the group tables are made of."""
        truth = [self("score_truth")] if self.study.truth_tables() else []
        people = self.study.out_dir / "cohort" / "participants.tsv"
        return [self("settle_ledger"), sha256(people) if people.is_file() else "", *truth]

    def tabulate_trust(self) -> Any:
        """Return what the group table of trust is made of."""
        return [{scan: self.labels(scan) for scan in self.study.scans.own}, sorted(self.study.atlases)]

    def bench_fusion(self) -> Any:
        """Return what the comparison of the fusion methods is made of."""
        study = self.study
        labels = {
            scan: {method: self("fuse_labels", scan=scan, method=method) for method in study.fusion_methods}
            for scan in study.bench_scans
        }
        references = [study.digests.of(path) for path in study.bench_references()]
        return [labels, references, self._names(), self.config.fuse.maps, self.config.measure.min_voxels]

    def write_report(self) -> Any:
        """Return what the pages of the cohort are made of."""
        study = self.study
        trust = [self("tabulate_trust")] if study.trust_tables() else []
        bench = [self("bench_fusion")] if self.config.fuse.bench and study.bench_targets() else []
        without = [sorted(study.scans.undrawn), sorted(study.scans.unaligned), sorted(study.scans.unbenched)]
        pages = {scan: self("draw_subject", scan=scan) for scan in study.scans.own if scan not in study.scans.undrawn}
        return [self("tabulate_cohort"), trust, bench, without, pages, study.template.version, science(self.config.content)]
