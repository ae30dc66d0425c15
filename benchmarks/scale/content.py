"""What a step would leave in a file, much smaller; of the standard library alone, so that the stub of a step is quick."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
from collections.abc import Mapping, Sequence

STRUCTURES = ("lateral-ventricle", "hippocampus", "thalamus", "caudate", "putamen", "pallidum", "amygdala", "cortex")
METHODS = ("majority", "staple", "jlf")
OF_LABELS = ("dice", "hd95", "assd", "volume_error")
OF_REGISTRATIONS = ("correlation", "mutual_information", "log_jacobian_sd", "nonpositive_jacobian", "inverse_error")
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
HEAD = "participant_id\tsession_id\ttemplate\tmethod\tlabel\tmetric\tvalue\tunit"


def content_of(path: str, judged: Mapping[str, object]) -> bytes:
    """Return what a step would leave at a path; `judged`: revision and limits of the gate."""
    name = path.rsplit("/", 1)[-1]
    draw = random.Random(name)
    if name.endswith("_desc-metrics_table.tsv"):
        return metrics(name.split("_")[0]).encode()
    if name.endswith(("_gate.json", "desc-gate_registration.json")):
        numbers = {"mask_dice": draw.gauss(0.95, 0.01), "displacement_p95": draw.gauss(8, 1)}
        attempts = [{"engine": "instance", "linear": "affine", "start": "mass"}]
        return json.dumps({**judged, **numbers, "attempts": attempts}).encode()
    if name.endswith("desc-qc_mask.json"):
        return json.dumps({"volume_ml": draw.gauss(1400, 100)}).encode()
    if name.startswith("tpl-") and name.endswith(".nii.gz"):
        return image(volumes=3 if name.endswith("_probseg.nii.gz") else 1)
    if name.endswith(".png"):
        return PIXEL
    if name.endswith(".json"):
        return b"{}"
    if name == "ledger.tsv":
        return b"scan\tsubject\tsession\tstage\tstate\treason\tlog\n"
    return b"a\n1\n" if name.endswith(".tsv") else path.encode()


def image(side: int = 16, volumes: int = 1) -> bytes:
    """Return a tiny image with a bright ball, of one or more volumes."""
    import gzip
    import struct

    head, middle = bytearray(352), (side - 1) / 2
    for place, kind, values in (
        (0, "i", (348,)), (40, "8h", (3 if volumes == 1 else 4, side, side, side, volumes, 1, 1, 1)), (70, "2h", (2, 8)),
        (76, "8f", (1.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0)), (108, "3f", (352.0, 1.0, 0.0)), (252, "2h", (1, 1)),
        (280, "12f", (2.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0)), (344, "4s", (b"n+1",)),
    ):  # fmt: skip
        struct.pack_into(f"<{kind}", head, place, *values)
    places = ((x, y, z) for z in range(side) for y in range(side) for x in range(side))
    voxels = bytes(200 * (sum((one - middle) ** 2 for one in place) < (side / 3) ** 2) for place in places)
    return gzip.compress(bytes(head) + voxels * volumes, mtime=0)


def metrics(subject: str) -> str:
    """Return a table of metrics as long as a real one."""
    draw = random.Random(subject)
    rows = [f"{subject}\tn/a\tn/a\tmask\tbrain\tvolume\t{draw.gauss(1400, 100):.6g}\tml"]
    for method in METHODS:
        for structure in STRUCTURES:
            rows.append(f"{subject}\tn/a\tn/a\t{method}\t{structure}\tvolume\t{draw.gauss(10, 1):.6g}\tml")
            rows += [f"{subject}\tn/a\tn/a\t{method}\t{structure}\t{name}\t{draw.random():.6g}\t1" for name in OF_LABELS]
    rows += [f"{subject}\tn/a\tpopatlas@0\tregistration\tn/a\t{name}\t{draw.random():.6g}\t1" for name in OF_REGISTRATIONS]
    return "\n".join([HEAD, *rows]) + "\n"


def write(path: str, content: bytes) -> list[object]:
    """Write a file and its folder; return what a receipt says of it."""
    try:
        stream = open(path, "wb")  # noqa: PTH123, SIM115
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        stream = open(path, "wb")  # noqa: PTH123, SIM115
    with stream:
        stream.write(content)
    return [len(content), hashlib.sha256(content).hexdigest()]


def step(options: Sequence[str], judged: Mapping[str, object], attempt: str) -> None:
    """Do what steps do for the workflow: leave outputs, record and receipt of each, by their command line."""
    given: dict[str, list[str]] = {}
    for word in (*options, "--then"):
        if word in ("--then", "--also"):
            _leave(given, judged, attempt)
            given, name = {}, "step"
            given[name] = []
        elif word.startswith("--") and word[2:3].isalpha():
            name = word[2:]
            given[name] = []
        else:
            given[name].append(word)


def _leave(given: Mapping[str, list[str]], judged: Mapping[str, object], attempt: str) -> None:
    made = {}
    for name, paths in given.items():
        for path in paths if name.startswith("out_") and name != "out_dir" else ():
            kept = name == "out_ledger" and os.path.exists(path)  # noqa: PTH110  # written by the run itself
            made[path] = write(path, open(path, "rb").read() if kept else content_of(path, judged))  # noqa: PTH123, SIM115
    receipt = {"made_of": given["made_of"][0], "inputs": {}, "outputs": made, "facts": {"popatlas": "stub"}}
    write(given["receipt"][0], json.dumps(receipt).encode())
    record = {"step": "stub", "state": "ok", "attempt": attempt, "seconds": 0.0, "cpu_seconds": 0.0, "peak_mb": 1}
    write(given["record"][0], json.dumps(record).encode())
