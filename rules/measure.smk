rule measure_scan:
    """Measure a scan: volumes, overlap with reference labels, Jacobian, similarity, landmarks."""
    input:
        mask="{scan}_desc-brain_mask.nii.gz",
        brain="{scan}_desc-brain_T1w.nii.gz",
        labels=study.fused_labels,
        references=study.reference_files,
        names="cohort/label-names.tsv",
        template=f"tpl-{label}/tpl-{label}_T1w.nii.gz",
        template_mask=f"tpl-{label}/tpl-{label}_desc-brain_mask.nii.gz",
        warped=f"{{scan}}_space-{label}_desc-brain_T1w.nii.gz",
        logjacobian=f"{{scan}}_space-{label}_desc-logjacobian_T1w.nii.gz",
        affine=f"{{scan}}_from-T1w_to-{label}_mode-image_desc-affine_xfm.mat",
        inverse_warp=f"{{scan}}_from-{label}_to-T1w_mode-image_desc-warp_xfm.nii.gz",
        gate=f"{{scan}}_space-{label}_desc-gate_registration.json",
    output:
        table="{scan}_desc-metrics_table.tsv",
    log:
        "logs/measure/{scan}_measure.log",
    benchmark:
        "benchmarks/measure/{scan}_measure.tsv"
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(2500),
        runtime=60,
    params:
        template=study.template_column(),
        labels=study.label_options,
        references=study.reference_options,
        surface=config["measure"]["surface"],
        min_voxels=config["measure"]["min_voxels"],
    shell:
        "popatlas step MeasureScan --subject {wildcards.scan:q} --threads {threads} --scan {wildcards.scan:q}"
        " --template {params.template} --in_mask {input.mask:q} --in_brain {input.brain:q} {params.labels}"
        " {params.references} --in_names {input.names:q} --in_template_brain {input.template:q} --in_template_mask"
        " {input.template_mask:q} --in_warped {input.warped:q} --in_log_jacobian {input.logjacobian:q} --in_affine"
        " {input.affine:q} --in_inverse_warp {input.inverse_warp:q} --in_gate {input.gate:q} --surface {params.surface}"
        " --min_voxels {params.min_voxels} --out_table {output.table:q} --record {log:q}.json > {log:q} 2>&1"


rule score_truth:
    """Score a simulated cohort against its true transforms, masks and mean anatomy."""
    input:
        ledger="cohort/ledger.tsv",
        index="cohort/index.parquet",
    output:
        table="group/truth.tsv",
    log:
        "logs/group/score_truth.log",
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(3000),
        runtime=60,
    params:
        truth=study.truth_folder(),
        label=label,
        template=study.template_column(),
    shell:
        "popatlas step ScoreTruth --in_index {input.index:q} --in_ledger {input.ledger:q} --derivatives . --truth"
        " {params.truth:q} --label {params.label} --template {params.template} --out_table {output.table:q} --record"
        " {log:q}.json > {log:q} 2>&1"


rule tabulate_cohort:
    """Join the tables of all scans that are ok in the ledger; say who is in and who is out."""
    input:
        ledger="cohort/ledger.tsv",
        index="cohort/index.parquet",
        participants="cohort/participants.tsv",
        extra=study.truth_tables(),
    output:
        parquet="group/metrics.parquet",
        tsv="group/metrics.tsv",
        dictionary="group/metrics.json",
        volumes="group/volumes.tsv",
        summary="group/summary.tsv",
        members="group/members.json",
    log:
        "logs/group/tabulate_cohort.log",
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(3000),
        runtime=60,
    params:
        extra=study.option("--in_extra", study.truth_tables()),
    shell:
        "popatlas step TabulateCohort --in_index {input.index:q} --in_ledger {input.ledger:q} --derivatives ."
        " --in_participants {input.participants:q} {params.extra} --out_parquet {output.parquet:q} --out_tsv"
        " {output.tsv:q} --out_dictionary {output.dictionary:q} --out_volumes {output.volumes:q} --out_summary"
        " {output.summary:q} --out_members {output.members:q} --record {log:q}.json > {log:q} 2>&1"


rule bench_fusion:
    """Compare the fusion methods on the labelled atlases, each labelled by the others, and recommend one."""
    input:
        files=study.bench_files(),
        references=study.bench_references(),
        names="cohort/label-names.tsv",
    output:
        table="group/fusion-bench.parquet",
        tsv="group/fusion-bench.tsv",
        summary="group/fusion-bench.json",
        page="report/fusion.html",
    log:
        "logs/group/bench_fusion.log",
    benchmark:
        "benchmarks/group/bench_fusion.tsv"
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(3000),
        runtime=240,
    params:
        scans=study.bench_scans,
        methods=study.fusion_methods,
        min_voxels=config["measure"]["min_voxels"],
    shell:
        "popatlas step BenchFusion --threads {threads} --in_references {input.references:q} --scans {params.scans:q}"
        " --methods {params.methods} --derivatives . --in_names {input.names:q} --min_voxels {params.min_voxels}"
        " --out_table {output.table:q} --out_tsv {output.tsv:q} --out_summary {output.summary:q} --out_page"
        " {output.page:q} --record {log:q}.json > {log:q} 2>&1"
