"""Steps of the measurement stage: one scan, the cohort, and the truth of a simulated cohort."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import Directory, File, Str, isdefined, traits

from popatlas.errors import InputError
from popatlas.images.io import read_table, sha256, write_json, write_table
from popatlas.images.tables import is_missing, read_text_table
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface, place

if TYPE_CHECKING:
    import pandas as pd

    from popatlas.measures.table import Group

# keys are text also where every value looks like a number or is empty
KEY_KINDS = dict.fromkeys(["scan", "subject", "session", "participant_id", "stage", "state", "reason"], str)


class MeasureScanInputSpec(PopatlasInputSpec):
    """Inputs of MeasureScan; whatever is left out is not measured."""

    scan = Str(mandatory=True, desc="scan key, for example sub-01/ses-1/anat/sub-01_ses-1")
    template = Str("", usedefault=True, desc="label@version of the template")
    in_mask = File(exists=True, desc="brain mask")
    in_brain = File(exists=True, desc="brain on the preprocessed grid")
    in_labels = traits.List(File(exists=True), desc="fused labels, one per method")
    methods = traits.List(Str, desc="method of each file of in_labels")
    in_tissues = File(exists=True, desc="volumes of the tissues (name, volume_ml)")
    in_reference = File(exists=True, desc="reference labels, any grid in the same world space")
    in_names = File(exists=True, desc="label names (index, name); found beside the reference when left out")
    in_landmarks = File(exists=True, desc="landmarks of the scan (name, x, y, z in RAS mm)")
    in_template_brain = File(exists=True, desc="template")
    in_template_mask = File(exists=True, desc="brain mask of the template")
    in_warped = File(exists=True, desc="brain of the scan on the template grid")
    in_log_jacobian = File(exists=True, desc="log Jacobian of the composed displacement field, on the template grid")
    in_affine = File(exists=True, desc="affine of the scan")
    in_inverse_warp = File(exists=True, desc="inverse warp of the scan")
    in_gate = File(exists=True, desc="what the gate of the registration wrote")
    surface = traits.Bool(True, usedefault=True, desc="measure surface distances")
    min_voxels = traits.Int(1, usedefault=True, desc="smaller reference labels are not scored")
    out_table = File(mandatory=True, desc="tidy table (TSV)")


class MeasureScan(PopatlasInterface):
    """Measure everything that is available for one scan."""

    input_spec = MeasureScanInputSpec

    def _execute(self) -> None:
        from popatlas.measures.scan import ScanFiles, measure_scan
        from popatlas.measures.wide import with_missing

        inputs = self.inputs
        labels = list(inputs.in_labels) if isdefined(inputs.in_labels) else []
        methods = list(inputs.methods) if isdefined(inputs.methods) else []
        if len(labels) != len(methods):
            raise InputError(
                f"{len(labels)} label images and {len(methods)} methods",
                subject=inputs.scan,
                remedy="name the method of each label image",
            )
        names = (
            "mask", "brain", "tissues", "reference", "names", "landmarks", "template_brain", "template_mask", "warped",
            "log_jacobian", "affine", "inverse_warp", "gate",
        )  # fmt: skip
        files: dict[str, Any] = {name: _path(getattr(inputs, f"in_{name}")) for name in names}
        files["labels"] = dict(zip(methods, map(Path, labels), strict=True))
        table = measure_scan(ScanFiles(inputs.scan, inputs.template, **files), inputs.surface, inputs.min_voxels)
        self.notes = {"rows": len(table)}
        write_table(with_missing(table), inputs.out_table)


class _CohortInputSpec(PopatlasInputSpec):
    """Inputs of steps that look at the whole cohort."""

    in_index = File(exists=True, mandatory=True, desc="cohort/index (TSV or Parquet)")
    in_ledger = File(exists=True, mandatory=True, desc="cohort/ledger.tsv")
    derivatives = Directory(exists=True, mandatory=True, desc="OUT_DIR, which holds the tables of the scans")


class TabulateCohortInputSpec(_CohortInputSpec):
    """Inputs of TabulateCohort."""

    in_participants = File(
        exists=True, desc="cohort/participants.tsv (or that of the dataset), joined to metrics and volumes"
    )
    in_names = File(exists=True, desc="label names of the cohort (index, name)")
    in_atlases = File(exists=True, desc="cohort/label-atlases.tsv, labelled atlases")
    in_extra = traits.List(File(exists=True), desc="more tidy tables (truth.tsv), appended to the metrics")
    out_parquet = File(mandatory=True, desc="group/metrics.parquet, all values, long")
    out_tsv = File(mandatory=True, desc="group/metrics.tsv, the same as TSV")
    out_dictionary = File(mandatory=True, desc="group/metrics.json, columns of the metrics")
    out_volumes = File(mandatory=True, desc="group/volumes.tsv, one row per scan")
    out_volumes_dictionary = File(desc="group/volumes.json, columns of the volumes")
    out_summary = File(mandatory=True, desc="group/summary.tsv, mean and spread")
    out_summary_dictionary = File(desc="group/summary.json, columns of the summary")
    out_members = File(mandatory=True, desc="group/members.json, who is in, who is out and why")


class TabulateCohort(PopatlasInterface):
    """Combine the tables of all scans that the ledger lets in."""

    input_spec = TabulateCohortInputSpec

    def _execute(self) -> None:
        from popatlas.measures.table import gather, scan_table

        inputs, derivatives = self.inputs, Path(self.inputs.derivatives)
        index = _read(inputs.in_index)
        group = gather(
            derivatives,
            index,
            _read(inputs.in_ledger),
            _participants(inputs.in_participants) if isdefined(inputs.in_participants) else None,
            [Path(file) for file in inputs.in_extra] if isdefined(inputs.in_extra) else [],
            _atlases(inputs.in_atlases, index["scan"]) if isdefined(inputs.in_atlases) else None,
        )
        self.notes = {"scans_in": group.members["n_in"], "scans_out": group.members["n_out"]}
        self.also_read = [scan_table(derivatives, scan) for scan in group.members["in"]]
        self._write(group)

    def _write(self, group: Group) -> None:
        from popatlas.measures.dictionary import SUMMARY_COLUMN_TEXT, described, metrics_columns, volume_columns
        from popatlas.measures.names import read_names
        from popatlas.measures.pieces import write_pieces
        from popatlas.measures.wide import with_missing

        inputs, pieces = self.inputs, group.pieces
        columns = write_pieces(pieces, Path(inputs.out_parquet), Path(inputs.out_tsv))
        write_json(inputs.out_dictionary, metrics_columns(columns))
        names = read_names(Path(inputs.in_names)) if isdefined(inputs.in_names) else None
        volumes = pieces.volumes.table(pieces.scans, pieces.participants, names)
        write_table(with_missing(volumes), inputs.out_volumes)
        write_table(with_missing(pieces.spread.table()), inputs.out_summary)
        if isdefined(inputs.out_volumes_dictionary):
            write_json(inputs.out_volumes_dictionary, volume_columns(volumes.columns, pieces.volumes.columns(names)))
        if isdefined(inputs.out_summary_dictionary):
            write_json(inputs.out_summary_dictionary, described(SUMMARY_COLUMN_TEXT))
        made = {"made_of": inputs.made_of, "made_from": {place(file): sha256(file) for file in self.also_read}}
        write_json(inputs.out_members, group.members | made)


class ScoreTruthInputSpec(_CohortInputSpec):
    """Inputs of ScoreTruth."""

    truth = Directory(exists=True, mandatory=True, desc="derivatives/truth of the simulated dataset")
    label = Str(mandatory=True, desc="label of the template")
    template = Str("", usedefault=True, desc="label@version of the template")
    points = traits.Int(20000, usedefault=True, desc="most points of the template brain that are compared")
    seed = traits.Int(0, usedefault=True, desc="seed of the choice of points")
    out_table = File(mandatory=True, desc="group/truth.tsv")
    out_dictionary = File(desc="group/truth.json, its columns")


class ScoreTruth(PopatlasInterface):
    """Score registrations, masks and template of a simulated cohort against the truth."""

    input_spec = ScoreTruthInputSpec

    def _execute(self) -> None:
        from popatlas.measures.dictionary import metrics_columns
        from popatlas.measures.table import members
        from popatlas.measures.truth import forward_files, score_truth
        from popatlas.measures.wide import with_missing

        inputs = self.inputs
        inside, _ = members(_read(inputs.in_index), _read(inputs.in_ledger))
        table = score_truth(
            inside["scan"].tolist(),
            Path(inputs.derivatives),
            Path(inputs.truth),
            inputs.label,
            inputs.template,
            inputs.points,
            inputs.seed,
        )
        self.notes = {"scans": len(inside), "rows": len(table)}
        derivatives = Path(inputs.derivatives)
        self.also_read = [
            file
            for scan in inside["scan"]
            for file in (derivatives / f"{scan}_desc-brain_mask.nii.gz", *forward_files(scan, derivatives, inputs.label))
        ]
        write_table(with_missing(table), inputs.out_table)
        if isdefined(inputs.out_dictionary):
            write_json(inputs.out_dictionary, metrics_columns(table.columns))


def _path(value: str) -> Path | None:
    return Path(value) if isdefined(value) else None


def _participants(path: str) -> pd.DataFrame:
    """Return the table as text, so that every cell comes out as it went in; missing values are NaN."""
    table = read_text_table(path)
    return table.where(~table.map(is_missing))


def _atlases(path: str, scans: Iterable[str]) -> dict[str, int]:
    """Return how many atlases serve each scan, none where there are no atlases."""
    from popatlas.cohort.freeze import atlases_for

    atlases = [str(atlas) for atlas in _read(path)["atlas"]]
    return {scan: len(atlases_for(scan, atlases)) for scan in scans} if atlases else {}


def _read(path: str) -> pd.DataFrame:
    options = {} if str(path).endswith(".parquet") else {"dtype": KEY_KINDS}
    return read_table(path, **options)
