# The index itself is made before the DAG (Snakefile, begin), because the DAG follows from it.


rule settle_ledger:
    """Write what became of each scan at each stage; the group rules read it."""
    input:
        unpack(
            study.jobs.asks(
                "settle_ledger", tables=study.jobs.waits_for(study.measure.tables), index="cohort/index.parquet"
            )
        ),
    output:
        **study.jobs.outputs("settle_ledger"),
    log:
        study.jobs.log("settle_ledger"),
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=10,
    params:
        proof=study.jobs.proof("settle_ledger"),
        config=SETTINGS,
    shell:
        "popatlas step SettleLedger --in_index {input.index:q} --derivatives . --config {params.config:q}"
        " --out_ledger {output.ledger:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"
