"""One simulated subject: who it is, what its anatomy is, and what a scanner makes of it.

A draw depends on the seed and on the subject's number only, so a cohort can grow without changing. Planted effects:

* ventricles: the log-volume of the lateral ventricles grows by `VENTRICLE_SLOPE` per year of age, with a scatter;
* sex: male brains have `MALE_FACTOR` times the volume of female ones, with a scatter;
* torque: the mean asymmetry of people's brains, without which nothing could tell left from right: the MNI152 brain is
  symmetric. `torque.npz` was made by `benchmarks.starts.learn`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from popatlas.images.deformation import (
    Affine,
    Array,
    Grid,
    expansion_velocity,
    exponential,
    growth_times,
    sample,
    scaling_velocity,
    smooth_velocity,
)
from popatlas.images.phantom import HeadModel, head_model, lateral_ventricles

AGES = (20.0, 85.0)
REFERENCE_AGE = 50.0
VENTRICLE_SLOPE = 0.016  # log-volume per year: x2.8 from 20 to 85 years
VENTRICLE_SCATTER = 0.1
FEMALE_FACTOR, MALE_FACTOR = 0.80, 1.08  # the MNI152 brain is larger than people's
SIZE_SCATTER, AXIS_SCATTER = 0.04, 0.012  # log-volume; log-length of an axis at constant volume
SESSION_YEARS = 2.0
# (smoothness, mean length) of the random part of the velocity, millimetres
SHAPE = ((30.0, 2.2), (14.0, 2.0), (8.0, 1.0))
TORQUE_FILE, TORQUE_STEP = Path(__file__).with_name("torque.npz"), 2  # every other point of `field_grid`
CENTER = np.array([0.0, -20.0, 5.0])  # of scaling and rotation, MNI millimetres
VOXELS = ((2.0, 2.0, 2.0), (1.8, 1.8, 2.2), (2.2, 2.0, 2.0))
ORIENTATIONS = ("RAS", "LAS", "PSR", "LPI", "ASR", "RSA")
VIEW_MM, VIEW_CENTER = np.array([204.0, 252.0, 226.0]), np.array([0.0, -12.0, -14.0])
CONTRAST = {
    "T1w": {"csf": 0.30, "gm": 0.70, "wm": 1.0, "fluid": 0.24, "bone": 0.08, "soft": 0.50, "fat": 1.10},
    "T2w": {"csf": 1.00, "gm": 0.60, "wm": 0.40, "fluid": 1.00, "bone": 0.05, "soft": 0.25, "fat": 0.70},
}
JITTER = {"csf": 0.08, "gm": 0.04, "wm": 0.0, "fluid": 0.08, "bone": 0.2, "soft": 0.08, "fat": 0.1}


@dataclass(frozen=True)
class Traits:
    """A subject in one session: age in years, sex, log-growth of the ventricles and log-factor of brain volume."""

    age: float
    sex: str
    ventricle_growth: float
    brain_growth: float


@dataclass(frozen=True)
class Anatomy:
    """Displacements (3, x, y, z) in RAS mm on `grid`: MNI point to subject before the pose, and back."""

    grid: Grid
    forward: Array
    backward: Array

    def to_subject(self, points: Array) -> Array:
        """Map MNI points (3, ...) to the subject's anatomy, RAS mm."""
        return np.asarray(points + sample(self.forward, self.grid.affine, points, mode="nearest"))

    def to_mni(self, points: Array) -> Array:
        """Map points (3, ...) of the subject's anatomy to MNI, RAS mm."""
        return np.asarray(points + sample(self.backward, self.grid.affine, points, mode="nearest"))


@dataclass(frozen=True)
class Scan:
    """How one image is taken: grid, storage orientation, and the rigid pose (4, 4) applied after the anatomy, RAS mm."""

    grid: Grid
    orientation: str
    pose: Affine

    def anatomy_points(self) -> Array:
        """Return the voxel centres (3, x, y, z) with the pose undone, RAS mm."""
        return self.grid.points(np.asarray(np.linalg.inv(self.pose), dtype=np.float64))


def generator(seed: int, *key: int) -> np.random.Generator:
    """Return the random generator of a part of the simulation, for example (subject, session)."""
    return np.random.default_rng([seed, *key])


def draw_traits(seed: int, number: int, session: int = 1) -> Traits:
    """Draw age, sex and effects of subject `number` (from 1).

    Ages are uniform and sexes balanced even in small cohorts: they are multiples of irrational numbers (a
    low-discrepancy sequence) from a start given by the seed.
    """
    start = generator(seed).random(2)
    places = (start + number * np.array([(np.sqrt(5) - 1) / 2, np.sqrt(3) - 1])) % 1
    rng = generator(seed, number, 0)
    age = round(float(AGES[0] + (AGES[1] - AGES[0]) * places[0] + SESSION_YEARS * (session - 1)), 1)
    sex = "M" if places[1] < 0.5 else "F"
    growth = VENTRICLE_SLOPE * (age - REFERENCE_AGE) + VENTRICLE_SCATTER * rng.standard_normal()
    factor = FEMALE_FACTOR * (MALE_FACTOR if sex == "M" else 1.0)
    return Traits(age, sex, float(growth), float(np.log(factor) + SIZE_SCATTER * rng.standard_normal()))


def field_grid() -> Grid:
    """Return the 4 mm grid on which anatomies are drawn; it holds the whole head."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-114, -158, -138)
    return Grid((58, 72, 64), affine)


@lru_cache(maxsize=1)
def ventricle_effect() -> tuple[Array, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the velocity that makes the lateral ventricles grow, flow times, and the log-growth at these times."""
    from scipy.ndimage import uniform_filter

    model, grid = head_model(), field_grid()
    share = uniform_filter(lateral_ventricles(model.labels).astype(np.float32), 4)
    region = sample(share, model.affine, grid.points())
    velocity = expansion_velocity(region, grid)
    times = np.linspace(-1.2, 1.8, 7)
    return velocity, times, growth_times(velocity, region, grid, times)


@lru_cache(maxsize=1)
def torque_effect() -> Array:
    """Return the velocity that makes the symmetric brain as asymmetric as people's are on average."""
    with np.load(TORQUE_FILE, allow_pickle=False) as arrays:
        coarse = arrays["torque"] * np.float32(arrays["unit"])
    grid = field_grid()
    step = Grid((coarse.shape[1], coarse.shape[2], coarse.shape[3]), grid.affine @ np.diag([*[TORQUE_STEP] * 3, 1.0]))
    return sample(coarse, step.affine, grid.points(), mode="nearest")


def draw_anatomy(seed: int, number: int, traits: Traits, torque: float = 1.0) -> Anatomy:
    """Draw the anatomy of a subject; sessions differ by the growth of the ventricles only.

    Parameters
    ----------
    seed, number : int
        Of the cohort and of the subject.
    traits : Traits
        From `draw_traits`.
    torque : float
        Strength of the mean asymmetry; 0 for a brain whose sides only chance makes different.
    """
    grid, rng = field_grid(), generator(seed, number, 1)
    axes = AXIS_SCATTER * rng.standard_normal(3)
    velocity = scaling_velocity(grid, traits.brain_growth / 3 + axes - axes.mean(), CENTER)
    for sigma_mm, mean_mm in SHAPE:
        velocity += smooth_velocity(rng, grid, sigma_mm, mean_mm)
    growth, times, logs = ventricle_effect()
    velocity += growth * np.float32(np.interp(traits.ventricle_growth, logs, times))
    if torque:
        velocity += np.float32(torque) * torque_effect()
    return Anatomy(grid, exponential(velocity, grid), exponential(-velocity, grid))


def draw_pose(rng: np.random.Generator, degrees: float = 4.0, millimetres: float = 3.0) -> Affine:
    """Draw a rigid motion (4, 4) about the brain's centre, RAS mm; the arguments are standard deviations of each axis."""
    from scipy.spatial.transform import Rotation

    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees) * rng.standard_normal(3)).as_matrix()
    pose[:3, 3] = CENTER - pose[:3, :3] @ CENTER + millimetres * rng.standard_normal(3)
    return pose


def draw_scan(rng: np.random.Generator, pose: Affine, voxel_size: float | None = None) -> Scan:
    """Draw voxel size (unless given, mm) and storage orientation; the grid itself is RAS."""
    voxel = np.array(VOXELS[rng.integers(len(VOXELS))] if voxel_size is None else (voxel_size,) * 3)
    orientation = str(rng.choice(ORIENTATIONS))
    shape = np.ceil(VIEW_MM / voxel).astype(int)
    affine = np.diag([*voxel, 1.0])
    affine[:3, 3] = np.round(VIEW_CENTER - voxel * (shape - 1) / 2 + rng.uniform(-2, 2, 3), 2)
    return Scan(Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine), orientation, pose)


@lru_cache(maxsize=2)
def _blurred(width: float) -> dict[str, tuple[npt.NDArray[np.uint8], Affine]]:
    """Return the tissue maps of the head model, blurred to the width of a voxel (full width at half maximum, mm)."""
    from scipy.ndimage import gaussian_filter

    model: HeadModel = head_model()
    maps = {}
    for parts, affine in ((model.brain, model.affine), (model.head, model.head_affine)):
        sigma = 0.42 * np.sqrt(max(width**2 - affine[0, 0] ** 2, 0.0)) / affine[0, 0]
        maps.update({name: (gaussian_filter(part, sigma) if sigma else part, affine) for name, part in parts.items()})
    return maps


def draw_image(rng: np.random.Generator, points: Array, scan: Scan, contrast: str) -> npt.NDArray[np.int16]:
    """Make the image that a scanner would take.

    Parameters
    ----------
    rng : Generator
        Source of contrast jitter, bias field, texture and noise.
    points : (3, x, y, z) ndarray
        MNI point of each voxel of the scan's grid, RAS mm.
    scan : Scan
        The grid.
    contrast : str
        ``T1w`` or ``T2w``.

    Returns
    -------
    (x, y, z) int16 ndarray
        Intensities with a smooth texture, a bias field of about 15 % and Rician noise (Gudbjartsson and Patz, MRM 1995).
    """
    from scipy.ndimage import gaussian_filter

    shape = scan.grid.shape
    width = round(float(scan.grid.spacing.mean()), 0) if scan.grid.spacing.mean() > 1 else 1.0
    image = np.zeros(shape, dtype=np.float32)
    for name, (share, affine) in _blurred(width).items():
        level = CONTRAST[contrast][name] * np.exp(JITTER[name] * rng.standard_normal())
        image += np.float32(level / 255) * sample(share, affine, points)
    texture = gaussian_filter(rng.standard_normal(shape).astype(np.float32), 2.5 / scan.grid.spacing)
    image *= 1 + 0.03 * texture / texture.std()
    image *= np.exp(_bias(rng, shape))
    sigma = rng.uniform(0.015, 0.03)
    real, imaginary = (np.float32(sigma) * rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
    scale = rng.uniform(600, 1400)
    return np.asarray(np.rint(np.float32(scale) * np.hypot(image + real, imaginary)), dtype=np.int16)


def _bias(rng: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """Return the logarithm of a smooth bias field: a random polynomial of degree 2 with a deviation of about 0.12."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in shape], indexing="ij", sparse=True)
    terms: list[Array] = [x, y, z, x * y, y * z, x * z, x * x, y * y, z * z]
    field = np.zeros(shape, dtype=np.float32)
    for term in terms:
        field += np.float32(0.09 * rng.standard_normal()) * term
    return np.asarray(field - field.mean())
