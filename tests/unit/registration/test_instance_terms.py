"""The instance engine between files, with masks, labels, landmarks and an initial field; 2D and 3D, grids of any kind."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from popatlas.errors import InputError
from popatlas.images.io import read_json, save_image, write_table
from popatlas.interfaces import load_interface
from popatlas.registration.engines.instance.settings import Settings
from popatlas.registration.engines.instance.terms import Side, deform_files

SETTINGS = Settings(shrink=(2, 1), iterations=(40, 30), field_shrink=(1, 1))
SPACING = 2.0


def affine_of(ndim: int, spacing: float) -> np.ndarray:
    """A grid turned in its plane, away from the origin."""
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    turn[:3, :3] *= spacing
    turn[:ndim, 3] = (-20, 12, 5)[:ndim]
    return turn


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> np.ndarray:
    at = np.meshgrid(*map(np.arange, shape), indexing="ij")
    distance = np.sqrt(sum((a - c) ** 2 for a, c in zip(at, centre, strict=True)))
    return np.asarray(1 / (1 + np.exp(distance - radius)), np.float32)


def save(path: Path, values: np.ndarray) -> Path:
    save_image(values, affine_of(values.ndim, SPACING), path)
    return path


@pytest.fixture(params=[2, 3])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[int, Path]:
    """A ball of 8 voxels that becomes one of 10, at a place 3 voxels (6 mm) further along the first axis."""
    ndim = request.param
    shape, centre = (40, 44, 36)[:ndim], (18.0, 21.0, 17.0)[:ndim]
    noise = np.random.default_rng(0).normal(0, 0.02, (2, *shape))
    for name, place, radius, grain in (("fixed", centre, 8, noise[0]), ("moving", (21.0, *centre[1:]), 10, noise[1])):
        values = ball(shape, place, radius)
        save(tmp_path / f"{name}.nii.gz", values + grain.astype(np.float32))
        save(tmp_path / f"{name}_labels.nii.gz", 7 * (values > 0.5).astype(np.int16))
        save(tmp_path / f"{name}_mask.nii.gz", np.ones(shape, np.uint8))
        world = affine_of(ndim, SPACING) @ [*place, *[0] * (3 - ndim), 1]
        write_table(
            pd.DataFrame({"name": ["centre"], "x": world[:1], "y": world[1:2], "z": world[2:3]}), tmp_path / f"{name}.tsv"
        )
    return ndim, tmp_path


def overlap(folder: Path, warp: Path) -> float:
    """Dice of the fixed labels and the moving ones, resampled by SimpleITK."""
    fixed, moving = (sitk.ReadImage(str(folder / f"{name}_labels.nii.gz")) for name in ("fixed", "moving"))
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(warp), sitk.sitkVectorFloat64))
    moved = sitk.Resample(moving, fixed, transform, sitk.sitkNearestNeighbor)
    a, b = (sitk.GetArrayFromImage(image) > 0 for image in (fixed, moved))
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def side(folder: Path, name: str, *parts: str) -> Side:
    files = {"mask": f"{name}_mask.nii.gz", "labels": f"{name}_labels.nii.gz", "landmarks": f"{name}.tsv"}
    return Side(folder / f"{name}.nii.gz", **{part: folder / files[part] for part in parts})


def test_files_of_oblique_grids_are_registered(files: tuple[int, Path]) -> None:
    """SimpleITK applies the field that is written: axes, frame and units are right, in 2D and 3D."""
    _, folder = files
    found, result = deform_files(side(folder, "fixed", "mask"), side(folder, "moving", "mask"), SETTINGS, folder)
    assert not result.diverged
    assert overlap(folder, found.warp) > 0.95


def test_a_field_can_be_the_start(files: tuple[int, Path]) -> None:
    _, folder = files
    fixed, moving = side(folder, "fixed"), side(folder, "moving")
    (folder / "again").mkdir()
    found, _ = deform_files(fixed, moving, SETTINGS, folder)
    few = Settings(shrink=(1,), iterations=(1,), field_shrink=(1,))
    again, _ = deform_files(fixed, moving, few, folder / "again", initial=found.warp)
    assert overlap(folder, again.warp) > 0.95


def test_the_step_takes_labels_and_landmarks(files: tuple[int, Path]) -> None:
    """The images are nothing but noise; only labels and landmarks can find the way."""
    ndim, folder = files
    for seed, name in enumerate(("fixed", "moving")):
        shape = nib.load(folder / f"{name}.nii.gz").shape
        save(folder / f"{name}.nii.gz", np.random.default_rng(seed).random(shape).astype(np.float32))
    weights = {"label_weight": 10.0, "landmark_weight": 4.0}
    step = load_interface("DeformImages")(
        in_fixed=str(folder / "fixed.nii.gz"), in_moving=str(folder / "moving.nii.gz"), preset="fast",
        in_fixed_labels=str(folder / "fixed_labels.nii.gz"), in_moving_labels=str(folder / "moving_labels.nii.gz"),
        in_fixed_landmarks=str(folder / "fixed.tsv"), in_moving_landmarks=str(folder / "moving.tsv"),
        options={"shrink": [2, 1], "iterations": [40, 20], "field_shrink": [1, 1], **weights},
        out_warp=str(folder / "warp.nii.gz"), out_inverse_warp=str(folder / "back.nii.gz"), record=str(folder / "r.json"),
    )  # fmt: skip
    step.run()
    assert overlap(folder, folder / "warp.nii.gz") > 0.9
    assert read_json(folder / "r.json")["notes"]["levels"]
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(folder / "warp.nii.gz"), sitk.sitkVectorFloat64))
    flip = np.array([-1, -1, 1])[:ndim]
    centre, there = (flip * (affine_of(ndim, SPACING) @ [x, 21, 17 * (ndim - 2), 1])[:ndim] for x in (18, 21))
    assert np.linalg.norm(np.array(transform.TransformPoint(centre.tolist())) - there) < 1.5


def test_what_does_not_fit_is_named(files: tuple[int, Path]) -> None:
    ndim, folder = files
    save_image(np.ones((5,) * ndim, np.uint8), np.eye(4), folder / "other.nii.gz")
    save(folder / "empty.nii.gz", np.zeros(nib.load(folder / "fixed.nii.gz").shape, np.int16))
    (folder / "names.tsv").write_text("name\tx\ty\tz\nelsewhere\t0\t0\t0\n")
    stretched = np.diag([2.0, 2, 8, 1]) if ndim == 3 else np.diag([2.0, 8, 1, 1])
    save_image(nib.load(folder / "fixed.nii.gz").get_fdata(dtype=np.float32), stretched, folder / "thick.nii.gz")
    image = folder / "fixed.nii.gz"
    fixed, moving = side(folder, "fixed", "labels", "landmarks"), side(folder, "moving", "labels", "landmarks")
    for one, other, words in (
        (Side(image, mask=folder / "other.nii.gz"), moving, "another grid than fixed.nii.gz"),
        (fixed, Side(moving.image, labels=folder / "empty.nii.gz"), "0 labels are common"),
        (fixed, Side(moving.image, labels=moving.labels), "landmarks of one image only"),
        (
            Side(image, landmarks=folder / "names.tsv"),
            Side(moving.image, landmarks=moving.landmarks),
            "no landmark has a name",
        ),
        (Side(folder / "thick.nii.gz"), Side(moving.image), "voxels of the fixed image are"),
    ):
        with pytest.raises(InputError, match=words):
            deform_files(one, other, SETTINGS, folder)
