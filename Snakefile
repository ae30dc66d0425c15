"""A cohort goes in; an unbiased atlas, fused labels, tables and a QC page come out (`popatlas run` adds quarantine)."""

from snakemake.utils import min_version

from popatlas.cluster.guard import guard_slurm
from popatlas.config.beside import located
from popatlas.study.opening import begin
from popatlas.study.rules import LABELLED_BY, PARTS, SETTINGS, TRAINED_METHODS, WILDCARDS, growing
from popatlas.failures import stopping
from popatlas.paths import path_prefix
from popatlas.study.together import prepares_together

min_version("9.19")


guard_slurm()
# The main process indexes the cohort and takes stock of what is made; the jobs read the tables that it wrote.
with stopping():
    given = located(config, workflow.overwrite_configfiles)
    study = begin(given, sys.argv, main=workflow.is_main_process, jobs=lambda: workflow.dag.jobs)
label, build = study.template.label, study.template.build_folder
shell.prefix(path_prefix())


workdir: study.out_dir


wildcard_constraints:
    **WILDCARDS,


# the pipeline, from top to bottom
for stage in (
    *("index", "prepare", "preprocess", "register", "atlas_start", "atlas", "tissues"),
    *("fuse", "fuse_trained", "native", "train", "train_registration", "measure", "along", "report"),
):

    include: f"rules/{stage}.smk"


rule all:
    """Everything: per-scan results, group tables and the report."""
    default_target: True
    input:
        study.jobs.targets("all"),


for part in PARTS:

    rule:
        """A part of the pipeline, asked for by its name."""
        name:
            part
        input:
            study.jobs.targets(part),
