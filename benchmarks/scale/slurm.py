"""Submission and scheduling with the shipped Slurm profile: jobs a second to a real Slurm, milliseconds a job of many.

python -m benchmarks.scale.slurm [--quick]

The first needs a running Slurm (tests/slurm/start-slurm.sh starts one); its jobs are held and cancelled. The second starts
jobs that do nothing, by an executor of its own, so that the time is that of Snakemake alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import yaml

from benchmarks.common import Bar, at_least, at_most, parser, report
from popatlas.cluster.environment import without_outer_job
from popatlas.resources import workflow_root

SUBMITTED = "has been submitted with SLURM jobid"
WORKFLOW = """
from popatlas.cluster.guard import guard_slurm
guard_slurm()
rule all:
    input: expand("{{n}}", n=range({jobs}))
rule one:
    output: "{{n}}"
    resources: slurm_extra="'--hold'"
    shell: "touch {{output}}"
"""
# an executor of which one job ends when others were handed to it; it notes when that was, and ends after enough of them
EXECUTOR = """
import json, os, pathlib, time
from collections import deque
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings
common_settings = CommonSettings(non_local_exec=True, implies_no_shared_fs=False, job_deploy_sources=False)
class Executor(RemoteExecutor):
    def __post_init__(self):
        self.running, self.times = deque(), []
    def run_jobs(self, jobs):
        self.times += [time.monotonic()] * len(jobs)
        if len(self.times) >= int(os.environ["NOTHING_JOBS"]):
            pathlib.Path("times.json").write_text(json.dumps(self.times))
            os._exit(0)
        for job in jobs:
            self.running.append(job)
            self.report_job_submission(SubmittedJobInfo(job))
        ended = self.running.popleft()
        for path in ended.output:
            pathlib.Path(str(path)).touch()
        self.report_job_success(SubmittedJobInfo(ended))
    def run_job(self, job):
        raise NotImplementedError
    async def check_active_jobs(self, active):
        return
        yield
    def cancel_jobs(self, active):
        pass
"""


def scheduling(name: str) -> list[str]:
    """Return the options of a shipped profile that say how jobs are chosen and how many at a time."""
    content = yaml.safe_load((workflow_root() / "profiles" / name / "profile.yaml").read_text())
    wanted = ("scheduler", "scheduler-subsample", "jobs", "max-jobs-per-timespan")
    return [word for key in wanted if key in content for word in (f"--{key}", str(content[key]))]


def submission(jobs: int) -> dict[str, float | str]:
    """Return how fast jobs are submitted through the shipped profile; they are held, and cancelled at the end."""
    folder = Path(tempfile.mkdtemp(prefix="popatlas-submission-"))
    (folder / "Snakefile").write_text(WORKFLOW.format(jobs=jobs))
    options = ["--workflow-profile", str(workflow_root() / "profiles" / "slurm"), "--cores", "2", "--nolock"]
    line = [sys.executable, "-m", "snakemake", *options]
    times: list[float] = []
    with subprocess.Popen(line, cwd=folder, stderr=subprocess.PIPE, text=True, env=without_outer_job(os.environ)) as process:
        assert process.stderr is not None
        said = []
        for text in process.stderr:
            said.append(text)
            if SUBMITTED in text:
                times.append(time.monotonic())
            if len(times) == jobs:
                break
        process.send_signal(signal.SIGINT)
        process.stderr.read()
    shutil.rmtree(folder)
    if len(times) < jobs:
        raise SystemExit("".join(said[-20:]))
    return {"what": "jobs submitted to a real one-node Slurm", "jobs": jobs, "per s": (jobs - 1) / (times[-1] - times[0])}


def scheduler(jobs: int, started: int, options: list[str], what: str) -> dict[str, float | str]:
    """Return how long Snakemake takes to start a job while many are ready."""
    folder = Path(tempfile.mkdtemp(prefix="popatlas-scheduler-"))
    (folder / "Snakefile").write_text(WORKFLOW.format(jobs=jobs))
    (folder / "snakemake_executor_plugin_nothing").mkdir()
    (folder / "snakemake_executor_plugin_nothing" / "__init__.py").write_text(EXECUTOR)
    environment = dict(os.environ) | {"NOTHING_JOBS": str(started)}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), environment.get("PYTHONPATH", "")])
    line = [sys.executable, "-m", "snakemake", "--executor", "nothing", "--cores", "2", "--nolock", *options]
    subprocess.run(line, cwd=folder, env=environment, check=True, stderr=subprocess.DEVNULL)
    times = json.loads((folder / "times.json").read_text())
    shutil.rmtree(folder)
    later = [at for at in times if at > times[0]]  # the first choice includes what is done once
    return {"what": what, "ready": jobs, "jobs": len(later), "ms per job": 1000 * (times[-1] - times[0]) / len(later)}


def main() -> None:
    """Measure, print and write."""
    options = parser(__doc__)
    options.add_argument("--without-slurm", action="store_true", help="leave out what needs a running Slurm")
    args = options.parse_args()
    tables, bars = _measured(args)
    report("scale_slurm", tables, bars, args, "none", parts=("Submission", "Scheduler"))


def _measured(args: argparse.Namespace) -> tuple[dict[str, pd.DataFrame], list[Bar]]:
    ready, started = (1000, 300) if args.quick else (10_000, 2000)
    shipped = scheduler(ready, started, scheduling("slurm"), "the Slurm profile")
    plain = scheduler(ready, 250, ["--jobs", "200"], "Snakemake's own choice, 200 jobs")
    tables = {"Scheduler": pd.DataFrame([shipped, plain])}
    bars = [at_most(f"scheduler at {ready} ready jobs, ms per job", float(shipped["ms per job"]), 30)]
    if not args.without_slurm:
        sent = submission(100 if args.quick else 400)
        tables["Submission"] = pd.DataFrame([sent])
        bars.append(at_least("submission to Slurm, jobs per s", float(sent["per s"]), 20))
    return tables, bars


if __name__ == "__main__":
    main()
