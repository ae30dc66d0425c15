"""Snakemake for clouds whose jobs share OUT_DIR: ``python -m popatlas.cluster.shared``, in place of ``-m snakemake``.

The plugins for Kubernetes and AWS Batch say of themselves that jobs share no files, and Snakemake then copies those that a
rule declares to an object store and back. Jobs of popatlas also write receipts, records and logs, which would be lost. So
the plugins are told that files are shared, on a volume that every job mounts (`popatlas.cluster.clouds` checks that), and
are kept from what loses jobs: an answer of the service that does not come, and the log of a pod that failed.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from popatlas.cluster.clouds import EFS, MODULES, Volume

MINUTE = 60
GRACE = 10  # minutes of a job beyond its runtime, for the start of its container
NO_WORDS = "the log of the container is gone"


def share() -> None:
    """Tell the plugins that are installed, in this process, that files are shared."""
    for executor, module in MODULES.items():
        if find_spec(module) is None:
            continue
        plugin: Any = import_module(module)
        found = {"implies_no_shared_fs": False, "job_deploy_sources": False, "auto_deploy_default_storage_provider": False}
        plugin.common_settings = replace(plugin.common_settings, **found)
        keep_jobs(plugin.Executor)
        (guard_kubernetes if executor == "kubernetes" else guard_aws_batch)(plugin)


def keep_jobs(executor: Any) -> None:
    """Let an executor ask again for the jobs that the service did not tell of."""
    look, succeeded, failed = executor.check_active_jobs, executor.report_job_success, executor.report_job_error

    def settling(report: Callable[..., None]) -> Callable[..., None]:
        def settle(self: Any, info: Any, *args: Any, **kwargs: Any) -> None:
            self.__dict__.setdefault("_popatlas_settled", set()).add(id(info))
            report(self, info, *args, **kwargs)

        return settle

    async def looking(self: Any, active: list[Any]) -> AsyncIterator[Any]:
        settled = self._popatlas_settled = set()
        left = {id(job): job for job in active}
        try:
            async for job in look(self, active):
                left.pop(id(job), None)
                yield job
        except Exception as error:
            print(f"popatlas: no answer about jobs, they are asked for again: {error}", file=sys.stderr, flush=True)
        for place, job in left.items():
            if place not in settled:
                yield job

    executor.check_active_jobs = looking
    executor.report_job_success, executor.report_job_error = settling(succeeded), settling(failed)


def guard_kubernetes(plugin: Any) -> None:
    """Let the executor read the log of a pod that failed, and say why it did."""
    begin, failed = plugin.Executor.__post_init__, plugin.Executor.report_job_error

    def beginning(self: Any) -> None:
        begin(self)
        read = self.kubeapi.read_namespaced_pod_log

        def reading(**kwargs: Any) -> Any:
            try:  # `previous`, as the plugin asks, is a container that was started again: there is none
                return read(**{**kwargs, "previous": False})
            except Exception as error:
                return f"{NO_WORDS}: {error}"

        self.kubeapi.read_namespaced_pod_log = reading

    def failing(self: Any, info: Any, msg: str | None = None, **kwargs: Any) -> None:
        failed(self, info, msg=f"{msg or ''}{_end_of_pod(self, info.external_jobid)}", **kwargs)

    plugin.Executor.__post_init__, plugin.Executor.report_job_error = beginning, failing


def _end_of_pod(executor: Any, job: str) -> str:
    """Return how the pod of a job ended, such as OOMKilled or Evicted."""
    try:
        pods = executor.kubeapi.list_namespaced_pod(namespace=executor.namespace, label_selector=f"job-name={job}").items
        states = [one.state.terminated for pod in pods for one in pod.status.container_statuses or []]
        reasons = [pod.status.reason for pod in pods] + [state.reason for state in states if state is not None]
    except Exception:
        return ""
    return f"the pod of {job} ended as {', '.join(filter(None, reasons)) or 'Error'}. "


def guard_aws_batch(plugin: Any) -> None:
    """Let jobs mount the file system of the study, and have the memory, the time and the GPUs that their rules ask for."""
    builder = plugin.BatchJobBuilder
    begin = builder.__init__

    def beginning(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        self.batch_client = _Definitions(self.batch_client, self.job.resources)

    builder.__init__ = beginning
    # by itself the plugin gives jobs on EC2 the least memory of Fargate where it is none of Fargate's numbers
    builder._validate_resources = lambda self, vcpu, mem: (str(vcpu), str(mem))


class _Definitions:
    """A client of AWS Batch that completes the definitions of jobs."""

    def __init__(self, client: Any, resources: Any) -> None:
        self.client, self.resources = client, resources

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def register_job_definition(self, **kwargs: Any) -> Any:
        """Register a definition with the volume, the time and the GPUs of the job."""
        container, volume = kwargs["containerProperties"], Volume.parse(str(self.resources.get(EFS)))
        container["privileged"] = False
        shared = {"fileSystemId": volume.name, "transitEncryption": "ENABLED"}
        container["volumes"] = [{"name": "study", "efsVolumeConfiguration": shared}]
        container["mountPoints"] = [{"sourceVolume": "study", "containerPath": str(volume.path)}]
        if gpus := int(self.resources.get("gpu", 0)):
            container["resourceRequirements"].append({"type": "GPU", "value": str(gpus)})
        if minutes := int(self.resources.get("runtime", 0)):
            kwargs["timeout"] = {"attemptDurationSeconds": MINUTE * (minutes + GRACE)}
        return self.client.register_job_definition(**kwargs)


def main() -> None:
    """Run Snakemake on the command line of this process."""
    share()  # Snakemake reads the settings of plugins when it is imported
    from snakemake.cli import main as snakemake

    snakemake(sys.argv[1:])


if __name__ == "__main__":
    main()
