rule write_report:
    """Write the cohort page: template, convergence, montage, sortable table, who is out and why."""
    input:
        unpack(
            study.jobs.asks(
                "write_report",
                ledger="cohort/ledger.tsv",
                metrics="group/metrics.parquet",
                fusion=[*study.fuse.atlas_weights_tables(), *study.bench.shown],
                thumbnails=study.jobs.waits_for(study.report.thumbnails),
                template=f"tpl-{label}/template_description.json",
            )
        ),
    output:
        **study.jobs.outputs("write_report"),
    log:
        study.jobs.log("write_report"),
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=60,
    params:
        proof=study.jobs.proof("write_report"),
        label=label,
        methods=study.report.method_option,
        per_page=study.config.report.per_page,
        config=SETTINGS,
    shell:
        "popatlas step WriteReport --out_dir . --ledger {input.ledger:q} --template_label {params.label}"
        " {params.methods} --per_page {params.per_page} --config {params.config:q} --out_page {output.page:q}"
        " {params.proof} --record {log:q}.json > {log:q} 2>&1"
