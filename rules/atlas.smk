rule make_reference:
    """Write the brain that gives the template its pose and grid (`build`: work/tpl-<label>/<version>)."""
    output:
        image=f"{build}/reference_T1w.nii.gz",
        mask=f"{build}/reference_mask.nii.gz",
    log:
        "logs/atlas/make_reference.log",
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(1500),
        runtime=10,
    params:
        resolution=config["preprocess"]["resolution_mm"],
    shell:
        "popatlas step MakeReference --resolution_mm {params.resolution} --out_file {output.image:q} --out_mask"
        " {output.mask:q} --record {log:q}.json > {log:q} 2>&1"


rule align_to_reference:
    """Bring a member of the template rigidly into the pose of the reference."""
    input:
        fixed=f"{build}/reference_T1w.nii.gz",
        fixed_mask=f"{build}/reference_mask.nii.gz",
        moving="{scan}_desc-brain_T1w.nii.gz",
        moving_mask="{scan}_desc-brain_mask.nii.gz",
    output:
        affine=f"{build}/iter-0/{{scan}}_xfm.mat",
        warped=f"{build}/iter-0/{{scan}}_T1w.nii.gz",
    log:
        "logs/atlas/{scan}_iter-0.log",
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(1500),
        runtime=30,
    params:
        rung=study.rung(study.iteration_preset(1)),
    shell:
        "popatlas step RegisterRigid --subject {wildcards.scan:q} --threads {threads} --in_fixed {input.fixed:q}"
        " --in_fixed_mask {input.fixed_mask:q} --in_moving {input.moving:q} --in_moving_mask {input.moving_mask:q}"
        " --rung {params.rung:q} --out_affine {output.affine:q} --out_warped {output.warped:q} --record {log:q}.json"
        " > {log:q} 2>&1"


rule initialise_template:
    """Average the rigidly aligned members."""
    input:
        images=study.member_files(f"{build}/iter-0/{{scan}}_T1w.nii.gz"),
    output:
        template=f"{build}/iter-0/template_T1w.nii.gz",
        mask=f"{build}/iter-0/template_mask.nii.gz",
    log:
        "logs/atlas/template_iter-0.log",
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=60,
    shell:
        "popatlas step InitialiseTemplate --in_images {input.images:q} --out_template {output.template:q} --out_mask"
        " {output.mask:q} --record {log:q}.json > {log:q} 2>&1"


rule register_member:
    """Register a member to the template of the iteration before."""
    input:
        unpack(study.iteration_inputs),
        fixed=study.previous_template,
        fixed_mask=study.previous_mask,
        moving="{scan}_desc-brain_T1w.nii.gz",
        moving_mask="{scan}_desc-brain_mask.nii.gz",
    output:
        affine=f"{build}/iter-{{iteration}}/{{scan}}_xfm.mat",
        warp=f"{build}/iter-{{iteration}}/{{scan}}_xfm.nii.gz",
        warped=f"{build}/iter-{{iteration}}/{{scan}}_T1w.nii.gz",
        mask=f"{build}/iter-{{iteration}}/{{scan}}_mask.nii.gz",
        gate=f"{build}/iter-{{iteration}}/{{scan}}_gate.json",
    log:
        "logs/atlas/{scan}_iter-{iteration}.log",
    benchmark:
        "benchmarks/atlas/{scan}_iter-{iteration}.tsv"
    conda:
        "../envs/gpu.yaml" if study.predicted_gpu else "../envs/cpu.yaml"
    resources:
        mem_mb=growing(study.register_memory()),
        runtime=240,
        gpu=study.predicted_gpu,
    params:
        rung=study.iteration_rung,
        options=study.iteration_options,
    shell:
        "popatlas step RegisterImages --subject {wildcards.scan:q} --threads {threads} --in_fixed {input.fixed:q}"
        " --in_fixed_mask {input.fixed_mask:q} --in_moving {input.moving:q} --in_moving_mask {input.moving_mask:q}"
        " --rung {params.rung:q} {params.options} --gpu {resources.gpu} --out_affine"
        " {output.affine:q} --out_warp {output.warp:q} --out_warped {output.warped:q} --out_warped_mask {output.mask:q}"
        " --out_gate {output.gate:q} --record {log:q}.json > {log:q} 2>&1"


rule average_template:
    """Average the registered members and move the average to their mean shape."""
    input:
        template=study.previous_template,
        mask=study.previous_mask,
        images=study.member_files(f"{build}/iter-{{{{iteration}}}}/{{scan}}_T1w.nii.gz"),
        masks=study.member_files(f"{build}/iter-{{{{iteration}}}}/{{scan}}_mask.nii.gz"),
        affines=study.member_files(f"{build}/iter-{{{{iteration}}}}/{{scan}}_xfm.mat"),
        warps=study.member_files(f"{build}/iter-{{{{iteration}}}}/{{scan}}_xfm.nii.gz"),
    output:
        template=f"{build}/iter-{{iteration}}/template_T1w.nii.gz",
        mask=f"{build}/iter-{{iteration}}/template_mask.nii.gz",
        row=f"{build}/iter-{{iteration}}/convergence.json",
    log:
        "logs/atlas/template_iter-{iteration}.log",
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=120,
    params:
        shape=f"--shape_step {config['atlas']['shape_step']} --sharpen {config['atlas']['sharpen']}",
    shell:
        "popatlas step AverageTemplate --iteration {wildcards.iteration} --in_template {input.template:q} --in_mask"
        " {input.mask:q} --in_images {input.images:q} --in_masks {input.masks:q} --in_affines {input.affines:q}"
        " --in_warps {input.warps:q} {params.shape} --out_template {output.template:q} --out_mask {output.mask:q}"
        " --out_row {output.row:q} --record {log:q}.json > {log:q} 2>&1"


rule publish_template:
    """Publish the last iteration, or an existing template, with description and convergence table."""
    input:
        **study.template_sources(),
    output:
        template=f"tpl-{label}/tpl-{label}_T1w.nii.gz",
        mask=f"tpl-{label}/tpl-{label}_desc-brain_mask.nii.gz",
        convergence=f"tpl-{label}/tpl-{label}_desc-convergence_table.tsv",
        description=f"tpl-{label}/template_description.json",
    log:
        "logs/atlas/publish_template.log",
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=10,
    params:
        options=study.template_options,
    shell:
        "popatlas step DescribeTemplate --in_template {input.template:q} {params.options} --out_template"
        " {output.template:q} --out_mask {output.mask:q} --out_convergence {output.convergence:q} --out_description"
        " {output.description:q} --record {log:q}.json > {log:q} 2>&1"
