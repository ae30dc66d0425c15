"""Run engines on prepared pairs, one fresh process each; finished rows are kept while weights and settings are the same."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np

from benchmarks.common import known
from benchmarks.deep.engines import ENGINES, IMPORTED, TABLE
from benchmarks.deep.pairs import Prepared
from benchmarks.deep.rows import Row
from benchmarks.registration.cases import Case
from benchmarks.registration.peers import Fields, settings_of
from benchmarks.registration.process import run_engine
from benchmarks.registration.rows import Outcome, Record, Scores
from benchmarks.registration.scores import score
from popatlas.errors import InputError
from popatlas.images.io import read_json, write_json
from popatlas.zoo.importers.base import import_weights
from popatlas.zoo.lock import read_locks, user_folder

AFFINE = "affine"
PRINTED: tuple[Literal["dice", "wall_s"], ...] = ("dice", "wall_s")
# beginnings of the names of the files, as their authors published them
PUBLISHED = dict(zip(IMPORTED, ("voxelmorph_cvpr2018", "voxelmorph_miccai2018", "SYMNet", "cLapIRN"), strict=True))


@contextmanager
def weights_of(checkpoints: Path | None) -> Iterator[dict[str, str]]:
    """Import public checkpoints beside the user's weights, into a folder that goes away; yield all digests by name."""
    with TemporaryDirectory(prefix="popatlas-weights-") as folder:
        own, before = user_folder(), os.environ.get("POPATLAS_WEIGHTS")
        if own.is_dir():
            shutil.copytree(own, folder, dirs_exist_ok=True)
        os.environ["POPATLAS_WEIGHTS"] = folder
        try:
            there = {entry.name for entry in read_locks()}
            for kind, file in published(checkpoints).items():
                if kind not in there:
                    import_weights(kind, file)
            yield {entry.name: entry.sha256[:12] for entry in read_locks()}
        finally:
            del os.environ["POPATLAS_WEIGHTS"]
            if before is not None:
                os.environ["POPATLAS_WEIGHTS"] = before


def published(folder: Path | None) -> dict[str, Path]:
    """Return the public checkpoints that a folder holds, by the kind that `popatlas weights import` calls them."""
    if folder is None:
        return {}
    if not folder.is_dir():
        raise InputError("there is no such folder of checkpoints", file=folder, remedy="check --checkpoints")
    names = {kind: sorted(folder.glob(f"{start}*")) for kind, start in PUBLISHED.items()}
    return {kind: files[0] for kind, files in names.items() if files}


def available(names: Iterable[str], digests: dict[str, str]) -> list[str]:
    """Return the engines that can run; those whose weights are in no lock are named and left out."""
    found = []
    for name in names:
        weights = ENGINES[name].options.get("weights")
        if weights is None or weights in digests:
            found.append(name)
        else:
            print(f"skipped {name}: there are no weights {weights}", flush=True)
    return found


def run_rows(out: Path, cases: Iterable[Prepared], engines: Sequence[str], digests: dict[str, str]) -> list[Row]:
    """Run what is not in `runs.json` of a folder, which is written after each run; return the rows of these cases.

    Parameters
    ----------
    out : Path
        Folder.
    cases : iterable of Prepared
        What to run on.
    engines : sequence of str
        Keys of `ENGINES`; the affine alone is scored besides.
    digests : dict
        Of the weights: rows of other weights, or other settings, are run again.
    """
    file = out / "runs.json"
    wanted: list[Row] = []
    for prepared in cases:
        for name in (AFFINE, *engines):
            rows: list[Row] = read_json(file) if file.is_file() else []
            settings = identity(name, digests)
            key = (prepared.contrast, prepared.name, name)
            same = [row for row in rows if (row["dataset"], row["case"], row["engine"]) == key]
            kept = [row for row in same if row["state"] == "ok" and row["settings"] == settings]
            if not kept:
                row: Row = {"dataset": prepared.contrast, "case": prepared.name, "engine": name, "settings": settings}
                row = {**row, **run_one(prepared.path, name)}
                kept = [known(row)]
                rows = [row for row in rows if row not in same]
                write_json(file, [*rows, *kept])
                shown = (f"{part} {kept[0][part]:.3g}" for part in PRINTED if part in kept[0])
                print(*key, *shown, kept[0]["state"], kept[0].get("message", ""), flush=True)
            wanted += kept
    return wanted


def identity(name: str, digests: dict[str, str]) -> str:
    """Return what makes the rows of an engine: its settings and the digest of its weights."""
    options = {} if name == AFFINE else settings_of(ENGINES[name])
    return json.dumps([options, digests.get(str(options.get("weights", "")), "")], sort_keys=True)


def run_one(path: Path, name: str) -> Outcome:
    """Return costs and scores of an engine on a case."""
    case = Case.load(path)
    record: Record = {"state": "ok"}
    fields: Fields | None = (np.zeros((3, *case.fixed.shape), np.float32), None)
    if name != AFFINE:
        record, fields = run_engine(name, path, 1, TABLE)
    scores: Scores = {} if fields is None else score(case, *fields)
    return {**record, **scores}
