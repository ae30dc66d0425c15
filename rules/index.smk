# The index itself is made before the DAG (Snakefile, begin), because the DAG follows from it.


rule settle_ledger:
    """Write what became of each scan at each stage; the group rules read it."""
    input:
        unpack(study.asks("settle_ledger", tables=study.measured_tables(), index="cohort/index.parquet")),
    output:
        **study.outputs("settle_ledger"),
    log:
        study.log("settle_ledger"),
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=10,
    params:
        proof=study.proof("settle_ledger"),
        config=SETTINGS,
    shell:
        "popatlas step SettleLedger --in_index {input.index:q} --derivatives . --config {params.config:q}"
        " --out_ledger {output.ledger:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"
