rule make_along:
    """Make the template at one value of a covariate, such as an age, from the scans near it."""
    input:
        unpack(study.jobs.asks("make_along", study.along.inputs)),
    output:
        **study.jobs.outputs("make_along"),
    log:
        study.jobs.log("make_along"),
    benchmark:
        "benchmarks/group/along_{place}.tsv"
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(study.along.memory),
        runtime=growing(study.along.minutes),
    params:
        proof=study.jobs.proof("make_along"),
        options=study.along.options,
    shell:
        "popatlas step BuildTemplateAlong --threads {threads} --in_template {input.template:q} --in_template_mask"
        " {input.template_mask:q} {params.options} --out_template {output.template:q} --out_row {output.row:q} --out_volumes"
        " {output.volumes:q} --out_members {output.members:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"


rule publish_along:
    """Publish the templates along a covariate as one series, with the volumes along it and who is in."""
    input:
        unpack(study.jobs.asks("publish_along", study.along.series_inputs)),
    output:
        **study.jobs.outputs("publish_along"),
    log:
        study.jobs.log("publish_along"),
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=10,
    params:
        proof=study.jobs.proof("publish_along"),
        options=study.along.series_options,
    shell:
        "popatlas step PublishAlong {params.options} --in_templates {input.template:q} --in_rows {input.row:q} --in_volumes"
        " {input.volumes:q} --in_members {input.members:q} --in_names {input.names:q} --out_templates {output.templates:q}"
        " --out_description {output.description:q} --out_table {output.table:q} --out_table_dictionary"
        " {output.table_dictionary:q} --out_volumes {output.volumes:q} --out_volumes_dictionary {output.volumes_dictionary:q}"
        " --out_members {output.members:q} --out_members_dictionary {output.members_dictionary:q} {params.proof} --record"
        " {log:q}.json > {log:q} 2>&1"
