if study.register.predictions:

    rule predict_deformations:
        """Predict the registrations of a batch of brains to the final template by one loaded network."""
        input:
            unpack(
                study.jobs.asks(
                    "predict_deformations", study.register.prediction_brains, study.register.fixed_template
                )
            ),
        output:
            **study.jobs.outputs("predict_deformations"),
        log:
            study.jobs.log("predict_deformations"),
        benchmark:
            "benchmarks/register/predict-batch-{batch}.tsv"
        conda:
            "../envs/gpu.yaml" if study.register.gpu else "../envs/cpu.yaml"
        resources:
            mem_mb=growing(study.register.prediction_memory()),
            runtime=growing(240),
            gpu=study.register.gpu,
        params:
            proof=study.jobs.proof("predict_deformations"),
            scans=study.register.prediction_list,
            attempt=study.register.attempt,
            settings=SETTINGS,
            folder=study.register.predictions,
        shell:
            "popatlas step PredictDeformations --subject batch-{wildcards.batch} --threads {threads} --in_fixed"
            " {input.fixed:q} --in_fixed_mask {input.fixed_mask:q} {params.scans} --attempt {params.attempt:q} --settings {params.settings:q} --gpu"
            " {resources.gpu} --out_folder {params.folder:q} --out_batch_record {output.batch_record:q} {params.proof} --record"
            " {log:q}.json > {log:q} 2>&1"

    use rule predict_deformations as predict_members with:
        """Predict the registrations of a batch of members to the template of the iteration before."""
        input:
            unpack(study.jobs.asks("predict_members", study.atlas.fixed, study.atlas.iteration_brains)),
        output:
            **study.jobs.outputs("predict_members"),
        log:
            study.jobs.log("predict_members"),
        benchmark:
            "benchmarks/atlas/predict_iter-{iteration}_batch-{batch}.tsv"
        params:
            proof=study.jobs.proof("predict_members"),
            scans=study.atlas.iteration_list,
            attempt=study.atlas.iteration_attempt,
            settings=SETTINGS,
            folder=study.atlas.iteration_folder,


rule register_to_template:
    """Register a brain to the final template; after a failed gate come the fallbacks, then the scan is failed."""
    input:
        unpack(
            study.jobs.asks(
                "register_to_template",
                study.register.prediction_inputs,
                study.register.fixed_template,
                study.register.moving_brain,
            )
        ),
    output:
        **study.jobs.outputs("register_to_template"),
    log:
        study.jobs.log("register_to_template"),
    benchmark:
        "benchmarks/register/{scan}_register.tsv"
    conda:
        "../envs/gpu.yaml" if study.register.predicted_gpu else "../envs/cpu.yaml"
    resources:
        mem_mb=growing(study.register.memory()),
        runtime=growing(study.register.minutes()),
        gpu=study.register.predicted_gpu,
    params:
        proof=study.jobs.proof("register_to_template"),
        attempt=study.register.attempt,
        settings=SETTINGS,
        prediction=study.register.prediction_options,
        composed=study.register.composed_options,
    shell:
        "popatlas step RegisterImages --subject {wildcards.scan:q} --threads {threads} --in_fixed {input.fixed:q}"
        " --in_fixed_mask {input.fixed_mask:q} --in_moving {input.moving:q} --in_moving_mask {input.moving_mask:q}"
        " --attempt {params.attempt:q} --settings {params.settings:q} {params.prediction} --gpu {resources.gpu} --out_affine"
        " {output.affine:q} --out_warp {output.warp:q} --out_inverse_warp {output.inverse_warp:q} {params.composed}"
        " --out_warped {output.warped:q}"
        " --out_warped_mask {output.warped_mask:q} --out_logjacobian {output.logjacobian:q} --out_gate {output.gate:q}"
        " {params.proof} --record {log:q}.json > {log:q} 2>&1"
