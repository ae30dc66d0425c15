if not prepares_together(study.config):

    rule conform_image:
        """Correct the bias field (N4), reorient to RAS, resample to the isotropic grid."""
        output:
            **study.jobs.outputs("conform_image"),
        log:
            study.jobs.log("conform_image"),
        benchmark:
            "benchmarks/preprocess/{scan}_conform.tsv"
        conda:
            "../envs/cpu.yaml"
        resources:
            mem_mb=growing(study.needs.memory("conform_image")),
            runtime=growing(study.needs.minutes("conform_image")),
        params:
            proof=study.jobs.proof("conform_image"),
            raw=study.preprocess.raw_image,
            n4=study.preprocess.n4,
            resolution=study.config.preprocess.resolution_mm,
            denoise=study.config.preprocess.denoise,
        shell:
            "popatlas step CorrectAndConform --subject {wildcards.scan:q} --threads {threads} --in_file {params.raw:q}"
            " --resolution_mm {params.resolution} --n4 {params.n4:q} --denoise {params.denoise} --out_file"
            " {output.image:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"

    rule extract_brains:
        """Find the brains of one batch of scans with one loaded network (or take the foreground: method none)."""
        input:
            unpack(study.jobs.asks("extract_brains", images=study.preprocess.batch_images)),
        output:
            **study.jobs.outputs("extract_brains"),
        log:
            study.jobs.log("extract_brains"),
        benchmark:
            "benchmarks/preprocess/brain-batch-{batch}.tsv"
        conda:
            "../envs/gpu.yaml" if brain.gpu else "../envs/cpu.yaml"
        resources:
            mem_mb=growing(study.needs.memory("extract_brains")),
            runtime=growing(study.needs.minutes("extract_brains")),
            gpu=brain.gpu,
        params:
            proof=study.jobs.proof("extract_brains"),
            scans=study.preprocess.batch_options,
            threshold=brain.threshold,
            dilate=brain.dilate,
            method=brain.method,
        shell:
            "popatlas step ExtractBrain --subject batch-{wildcards.batch} --threads {threads} --method"
            " {params.method} --threshold {params.threshold} --dilate {params.dilate} --gpu {resources.gpu}"
            " {params.scans} --out_batch_record"
            " {output.batch_record:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"

    rule normalise_brain:
        """Check the brain mask, publish it, and scale the brain's intensities."""
        input:
            unpack(
                study.jobs.asks(
                    "normalise_brain", image="{scan}_desc-preproc_T1w.nii.gz", found=study.preprocess.brain_evidence
                )
            ),
        output:
            **study.jobs.outputs("normalise_brain"),
        log:
            study.jobs.log("normalise_brain"),
        conda:
            "../envs/cpu.yaml"
        resources:
            mem_mb=growing(study.needs.memory("normalise_brain")),
            runtime=growing(study.needs.minutes("normalise_brain")),
        params:
            proof=study.jobs.proof("normalise_brain"),
            mask=study.preprocess.raw_mask("{scan}"),
            method=study.config.preprocess.intensity,
            volume=brain.volume_ml,
        shell:
            "popatlas step NormaliseBrain --subject {wildcards.scan:q} --in_file {input.image:q} --in_mask"
            " {params.mask:q} --in_batch_record {input.found:q} --method {params.method} --volume_ml {params.volume}"
            " --out_brain {output.brain:q} --out_mask {output.mask:q} --out_qc {output.quality:q} {params.proof} --record {log:q}.json >"
            " {log:q} 2>&1"


rule align_channel:
    """Align an extra channel (T2w, ...) rigidly to the T1w of its session."""
    input:
        unpack(
            study.jobs.asks(
                "align_channel", reference="{scan}_desc-preproc_T1w.nii.gz", mask="{scan}_desc-brain_mask.nii.gz"
            )
        ),
    output:
        **study.jobs.outputs("align_channel"),
    log:
        study.jobs.log("align_channel"),
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=30,
    params:
        proof=study.jobs.proof("align_channel"),
        channel=study.preprocess.channel_image,
        group=study.preprocess.group_option,
        n4=study.preprocess.n4,
    shell:
        "popatlas step AlignChannel --subject {wildcards.scan:q} --threads {threads} --in_channel {params.channel:q}"
        " --in_reference {input.reference:q} --in_mask {input.mask:q} --n4 {params.n4:q} {params.group} --out_file {output.image:q}"
        " --out_transform {output.transform:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"
