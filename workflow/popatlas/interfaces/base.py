"""The contract of a step: a Nipype interface with checked inputs, a JSON record, a receipt and readable failures.

A rule calls ``popatlas step NAME --trait value ...``; the same class works inside a Nipype workflow.
Output files are inputs named ``out_*`` and come back as outputs of the same names, so a step lists them once, among its
inputs. Jobs run in OUT_DIR.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from nipype.interfaces.base import (
    BaseInterface,
    BaseInterfaceInputSpec,
    Bunch,
    File,
    Str,
    TraitedSpec,
    isdefined,
    traits,
)

import popatlas
from popatlas.diskspace import out_of_space
from popatlas.errors import InputError, PopatlasError
from popatlas.images.io import sha256, write_json
from popatlas.reasons import code_of
from popatlas.receipts import Receipt, read_attempt

RECORDED_PACKAGES = ("antspyx", "deepbet", "nibabel", "nipype", "numpy", "SimpleITK", "scipy", "torch")


class PopatlasInputSpec(BaseInterfaceInputSpec):
    """Inputs that every step has."""

    subject = Str("", usedefault=True, desc="scan or subject, named in messages")
    record = File(desc="JSON record of this run (state, parameters, versions, checksums, seconds)")
    made_of = Str("", usedefault=True, desc="fingerprint of all that the outputs depend on, for the receipt")
    receipt = File(desc="receipt of the outputs, left when the step ends well: the workflow takes them for done then")
    threads = traits.Int(1, usedefault=True, desc="CPU threads of this job")


class PopatlasInterface(BaseInterface):
    """Base of all steps: subclasses set `input_spec` and implement `_execute`; `output_spec` follows from the inputs."""

    input_spec: ClassVar[type[PopatlasInputSpec]] = PopatlasInputSpec
    output_spec: ClassVar[type[TraitedSpec]] = TraitedSpec
    resource_monitor = False
    # inputs that tell about the others and are not what the outputs are made from
    not_content: ClassVar[tuple[str, ...]] = ("in_batch_record",)

    def __init_subclass__(cls) -> None:
        """Give a step the outputs that its inputs name."""
        super().__init_subclass__()
        cls.output_spec = outputs_of(cls)

    def __init__(self, **inputs: Any) -> None:
        super().__init__(**inputs)
        self.notes: dict[str, Any] = {}
        self.said: list[str] = []  # what the user should hear although the step ended well
        self.also_read: list[Path] = []  # files beside the in_ ones, found by their names
        self.also_made: list[Path] = []  # files beside the out_ ones

    def _execute(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} does not implement _execute")

    def _run_interface(self, runtime: Bunch) -> Bunch:
        limit_threads(self.inputs.threads)
        started, cpu = time.time(), _cpu_seconds()
        receipt = Path(self.inputs.receipt) if isdefined(self.inputs.receipt) else None
        if receipt is not None:  # a job that is killed from now on has none
            receipt.unlink(missing_ok=True)
        self._write_record({"state": "running", "started": _iso(started)})
        try:
            self._make_folders()
            described = self._describe_inputs()
            self._execute()
            self._check_outputs()
            self._require_same(described)
            if receipt is not None:
                self._write_receipt(receipt, described)
        except Exception as raised:
            error = out_of_space(raised, [path.parent for path in self._output_files()]) or raised
            remedy = getattr(error, "remedy", None)
            expected = isinstance(error, PopatlasError)
            message = str(getattr(error, "message", None) or error) if expected else f"{type(error).__name__}: {error}"
            failure = {"code": code_of(raised), "message": message, "remedy": remedy or "see the log", "notes": self.notes}
            self._record_failure({"state": "failed", "started": _iso(started), **_spent(started, cpu), **failure})
            for path in self._output_files(lists=False) if receipt is not None else ():
                if path.is_file():  # the workflow keeps what lies there, for another step of the job may have made it
                    path.unlink()
            if error is raised:
                raise
            raise error from raised
        self._write_record(
            {
                "state": "ok",
                "started": _iso(started),
                **_spent(started, cpu),
                "host": platform.node(),
                "job": os.environ.get("SLURM_JOB_ID"),
                "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
                "inputs": described,
                "versions": _versions(),
                "notes": self.notes | ({"said": self.said} if self.said else {}),
            }
        )
        return runtime

    def _list_outputs(self) -> dict[str, object]:
        outputs = self.output_spec().get()
        for name in outputs:
            value = getattr(self.inputs, name, None)
            if value is not None and isdefined(value):
                outputs[name] = [str(Path(v).resolve()) for v in value] if isinstance(value, list) else _resolved(value)
        return dict(outputs)

    def _output_files(self, *, lists: bool = True) -> list[Path]:
        names = [name for name in self.inputs.copyable_trait_names() if name.startswith("out_")]
        values = [value for name in names if isdefined(value := getattr(self.inputs, name))]
        flat = [item for value in values for item in ((value if lists else []) if isinstance(value, list) else [value])]
        return [Path(item) for item in flat if isinstance(item, str | os.PathLike)]

    def _make_folders(self) -> None:
        for path in self._output_files():
            path.parent.mkdir(parents=True, exist_ok=True)

    def _check_outputs(self) -> None:
        """Refuse files that are missing or empty; one of a list may be missing, whose reason is then in a batch record."""
        named = {"subject": self.inputs.subject, "remedy": "check the disk space, and run again"}
        for path in self._output_files(lists=False):
            if not path.exists():
                raise InputError("the step ended without a file that it should write", file=path, **named)
        for path in self._output_files():
            if path.is_file() and path.stat().st_size == 0:
                raise InputError("the step wrote an empty file", file=path, **named)

    def _require_same(self, described: dict[str, object]) -> None:
        """Refuse results of which nobody knows what they were made from: a file that was replaced while the step ran."""
        after = self._describe_inputs()
        changed = [name for name in described if name.startswith("in_") and after.get(name) != described[name]]
        if changed:
            what = f"a file that the step reads was replaced while it ran ({', '.join(changed)})"
            raise InputError(what, subject=self.inputs.subject, remedy="run again")

    def _write_receipt(self, path: Path, described: dict[str, object]) -> None:
        content = [value for name, value in described.items() if name.startswith("in_") and name not in self.not_content]
        inputs = {file: digest for value in content for file, digest in _digests(value)}
        inputs |= {place(file): sha256(file) for file in self.also_read}
        outputs = [place(file) for file in (*self._output_files(), *self.also_made)]
        facts = {"popatlas": popatlas.__version__} | ({"said": self.said} if self.said else {})
        Receipt.of(self.inputs.made_of, inputs, outputs, facts).write(path)
        _tame_times([*inputs, *outputs])

    def _describe_inputs(self) -> dict[str, object]:
        described: dict[str, object] = {}
        for name in sorted(self.inputs.copyable_trait_names()):
            value = getattr(self.inputs, name)
            if isdefined(value) and name not in ("record", "made_of", "receipt"):
                described[name] = _describe(value) if name.startswith("in_") else value
        return described

    def _record_failure(self, content: dict[str, object]) -> None:
        """Write the record; where a full disk takes no second file, over the one that says `running`."""
        try:
            self._write_record(content)
        except OSError:
            with suppress(OSError):
                Path(self.inputs.record).write_text(json.dumps(self._head() | content, default=str))

    def _write_record(self, content: dict[str, object]) -> None:
        if isdefined(self.inputs.record):
            write_json(self.inputs.record, self._head() | content)

    def _head(self) -> dict[str, object]:
        head = {"step": type(self).__name__, "subject": self.inputs.subject, "popatlas": popatlas.__version__}
        return head | {"attempt": read_attempt()}


def outputs_of(step: type[PopatlasInterface]) -> type[TraitedSpec]:
    """Return the outputs of a step: the files among its inputs that are named ``out_*``; what it must be given must exist.

    Nipype pickles results, so the class is told where it is found: as `output_spec` of its step.
    """
    named = {name: trait for name, trait in step.input_spec.class_traits().items() if name.startswith("out_")}
    files = {name: trait for name, trait in named.items() if isinstance(trait.trait_type, File)}
    outputs = {name: File(exists=bool(trait.mandatory), desc=trait.desc) for name, trait in files.items()}
    place_of = {"__module__": step.__module__, "__qualname__": f"{step.__qualname__}.output_spec"}
    about = {"__doc__": f"Outputs of {step.__name__}."} | place_of
    spec: type[TraitedSpec] = type(TraitedSpec)(f"{step.__name__}OutputSpec", (TraitedSpec,), outputs | about)
    return spec


def place(path: str | os.PathLike[str]) -> str:
    """Return a path as receipts have it: relative to the working folder, OUT_DIR, where it lies below it."""
    relative = os.path.relpath(path)
    return str(Path(path)) if relative.startswith(os.pardir) else relative


def _digests(described: object) -> Iterator[tuple[str, str]]:
    """Yield file and SHA-256 of what `_describe` returned for a value."""
    if isinstance(described, list):
        for item in described:
            yield from _digests(item)
    elif isinstance(described, dict) and set(described) == {"file", "bytes", "sha256"}:
        yield place(described["file"]), described["sha256"]


def _tame_times(paths: list[str]) -> None:
    """Set times that lie in the future, on files of OUT_DIR, to now: Snakemake refuses outputs older than their inputs."""
    now = time.time()
    for path in paths:
        with suppress(OSError):
            if not os.path.isabs(path) and Path(path).stat().st_mtime > now:  # noqa: PTH117
                os.utime(path, (now, now))


def limit_threads(threads: int) -> None:
    """Bound the threads of OpenMP, ITK and torch in this process.

    The environment is set before ants is imported; torch, when loaded already, is told directly.
    """
    import sys

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _spent(started: float, cpu: float) -> dict[str, float]:
    """Return what a step has used since a time, and CPU seconds before it."""
    spent = {"seconds": round(time.time() - started, 3), "cpu_seconds": round(_cpu_seconds() - cpu, 3)}
    return spent | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def _cpu_seconds() -> float:
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _resolved(value: object) -> object:
    return str(Path(value).resolve()) if isinstance(value, str | os.PathLike) else value


def _describe(value: object) -> object:
    if isinstance(value, list):
        return [_describe(item) for item in value]
    path = Path(value) if isinstance(value, str | os.PathLike) else None
    if path is None or not path.is_file():
        return value
    status = path.stat()
    digest = _digest_of(str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return {"file": str(path), "bytes": status.st_size, "sha256": digest}


@lru_cache(maxsize=65536)
def _digest_of(path: str, size: int, mtime_ns: int, ctime_ns: int) -> str:
    """Return the SHA-256 of a file; steps of one process read the same ones."""
    return sha256(path)
