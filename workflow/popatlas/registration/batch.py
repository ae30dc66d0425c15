"""Predictions for a batch of brains: one network, loaded once; an error is that of its scan and of no other."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from popatlas.errors import InputError
from popatlas.failures import describe
from popatlas.images.io import read_json
from popatlas.networks.registration import Prediction
from popatlas.reasons import code_of
from popatlas.registration.engines.instance.settings import InstanceSettings
from popatlas.registration.engines.io import write_fields
from popatlas.registration.engines.network.core import conform, finish_pair, load_planned, predict
from popatlas.registration.linear import align
from popatlas.registration.pair import Pair, load_pair
from popatlas.registration.types import Attempt, Registration, settings_of
from popatlas.transforms.affine import read_affine
from popatlas.transforms.itk import write_affine
from popatlas.zoo.contract import ConformedPair

FILES = ("affine.mat", "warp.nii.gz", "inverse_warp.nii.gz")  # in the folder of a scan


@dataclass(frozen=True)
class Request:
    """A brain, its mask, and the folder for its files."""

    scan: str
    brain: Path
    mask: Path
    folder: Path

    @property
    def files(self) -> list[Path]:
        """What a prediction leaves."""
        return [self.folder / name for name in FILES]


@dataclass
class Outcome:
    """How it went.

    Attributes
    ----------
    error : str
        Why there are no files; empty when all went well.
    code : str
        The same in a word (`popatlas.reasons`).
    seconds : dict
        Of each stage: align, predict (this scan's share of its group), refine.
    diverged : bool
        The refinement did, and gave its last good field.
    peak_mb : int
        Largest memory until then: of the group on the GPU, of the process on the CPU.
    """

    error: str = ""
    code: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    diverged: bool = False
    peak_mb: int = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; whatever it raises ends this scan only."""
        started = time.perf_counter()
        try:
            yield
        except Exception as error:
            self.error, self.code = describe(error), code_of(error)
        self.seconds[name] = round(time.perf_counter() - started, 3)


@dataclass(frozen=True)
class _Ready:
    request: Request
    pair: Pair
    affine: Path
    conformed: ConformedPair


class Predictor:
    """A network on a device, and the fixed brain that everyone is registered to.

    Parameters
    ----------
    attempt : Attempt
        Start, linear stage and preset of the engine network.
    fixed, fixed_mask : str
        Files of the fixed brain.
    device : {"cpu", "cuda"}
        Where the network and its refinement run.
    threads : int
        Threads of the compiled kernels.
    """

    def __init__(self, attempt: Attempt, fixed: str, fixed_mask: str, device: str, threads: int = 1) -> None:
        self.attempt, self.fixed, self.fixed_mask, self.device, self.threads = attempt, fixed, fixed_mask, device, threads
        net, self.entry = load_planned(attempt)
        self.net = net.to(device)

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Outcome]]:
        """Register brains together and write the files of each.

        Parameters
        ----------
        requests : sequence of Request
            As many as may go through the network at once.

        Yields
        ------
        tuple of Request and Outcome
            One for each request, in their order, when its files are written or its error is known.
        """
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        outcomes, ready = {request.scan: Outcome() for request in requests}, {}
        with tempfile.TemporaryDirectory() as folder:
            for number, request in enumerate(requests):
                with outcomes[request.scan].stage("align"):
                    ready[request.scan] = self._prepare(request, Path(folder) / str(number))
            found: dict[str, Prediction] = {}
            for group in _of_one_shape(list(ready.values())):
                found |= self._predict(group, outcomes)
            for request in requests:
                outcome = outcomes[request.scan]
                if not outcome.error:
                    with outcome.stage("refine"):
                        outcome.diverged = self._finish(ready[request.scan], found[request.scan])
                outcome.peak_mb = self._peak_mb()
                yield request, outcome

    def _prepare(self, request: Request, folder: Path) -> _Ready:
        folder.mkdir()
        pair = load_pair(self.fixed, self.fixed_mask, str(request.brain), str(request.mask), request.scan)
        affine = align(pair, self.attempt, folder)
        return _Ready(request, pair, affine, conform(pair, affine, self.entry))

    def _predict(self, group: Sequence[_Ready], outcomes: dict[str, Outcome]) -> dict[str, Prediction]:
        """Predict a group at once or, where that fails, one by one."""
        started, trial = time.perf_counter(), Outcome()
        with trial.stage("predict"):
            found = predict(self.net, [one.conformed for one in group])
        share = round((time.perf_counter() - started) / len(group), 3)
        if trial.error and len(group) > 1:
            print(f"{len(group)} pairs at once failed, now one by one: {trial.error}", flush=True)
            return {scan: one for member in group for scan, one in self._predict([member], outcomes).items()}
        for one in group:
            outcome = outcomes[one.request.scan]
            outcome.error, outcome.code, outcome.seconds["predict"] = trial.error, trial.code, share
        return {} if trial.error else {one.request.scan: row for one, row in zip(group, found, strict=True)}

    def _finish(self, ready: _Ready, predicted: Prediction) -> bool:
        settings, folder = settings_of(self.attempt, InstanceSettings), ready.request.folder
        found = finish_pair(
            self.net, ready.pair, settings, ready.affine, ready.conformed, predicted, self.device, self.threads
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_affine(folder / FILES[0], read_affine(ready.affine))
        grid = ready.pair.scans()[0].grid
        return write_fields(found.forward, found.inverse, grid, folder, diverged=found.diverged).diverged

    def _peak_mb(self) -> int:
        if self.device == "cuda":
            return round(torch.cuda.max_memory_allocated() / 2**20)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _of_one_shape(ready: Sequence[_Ready]) -> list[list[_Ready]]:
    """Return groups that a network can take together, in the order of their first members."""
    groups: dict[tuple[int, ...], list[_Ready]] = {}
    for one in ready:
        groups.setdefault(tuple(one.conformed.moving.shape), []).append(one)
    return list(groups.values())


def read_prediction(folder: Path, record: Path, scan: str) -> Registration:
    """Return the files that a batch left for a scan.

    Parameters
    ----------
    folder : Path
        Folder of the scan.
    record : Path
        The batch record.
    scan : str
        Key of the scan there.

    Raises
    ------
    InputError
        When the batch failed for this scan, which tells why, or its files are gone.
    """
    entry = read_json(record).get(scan, {})
    if entry.get("state") != "ok":
        said = entry.get("message", "the batch did not have this scan")
        raise InputError(f"the prediction failed: {said}", code=entry.get("code"))
    affine, warp, inverse_warp = (folder / name for name in FILES)
    for file in (affine, warp, inverse_warp):
        if not file.is_file():
            remedy = f"delete {record} and run again"
            raise InputError("the prediction was made and is gone", file=file, subject=scan, remedy=remedy)
    return Registration(affine, warp, inverse_warp, entry["diverged"])
