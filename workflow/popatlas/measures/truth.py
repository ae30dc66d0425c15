"""Score registrations and template of a simulated cohort against the deformations that made it.

For a scan i the registration maps a template point x to the subject, phi_i(x), and the truth maps a subject point to
MNI space, psi_i^-1. Were all registrations right, q_i(x) = psi_i^-1(phi_i(x)) would be the same MNI point for all
scans, whatever shape the template has. So

* the known-field error of scan i is the distance of q_i(x) from the mean of the *other* scans' q(x);
* the mean R(x) over all scans tells which anatomy sits at x, so the template's shape can be compared with the true
  mean anatomy: m(x) = R(x) + M(R(x)) with the mean-anatomy field M, rigidly aligned to x, because a rigid motion of a
  template is no error.

Points are RAS millimetres here; displacement files are LPS millimetres.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
from nibabel.affines import apply_affine

from popatlas.errors import InputError
from popatlas.images.arrays import FloatArray
from popatlas.images.io import load_image
from popatlas.images.labels import read_mask
from popatlas.measures.correlation import pearson
from popatlas.measures.dictionary import BRAIN, COLUMNS, GROUP, MASK, TRUTH
from popatlas.measures.landmarks import RAS_TO_LPS
from popatlas.measures.metrics import unit_of
from popatlas.measures.overlap import dice
from popatlas.measures.scan import resample_labels, split_scan

FIELD, TRUE_MASK = "{scan}_from-T1w_to-MNI152_mode-points_xfm.nii.gz", "{scan}_desc-truth_mask.nii.gz"
ANATOMY, SOURCE = "tpl-MNI152_desc-meananatomy_xfm.nii.gz", "tpl-MNI152_desc-brain_T1w.nii.gz"
Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sampler:
    """Values on a grid, (x, y, z) or (x, y, z, k), read at world points by linear interpolation."""

    values: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]

    def at(self, points: Points) -> npt.NDArray[np.float64]:
        """Return values at RAS points (n, 3): (n,) or (n, k); NaN outside of the grid."""
        from scipy.ndimage import map_coordinates

        shape = np.array(self.values.shape[:3])
        inverse = np.linalg.inv(self.affine)
        index = points @ inverse[:3, :3].T + inverse[:3, 3]
        # rounding must not push a point on the border of the grid out of it
        inside = ((index >= -1e-4) & (index <= shape - 1 + 1e-4)).all(axis=1)
        index = np.clip(index, 0, shape - 1)
        planes = self.values[..., None] if self.values.ndim == 3 else self.values
        found = np.stack(
            [map_coordinates(planes[..., k], index.T, order=1, output=np.float64) for k in range(planes.shape[-1])],
            axis=-1,
        )
        found[~inside] = np.nan
        return found[:, 0] if self.values.ndim == 3 else found


def read_field(path: Path) -> Sampler:
    """Read an ITK displacement field (LPS mm) as RAS displacements."""
    try:
        image = nib.load(path)
        data = np.asarray(image.dataobj, dtype=np.float32)
    except Exception as error:
        raise InputError(f"cannot read displacement field: {error}", file=path, remedy="run the step again") from error
    data = data[:, :, :, 0, :] if data.ndim == 5 else data
    if data.ndim != 4 or data.shape[-1] != 3:
        raise InputError(f"not a 3D displacement field: shape {data.shape}", file=path, remedy="give an ITK warp")
    return Sampler(data * RAS_TO_LPS.astype(np.float32), np.asarray(image.affine, dtype=np.float64))


def move(field: Sampler, points: Points) -> Points:
    """Return points + field(points); NaN where a point lies outside of the field."""
    return np.asarray(points + field.at(points))


def brain_points(mask: nib.Nifti1Image, limit: int = 20_000, seed: int = 0) -> Points:
    """Return world points (n, 3) of mask voxels, at most `limit`, drawn with a seed and in a stable order."""
    voxels = np.argwhere(np.asarray(mask.dataobj) != 0)
    if len(voxels) > limit:
        chosen = np.random.default_rng(seed).choice(len(voxels), size=limit, replace=False)
        voxels = voxels[np.sort(chosen)]
    return np.asarray(apply_affine(mask.affine, voxels), dtype=np.float64)


def rigid_align(moving: Points, fixed: Points) -> Points:
    """Return `moving` after the rotation and translation that bring it closest to `fixed` (least squares).

    Kabsch W. A solution for the best rotation to relate two sets of vectors. Acta Cryst. A 1976;32:922-923.
    """
    from scipy.spatial.transform import Rotation

    center_moving, center_fixed = moving.mean(axis=0), fixed.mean(axis=0)
    rotation, _ = Rotation.align_vectors(fixed - center_fixed, moving - center_moving)
    return np.asarray(rotation.apply(moving - center_moving) + center_fixed)


def known_field_errors(mapped: FloatArray) -> npt.NDArray[np.float64]:
    """Return the distance of each scan's points from the mean of the other scans'.

    Parameters
    ----------
    mapped : (n_scans, n_points, 3) ndarray
        q_i(x) in mm.

    Returns
    -------
    (n_scans, n_points) float64 ndarray
        mm; NaN for a single scan. |q_i - mean of others| = n / (n - 1) |q_i - mean of all|.
    """
    count = len(mapped)
    distance = np.linalg.norm(mapped - mapped.mean(axis=0, dtype=np.float64), axis=2)
    return np.asarray(distance * count / (count - 1) if count > 1 else np.full(distance.shape, np.nan))


def template_error(points: Points, consensus: Points, mean_anatomy: Sampler) -> float:
    """Return the mean distance in mm between template points and the true mean anatomy, rigid motion removed.

    Parameters
    ----------
    points : (n, 3) ndarray
        Template points x.
    consensus : (n, 3) ndarray
        R(x), the MNI points that the cohort puts there.
    mean_anatomy : Sampler
        Displacement from MNI points to the mean anatomy.
    """
    anatomy = move(mean_anatomy, consensus)
    known = np.isfinite(anatomy).all(axis=1)
    if known.sum() < 3:
        return float("nan")
    return float(np.linalg.norm(rigid_align(anatomy[known], points[known]) - points[known], axis=1).mean())


def score_truth(
    scans: Sequence[str],
    derivatives: Path,
    truth: Path,
    label: str,
    template: str = "",
    limit: int = 20_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Score a simulated cohort.

    Parameters
    ----------
    scans : sequence of str
        Scan keys that are in; those without truth or transform files are left aside.
    derivatives, truth : Path
        OUT_DIR and the folder of the truth.
    label : str
        Label of the template.
    template : str
        ``label@version`` for the table.
    limit, seed : int
        Number of template points and seed of their choice.

    Returns
    -------
    DataFrame
        Tidy rows; values of the whole cohort have the participant ``group``. No scan with truth: no rows.
    """
    folder = derivatives / f"tpl-{label}"
    known = [scan for scan in scans if _is_known(scan, derivatives, truth, label)]
    rows = [row for scan in scans for row in _mask_row(scan, derivatives, truth)]
    if known:
        points = brain_points(read_mask(folder / f"tpl-{label}_desc-brain_mask.nii.gz").image, limit, seed)
        mapped = np.empty((len(known), len(points), 3), dtype=np.float32)
        for place, scan in enumerate(known):
            back = truth / FIELD.format(scan=scan)
            mapped[place] = move(read_field(back), move(_forward(scan, derivatives, label), points))
        # a point counts when it stays inside of the fields of all scans
        usable = np.isfinite(mapped).all(axis=(0, 2))
        points, mapped = points[usable], mapped[:, usable]
        if usable.any():
            rows += _field_rows(known, mapped)
            rows += _template_rows(points, mapped.mean(axis=0, dtype=np.float64), folder, truth, label)
        rows.append((GROUP, "", TRUTH, "truth_points", float(usable.sum())))
    table = pd.DataFrame(rows, columns=["participant_id", "session_id", "method", "metric", "value"])
    table = table.assign(template=template, label=BRAIN, unit=table["metric"].map(unit_of))
    return table[COLUMNS]


def truth_files(scans: Sequence[str]) -> list[str]:
    """Return the files of the truth that the scores of scans are made from, relative to its folder."""
    own = [ending.format(scan=scan) for scan in scans for ending in (FIELD, TRUE_MASK)]
    return ["simulation.json", ANATOMY, SOURCE, *own]


TruthRow = tuple[str, str, str, str, float]  # participant, session, method, metric, value


def forward_files(scan: str, derivatives: Path, label: str) -> list[Path]:
    """Return the files of the way from the template to a scan: one field, or what it is made of where that is not kept."""
    stem = f"{scan}_from-T1w_to-{label}_mode-image"
    whole = derivatives / f"{stem}_xfm.nii.gz"
    return (
        [whole] if whole.exists() else [derivatives / f"{stem}_desc-{end}" for end in ("affine_xfm.mat", "warp_xfm.nii.gz")]
    )


def _is_known(scan: str, derivatives: Path, truth: Path, label: str) -> bool:
    return all(path.exists() for path in (*forward_files(scan, derivatives, label), truth / FIELD.format(scan=scan)))


def _forward(scan: str, derivatives: Path, label: str) -> Sampler:
    files = forward_files(scan, derivatives, label)
    if len(files) == 1:
        return read_field(files[0])
    from popatlas.transforms.composed import compose_forward

    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "composed.nii.gz"
        affine, warp = files
        compose_forward(affine, warp, derivatives / f"tpl-{label}" / f"tpl-{label}_T1w.nii.gz", whole)
        return read_field(whole)


def _mask_row(scan: str, derivatives: Path, truth: Path) -> list[TruthRow]:
    estimate, true = derivatives / f"{scan}_desc-brain_mask.nii.gz", truth / TRUE_MASK.format(scan=scan)
    if not estimate.exists() or not true.exists():
        return []
    found = read_mask(estimate)
    return [(*split_scan(scan), MASK, "mask_dice", dice(resample_labels(read_mask(true), found.image), found.data))]


def _field_rows(scans: Sequence[str], mapped: npt.NDArray[np.float32]) -> list[TruthRow]:
    rows: list[TruthRow] = []
    for scan, error in zip(scans, known_field_errors(mapped), strict=True):
        key = split_scan(scan)
        rows.append((*key, TRUTH, "known_field_error", float(error.mean())))
        rows.append((*key, TRUTH, "known_field_error_p95", float(np.percentile(error, 95))))
    for place in range(len(scans) - 1):
        gap = np.linalg.norm(mapped[place] - mapped[place + 1], axis=1).mean(dtype=np.float64)
        rows.append((*split_scan(scans[place]), TRUTH, "pairwise_field_error", float(gap)))
    return rows


def _template_rows(points: Points, consensus: Points, folder: Path, truth: Path, label: str) -> list[TruthRow]:
    rows: list[TruthRow] = []
    anatomy = truth / ANATOMY
    if anatomy.exists():
        rows.append((GROUP, "", TRUTH, "template_error", template_error(points, consensus, read_field(anatomy))))
    source, built = truth / SOURCE, folder / f"tpl-{label}_T1w.nii.gz"
    if source.exists() and built.exists():
        true, found = _read_image(source).at(consensus), _read_image(built).at(points)
        both = np.isfinite(true) & np.isfinite(found)
        value = pearson(true[both], found[both]) if both.sum() > 2 else float("nan")
        rows.append((GROUP, "", TRUTH, "template_correlation", value))
    return rows


def _read_image(path: Path) -> Sampler:
    image = load_image(path)
    return Sampler(np.asarray(image.dataobj), np.asarray(image.affine, dtype=np.float64))
