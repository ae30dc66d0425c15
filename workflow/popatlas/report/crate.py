"""A study as an RO-Crate: which programs made which files from which others, when, and on which machine.

The crate follows the Process Run Crate profile: each run and each step that made something is an action with its program,
what it read and what it made. All of it comes from what the study wrote at the time (receipts, records, runs). A file that
is not what was made has no place in it. Written by the library rocrate.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popatlas.cohort.digests import Digests
from popatlas.cohort.ledger import LEDGER
from popatlas.cohort.runrecords import CRATE, read_runs
from popatlas.errors import InputError, PackageError, first_few
from popatlas.images.io import read_json, write_json
from popatlas.receipts import FOLDER, Made, Receipt

if TYPE_CHECKING:
    from rocrate.model.contextentity import ContextEntity
    from rocrate.model.entity import Entity
    from rocrate.rocrate import ROCrate

PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
HOME = "https://github.com/popatlas/popatlas"
DONE, FAILED = "http://schema.org/CompletedActionStatus", "http://schema.org/FailedActionStatus"
TYPES = {".nii.gz": "application/gzip", ".parquet": "application/vnd.apache.parquet", ".tsv": "text/tab-separated-values"}
INSTALL = "pip install 'popatlas[provenance]'"


def write_crate(out_dir: Path, *, files: bool = False) -> Path:
    """Write the crate of a study into its output folder.

    Parameters
    ----------
    out_dir : Path
        Output folder of a run.
    files : bool
        Describe what was made of each scan too, file by file; otherwise the results of the group only.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputError
        When nothing was made in the folder, or a file is another one than was made: its checksum would be wrong.
    PackageError
        When rocrate is not installed.
    """
    if not (out_dir / FOLDER).is_dir():
        raise InputError("nothing was made here", file=out_dir, remedy="give the output folder of `popatlas run`")
    try:
        from rocrate.rocrate import ROCrate
    except ImportError as error:
        raise PackageError("RO-Crates are written by the package rocrate, which is not installed", remedy=INSTALL) from error
    crate = ROCrate()
    Describer(crate, out_dir, files=files).describe()
    write_json(out_dir / CRATE, crate.metadata.generate())
    return out_dir / CRATE


class Describer:
    """Fills a crate with what a study wrote down.

    Parameters
    ----------
    crate : ROCrate
        An empty crate.
    out_dir : Path
        Output folder of the study.
    files : bool
        Describe what was made of each scan too.
    """

    def __init__(self, crate: ROCrate, out_dir: Path, *, files: bool) -> None:
        self.crate, self.out_dir, self.files = crate, out_dir, files
        self.made = dict(self._made())
        self._require_made()
        self.programs: dict[str, ContextEntity] = {}

    def describe(self) -> None:
        """Describe everything."""
        root = self.crate.root_dataset
        self.crate.name = f"popatlas study {self.out_dir.resolve().name}"
        self.crate.description = "Images, atlas, labels and tables of a cohort, made by popatlas."
        root["conformsTo"] = self._thing(PROFILE, {"@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"})
        root["license"] = "as the data that the study was made from"
        for path in self.made:
            self._file(path)
        runs = read_runs(self.out_dir)
        for number, run in enumerate(runs, 1):
            self._run(f"#run-{number}", run, is_last=run is runs[-1])
        for record in self._records():
            self._step(record)

    def _made(self) -> Iterator[tuple[str, Made]]:
        """Yield the path of each kept file, in the crate, with its size and digest."""
        for path in sorted((self.out_dir / FOLDER).rglob("*.json")):
            receipt = Receipt.read(path)
            for file, made in receipt.outputs.items() if receipt else ():
                if self._is_told(file) and (self.out_dir / file).is_file():
                    yield file, made

    def _require_made(self) -> None:
        """Refuse files that are not what was made; those whose times are as the last run found them are not read again."""
        digests = Digests(self.out_dir)
        if LEDGER in self.made:  # each run brings it up to date when its job has ended
            self.made[LEDGER] = ((self.out_dir / LEDGER).stat().st_size, digests.of(LEDGER))
        changed = [file for file, (_, digest) in self.made.items() if digests.of(file) != digest]
        if changed:
            raise InputError(f"files are not what was made: {first_few(changed)}", remedy="`popatlas run` makes them again")

    def _is_told(self, file: str) -> bool:
        is_inside = not Path(file).is_absolute() and ".." not in Path(file).parts
        return is_inside and (self.files or not file.startswith(("sub-", "work/", "report/")) or file == "report/index.html")

    def _records(self) -> Iterator[Mapping[str, Any]]:
        """Yield the records of the steps that ended well and made something that the crate tells of."""
        for path in sorted((self.out_dir / "logs").rglob("*.log.json")):
            record = read_json(path)
            if record.get("state") == "ok" and self._results(record):
                yield {**record, "log": str(path.relative_to(self.out_dir))}

    def _results(self, record: Mapping[str, Any]) -> list[str]:
        named = (value for name, value in record.get("inputs", {}).items() if name.startswith("out_"))
        paths = (path for value in named for path in (value if isinstance(value, list) else [value]))
        return [path for path in paths if path in self.made]

    def _thing(self, identifier: str, properties: Mapping[str, object]) -> ContextEntity:
        from rocrate.model.contextentity import ContextEntity

        known = self.crate.dereference(identifier)
        return known or self.crate.add(ContextEntity(self.crate, identifier, properties=dict(properties)))

    def _file(self, path: str) -> Entity:
        """Return a file that was made; its digest is that of the time when it was."""
        known = self.crate.dereference(path)
        if known:
            return known
        size, digest = self.made[path]
        kind = next((kind for end, kind in TYPES.items() if path.endswith(end)), None) or mimetypes.guess_type(path)[0]
        more = {"encodingFormat": kind} if kind else {}
        return self.crate.add_file(
            str(self.out_dir / path), path, properties={"contentSize": str(size), "sha256": digest, **more}
        )

    def _read(self, file: Mapping[str, Any]) -> Entity:
        """Return a file that a step read: one of the crate, or a mention of one outside of it."""
        path, digest = str(file["file"]), str(file.get("sha256", ""))
        if path in self.made and self.made[path][1] == digest:
            return self._file(path)
        about = {"@type": "CreativeWork", "name": Path(path).name, "alternateName": path, "sha256": digest}
        return self._thing(f"#sha256-{digest[:32]}", about)

    def _program(self, version: str, versions: Mapping[str, str] | None = None) -> ContextEntity:
        if version not in self.programs:
            about = {"@type": "SoftwareApplication", "name": "popatlas", "softwareVersion": version, "url": HOME}
            self.programs[version] = self._thing(f"#popatlas-{version}", about)
        program = self.programs[version]
        for name, number in (versions or {}).items():
            about = {"@type": "SoftwareApplication", "name": name, "softwareVersion": number}
            self._link(program, "softwareRequirements", self._thing(f"#{name}-{number}", about))
        return program

    @staticmethod
    def _link(entity: ContextEntity, key: str, other: ContextEntity) -> None:
        if other.id not in {linked.id for linked in entity.get(key, []) or []}:
            entity.append_to(key, other)

    def _run(self, identifier: str, run: Mapping[str, Any], *, is_last: bool) -> None:
        about = {"name": run["command"], "startTime": run["started"], "description": f"on {run['host']}"}
        about["actionStatus"] = DONE if run.get("exit_code") == 0 else FAILED
        if "ended" in run:
            about["endTime"] = run["ended"]
        else:
            about["error"] = "it ended without a word"
        if run.get("exit_code"):
            about["error"] = f"exit code {run['exit_code']}"
        results = [self._file(path) for path in self.made if path == "report/index.html" or path.startswith("group/")]
        program = self._program(run["popatlas"])
        self.crate.add_action(program, identifier, result=results if is_last else None, properties=about)

    def _step(self, record: Mapping[str, Any]) -> None:
        values = [value for name, value in record["inputs"].items() if not name.startswith("out_")]
        listed = [item for value in values for item in (value if isinstance(value, list) else [value])]
        read = [self._read(item) for item in listed if isinstance(item, dict) and "file" in item]
        about = {
            "name": " ".join(str(record[key]) for key in ("step", "subject")).strip(),
            "startTime": record["started"],
            "description": f"{record['seconds']} s, {record.get('peak_mb')} MB, on {record.get('host')}",
            "actionStatus": DONE,
        }
        self.crate.add_action(
            self._program(record["popatlas"], record.get("versions")),
            f"#{record['log']}",
            object=read or None,
            result=[self._file(path) for path in self._results(record)],
            properties=about,
        )
