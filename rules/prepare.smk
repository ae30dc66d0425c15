brain = study.config.preprocess.brain


if prepares_together(study.config):

    rule prepare_scan:
        """Correct the bias field, resample to the isotropic grid, find the brain, check it and scale its intensities."""
        input:
            unpack(study.jobs.asks("prepare_scan")),
        output:
            **study.jobs.outputs_together("prepare_scan"),
        log:
            study.jobs.log("prepare_scan"),
        benchmark:
            "benchmarks/preprocess/{scan}_prepare.tsv"
        conda:
            "../envs/cpu.yaml"
        resources:
            mem_mb=growing(study.needs.memory("prepare_scan")),
            runtime=growing(study.needs.minutes("prepare_scan")),
        params:
            conformed=study.jobs.proof_together("conform_image"),
            found=study.jobs.proof_together("extract_brain"),
            normalised=study.jobs.proof_together("normalise_brain"),
            raw=study.preprocess.raw_image,
            n4=study.preprocess.n4,
            resolution=study.config.preprocess.resolution_mm,
            denoise=study.config.preprocess.denoise,
            extraction=study.preprocess.extraction,
            mask=study.preprocess.raw_mask("{scan}"),
            record=study.preprocess.brain_record,
            method=study.config.preprocess.intensity,
            volume=brain.volume_ml,
        shell:
            "popatlas step CorrectAndConform --subject {wildcards.scan:q} --threads {threads} --in_file {params.raw:q}"
            " --resolution_mm {params.resolution} --n4 {params.n4:q} --denoise {params.denoise} --out_file"
            " {output.image:q} {params.conformed} --then {params.extraction} --subject {wildcards.scan:q} --threads {threads}"
            " {params.found} --then NormaliseBrain --subject {wildcards.scan:q} --in_file {output.image:q} --in_mask"
            " {params.mask:q} --in_batch_record {params.record:q} --method {params.method} --volume_ml {params.volume}"
            " --out_brain {output.brain:q} --out_mask {output.mask:q} --out_qc {output.quality:q} {params.normalised} > {log:q}"
            " 2>&1"
