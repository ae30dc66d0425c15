"""Steps about all targets of the fusion at once: what the atlases weigh, and which method is best."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces.base import Directory, File, Str, isdefined, traits

from popatlas.images.io import write_json, write_table
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface


class TabulateAtlasWeightsInputSpec(PopatlasInputSpec):
    """Inputs of TabulateAtlasWeights."""

    in_tables = traits.List(
        File(exists=True), mandatory=True, desc="tables of atlas weights of the scans, one for each method"
    )
    in_gates = traits.List(File(exists=True), desc="gate JSONs of the registrations of targets and atlases")
    derivatives = Directory(exists=True, mandatory=True, desc="OUT_DIR, which the gates lie in")
    out_parquet = File(mandatory=True, desc="group/trust.parquet, one row for each target, method and atlas")
    out_tsv = File(mandatory=True, desc="group/trust.tsv, the same as TSV")
    out_dictionary = File(mandatory=True, desc="group/trust.json, its columns")
    out_figure = File(mandatory=True, desc="report/figures/trust.png, distribution of the weights of each atlas")


class TabulateAtlasWeights(PopatlasInterface):
    """Stack the tables of atlas weights of all scans, beside the quality of the registrations, and draw them."""

    input_spec = TabulateAtlasWeightsInputSpec

    def _execute(self) -> None:
        from popatlas.fusion.dataparams.table import tabulate_atlas_weights
        from popatlas.measures.dictionary import atlas_weights_dictionary
        from popatlas.measures.wide import with_missing
        from popatlas.report.atlas_weights import draw_atlas_weights

        inputs = self.inputs
        gates = [Path(file) for file in inputs.in_gates] if isdefined(inputs.in_gates) else []
        table = tabulate_atlas_weights([Path(file) for file in inputs.in_tables], gates, Path(inputs.derivatives))
        self.notes = {"rows": len(table), "targets": table["scan"].nunique(), "atlases": table["atlas"].nunique()}
        write_table(table, inputs.out_parquet)
        write_table(with_missing(table), inputs.out_tsv)
        write_json(inputs.out_dictionary, atlas_weights_dictionary())
        draw_atlas_weights(table, Path(inputs.out_figure))


class BenchFusionInputSpec(PopatlasInputSpec):
    """Inputs of BenchFusion; fused labels, maps, brains and records are found in `derivatives` by their names."""

    in_references = traits.List(File(exists=True), mandatory=True, desc="own labels of each held-out atlas")
    scans = traits.List(Str, mandatory=True, desc="scan key of each held-out atlas")
    methods = traits.List(Str, mandatory=True, desc="label fusion methods")
    derivatives = Directory(exists=True, mandatory=True, desc="OUT_DIR")
    in_names = File(exists=True, desc="label names (index, name)")
    min_voxels = traits.Int(1, usedefault=True, desc="smaller reference labels are not scored")
    out_table = File(mandatory=True, desc="group/fusion-bench.parquet, all scores, long")
    out_tsv = File(mandatory=True, desc="group/fusion-bench.tsv, the same as TSV")
    out_summary = File(mandatory=True, desc="group/fusion-bench.json, columns, statistics and recommendation")
    out_page = File(mandatory=True, desc="report/fusion.html; pictures go to figures/ beside it")


class BenchFusion(PopatlasInterface):
    """Score every fusion method on the held-out atlases, test the differences, and recommend one."""

    input_spec = BenchFusionInputSpec

    def _execute(self) -> None:
        from popatlas.fusion.bench import run_bench, summarise
        from popatlas.measures.names import read_names
        from popatlas.measures.wide import with_missing
        from popatlas.report.fusion import write_fusion_page

        inputs = self.inputs
        names = read_names(Path(inputs.in_names)) if isdefined(inputs.in_names) else {}
        references = dict(zip(inputs.scans, map(Path, inputs.in_references), strict=False))
        derivatives = Path(inputs.derivatives)
        bench = run_bench(
            derivatives, list(inputs.scans), [Path(file) for file in inputs.in_references], list(inputs.methods), names,
            inputs.min_voxels,
        )  # fmt: skip
        fused = [f"{scan}_desc-{method}_dseg.nii.gz" for scan in inputs.scans for method in inputs.methods]
        self.also_read = [derivatives / file for file in fused]
        chosen = bench.recommendation
        self.notes = {"recommended": chosen.method, "sentence": chosen.sentence}
        write_table(bench.table, inputs.out_table)
        write_table(with_missing(bench.table), inputs.out_tsv)
        write_json(inputs.out_summary, summarise(bench))
        write_fusion_page(bench, derivatives, references, Path(inputs.out_page))
