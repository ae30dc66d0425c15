"""A Kubernetes and an AWS Batch of one process: what the plugins ask of them over HTTP, with jobs that really run."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KILLED = 137
LIMIT = "memory"


class Service:
    """What was asked of the service, and the processes of its jobs; jobs of no more memory than `fatal` are killed at once.

    `silent` is how many of the next questions for a state get no answer.
    """

    def __init__(self, fatal: int = 0, silent: int = 0) -> None:
        self.fatal, self.silent = fatal, silent
        self.secrets: dict[str, str] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.lock = threading.Lock()

    def start(self, name: str, job: dict[str, Any], command: list[str], variables: dict[str, str], memory: int) -> None:
        """Run the command of a job in an empty folder, with the variables that it was given and no others."""
        image = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        folder = tempfile.mkdtemp(prefix="popatlas-pod-")
        line = ["false"] if memory <= self.fatal else command
        with Path(folder, "log").open("wb") as output:
            process = subprocess.Popen(line, cwd=folder, env=image | variables, stdout=output, stderr=subprocess.STDOUT)
        with self.lock:
            self.jobs[name], self.processes[name] = job | {"folder": folder, "killed": memory <= self.fatal}, process

    def ended(self, name: str) -> int | None:
        code = self.processes[name].poll()
        return KILLED if self.jobs[name]["killed"] and code is not None else code

    def is_silent(self) -> bool:
        with self.lock:
            self.silent -= self.silent > 0
            return self.silent > 0

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Answer a question."""
        batch = re.fullmatch(r"/v1/(\w+)", path)
        return self._batch(batch[1], body) if batch else self._kubernetes(method, path, body)

    def _kubernetes(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if method == "DELETE":
            return 200, {}
        if method == "POST" and path.endswith("/secrets"):
            self.secrets |= {name: base64.b64decode(value).decode() for name, value in body["data"].items()}
            return 201, body
        if method == "POST" and path.endswith("/jobs"):
            (pod,) = body["spec"]["template"]["spec"]["containers"]
            given = {one["name"]: self.secrets[one["valueFrom"]["secretKeyRef"]["key"]] for one in pod["env"]}
            memory = int(pod["resources"]["limits"][LIMIT].removesuffix("M"))
            self.start(body["metadata"]["name"], body, [*pod["command"], *pod["args"]], given, memory)
            return 201, body
        if found := re.search(r"/jobs/([\w-]+)/status", path):
            if self.is_silent():
                return 500, {"message": "etcdserver: request timed out"}
            code = self.ended(found[1])
            return 200, {
                "metadata": {"name": found[1]},
                "status": {} if code is None else {"failed" if code else "succeeded": 1},
            }
        if found := re.search(r"/pods/([\w-]+)/log\?", path):
            if "previous=True" in path:
                return 400, {"message": "previous terminated container not found"}
            return 200, Path(self.jobs[found[1]]["folder"], "log").read_text()
        if found := re.search(r"/pods\?labelSelector=job-name%3D([\w-]+)", path):
            code = self.ended(found[1])
            end = {"exitCode": code, "reason": "OOMKilled" if code == KILLED else "Completed" if code == 0 else "Error"}
            state = {"running": {}} if code is None else {"terminated": end}
            container = {"name": "snakemake", "image": "i", "imageID": "i", "ready": True, "restartCount": 0, "state": state}
            return 200, {"items": [{"metadata": {"name": found[1]}, "status": {"containerStatuses": [container]}}]}
        return 404, {}

    def _batch(self, what: str, body: dict[str, Any]) -> tuple[int, Any]:
        if what == "registerjobdefinition":
            self.secrets[body["jobDefinitionName"]] = json.dumps(body)
            return 200, {"jobDefinitionName": body["jobDefinitionName"], "jobDefinitionArn": "arn", "revision": 1}
        if what == "submitjob":
            job = json.loads(self.secrets[body["jobDefinition"].partition(":")[0]])
            container = job["containerProperties"]
            given = {one["name"]: one["value"] for one in container["environment"]}
            memory = next(int(one["value"]) for one in container["resourceRequirements"] if one["type"] == "MEMORY")
            self.start(body["jobName"], job, container["command"], given, memory)
            return 200, {"jobName": body["jobName"], "jobId": body["jobName"]}
        if what == "describejobs":
            (name,) = body["jobs"]
            code = self.ended(name)
            state = {"status": "RUNNING"} if code is None else {"status": "FAILED" if code else "SUCCEEDED"}
            why = (
                "OutOfMemoryError: Container killed due to memory usage" if code == KILLED else "Essential container exited"
            )
            container = {} if code is None else {"exitCode": code}
            facts = {"jobName": name, "jobId": name, "jobDefinition": "arn", "statusReason": why, "container": container}
            return 200, {"jobs": [facts | state]}
        return 200, {}


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """Serve within the block; yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            code, content = service.answer(self.command, self.path, json.loads(self.rfile.read(length) or b"{}"))
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = respond  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        for process in service.processes.values():
            process.kill()
