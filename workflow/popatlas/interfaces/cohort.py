"""Steps of cohort bookkeeping."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces.base import Directory, File, TraitedSpec, traits

from popatlas.images.io import read_table
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface


class IndexCohortInputSpec(PopatlasInputSpec):
    """Inputs of IndexCohort."""

    config = File(exists=True, mandatory=True, desc="configuration, YAML")
    out_dir = Directory(mandatory=True, desc="output folder")


class IndexCohortOutputSpec(TraitedSpec):
    """Outputs of IndexCohort."""

    scans = traits.Int(desc="usable scans")


class IndexCohort(PopatlasInterface):
    """Read a dataset once, open every image and write the index (also done by the Snakefile before the DAG)."""

    input_spec = IndexCohortInputSpec
    output_spec = IndexCohortOutputSpec

    def _execute(self) -> None:
        from popatlas.cohort.index import index_cohort
        from popatlas.config import load_config

        index = index_cohort(load_config(self.inputs.config), Path(self.inputs.out_dir))
        self.notes["states"] = index["state"].value_counts().to_dict()

    def _list_outputs(self) -> dict[str, int]:
        return {"scans": int(self.notes["states"].get("ok", 0))}


class SettleLedgerInputSpec(PopatlasInputSpec):
    """Inputs of SettleLedger."""

    in_index = File(exists=True, mandatory=True, desc="cohort/index.parquet")
    config = File(exists=True, mandatory=True, desc="resolved configuration")
    derivatives = Directory(exists=True, mandatory=True, desc="OUT_DIR")
    out_ledger = File(mandatory=True, desc="cohort/ledger.tsv of OUT_DIR")


class SettleLedgerOutputSpec(TraitedSpec):
    """Outputs of SettleLedger."""

    out_ledger = File(exists=True)


class SettleLedger(PopatlasInterface):
    """Write what became of each scan at each stage."""

    input_spec = SettleLedgerInputSpec
    output_spec = SettleLedgerOutputSpec

    def _execute(self) -> None:
        from popatlas.cohort.freeze import read_label_atlases
        from popatlas.cohort.ledger import settle
        from popatlas.cohort.outputs import stage_outputs
        from popatlas.config import load_config

        folder = Path(self.inputs.derivatives)
        labelled = len(read_label_atlases(folder)) > 0
        outputs = stage_outputs(load_config(self.inputs.config), labelled=labelled)
        ledger = settle(folder, read_table(self.inputs.in_index), outputs)
        self.notes["failed"] = sorted(set(ledger.loc[ledger["state"] == "failed", "scan"]))
