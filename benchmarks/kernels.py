"""The compiled kernels of the instance engine against the same operations on tensors, one thread, in the same run.

python -m benchmarks.kernels
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import time
from collections.abc import Callable

import pandas as pd
import torch

from benchmarks.common import at_most, parser, report
from popatlas.similarity.lncc import LNCC
from popatlas.transforms.fieldops import CompiledOps, TensorOps, coarse_shape

SHAPE, QUICK = (160, 192, 160), (64, 64, 64)


def steps(ops: TensorOps, shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """Return the steps of an iteration as calls without arguments."""
    generator = torch.Generator().manual_seed(0)
    fixed, moving = (torch.rand((1, 1, *shape), generator=generator) for _ in range(2))
    field = ops.smooth(torch.rand((1, 3, *shape), generator=generator) * 4 - 2, 3.0)
    coarse = ops.smooth(torch.rand((1, 3, *coarse_shape(shape, 2)), generator=generator) * 2 - 1, 3.0)
    matrix = torch.eye(3, 4)[None]

    def radius(r: int) -> Callable[[], object]:
        return lambda: ops.force(LNCC(r, floor=1e-4), fixed, moving, None, 1, False)

    return {
        "warp": lambda: ops.warp(moving, field, 1, matrix, shape),
        "warp, field twice as coarse": lambda: ops.warp(moving, coarse, 2, matrix, shape),
        "force, local correlation, radius 2": radius(2),
        "force, local correlation, radius 9": radius(9),
        "Gaussian of the field, sigma 1.73": lambda: ops.smooth(field, 1.73),
        "composition": lambda: ops.compose(field, field),
        "Jacobian determinant": lambda: ops.jacobian(field),
    }


def nanoseconds(call: Callable[[], object], voxels: int, repeats: int) -> float:
    """Return the median CPU time of a call for each voxel; the first call, which may compile, does not count."""
    call()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return statistics.median(times) / voxels * 1e9


def main() -> None:
    """Measure, print and write."""
    args = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    shape = QUICK if args.quick else SHAPE
    voxels, repeats = int(torch.tensor(shape).prod()), 3
    compiled, tensors = steps(CompiledOps(), shape), steps(TensorOps(), shape)
    rows, costs = [], {}
    for name, call in compiled.items():
        ours, theirs = nanoseconds(call, voxels, repeats), nanoseconds(tensors[name], voxels, repeats)
        rows.append({"step": name, "compiled_ns_per_voxel": ours, "tensors_ns_per_voxel": theirs, "ratio": ours / theirs})
        costs[name] = ours
    growth = costs["force, local correlation, radius 9"] / costs["force, local correlation, radius 2"]
    bars = [at_most("cost of the force at radius 9 over radius 2", growth, 2.0)]
    report("kernels", {f"{' x '.join(map(str, shape))} voxels": pd.DataFrame(rows)}, bars, args, "random volumes")


if __name__ == "__main__":
    main()
