rule make_reference:
    """Write the brain that gives the template its pose and grid (`build`: work/tpl-<label>/<version>)."""
    output:
        **study.jobs.outputs("make_reference"),
    log:
        study.jobs.log("make_reference"),
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(1500),
        runtime=10,
    params:
        proof=study.jobs.proof("make_reference"),
        resolution=study.config.preprocess.resolution_mm,
    shell:
        "popatlas step MakeReference --resolution_mm {params.resolution} --out_file {output.image:q} --out_mask"
        " {output.mask:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"


rule align_to_reference:
    """Bring a member of the template rigidly into the pose of the reference."""
    input:
        unpack(
            study.jobs.asks(
                "align_to_reference",
                study.register.moving_brain,
                fixed=f"{build}/reference_T1w.nii.gz",
                fixed_mask=f"{build}/reference_mask.nii.gz",
            )
        ),
    output:
        **study.jobs.outputs("align_to_reference"),
    log:
        study.jobs.log("align_to_reference"),
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(study.needs.memory("align_to_reference")),
        runtime=growing(study.needs.minutes("align_to_reference")),
    params:
        proof=study.jobs.proof("align_to_reference"),
        attempt=study.atlas.attempt(1),
        settings=SETTINGS,
    shell:
        "popatlas step RegisterRigid --subject {wildcards.scan:q} --threads {threads} --in_fixed {input.fixed:q}"
        " --in_fixed_mask {input.fixed_mask:q} --in_moving {input.moving:q} --in_moving_mask {input.moving_mask:q}"
        " --attempt {params.attempt:q} --settings {params.settings:q} --out_affine {output.affine:q} --out_warped"
        " {output.warped:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"


if study.config.atlas.is_grouped:

    rule coregister_members:
        """Register the aligned members to their common space as one group: the first template, and its classes."""
        input:
            unpack(study.jobs.asks("coregister_members", study.atlas.grouped)),
        output:
            **study.jobs.outputs("coregister_members"),
        log:
            study.jobs.log("coregister_members"),
        benchmark:
            "benchmarks/atlas/coregister_members.tsv"
        conda:
            "../envs/cpu.yaml"
        resources:
            mem_mb=growing(study.needs.memory("coregister_members")),
            runtime=growing(study.needs.minutes("coregister_members")),
        params:
            proof=study.jobs.proof("coregister_members"),
            options=study.atlas.group_options,
        shell:
            "popatlas step CoRegisterMembers --threads {threads} --in_reference {input.reference:q} {params.options}"
            " --out_template {output.template:q} --out_mask {output.mask:q} --out_classes {output.classes:q}"
            " --out_batch_record {output.batch_record:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"

else:

    rule initialise_template:
        """Average the rigidly aligned members."""
        input:
            unpack(
                study.jobs.asks(
                    "initialise_template", images=study.atlas.member_files(f"{build}/iter-0/{{scan}}_T1w.nii.gz")
                )
            ),
        output:
            **study.jobs.outputs("initialise_template"),
        log:
            study.jobs.log("initialise_template"),
        conda:
            "../envs/cpu.yaml"
        resources:
            mem_mb=growing(2000),
            runtime=60,
        params:
            proof=study.jobs.proof("initialise_template"),
            images=study.atlas.first_list,
        shell:
            "popatlas step InitialiseTemplate --in_images @{params.images:q} --out_template {output.template:q} --out_mask"
            " {output.mask:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"
