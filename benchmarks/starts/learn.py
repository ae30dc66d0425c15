"""Learn which side is left: writes `registration/sides.npz` and the torque of simulated brains, `images/torque.npz`.

    python -m benchmarks.starts.learn --data BIDS [--write]

The dataset has whole heads of adults and labels of the brain (`derivatives/*/*_dseg`), in known orientation. Each brain is
registered coarsely to a mirror-symmetric one; a ridge-regularised discriminant through the origin tells its asymmetry from
that of its mirror image, with brains simulated without any as examples of what tells nothing. Printed is what leave-one-out
gives. Without --write nothing is changed. The shipped files come from 32 scans of IXI (brain-development.org, CC BY-SA 3.0).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from benchmarks.dataset import LPS
from benchmarks.starts.brains import Brain, labelled, labelled_scans, simulated
from benchmarks.starts.scans import scan_of
from popatlas.groupwise.template import reference_brain
from popatlas.images import subject as draw
from popatlas.images.deformation import sample
from popatlas.images.scan import Scan
from popatlas.registration import sides
from popatlas.registration.initialisation import centre_of_mass

SHAPE, ORIGIN = (48, 56, 48), (-94.0, -128.0, -88.0)  # RAS; an even number of voxels, none of them in the plane of symmetry
RIDGE = 0.3
SYMMETRIC = 48  # brains without asymmetry
PLANTED = 2.0  # a coarse registration finds about half of an asymmetry: with this, simulated brains look like people's


def symmetric_brain() -> tuple[np.ndarray, np.ndarray]:
    """Return MNI152 at 4 mm, 0 to 255, exactly symmetric, and its affine to LPS mm."""
    fine, to_ras = reference_brain(2.0)
    affine = np.diag([sides.SPACING] * 3 + [1.0])
    affine[:3, 3] = ORIGIN
    smooth = gaussian_filter(fine, 0.8)
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
    back = np.linalg.inv(to_ras) @ affine
    at = np.tensordot(back[:3, :3], index, axes=1) + back[:3, 3].reshape(3, 1, 1, 1)
    values = map_coordinates(smooth, at, order=1)
    share = map_coordinates(gaussian_filter((fine > 0.05).astype(np.float32), 0.8), at, order=1)
    brain = np.where((share + share[::-1]) / 2 > 0.5, (values + values[::-1]) / 2, 0)
    return np.clip(np.rint(255 * brain / brain.max()), 0, 255).astype(np.uint8), LPS @ affine


def asymmetry(symmetric: Scan, brain: Brain) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of a brain."""
    moving = scan_of(brain)
    found = sides.features(symmetric, moving, centre_of_mass(symmetric, moving))
    if found is None:
        raise SystemExit(f"{brain.name} does not look like a brain")
    return found


def discriminant(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the weights of a ridge regression without constant, by way of the products between rows."""
    gram = rows @ rows.T
    duals = np.linalg.solve(gram + RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)), targets)
    return np.asarray(duals @ rows)


def cosines(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the cosines between rows and weights, as `sides.laterality` takes them."""
    return np.asarray(rows @ weights / np.linalg.norm(rows, axis=1) / np.linalg.norm(weights))


def mean_torque(symmetric: Scan, displacements: np.ndarray) -> np.ndarray:
    """Return people's mean asymmetry as a displacement (3, x, y, z) in RAS mm on the symmetric grid, zero outside."""
    assert symmetric.mask is not None
    mask = symmetric.mask[0, 0].numpy() > 0
    half = mask.copy()
    half[len(half) // 2 :] = False
    field = np.zeros((3, *mask.shape), np.float32)
    field[:, half] = displacements.mean(0).reshape(3, -1)
    mirrored = field[:, ::-1] * np.array([-1, 1, 1], np.float32).reshape(3, 1, 1, 1)
    spread = np.stack([gaussian_filter(part, 1.5) for part in field - mirrored])
    return spread * sides.SPACING


def rows_of(symmetric: Scan, data: Path) -> tuple[list[str], np.ndarray, list[float]]:
    """Return names, features (brains without asymmetry come last) and the scales of their two parts."""
    scans = labelled_scans(data)
    people = [asymmetry(symmetric, labelled(data, scan)) for scan in scans]
    nobody = [asymmetry(symmetric, simulated(0, number, 4.0, torque=0.0)) for number in range(1, SYMMETRIC + 1)]
    scales = [float(np.sqrt(np.mean([np.sum(row[part] ** 2) for row in people]))) for part in (0, 1)]
    return scans, np.array([np.concatenate([row[0] / scales[0], row[1] / scales[1]]) for row in [*people, *nobody]]), scales


def one_by_one(rows: np.ndarray, people: int) -> np.ndarray:
    """Return the cosine of each brain with the weights that the others give."""
    targets = np.r_[np.ones(people), np.zeros(len(rows) - people)]
    found = []
    for one in range(people):
        others = np.arange(len(rows)) != one
        found.append(cosines(rows[one : one + 1], discriminant(rows[others], targets[others]))[0])
    return np.array(found)


def left_out(data: Path) -> dict[str, float]:
    """Return the laterality of each brain of a dataset by what the others teach; 1 on average."""
    names, rows, _ = rows_of(sides.symmetric_scan(*symmetric_brain()), data)
    found = one_by_one(rows, len(names))
    return dict(zip(names, (found / found.mean()).tolist(), strict=True))


def main() -> None:
    """Learn, print, and write when asked to."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--write", action="store_true", help="replace the shipped files")
    args = options.parse_args()
    torch.set_num_threads(1)
    brain, affine = symmetric_brain()
    names, rows, scales = rows_of(sides.symmetric_scan(brain, affine), args.data)
    people = len(names)
    found = one_by_one(rows, people)
    typical = float(found.mean())
    weights = discriminant(rows, np.r_[np.ones(people), np.zeros(len(rows) - people)])
    scores, chance = found / typical, cosines(rows[people:], weights) / typical
    print(f"{people} brains, left out one by one: mean {scores.mean():.2f}, deviation {scores.std():.2f}, lowest ", end="")
    print(f"{scores.min():.2f}; {np.mean(scores > 0):.1%} on the right side; symmetric brains: deviation {chance.std():.2f}")
    if not args.write:
        return
    unit = weights / np.linalg.norm(weights) / typical
    largest = float(np.abs(unit).max())
    np.savez_compressed(
        sides.FILE,
        brain=brain,
        affine=affine,
        weights=np.rint(127 * unit / largest).astype(np.int8),
        unit=np.float64(largest / 127),
        scales=np.array(scales),
    )
    displacements = rows[:people, : rows.shape[1] * 3 // 4] * scales[0]
    field = mean_torque(sides.symmetric_scan(brain, affine), displacements)
    step = draw.TORQUE_STEP
    points = draw.field_grid().points()[:, ::step, ::step, ::step]
    ticks = np.rint(sample(field, LPS @ affine, points) * 32)
    torque = np.clip(ticks, -127, 127).astype(np.int8)
    np.savez_compressed(draw.TORQUE_FILE, torque=torque, unit=np.float64(PLANTED / 32))


if __name__ == "__main__":
    main()
