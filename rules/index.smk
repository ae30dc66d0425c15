# The index itself is made before the DAG (Snakefile, open_study), because the DAG follows from it.


rule settle_ledger:
    """Write what became of each scan at each stage; the group rules read it."""
    input:
        tables=study.measured_tables(),
        index="cohort/index.parquet",
    output:
        ledger="cohort/ledger.tsv",
    log:
        "logs/group/settle_ledger.log",
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=10,
    params:
        config=study.step_config(),
    shell:
        "popatlas step SettleLedger --in_index {input.index:q} --derivatives . --config {params.config:q}"
        " --out_ledger {output.ledger:q} --record {log:q}.json > {log:q} 2>&1"
