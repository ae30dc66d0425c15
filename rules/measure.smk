rule measure_and_draw:
    """Divide a scan into its tissues, measure it (volumes, overlap, Jacobian, similarity, landmarks), draw its figures and its page."""
    input:
        unpack(
            study.jobs.asks(
                "measure_and_draw",
                study.measure.registered,
                study.tissues.divided,
                mask="{scan}_desc-brain_mask.nii.gz",
                brain="{scan}_desc-brain_T1w.nii.gz",
                labels=study.fuse.labels,
                names="cohort/label-names.tsv",
            )
        ),
    output:
        **study.jobs.outputs_together("measure_and_draw"),
    log:
        study.jobs.log("measure_and_draw"),
    benchmark:
        "benchmarks/measure/{scan}_measure.tsv"
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(study.needs.memory("measure_and_draw")),
        runtime=growing(study.needs.minutes("measure_and_draw")),
    params:
        measured=study.jobs.proof_together("measure_scan"),
        drawn=study.jobs.proof_together("draw_subject"),
        label=label,
        page=study.report.page,
        methods=study.report.method_option,
        template=study.template.column,
        labels=study.fuse.label_options,
        references=study.measure.reference_options,
        tissues=study.tissues.measure_option,
        division=study.tissues.step(study.jobs),
        surface=study.config.measure.surface,
        min_voxels=study.config.measure.min_voxels,
    shell:
        "popatlas step {params.division} MeasureScan --subject {wildcards.scan:q} --threads {threads} --scan {wildcards.scan:q}"
        " --template {params.template} --in_mask {input.mask:q} --in_brain {input.brain:q} {params.labels}"
        " {params.references} {params.tissues} --in_names {input.names:q} --in_template_brain {input.template:q} --in_template_mask"
        " {input.template_mask:q} --in_warped {input.warped:q} --in_log_jacobian {input.logjacobian:q} --in_affine"
        " {input.affine:q} --in_inverse_warp {input.inverse_warp:q} --in_gate {input.gate:q} --surface {params.surface}"
        " --min_voxels {params.min_voxels} --out_table {output.table:q} {params.measured}"
        " --then DrawSubject --subject {wildcards.scan:q} --scan {wildcards.scan:q} --out_dir ."
        " --template_label {params.label} {params.methods} --out_page {params.page:q} --out_thumbnail"
        " {output.thumbnail:q} {params.drawn} > {log:q} 2>&1"


rule score_truth:
    """Score a simulated cohort against its true transforms, masks and mean anatomy."""
    input:
        unpack(study.jobs.asks("score_truth", ledger="cohort/ledger.tsv", index="cohort/index.parquet")),
    output:
        **study.jobs.outputs("score_truth"),
    log:
        study.jobs.log("score_truth"),
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(3000),
        runtime=60,
    params:
        proof=study.jobs.proof("score_truth"),
        truth=study.measure.truth_folder,
        label=label,
        template=study.template.column,
    shell:
        "popatlas step ScoreTruth --in_index {input.index:q} --in_ledger {input.ledger:q} --derivatives . --truth"
        " {params.truth:q} --label {params.label} --template {params.template} --out_table {output.table:q} --out_dictionary"
        " {output.dictionary:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"


rule tabulate_cohort:
    """Join the tables of all scans that are ok in the ledger; say who is in and who is out."""
    input:
        unpack(
            study.jobs.asks(
                "tabulate_cohort",
                ledger="cohort/ledger.tsv",
                index="cohort/index.parquet",
                participants="cohort/participants.tsv",
                names="cohort/label-names.tsv",
                atlases="cohort/label-atlases.tsv",
                extra=study.measure.truth_tables,
            )
        ),
    output:
        **study.jobs.outputs("tabulate_cohort"),
    log:
        study.jobs.log("tabulate_cohort"),
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(3000),
        runtime=60,
    params:
        proof=study.jobs.proof("tabulate_cohort"),
        extra=study.measure.truth_option,
    shell:
        "popatlas step TabulateCohort --in_index {input.index:q} --in_ledger {input.ledger:q} --derivatives ."
        " --in_participants {input.participants:q} --in_names {input.names:q} --in_atlases {input.atlases:q} {params.extra}"
        " --out_parquet {output.parquet:q} --out_tsv {output.tsv:q} --out_dictionary {output.dictionary:q} --out_volumes"
        " {output.volumes:q} --out_volumes_dictionary {output.volumes_dictionary:q} --out_summary {output.summary:q}"
        " --out_summary_dictionary {output.summary_dictionary:q} --out_members {output.members:q} {params.proof} --record"
        " {log:q}.json > {log:q} 2>&1"


rule bench_fusion:
    """Compare the fusion methods on the labelled atlases, each labelled by the others, and recommend one."""
    input:
        unpack(study.jobs.asks("bench_fusion", files=study.bench.files, names="cohort/label-names.tsv")),
    output:
        **study.jobs.outputs("bench_fusion"),
    log:
        study.jobs.log("bench_fusion"),
    benchmark:
        "benchmarks/group/bench_fusion.tsv"
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(3000),
        runtime=240,
    params:
        proof=study.jobs.proof("bench_fusion"),
        lists=study.bench.lists,
        methods=study.fuse.methods,
        min_voxels=study.config.measure.min_voxels,
    shell:
        "popatlas step BenchFusion --threads {threads} --in_references @{params.lists[0]} --scans @{params.lists[1]}"
        " --methods {params.methods} --derivatives . --in_names {input.names:q} --min_voxels {params.min_voxels}"
        " --out_table {output.table:q} --out_tsv {output.tsv:q} --out_summary {output.summary:q} --out_page"
        " {output.page:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"
