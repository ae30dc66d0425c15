"""The compiled steps of joint label fusion: weights of the atlases and votes; the search is in `kernels_search`.

All arrays are 3D in C order; a 2D image is a volume of one plane, with a radius of 0 along that axis. Images are float32
without NaN. `offsets` are the displacements of the search, the nearest first; a choice is an index into them.

Why they exist: joint label fusion compares a patch around each voxel with many patches of many atlases. Differences of all
voxels at one displacement share their window sums, and what is left for each voxel stays in the cache.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from popatlas.transforms.kernels import Integers, Volume, compiled

Choices = npt.NDArray[np.uint16]
Table = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
# patches are filled up with zeros to a multiple of this: sums without a rest that is added one by one
LANES = 32
# a patch whose standard deviation is a smaller share of its mean is flat: rounding
FLAT = 1e-6
# relative size of a pivot below which the error matrix counts as singular
SINGULAR = 1e-12
# shares that differ by less are equal: weights are rounded
EQUAL_SHARE = 1e-6


@compiled
def _steps(offsets: Integers, Y: int, Z: int) -> Places:
    """Return what displacements (n, 3) are in the flat index of a volume."""
    steps = np.empty(offsets.shape[0], np.int64)
    for n in range(offsets.shape[0]):
        steps[n] = (np.int64(offsets[n, 0]) * Y + offsets[n, 1]) * Z + offsets[n, 2]
    return steps


@compiled
def _positions(radius: Integers) -> Integers:
    """Return the displacements of a patch from its centre, (n, 3)."""
    rx, ry, rz = radius[0], radius[1], radius[2]
    positions = np.empty(((2 * rx + 1) * (2 * ry + 1) * (2 * rz + 1), 3), np.int32)
    p = 0
    for i in range(-rx, rx + 1):
        for j in range(-ry, ry + 1):
            for k in range(-rz, rz + 1):
                positions[p, 0], positions[p, 1], positions[p, 2] = i, j, k
                p += 1
    return positions


@compiled
def _holds(shape: tuple[int, int, int], x: int, y: int, z: int, radius: Integers) -> bool:
    """Return whether the patch of a voxel is inside of the image."""
    rx, ry, rz = radius[0], radius[1], radius[2]
    inside: bool = rx <= x < shape[0] - rx and ry <= y < shape[1] - ry and rz <= z < shape[2] - rz
    return inside


@compiled
def _patch(flat: Volume, at: int, steps: Places, out: Volume) -> bool:
    """Copy a patch and scale it to mean 0 and standard deviation 1, 0 after its end; False where it is flat."""
    n, length = steps.shape[0], out.shape[0]
    for p in range(n):
        out[p] = flat[at + steps[p]]
    total = np.float32(0)
    for p in range(length):
        total += out[p]
    mean = total / np.float32(n)
    for p in range(length):
        out[p] -= mean
    out[n:] = 0
    squares = np.float32(0)
    for p in range(length):
        squares += out[p] * out[p]
    deviation = np.sqrt(squares / np.float32(max(n - 1, 1)))
    if deviation <= np.float32(FLAT) * abs(mean):
        out[:] = 0
        return False
    scale = np.float32(1) / deviation
    for p in range(length):
        out[p] *= scale
    return True


@compiled
def _power(value: float, beta: float) -> float:
    """Return ``value ** beta``, quickly for the usual exponents."""
    if beta == 4.0:
        return value * value * (value * value)
    if beta == 2.0:
        return value * value
    power: float = value**beta
    return power


@compiled
def solve_for_ones(matrix: Table, ridge: float, factor: Table, solution: Table) -> bool:
    """Solve ``(matrix + ridge) w = 1`` by Cholesky's factors; False when that matrix is singular.

    Parameters
    ----------
    matrix : (n, n) float64 ndarray
        Symmetric; only the lower triangle is read.
    ridge : float
        Added to the diagonal.
    factor : (n, n) float64 ndarray
        Work space.
    solution : (n,) float64 ndarray
        The result.
    """
    n = matrix.shape[0]
    for i in range(n):
        for j in range(i + 1):
            value = matrix[i, j]
            for k in range(j):
                value -= factor[i, k] * factor[j, k]
            if i > j:
                factor[i, j] = value * factor[j, j]
            else:
                value += ridge
                if value <= SINGULAR * (matrix[i, i] + ridge):
                    return False
                factor[i, i] = 1 / np.sqrt(value)
    for i in range(n):
        value = 1.0
        for k in range(i):
            value -= factor[i, k] * solution[k]
        solution[i] = value * factor[i, i]
    for i in range(n - 1, -1, -1):
        value = solution[i]
        for k in range(i + 1, n):
            value -= factor[k, i] * solution[k]
        solution[i] = value * factor[i, i]
    return True


@compiled
def _solve(matrix: Table, ridge: float, prior: Table, factor: Table, solution: Table) -> None:
    """Write the weights of one voxel, which sum to 1."""
    n = matrix.shape[0]
    if not solve_for_ones(matrix, ridge, factor, solution):
        trace = 0.0
        for i in range(n):
            trace += matrix[i, i]
        if not solve_for_ones(matrix, ridge + 1e-6 * trace, factor, solution):
            solution[:] = 1
    total = 0.0
    for i in range(n):
        solution[i] = max(solution[i], 0.0) * prior[i]
        total += solution[i]
    for i in range(n):
        solution[i] /= total


@compiled
def weigh(
    target: Volume,
    images: Volume,
    centres: Integers,
    choices: Choices,
    offsets: Integers,
    radius: Integers,
    beta: float,
    ridge: float,
    prior: Table,
    weights: Volume,
) -> None:
    """Compute the weights of the atlases at each centre.

    The expected joint error of atlases i and j is ``(sum |a_i - t| |a_j - t| / (n - 1)) ** beta``, with patches t, a_i, a_j
    of n voxels, mean 0 and standard deviation 1; the weights minimise the expected error of the vote.

    Parameters
    ----------
    target : (X, Y, Z) float32 ndarray
        Image to label.
    images : (n_atlases, X, Y, Z) float32 ndarray
        Images of the atlases.
    centres : (n_centres, 3) int32 ndarray
        Voxels.
    choices : (n_centres, n_atlases) uint16 ndarray
        Displacement of each atlas.
    offsets, radius
        As of :func:`popatlas.fusion.kernels_search.search`.
    beta, ridge : float
        Exponent, and what is added to the diagonal of the error matrix.
    prior : (n_atlases,) float64 ndarray
        Factor of each weight, positive.
    weights : (n_centres, n_atlases) float32 ndarray
        The result: not negative, sums to 1 for each centre.
    """
    n_atlases, _, Y, Z = images.shape
    steps, shifts = _steps(_positions(radius), Y, Z), _steps(offsets, Y, Z)
    n = steps.shape[0]
    length = (n + LANES - 1) // LANES * LANES
    patch, errors = np.zeros(length, np.float32), np.zeros((n_atlases, length), np.float32)
    usable = np.empty(n_atlases, np.bool_)
    matrix, factor = np.empty((n_atlases, n_atlases)), np.empty((n_atlases, n_atlases))
    solution = np.empty(n_atlases)
    flat, all_flat = target.reshape(-1), images.reshape(-1)
    for c in range(centres.shape[0]):
        x, y, z = centres[c, 0], centres[c, 1], centres[c, 2]
        at = (np.int64(x) * Y + y) * Z + z
        usable[:] = _holds(target.shape, x, y, z, radius) and _patch(flat, at, steps, patch)
        for i in range(n_atlases):
            o = choices[c, i]
            if usable[i] and _holds(target.shape, x + offsets[o, 0], y + offsets[o, 1], z + offsets[o, 2], radius):
                usable[i] = _patch(all_flat, i * target.size + at + shifts[o], steps, errors[i])
                for p in range(length):
                    errors[i, p] = abs(errors[i, p] - patch[p])
            else:
                usable[i] = False
        _joint_errors(errors, usable, max(n - 1, 1), beta, matrix)
        _solve(matrix, ridge, prior, factor, solution)
        for i in range(n_atlases):
            weights[c, i] = solution[i]


@compiled
def _joint_errors(errors: Volume, usable: npt.NDArray[np.bool_], count: int, beta: float, matrix: Table) -> None:
    """Write the lower triangle of the error matrix; 0 for atlases that cannot be compared."""
    for i in range(errors.shape[0]):
        for j in range(i + 1):
            total = np.float32(0)
            if usable[i] and usable[j]:
                for p in range(errors.shape[1]):
                    total += errors[i, p] * errors[j, p]
            matrix[i, j] = _power(np.float64(total) / count, beta)


@compiled
def tally(
    labels: Integers,
    voxels: Integers,
    numbers: Integers,
    choices: Choices,
    weights: Volume,
    offsets: Integers,
    radius: Integers,
    options: Integers,
    shares: Volume,
) -> None:
    """Count the votes of all patches that hold a voxel.

    Parameters
    ----------
    labels : (n_atlases, X, Y, Z) int32 ndarray
        Labels of the atlases.
    voxels : (n_voxels, 3) int32 ndarray
        Voxels to label.
    numbers : (X, Y, Z) int32 ndarray
        Number of each centre; all voxels within the radius of `voxels` are centres, numbered along the rows.
    choices, weights : (n_centres, n_atlases) ndarray
        Displacement and weight of each atlas at each centre.
    offsets, radius
        As of :func:`popatlas.fusion.kernels_search.search`.
    options : (n_options, n_voxels) int32 ndarray
        Labels by falling share, the smaller label first at equal ones; -1 after the last.
    shares : (n_options, n_voxels) float32 ndarray
        Share of the weights.
    """
    n_atlases, X, Y, Z = labels.shape
    rx, ry, rz = radius[0], radius[1], radius[2]
    n_offsets = offsets.shape[0]
    votes = np.zeros((n_atlases, n_offsets), np.float32)
    found = np.empty(n_atlases * n_offsets, np.int32)
    share = np.empty(n_atlases * n_offsets, np.float32)
    for v in range(voxels.shape[0]):
        x, y, z = voxels[v, 0], voxels[v, 1], voxels[v, 2]
        votes[:] = 0
        lo, hi = max(z - rz, 0), min(z + rz + 1, Z)
        for i in range(max(x - rx, 0), min(x + rx + 1, X)):
            for j in range(max(y - ry, 0), min(y + ry + 1, Y)):
                start = numbers[i, j, lo]
                for c in range(start, start + hi - lo):
                    for a in range(n_atlases):
                        votes[a, choices[c, a]] += weights[c, a]
        count = 0
        for a in range(n_atlases):
            for o in range(n_offsets):
                if votes[a, o] > 0:
                    i, j, k = x + offsets[o, 0], y + offsets[o, 1], z + offsets[o, 2]
                    if 0 <= i < X and 0 <= j < Y and 0 <= k < Z:
                        count = _add_vote(labels[a, i, j, k], votes[a, o], found, share, count)
        _rank(found, share, count, v, options, shares)


@compiled
def _add_vote(label: int, weight: float, found: Integers, share: Volume, count: int) -> int:
    """Add a weight to a label of a short table; return the new length of the table."""
    for n in range(count):
        if found[n] == label:
            share[n] += weight
            return count
    found[count], share[count] = label, weight
    return count + 1


@compiled
def _rank(found: Integers, share: Volume, count: int, v: int, options: Integers, shares: Volume) -> None:
    """Write the largest shares of one voxel in order."""
    total = np.float32(0)
    for n in range(count):
        total += share[n]
    near = np.float32(EQUAL_SHARE) * total
    for rank in range(options.shape[0]):
        options[rank, v], shares[rank, v] = -1, 0
        if rank >= count:
            continue
        best = 0
        for n in range(1, count):
            gain = share[n] - share[best]
            if gain > near or (gain >= -near and found[n] < found[best]):
                best = n
        options[rank, v], shares[rank, v] = found[best], share[best] / total
        share[best] = -1
