"""What lies in OUT_DIR and belongs to no job of the study as it is now, told by the receipts that no job has.

Group tables and pages of such receipts are taken away before the group results are made: they hold scans that are left out
and methods that are not asked for, and the report would show them. Results of scans are kept, and named.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path, PurePosixPath

from popatlas.cohort.outputs import RULES
from popatlas.errors import first_few
from popatlas.receipts import FOLDER, Receipt
from popatlas.study.benchstudy import is_valid
from popatlas.study.inventory import Inventory

TAKEN = ("group", "report")  # folders of group results
OF_SCAN = re.compile(r"(?:fuse|register|preprocess)/(.+/anat/[^/_]+(?:_ses-[^/_]+)?)_(.+)")


def orphans(inventory: Inventory) -> dict[str, Receipt]:
    """Return the receipts that belong to no job of a study, by name."""
    folder, jobs = inventory.study.out_dir / FOLDER, inventory.jobs.jobs
    found: dict[str, Receipt] = {}
    for path in sorted(folder.rglob("*.json")):
        name = path.relative_to(folder).as_posix().removesuffix(".json")
        receipt = None if name in jobs else Receipt.read(path)
        if receipt is not None:
            found[name] = receipt
    return found


def take_away_orphans(inventory: Inventory) -> list[str]:
    """Take away group tables and pages that only orphans own, with their receipts; return and say which.

    Those of `popatlas fuse bench` stay while they are what it would make today.
    """
    out_dir = inventory.study.out_dir
    owned = {path for job in inventory.jobs.jobs.values() for path in inventory.files(job)}
    owned |= {path for receipt in inventory.receipts.values() if receipt is not None for path in receipt.outputs}
    found = {name: receipt for name, receipt in orphans(inventory).items() if _is_group(name, receipt)}
    found |= _former_bench(inventory, found)
    taken = []
    for name, receipt in found.items():
        for path in receipt.outputs:
            if (name == _bench(inventory) or path not in owned) and (out_dir / path).is_file():
                (out_dir / path).unlink()
                taken.append(path)
                _remove_empty(out_dir, path)
        (out_dir / FOLDER / f"{name}.json").unlink(missing_ok=True)
    if taken:
        print(f"popatlas: taken away, for nothing asks for it any more: {first_few(sorted(taken))}", file=sys.stderr)
    return taken


def kept_results(inventory: Inventory) -> list[str]:
    """Return a line that names the results of scans that are kept although the settings no longer ask for them."""
    out_dir, scans = inventory.study.out_dir, set(inventory.jobs.scans)
    found = orphans(inventory)
    bench = Receipt.read(inventory.receipt_path(_bench(inventory)))
    compared = set() if bench is None else set(bench.inputs)
    kinds: Counter[str] = Counter()
    for name, receipt in found.items():
        match = OF_SCAN.fullmatch(name)
        results = [path for path in receipt.outputs if not path.startswith("work/")]
        if not match or match[1] not in scans or compared & set(results):
            continue
        if any((out_dir / path).is_file() for path in results):
            kinds[match[2]] += 1
    if not kinds:
        return []
    shown = ", ".join(f"{kind} ({count})" for kind, count in sorted(kinds.items()))
    return [f"{sum(kinds.values())} results that the settings no longer ask for are kept: {shown}"]


def _bench(inventory: Inventory) -> str:
    return inventory.jobs.name("bench_fusion")


def _former_bench(inventory: Inventory, found: dict[str, Receipt]) -> dict[str, Receipt]:
    """Decide about the files of a bench that the configuration does not ask for; an orphan that is valid is left out."""
    name, study = _bench(inventory), inventory.study
    receipt = found.pop(name, None) or inventory.receipts.get(name)
    if receipt is None or (study.config.fuse.bench and name in inventory.jobs.jobs):
        return {}
    is_made = name in inventory.made
    return {} if is_made or is_valid(study, receipt.made_of) else {name: receipt}


def _is_group(name: str, receipt: Receipt) -> bool:
    if name == RULES["publish_along"].job:  # beside the template
        return True
    places = [PurePosixPath(path).parts for path in receipt.outputs]
    return bool(places) and all(parts[0] in TAKEN and ".." not in parts for parts in places)


def _remove_empty(out_dir: Path, path: str) -> None:
    """Remove the folders of a file that are empty now."""
    for folder in PurePosixPath(path).parents:
        if len(folder.parts) < 2:
            return
        with suppress(OSError):
            (out_dir / folder).rmdir()
