# jobs that only sleep, guarded as those of popatlas: what becomes of them when the controller of Slurm is away
from popatlas.cluster.guard import guard_slurm

guard_slurm()


rule all:
    input:
        "both",


rule sleep:
    """Take two seconds."""
    output:
        "slept/{number}",
    log:
        "logs/{number}.log",
    resources:
        mem_mb=100,
        runtime=5,
    shell:
        "(sleep 2; touch {output}) > {log} 2>&1"


rule both:
    """Wait for both."""
    input:
        "slept/1",
        "slept/2",
    output:
        "both",
    log:
        "logs/both.log",
    resources:
        mem_mb=100,
        runtime=5,
    shell:
        "cat {input} > {output} 2> {log}"
