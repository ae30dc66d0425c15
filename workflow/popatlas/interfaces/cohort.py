"""Step of cohort bookkeeping: the ledger (the index is made before the DAG, by the Snakefile)."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces.base import Directory, File, TraitedSpec

from popatlas.images.io import read_table
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface


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
