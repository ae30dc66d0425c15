# jobs that only sleep, guarded as those of popatlas: what becomes of them when the controller of Slurm is away
from popatlas.cluster.guard import guard_slurm

guard_slurm()


rule all:
    input:
        "both",


rule sleep:
    output:
        "slept/{number}",
    shell:
        "sleep 2; touch {output}"


rule both:
    input:
        "slept/1",
        "slept/2",
    output:
        "both",
    shell:
        "cat {input} > {output}"
