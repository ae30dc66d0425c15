"""What the steps would leave: small files of the right kind, and the receipts that prove them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.scale.content import content_of, write
from popatlas.cohort.ledger import forget_failures
from popatlas.config.sections import Config
from popatlas.receipts import ATTEMPT
from popatlas.registration.gate import GATE_REVISION
from popatlas.study.books import settle_study
from popatlas.study.inventory import Inventory
from popatlas.study.study import open_study


def finish(config: Config, passes: Sequence[str] = ("subjects", "all")) -> Inventory:
    """Leave a study as a run would; return its inventory."""
    out_dir = Path(config.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    forget_failures(out_dir)
    inventory = Inventory(open_study(config.content, main=True))
    for target in passes:
        leave(inventory, inventory.needed(target))
        inventory = Inventory(inventory.study)
        settle_study(inventory, config)
    inventory = Inventory(inventory.study)
    inventory.study.digests.write()
    return inventory


def leave(inventory: Inventory, names: Iterable[str]) -> int:
    """Leave the files and receipts of some jobs of a study; return how many jobs."""
    judged = judged_by(inventory.study.config)
    out_dir, jobs, count = inventory.study.out_dir, inventory.jobs.jobs, 0
    attempt = (out_dir / ATTEMPT).read_text(encoding="utf-8") if (out_dir / ATTEMPT).is_file() else ""
    made: dict[str, dict[str, list[object]]] = {}
    for name in names:
        job = jobs[name]
        found: dict[str, list[object]] = {}
        for path in inventory.files(job):
            found[path] = write(str(out_dir / path), content_of(path, judged))
        made[name] = found
        inputs = {path: digest for need in job.needs for path, (_, digest) in made.get(need, {}).items() if job.scan}
        receipt = {
            "made_of": inventory.study.jobs.made_of(job.rule, **job.wildcards),
            "inputs": inputs,
            "outputs": found,
            "facts": {"popatlas": "scale"},
        }
        write(str(inventory.receipt_path(name)), json.dumps(receipt, indent=2).encode())
        record = {"step": job.rule, "state": "ok", "attempt": attempt, "seconds": 1.0, "cpu_seconds": 1.0, "peak_mb": 100}
        write(str(out_dir / f"{inventory.log(job)}.json"), json.dumps(record).encode())
        count += 1
    return count


def judged_by(config: Config) -> dict[str, object]:
    """Return revision and limits of the gate, as a gate file has them."""
    return {"revision": GATE_REVISION, "limits": config.content["register"]["gate"]}


MARK = "POPATLAS_STUB_MARK"  # environment: a file that the stubs of steps write when they begin
STUB = """#!{python} -IS
import json, sys
import os
sys.path.insert(0, {folder!r})
from content import step
if sys.argv[1] != "step":
    sys.exit("this popatlas only has stubs of steps")
if os.environ.get({mark!r}):
    open(os.environ[{mark!r}], "w").close()
try:
    attempt = open("cohort/attempt").read().strip()
except OSError:
    attempt = ""
step(sys.argv[3:], json.loads({judged!r}), attempt)
"""


def stub_python(folder: Path, config: Config) -> Path:
    """Make a Python whose `popatlas step` only leaves small files and receipts; return its program.

    The workflow calls the popatlas that lies beside the Python which runs it, so it is an environment like that of this
    process, with another `popatlas`.
    """
    (folder / "bin").mkdir(parents=True)
    real = Path(sys.prefix)
    (folder / "lib").symlink_to(real / "lib", target_is_directory=True)
    (folder / "pyvenv.cfg").write_text((real / "pyvenv.cfg").read_text(encoding="utf-8"), encoding="utf-8")
    program, stub = folder / "bin" / "python", folder / "bin" / "popatlas"
    program.symlink_to(Path(sys.executable).resolve())
    here, judged = str(Path(__file__).parent), json.dumps(judged_by(config))
    stub.write_text(
        STUB.format(mark=MARK, python=Path(sys.executable).resolve(), folder=here, judged=judged), encoding="utf-8"
    )
    stub.chmod(0o755)
    return program
