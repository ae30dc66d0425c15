rule register_member:
    """Register a member to the template of the iteration before."""
    input:
        unpack(
            study.jobs.asks(
                "register_member", study.atlas.fixed, study.atlas.iteration_inputs, study.register.moving_brain
            )
        ),
    output:
        **study.jobs.passing_outputs("register_member"),
    log:
        study.jobs.log("register_member"),
    benchmark:
        "benchmarks/atlas/{scan}_iter-{iteration}.tsv"
    conda:
        "../envs/gpu.yaml" if study.register.predicted_gpu else "../envs/cpu.yaml"
    resources:
        mem_mb=growing(study.register.memory()),
        runtime=growing(study.register.minutes()),
        gpu=study.register.predicted_gpu,
    params:
        proof=study.jobs.proof("register_member"),
        attempt=study.atlas.iteration_attempt,
        options=study.atlas.iteration_options,
    shell:
        "popatlas step RegisterImages --subject {wildcards.scan:q} --threads {threads} --in_fixed {input.fixed:q}"
        " --in_fixed_mask {input.fixed_mask:q} --in_moving {input.moving:q} --in_moving_mask {input.moving_mask:q}"
        " --attempt {params.attempt:q} {params.options} --gpu {resources.gpu} --out_affine"
        " {output.affine:q} --out_warp {output.warp:q} --out_warped {output.warped:q} --out_warped_mask {output.mask:q}"
        " --out_gate {output.gate:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"


rule average_template:
    """Average the registered members and move the average to their mean shape."""
    input:
        unpack(study.jobs.asks("average_template", study.atlas.averaged)),
    output:
        **study.jobs.outputs("average_template"),
    log:
        study.jobs.log("average_template"),
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(study.needs.memory("average_template")),
        runtime=growing(study.needs.minutes("average_template")),
    params:
        proof=study.jobs.proof("average_template"),
        members=study.atlas.average_options,
        shape=f"--shape_step {study.config.atlas.shape_step} --sharpen {study.config.atlas.sharpen}",
    shell:
        "popatlas step AverageTemplate --iteration {wildcards.iteration} --in_template {input.template:q} --in_mask"
        " {input.mask:q} {params.members} {params.shape} --out_template {output.template:q} --out_mask {output.mask:q}"
        " --out_row {output.row:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"


rule publish_template:
    """Publish the last iteration, or an existing template, with description and convergence table."""
    input:
        unpack(study.jobs.asks("publish_template", study.atlas.sources)),
    output:
        **study.jobs.outputs("publish_template"),
    log:
        study.jobs.log("publish_template"),
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=10,
    params:
        proof=study.jobs.proof("publish_template"),
        options=study.atlas.options,
    shell:
        "popatlas step DescribeTemplate {params.options} --out_template {output.template:q} --out_mask {output.mask:q}"
        " --out_convergence {output.convergence:q} --out_description {output.description:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"
