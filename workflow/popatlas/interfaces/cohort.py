"""Step of cohort bookkeeping: the ledger (the index is made before the DAG, by the Snakefile)."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces.base import Directory, File

from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface


class SettleLedgerInputSpec(PopatlasInputSpec):
    """Inputs of SettleLedger."""

    in_index = File(exists=True, mandatory=True, desc="cohort/index.parquet")
    config = File(exists=True, mandatory=True, desc="resolved configuration")
    derivatives = Directory(exists=True, mandatory=True, desc="OUT_DIR")
    out_ledger = File(mandatory=True, desc="cohort/ledger.tsv of OUT_DIR")


class SettleLedger(PopatlasInterface):
    """Write what became of each scan at each stage."""

    input_spec = SettleLedgerInputSpec

    def _execute(self) -> None:
        from popatlas.config.load import load_config
        from popatlas.study.books import settle_study
        from popatlas.study.inventory import Inventory
        from popatlas.study.study import Study

        config = load_config(self.inputs.config)
        study = Study.read(config, Path(self.inputs.derivatives))
        failures = settle_study(Inventory(study), config)
        self.notes["failed"] = sorted({scan for scan, _ in failures})
