"""`popatlas doctor`: whether a cluster can be used from here, and the profile for it."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from popatlas.cli.arguments import Subparsers, given_path

if TYPE_CHECKING:
    from popatlas.cluster.site import Finding, Partition

LACKS = 1  # exit code when something has to be done
HELLO = "true"
HELLO_GPU = 'test -n "$CUDA_VISIBLE_DEVICES"'


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb `doctor`."""
    parser = subparsers.add_parser(
        "doctor",
        help="tell whether this cluster can be used, and write a profile for it",
        description="Look at room, number of files and quotas of the folders that are written to, and at Slurm: programs, "
        "partitions, GPUs, accounting, limits of jobs, Snakemake's plugin. With --submit, send one small job to the default "
        "partition and one that asks for a GPU. With --write, write a profile for `popatlas run --profile FOLDER`. Exit "
        "code 1: something has to be done; it says what.",
    )
    parser.add_argument("out_dir", nargs="?", type=given_path, help="folder for results, whose disk is looked at (this one)")
    parser.add_argument("--submit", action="store_true", help="send a small CPU job, and a GPU job where there are GPUs")
    parser.add_argument("--write", type=given_path, metavar="FOLDER", help="write FOLDER/profile.yaml for this site")
    parser.add_argument("--partition", help="of CPU jobs, for --submit and --write (the default one)")
    parser.add_argument("--gpu-partition", help="of GPU jobs (the first one that has GPUs)")
    parser.add_argument("--account", help="that jobs are billed to (the only one that you have)")


def main(args: argparse.Namespace) -> int:
    """Print what was found; 0 when nothing has to be done."""
    findings = []
    for finding in found(args):
        findings.append(finding)
        print(f"{'ok  ' if finding.good else 'LACK'}  {finding.what}", flush=True)
        if finding.remedy:
            print(f"      Remedy: {finding.remedy}", flush=True)
    return 0 if all(finding.good for finding in findings) else LACKS


def found(args: argparse.Namespace) -> Iterator[Finding]:
    """Yield what is found, in the order in which it matters."""
    from popatlas.cluster import limits as limits_of
    from popatlas.cluster import site
    from popatlas.cluster.site import Finding

    yield from _folders(args.out_dir or Path())
    if missing := site.missing_programs():
        remedy = "run on this machine without a profile, or call this on a login node of the cluster"
        yield Finding(False, f"no Slurm here: {', '.join(missing)} not found", remedy)
        return
    yield site.plugin_finding()
    there = site.partitions()
    if not there:
        yield Finding(False, f"Slurm does not answer: {site.asked('sinfo')[1] or 'no partitions'}", "ask the site's support")
        return
    for one in there:
        yield Finding(True, _words(one))
    accounting, bills = site.has_accounting(), site.accounts()
    yield Finding(True, f"accounting is {'on' if accounting else 'off'}: the profiles ask squeue, which works with both")
    account = args.account or (bills[0] if len(bills) == 1 else None)
    if len(bills) > 1 and account is None:
        yield Finding(False, f"you have several accounts: {', '.join(bills)}", "name one: --account NAME")
    limits, kept = limits_of.job_limits(account), _jobs_of_profile()
    yield from limits_of.limit_findings(limits, kept, is_written=args.write is not None)
    cpu, gpu = _chosen(args, there)
    for name, wanted in (("--partition", args.partition), ("--gpu-partition", args.gpu_partition)):
        if wanted and wanted not in {one.name for one in there}:
            yield Finding(False, f"there is no partition {wanted}", f"{name}: one of {', '.join(one.name for one in there)}")
            return
    billed = [f"--account={account}"] if account else []
    if args.submit:
        yield site.hello([*billed, *([f"--partition={cpu}"] if cpu else [])], HELLO)
        if gpu:
            yield site.hello([*billed, f"--partition={gpu}", "--gpus=1"], HELLO_GPU)
    if args.write:
        file = _write(args.write, cpu, gpu, account, limits_of.fitting(limits, kept))
        yield Finding(True, f"wrote {file}; use it: --profile {args.write}{' --gpu' * bool(gpu)}")


def _folders(out_dir: Path) -> Iterator[Finding]:
    from popatlas.cluster.limits import quotas, room

    yield room(Path(tempfile.gettempdir()), "temporary files go to", "set TMPDIR to a folder with more room")
    yield room(out_dir.absolute(), "results may go to", "free some, or give an OUT_DIR on another disk")
    yield from quotas(out_dir)


def _words(one: Partition) -> str:
    more = ", default" * one.is_default + ", with GPUs" * one.has_gpu
    return (
        f"partition {one.name}{more}: nodes of {one.cores} cores and {one.memory_mb / 1000:.0f} GB, jobs up to {one.limit}"
    )


def _chosen(args: argparse.Namespace, there: list[Partition]) -> tuple[str | None, str | None]:
    """Return the partitions of CPU and GPU jobs; None for the site's default, and where there are no GPUs."""
    has_default = any(one.is_default for one in there)
    first = next((one.name for one in there if not one.has_gpu), there[0].name)
    gpu = next((one.name for one in sorted(there, key=lambda one: one.is_default) if one.has_gpu), None)
    return args.partition or (None if has_default else first), args.gpu_partition or gpu


def _jobs_of_profile() -> int:
    """Return how many jobs the shipped profile keeps in the queue."""
    from popatlas.resources import workflow_root

    found = re.search(r"(?m)^jobs: (\d+)", (workflow_root() / "profiles/slurm/profile.yaml").read_text(encoding="utf-8"))
    return int(found[1]) if found else 0


def _write(folder: Path, cpu: str | None, gpu: str | None, account: str | None, jobs: int) -> Path:
    """Write the shipped profile with the names of the site, and the number of jobs that it takes."""
    from popatlas.images.io import write_text
    from popatlas.resources import workflow_root

    text = (workflow_root() / "profiles" / ("slurm-gpu" if gpu else "slurm") / "profile.yaml").read_text(encoding="utf-8")
    named = [f"slurm_partition={cpu}"] * bool(cpu) + [f"slurm_account={account}"] * bool(account)
    text = text.replace("default-resources:\n", "default-resources:\n" + "".join(f"  - {item}\n" for item in named))
    text = re.sub(r"(?m)^jobs: \d+", f"jobs: {jobs}", text)
    if account:
        text = re.sub(r"(?m)^# remove this line.*\nslurm-no-account: true\n", "", text)
    if gpu:
        text = re.sub(r"(?<=slurm_partition: )gpu\b", gpu, text).replace("'gpu' if", f"'{gpu}' if")
        text = text.replace("else ''", f"else '{cpu or ''}'")
    write_text(folder / "profile.yaml", f"# Written by `popatlas doctor` from the profile of popatlas.\n{text}")
    return folder / "profile.yaml"
