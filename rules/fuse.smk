if study.config.fuse.through == "direct":

    rule register_atlas_to_target:
        """Register one labelled atlas to one target."""
        input:
            unpack(
                study.jobs.asks(
                    "register_atlas_to_target",
                    fixed="{scan}_desc-brain_T1w.nii.gz",
                    fixed_mask="{scan}_desc-brain_mask.nii.gz",
                    moving="{atlas}_desc-brain_T1w.nii.gz",
                    moving_mask="{atlas}_desc-brain_mask.nii.gz",
                )
            ),
        output:
            **study.jobs.outputs("register_atlas_to_target"),
        log:
            study.jobs.log("register_atlas_to_target"),
        benchmark:
            "benchmarks/fuse/{scan}_from/{atlas}.tsv"
        conda:
            "../envs/gpu.yaml" if study.register.gpu else "../envs/cpu.yaml"
        resources:
            mem_mb=growing(study.register.memory()),
            runtime=growing(study.register.minutes()),
            gpu=study.register.gpu,
        params:
            proof=study.jobs.proof("register_atlas_to_target"),
            attempt=study.register.attempt,
            settings=SETTINGS,
        shell:
            "popatlas step RegisterImages --subject {wildcards.scan:q} --threads {threads} --in_fixed {input.fixed:q}"
            " --in_fixed_mask {input.fixed_mask:q} --in_moving {input.moving:q} --in_moving_mask"
            " {input.moving_mask:q} --attempt {params.attempt:q} --settings {params.settings:q} --gpu {resources.gpu}"
            " --out_affine {output.affine:q} --out_warp {output.warp:q} --out_warped {output.warped:q} --out_gate"
            " {output.gate:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"


if study.fuse.untrained_methods:

    rule fuse_scan:
        """Fuse the labels of the atlases on the grid of a scan by each method, tell what each atlas counted, bring them to the raw grid."""
        input:
            unpack(study.jobs.asks("fuse_scan", study.fuse.fused_inputs, target="{scan}_desc-brain_T1w.nii.gz")),
        output:
            **study.jobs.outputs_together("fuse_scan"),
        log:
            study.jobs.log("fuse_scan"),
        benchmark:
            "benchmarks/fuse/{scan}_fuse.tsv"
        conda:
            "../envs/cpu.yaml"
        resources:
            mem_mb=growing(study.needs.memory("fuse_scan")),
            runtime=growing(study.needs.minutes("fuse_scan")),
        params:
            steps=study.fuse.steps(study.jobs, study.preprocess.raw_image),
        shell:
            "popatlas step {params.steps} > {log:q} 2>&1"


rule tabulate_trust:
    """Join the tables of atlas weights of all scans with the gates of their registrations, and draw them."""
    input:
        unpack(
            study.jobs.asks(
                "tabulate_trust",
                tables=study.jobs.waits_for(study.fuse.scan_atlas_weights()),
                gates=study.jobs.waits_for(study.fuse.atlas_weights_gates()),
            )
        ),
    output:
        **study.jobs.outputs("tabulate_trust"),
    log:
        study.jobs.log("tabulate_trust"),
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=60,
    params:
        proof=study.jobs.proof("tabulate_trust"),
        lists=study.fuse.atlas_weights_lists(),
    shell:
        "popatlas step TabulateAtlasWeights --in_tables @{params.lists[0]} --in_gates @{params.lists[1]} --derivatives ."
        " --out_parquet {output.parquet:q} --out_tsv {output.tsv:q} --out_dictionary {output.dictionary:q} --out_figure"
        " {output.figure:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"
