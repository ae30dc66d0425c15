"""The demo cohort: a BIDS dataset of simulated heads with the truth about each of them.

Truth files (``derivatives/truth``) that hold transforms are ITK displacement fields, LPS millimetres:

* ``from-MNI152_to-T1w_mode-points`` lies on the 2 mm MNI grid and maps MNI points to points of the scan (anatomy, then
  pose). As an ANTs warp its fixed domain is MNI: it resamples the scan onto the MNI grid.
* ``from-T1w_to-MNI152_mode-points`` lies on the grid of the raw T1w and maps its points to MNI. As an ANTs warp it
  resamples the MNI brain (2 mm) and labels (1 mm) onto the scan; the truth labels are made in this way.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from popatlas import __version__
from popatlas.errors import InputError
from popatlas.images import subject as draw
from popatlas.images.arrays import IntArray, Kind
from popatlas.images.deformation import Affine, Array, Grid, read_displacement, sample, write_displacement
from popatlas.images.io import (
    read_json,
    save_image,
    table_text,
    write_if_changed,
    write_json,
    write_table,
    write_text,
)
from popatlas.images.phantom import head_model, label_table, landmark_table, lateral_ventricles
from popatlas.settings import Content
from popatlas.surroundings import PRIVATE

if TYPE_CHECKING:
    import pandas as pd

TRUTH = Path("derivatives") / "truth"
RECORD = TRUTH / "simulation.json"
EFFECTS = {
    "ventricles": f"log-volume of the lateral ventricles = {draw.VENTRICLE_SLOPE} x (age - {draw.REFERENCE_AGE:g} years), "
    f"normal scatter {draw.VENTRICLE_SCATTER}; relative to MNI152 at equal brain size",
    "sex": f"brain volume relative to MNI152: female {draw.FEMALE_FACTOR}, male {draw.MALE_FACTOR} times that, "
    f"normal scatter of the logarithm {draw.SIZE_SCATTER}",
    "torque": "people's mean asymmetry of left and right; MNI152 itself is symmetric",
    "shape": f"random smooth velocity, (smoothness mm, mean length mm) = {draw.SHAPE}",
}
README = """Simulated cohort

Heads drawn by `popatlas simulate` from the MNI152 average brain (ICBM 2009a nonlinear symmetric): a random diffeomorphism
and planted effects of age and sex for each subject, then pose, bias field, noise, voxel size and storage orientation.
No person was scanned. derivatives/truth holds labels, masks, landmarks and the transforms that made each image;
derivatives/truth/simulation.json lists every drawn parameter.
"""


@dataclass(frozen=True)
class Options:
    """What all scans of a dataset have in common: seed, sessions per subject, T2w too, voxel size in mm (None: drawn)."""

    seed: int
    sessions: int = 1
    t2w: bool = False
    voxel_size: float | None = None


def simulate_cohort(
    out_dir: Path,
    subjects: int,
    seed: int,
    first: int = 1,
    *,
    sessions: int = 1,
    t2w: bool = False,
    voxel_size: float | None = None,
    jobs: int = 1,
) -> pd.DataFrame:
    """Write a simulated BIDS dataset, or the subjects that it still lacks.

    Parameters
    ----------
    out_dir : Path
        New or empty folder, or a dataset that this function wrote with the same options.
    subjects, first : int
        Subjects `first` to ``first + subjects - 1`` are wanted; what each is like depends on `seed` and its number only.
    seed : int
        Seed of the cohort.
    sessions : int
        Sessions of each subject, two years apart; with one there are no session folders.
    t2w : bool
        Write a T2w image too, with a small motion relative to the T1w.
    voxel_size : float, optional
        Isotropic voxel size, mm; about 2 mm, different for each scan, when left out.
    jobs : int
        Processes.

    Returns
    -------
    DataFrame
        The dataset's participants: participant_id, age (at the first session), sex.

    Raises
    ------
    InputError
        The folder holds something else, or the dataset was made with other options.
    """
    options = Options(seed, sessions, t2w, voxel_size)
    record = _open(out_dir, options, subjects, first)
    present = {scan["number"] for scan in record["scans"]}
    missing = [number for number in range(first, first + subjects) if number not in present]
    start = time.monotonic()
    for done, scans in enumerate(_draw_all(out_dir, options, missing, jobs), start=1):
        record["scans"] = sorted([*record["scans"], *scans], key=lambda scan: (scan["number"], scan["session"]))
        write_json(out_dir / RECORD, record)
        seconds = time.monotonic() - start
        print(f"simulated {scans[0]['subject']} ({done} of {len(missing)}, {seconds:.0f} s)", file=sys.stderr, flush=True)
    participants = _write_participants(out_dir, record["scans"], options)
    if missing or not _mean_file(out_dir).exists():
        write_mean_anatomy(out_dir, record["scans"])
    return participants


def _open(out_dir: Path, options: Options, subjects: int, first: int) -> Content:
    """Return the record of the dataset, which is made when the folder is empty."""
    if min(subjects, first, options.sessions) < 1 or options.seed < 0:
        raise InputError("subjects, first and sessions count from 1, the seed from 0", remedy="give larger numbers")
    if options.voxel_size is not None and not 0.5 <= options.voxel_size <= 8:
        raise InputError(f"voxel size {options.voxel_size} mm", remedy="give a size from 0.5 to 8 mm")
    wanted = asdict(options)
    if (out_dir / RECORD).is_file():
        record: Content = read_json(out_dir / RECORD)
        if record["options"] != wanted:
            raise InputError(
                f"the dataset was simulated with other options: {record['options']}, now {wanted}",
                file=out_dir,
                remedy="give the same options to add subjects, or another folder",
            )
        return record
    if out_dir.exists() and (not out_dir.is_dir() or any(not path.name.startswith(PRIVATE) for path in out_dir.iterdir())):
        raise InputError(
            "the folder is not empty and was not made by `popatlas simulate`",
            file=out_dir,
            remedy="give a new or empty folder",
        )
    record = {"generator": "popatlas simulate", "version": __version__, "options": wanted, "effects": EFFECTS, "scans": []}
    write_json(out_dir / RECORD, record)
    _write_dataset(out_dir)
    return record


def _write_dataset(out_dir: Path) -> None:
    """Write what does not depend on the subjects: descriptions and the MNI152 side of the truth."""
    made_by = [{"Name": "popatlas simulate", "Version": __version__}]
    description = {
        "Name": "Simulated cohort",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "GeneratedBy": made_by,
        "ReferencesAndLinks": ["MNI152 template: Fonov et al., doi:10.1016/j.neuroimage.2010.07.033"],
    }
    age = {"Description": "Age at the first session", "Units": "year"}
    sex = {"Description": "Sex", "Levels": {"F": "female", "M": "male"}}
    write_json(out_dir / "participants.json", {"age": age, "sex": sex})
    write_json(out_dir / "dataset_description.json", description)
    write_text(out_dir / "README", README)
    truth = {"Name": "Truth of the simulated cohort", "DatasetType": "derivative"}
    write_json(out_dir / TRUTH / "dataset_description.json", description | truth)
    write_table(label_table(), out_dir / TRUTH / "dseg.tsv")
    write_table(landmark_table(), out_dir / TRUTH / "tpl-MNI152_desc-truth_landmarks.tsv")
    model, grid = head_model(), mni_grid()
    from scipy.ndimage import gaussian_filter

    brain = gaussian_filter(model.t1w, 0.7)[::2, ::2, ::2]
    save_image(brain, grid.affine, out_dir / TRUTH / "tpl-MNI152_desc-brain_T1w.nii.gz", np.float32)
    save_image(model.labels, model.affine, out_dir / TRUTH / "tpl-MNI152_desc-truth_dseg.nii.gz", np.int16)


def mni_grid() -> Grid:
    """Return the 2 mm MNI152 grid: every other voxel of the 1 mm one."""
    model = head_model()
    nx, ny, nz = ((n + 1) // 2 for n in model.labels.shape)
    return Grid((nx, ny, nz), model.affine @ np.diag([2.0, 2.0, 2.0, 1.0]))


def _draw_all(out_dir: Path, options: Options, numbers: list[int], jobs: int) -> Iterable[list[Content]]:
    """Draw subjects, in processes when several are asked for; yield the records of each subject's scans."""
    if jobs == 1 or len(numbers) < 2:
        yield from (draw_subject(out_dir, options, number) for number in numbers)
        return
    with ProcessPoolExecutor(min(jobs, len(numbers))) as pool:
        count = len(numbers)
        yield from pool.map(draw_subject, [out_dir] * count, [options] * count, numbers)


def draw_subject(out_dir: Path, options: Options, number: int) -> list[Content]:
    """Draw a subject, write all its files, and return the records of its scans."""
    return [_draw_session(out_dir, options, number, session) for session in range(1, options.sessions + 1)]


def _draw_session(out_dir: Path, options: Options, number: int, session: int) -> Content:
    subject, label = f"sub-{number:02d}", f"ses-{session}" if options.sessions > 1 else ""
    folder = f"{subject}/{label}" if label else subject
    key = f"{folder}/anat/{subject}_{label}" if label else f"{folder}/anat/{subject}"
    traits = draw.draw_traits(options.seed, number, session)
    anatomy = draw.draw_anatomy(options.seed, number, traits)
    rng = draw.generator(options.seed, number, 2, session)
    scan = draw.draw_scan(rng, draw.draw_pose(rng), options.voxel_size)
    points = anatomy.to_mni(scan.anatomy_points())
    poses = {"matrix": scan.pose}
    if options.t2w:
        own = draw.generator(options.seed, number, 3, session)
        other = draw.draw_scan(own, draw.draw_pose(own, 0.7, 0.7) @ scan.pose, options.voxel_size)
        there = anatomy.to_mni(other.anatomy_points())
        _write_image(out_dir / f"{key}_T2w.nii.gz", draw.draw_image(own, there, other, "T2w"), other)
        poses["matrix_T2w"] = other.pose
    volumes = _write_truth(out_dir / TRUTH / key, anatomy, scan, points, poses)
    _write_image(out_dir / f"{key}_T1w.nii.gz", draw.draw_image(rng, points, scan, "T1w"), scan)
    return {
        "scan": key, "number": number, "subject": subject, "session": label, **asdict(traits), **volumes,
        "voxel_mm": scan.grid.spacing, "orientation": scan.orientation, "pose": scan.pose,
    }  # fmt: skip


def _write_image(path: Path, image: npt.NDArray[np.int16], scan: draw.Scan) -> None:
    stored, affine = reorient(image, scan.grid.affine, scan.orientation)
    write_json(path.with_name(path.name.replace(".nii.gz", ".json")), {"Manufacturer": "popatlas simulate"})
    save_image(stored, affine, path)


def reorient(data: npt.NDArray[Kind], affine: Affine, orientation: str) -> tuple[npt.NDArray[Kind], Affine]:
    """Return voxels (x, y, z, ...) of a RAS grid stored in another orientation, and the affine that goes with them."""
    from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(orientation))
    return np.ascontiguousarray(apply_orientation(data, turn)), affine @ inv_ornt_aff(turn, data.shape[:3])


def _write_truth(
    prefix: Path, anatomy: draw.Anatomy, scan: draw.Scan, points: Array, poses: dict[str, Affine]
) -> dict[str, float]:
    """Write the truth of a scan (`points`: MNI point of each of its voxels) and return volumes in ml."""
    model, grid = head_model(), scan.grid
    labels = sample(model.labels, model.affine, points, order=0).astype(np.int16)
    truths: dict[str, IntArray] = {"dseg": labels, "mask": (labels > 0).astype(np.uint8)}
    for suffix, data in truths.items():
        stored, affine = reorient(data, grid.affine, scan.orientation)
        save_image(stored, affine, _beside(prefix, f"_desc-truth_{suffix}.nii.gz"))
    back, affine = reorient(np.moveaxis(points - grid.points(), 0, -1), grid.affine, scan.orientation)
    write_displacement(np.moveaxis(back, -1, 0), affine, _beside(prefix, "_from-T1w_to-MNI152_mode-points_xfm.nii.gz"))
    mni = mni_grid()
    forward = move(scan.pose, anatomy.to_subject(mni.points())) - mni.points()
    write_displacement(forward, mni.affine, _beside(prefix, "_from-MNI152_to-T1w_mode-points_xfm.nii.gz"))
    landmarks = landmark_table()
    places = landmarks[["x", "y", "z"]].to_numpy(np.float32).T
    landmarks[["x", "y", "z"]] = np.round(move(scan.pose, anatomy.to_subject(places)).T.astype(np.float64), 3)
    write_table(landmarks, _beside(prefix, "_desc-truth_landmarks.tsv"))
    write_json(_beside(prefix, "_desc-pose_xfm.json"), poses)
    voxel_ml = float(np.prod(grid.spacing)) / 1000
    ventricles = int(lateral_ventricles(labels).sum())
    return {"ventricle_ml": round(ventricles * voxel_ml, 2), "brain_ml": round(int((labels > 0).sum()) * voxel_ml, 1)}


def _beside(prefix: Path, ending: str) -> Path:
    return prefix.with_name(prefix.name + ending)


def move(matrix: Affine, points: Array) -> Array:
    """Return points (3, ...) moved by an affine (4, 4)."""
    shift = matrix[:3, 3].astype(np.float32).reshape(3, *[1] * (points.ndim - 1))
    return np.asarray(np.tensordot(matrix[:3, :3].astype(np.float32), points, axes=1) + shift)


def _write_participants(out_dir: Path, scans: list[Content], options: Options) -> pd.DataFrame:
    """Write participants and, with several sessions, the ages at each."""
    import pandas as pd

    table = pd.DataFrame(scans).rename(columns={"subject": "participant_id"})
    participants = table.drop_duplicates("participant_id")[["participant_id", "age", "sex"]].reset_index(drop=True)
    write_if_changed(out_dir / "participants.tsv", table_text(participants))
    if options.sessions > 1:
        for name, rows in table.groupby("participant_id"):
            own = rows[["session", "age"]].rename(columns={"session": "session_id"})
            write_if_changed(out_dir / str(name) / f"{name}_sessions.tsv", table_text(own))
    return participants


def _mean_file(out_dir: Path) -> Path:
    return out_dir / TRUTH / "tpl-MNI152_desc-meananatomy_xfm.nii.gz"


def write_mean_anatomy(out_dir: Path, scans: list[Content]) -> None:
    """Write the mean over all scans of the map from MNI to the anatomy without pose; reads one scan's field at a time."""
    grid = mni_grid()
    points = grid.points()
    total = np.zeros((3, *grid.shape), dtype=np.float64)
    for scan in scans:
        path = _beside(out_dir / TRUTH / scan["scan"], "_from-MNI152_to-T1w_mode-points_xfm.nii.gz")
        forward, _ = read_displacement(path)
        total += move(np.linalg.inv(np.array(scan["pose"])), points + forward) - points
    write_displacement((total / len(scans)).astype(np.float32), grid.affine, _mean_file(out_dir))
