"""The environment of a run that submits jobs from inside a job of Slurm."""

from __future__ import annotations

from collections.abc import Mapping

IN_JOB = "SLURM_JOB_ID"
KEPT = ("SLURM_CONF",)  # where the site's configuration is: of the site, not of the job


def without_outer_job(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what Slurm has put into that of a job, for a process in it that submits jobs.

    Programs of Slurm take these variables for wishes: a job that is submitted with them asks for the memory and the tasks
    of the job that it is submitted from. Variables that only a user sets, such as ``SBATCH_ACCOUNT``, stay.

    Parameters
    ----------
    environment : mapping
        Of a process, in a job or not; outside of one nothing is removed.
    """
    if IN_JOB not in environment:
        return dict(environment)
    return {name: value for name, value in environment.items() if name in KEPT or not name.startswith("SLURM_")}
