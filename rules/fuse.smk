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
            runtime=240,
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


rule propagate_labels:
    """Bring the labels and images of all atlases onto a target's grid, each with one interpolation."""
    input:
        unpack(
            study.jobs.asks(
                "propagate_labels",
                study.fuse.target_transforms,
                target="{scan}_desc-brain_T1w.nii.gz",
                brains=study.fuse.atlas_brains,
                warps=study.fuse.atlas_warps,
                affines=study.fuse.atlas_affines,
            )
        ),
    output:
        **{name: temp(path) for name, path in study.jobs.outputs("propagate_labels").items()},
    log:
        study.jobs.log("propagate_labels"),
    benchmark:
        "benchmarks/fuse/{scan}_propagate.tsv"
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(3000),
        runtime=60,
    params:
        proof=study.jobs.proof("propagate_labels"),
        dsegs=study.fuse.atlas_labels,
        target=study.fuse.target_options,
    shell:
        "popatlas step PropagateLabels --subject {wildcards.scan:q} --threads {threads} --in_target {input.target:q}"
        " --in_dsegs {params.dsegs:q} --in_brains {input.brains:q} --in_warps {input.warps:q} --in_affines"
        " {input.affines:q} {params.target} --out_labels {output.labels:q} --out_images {output.images:q} {params.proof} --record"
        " {log:q}.json > {log:q} 2>&1"


rule fuse_labels:
    """Fuse the candidate labels of a target into one by a method; tell how sure it is and what each atlas counted."""
    input:
        unpack(
            study.jobs.asks(
                "fuse_labels",
                study.fuse.data_parameters_inputs,
                labels="work/fuse/{scan}_candidates_dseg.nii.gz",
                images="work/fuse/{scan}_candidates_T1w.nii.gz",
                target="{scan}_desc-brain_T1w.nii.gz",
            )
        ),
    output:
        **study.jobs.outputs("fuse_labels"),
    log:
        study.jobs.log("fuse_labels"),
    benchmark:
        "benchmarks/fuse/{scan}_{method}.tsv"
    conda:
        "../envs/gpu.yaml" if study.config.fuse.dataparams.gpu else "../envs/cpu.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=120,
        gpu=study.fuse.gpu,
    params:
        proof=study.jobs.proof("fuse_labels"),
        names=study.fuse.names,
        settings=study.fuse.settings,
        learned=study.fuse.data_parameters_options,
        maps=study.fuse.map_options,
    shell:
        "popatlas step FuseLabels --subject {wildcards.scan:q} --threads {threads} --method {wildcards.method}"
        " --in_labels {input.labels:q} --in_images {input.images:q} --in_target {input.target:q} --names"
        " {params.names:q} --settings {params.settings:q} {params.learned} --gpu {resources.gpu} --out_file"
        " {output.dseg:q} {params.maps} --out_atlas_weights {output.trust:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"


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
