"""What a scan takes on disk at each level of `retention`, and what is lost by it: a small simulated cohort, for real.

python -m benchmarks.retention --out FOLDER

The cohort is run at `standard`, on a grid of 2 mm. Fields are written once more on a grid of 1 mm, images are taken as eight
times as large. The loss is the largest distance, in voxels, between a field that was left out and what is made instead, and
between a stored field and the same one before it was rounded.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml

from benchmarks.common import at_most, parser, popatlas, report
from popatlas.cohort.outputs import DERIVED, MINIMAL, RULES, fill
from popatlas.config.load import load_config
from popatlas.images.grid import Grid
from popatlas.study.inventory import Inventory
from popatlas.study.retention import Fields, surplus
from popatlas.study.study import Study
from popatlas.transforms.affine import read_affine
from popatlas.transforms.chain import Affine, Chain
from popatlas.transforms.composed import grid_of, read_step
from popatlas.transforms.fields import resize_field
from popatlas.transforms.itk import read_displacement, step_mm, write_displacement

LABEL, SUBJECTS = "tiny", 4
SETTINGS = {
    "preprocess": {"n4": {"iterations": [20, 20]}},
    "register": {"preset": "quick"},
    "atlas": {"label": LABEL, "iterations": 2, "presets": ["quick"]},
    "fuse": {"atlases": ["01", "02"]},
}
FIELD = "_xfm.nii.gz"
MEGA = 1e6
SCAN = re.compile(r"(?:^|.*/)sub-[0-9]+/anat/sub-[0-9]+")


def main() -> None:
    """Measure, print and write."""
    args = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = args.out or Path(folder)
        config = root / "config.yaml"
        root.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump(SETTINGS))
        if not (root / "bids").is_dir():
            popatlas("simulate", root / "bids", "--subjects", SUBJECTS, "--seed", 3)
        popatlas("run", root / "bids", root / "out", "--config", config, "--cores", args.cores)
        study = Study.read(
            load_config(SETTINGS, bids_dir=str(root / "bids"), out_dir=str(root / "out"), retention=MINIMAL), root / "out"
        )
        kinds = by_kind(root / "out", study)
        left_out = surplus(Inventory(study))
        losses = pd.DataFrame([row for fields in left_out for row in loss(fields)])
    levels = by_level(kinds)
    worst = losses.groupby(["what"], sort=False)["voxels"].max().reset_index()
    bars = [
        at_most(
            "a field that is made again, voxels from what was removed",
            float(losses.loc[losses["what"] == "made again", "voxels"].max()),
            0.01,
        ),
        at_most(
            "a stored field, voxels from what it was before rounding",
            float(losses.loc[losses["what"] == "rounded", "voxels"].max()),
            0.01,
        ),
        at_most("minimal, share of the bytes of standard", float(levels["mb_2mm"].iloc[0] / levels["mb_2mm"].iloc[1]), 0.75),
    ]
    report("retention", {"Files of a scan": kinds, "Levels": levels, "Loss": worst}, bars, args, "simulated cohort")


def by_kind(out_dir: Path, study: Study) -> pd.DataFrame:
    """Return megabytes of a scan by kind of file, at 2 mm and on a grid of 1 mm, and the levels that keep it."""
    fine, coarse = defaultdict[str, float](float), Counter[str]()
    for path in sorted((out_dir).glob("sub-*/anat/*")):
        kind = SCAN.sub("*", path.relative_to(out_dir).as_posix()).replace(study.template.label, "{label}")
        coarse[kind] += path.stat().st_size
        fine[kind] += at_one_mm(path)
    derived = {fill(RULES[rule].files[name], {"scan": "*"}) for rule, names in DERIVED.items() for name in names}
    scans = len(study.scans.own)
    rows = [
        {
            "file": kind,
            "mb_2mm": size / scans / MEGA,
            "mb_1mm": fine[kind] / scans / MEGA,
            "minimal": int(kind not in derived),
        }
        for kind, size in coarse.most_common()
    ]
    return pd.DataFrame(rows)


def at_one_mm(path: Path) -> float:
    """Return the bytes of a file on a grid of 1 mm."""
    if not path.name.endswith(FIELD):
        return path.stat().st_size * (8 if path.name.endswith(".nii.gz") else 1)
    values, grid = read_displacement(path)
    shape = tuple(2 * n for n in grid.shape)
    field = resize_field(torch.as_tensor(values, dtype=torch.float32)[None], shape)[0]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "field.nii.gz"
        write_displacement(target, field, finer(grid, shape), rounded=True)
        return target.stat().st_size


def finer(grid: Grid, shape: tuple[int, ...]) -> Grid:
    """Return a grid of half the spacing."""
    affine = grid.affine.copy()
    affine[:-1, :-1] /= 2
    return Grid(shape, affine)


def by_level(kinds: pd.DataFrame) -> pd.DataFrame:
    """Return megabytes of a scan by level."""
    rows = []
    for level, kept in ((MINIMAL, kinds[kinds["minimal"] == 1]), ("standard", kinds)):
        fields = kept[kept["file"].str.endswith(FIELD)]
        sizes = {name: kept[name].sum() for name in ("mb_2mm", "mb_1mm")}
        rows.append({"level": level, **sizes, **{f"fields_{name}": fields[name].sum() for name in sizes}})
    return pd.DataFrame(rows)


def loss(fields: Fields) -> list[dict[str, object]]:
    """Return how far the fields of a scan are, in voxels, from those that are made again and from those before rounding."""
    found: list[dict[str, object]] = []
    affine, warp, back = (fields.out_dir / fields.kept[name] for name in ("affine", "warp", "inverse_warp"))
    matrix = Affine(torch.as_tensor(read_affine(affine)))
    ways = {
        "composed": (Chain((read_step(warp), matrix)), fields.fixed),
        "inverse_composed": (Chain((matrix.inverse(), read_step(back))), fields.moving),
    }
    for name, path in fields.wanted.items():
        stored, grid = read_displacement(fields.out_dir / path)
        with tempfile.TemporaryDirectory() as folder:
            fields.compose(name, Path(folder) / "again.nii.gz")
            again, _ = read_displacement(Path(folder) / "again.nii.gz")
        chain, image = ways[name]
        whole = chain.as_field(grid_of(fields.out_dir / image)).displacement[0].numpy()
        found.append({"what": "made again", "voxels": float(np.linalg.norm(stored - again, axis=0).max())})
        found.append({"what": "rounded", "voxels": float(np.linalg.norm(stored - whole, axis=0).max())})
        found.append({"what": "rounded at most", "voxels": math.sqrt(3) / 2 * step_mm(grid) / min(grid.spacing)})
    return found


if __name__ == "__main__":
    main()
