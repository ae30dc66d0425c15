"""A cohort goes in; an unbiased atlas, fused labels, tables and a QC page come out (`popatlas run` adds quarantine)."""

import sys
from pathlib import Path

from snakemake.utils import min_version

from popatlas.cohort.study import SCAN_PATTERN, growing, open_study

min_version("9.19")


configfile: Path(workflow.basedir) / "config.yaml"


# The cohort is indexed here, once, by the main process: the jobs read the tables that it wrote.
study = open_study(config, main=workflow.is_main_process)
label, build = study.label, study.build_folder
shell.prefix(f"export PATH='{Path(sys.executable).parent}':$PATH; ")


workdir: study.out_dir


wildcard_constraints:
    scan=SCAN_PATTERN,
    atlas=SCAN_PATTERN,
    iteration=r"[0-9]+",
    batch=r"[0-9]+",
    channel=r"[0-9A-Za-z]+",
    method=r"majority|staple|jlf",


include: "rules/index.smk"
include: "rules/preprocess.smk"
include: "rules/register.smk"
include: "rules/atlas.smk"
include: "rules/fuse.smk"
include: "rules/measure.smk"
include: "rules/report.smk"


rule all:
    """Everything: per-scan results, group tables and the report."""
    default_target: True
    input:
        study.scan_targets(),
        study.group_targets(),


rule subjects:
    """Per-scan results of every scan that is not failed, excluded or unavailable."""
    input:
        study.scan_targets(),


rule preprocess:
    """Brains of every scan, before the atlas cohort is frozen."""
    input:
        study.preprocess_targets(),
