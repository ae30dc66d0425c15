if study.config.tissues.enabled:

    rule classify_template:
        """Find the tissue probabilities of the template from the brains that were registered to it."""
        input:
            unpack(study.jobs.asks("classify_template", study.tissues.classified)),
        output:
            **study.jobs.outputs("classify_template"),
        log:
            study.jobs.log("classify_template"),
        conda:
            "../envs/cpu.yaml"
        resources:
            mem_mb=growing(study.needs.memory("classify_template")),
            runtime=growing(study.needs.minutes("classify_template")),
        params:
            proof=study.jobs.proof("classify_template"),
            options=study.tissues.map_options,
        shell:
            "popatlas step ClassifyTemplate --in_template {input.template:q} {params.options} --out_maps {output.maps:q}"
            " --out_description {output.description:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"
