# Of a method that is not trained they are made in the job that fuses (rules/fuse.smk).
rule labels_to_native:
    """Bring the labels of a scan to the grid of its raw image."""
    input:
        unpack(study.jobs.asks("labels_to_native", labels="{scan}_desc-{method}_dseg.nii.gz")),
    output:
        **study.jobs.outputs("labels_to_native"),
    log:
        study.jobs.log("labels_to_native"),
    benchmark:
        "benchmarks/fuse/{scan}_{method}_native.tsv"
    wildcard_constraints:
        method=LABELLED_BY,
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(study.needs.memory("labels_to_native")),
        runtime=growing(study.needs.minutes("labels_to_native")),
    params:
        proof=study.jobs.proof("labels_to_native"),
        raw=study.preprocess.raw_image,
    shell:
        "popatlas step LabelsToNative --subject {wildcards.scan:q} --threads {threads} --in_labels {input.labels:q} --in_raw"
        " {params.raw:q} --out_file {output.dseg:q} --out_description {output.description:q} {params.proof} --record"
        " {log:q}.json > {log:q} 2>&1"
