# A method that waits for a training has jobs of its own, and so have the candidates that the training reads.
if study.fuse.trained_methods:

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
            **study.jobs.passing_outputs("propagate_labels"),
        log:
            study.jobs.log("propagate_labels"),
        benchmark:
            "benchmarks/fuse/{scan}_propagate.tsv"
        conda:
            "../envs/cpu.yaml"
        resources:
            mem_mb=growing(study.needs.memory("propagate_labels")),
            runtime=growing(study.needs.minutes("propagate_labels")),
        params:
            proof=study.jobs.proof("propagate_labels"),
            atlases=study.fuse.atlas_options,
        shell:
            "popatlas step PropagateLabels --subject {wildcards.scan:q} --threads {threads} --in_target {input.target:q}"
            " {params.atlases} --out_labels {output.labels:q} --out_images {output.images:q} {params.proof} --record"
            " {log:q}.json > {log:q} 2>&1"

    rule fuse_labels:
        """Fuse the candidate labels of a target by a method that is trained on the cohort."""
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
        wildcard_constraints:
            method=TRAINED_METHODS,
        conda:
            "../envs/gpu.yaml" if study.config.fuse.dataparams.gpu else "../envs/cpu.yaml"
        resources:
            mem_mb=growing(study.needs.memory("fuse_labels")),
            runtime=growing(study.needs.minutes("fuse_labels")),
            gpu=study.fuse.gpu,
        params:
            proof=study.jobs.proof("fuse_labels"),
            names=study.fuse.names,
            settings=study.fuse.settings,
            learned=study.fuse.data_parameters_options,
            maps=study.fuse.map_options,
        shell:
            "popatlas step FuseLabels --subject {wildcards.scan:q} --threads {threads} --method {wildcards.method}"
            " --in_labels {input.labels:q} --in_images {input.images:q} --in_target {input.target:q}"
            " {params.names} --settings {params.settings:q} {params.learned} --gpu {resources.gpu} --out_file"
            " {output.dseg:q} {params.maps} --out_atlas_weights {output.trust:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"
