"""Greedy behind the engine's interface: directions, affine start, inverse, 2D and 3D."""

from __future__ import annotations

from types import SimpleNamespace

import ants
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor

pytest.importorskip("picsl_greedy")

from popatlas.errors import InputError
from popatlas.images.grid import Grid
from popatlas.registration.engines.greedy.core import deform_greedy, invert, register
from popatlas.registration.engines.greedy.settings import GreedySettings
from popatlas.registration.engines.registry import find_engine
from popatlas.registration.types import Attempt
from popatlas.settings import settings_from
from popatlas.transforms.fields import compose, warp
from popatlas.transforms.itk import write_affine

SHAPES = [(48, 64), (32, 36, 40)]
ATTEMPT = Attempt("mass", "affine", "greedy", GreedySettings())


def tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None]


def texture(shape: tuple[int, ...]) -> np.ndarray:
    image = gaussian_filter(np.random.default_rng(0).standard_normal(shape), 2)
    return image / image.std()


def wave(shape: tuple[int, ...], length: float = 1.5) -> np.ndarray:
    """A smooth random displacement, `length` voxels on average."""
    rng = np.random.default_rng(1)
    field = np.stack([gaussian_filter(rng.standard_normal(shape), 6) for _ in shape])
    return field * length / np.linalg.norm(field, axis=0).mean()


def undone(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points that `field` moves to the given ones."""
    back = points.copy()
    for _ in range(60):
        back = points - np.stack([map_coordinates(part, back, order=1, mode="nearest") for part in field])
    return back


def quarter_turn(shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the matrix (D, D + 1) that turns the first two axes, and the shape of the turned grid."""
    matrix = np.eye(len(shape), len(shape) + 1)
    matrix[:2, :2] = [[0, 1], [-1, 0]]
    matrix[1, -1] = shape[0] - 1
    return matrix, (shape[1], shape[0], *shape[2:])


def pair(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return fixed, moving, the field and the turn: ``moving(turn(x + u(x))) = fixed(x)``."""
    image, field = texture(shape), wave(shape)
    matrix, turned = quarter_turn(shape)
    at = np.indices(turned).astype(float) - matrix[:, -1].reshape(-1, *[1] * len(shape))
    straight = np.einsum("ji,j...->i...", matrix[:, :-1], at)  # the inverse of a rotation is its transpose
    return image, map_coordinates(image, undone(field, straight), order=3, mode="nearest"), field, matrix


def inner(field: Tensor) -> Tensor:
    return field[(..., *[slice(6, -6)] * (field.ndim - 2))]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_known_field_before_a_known_turn_is_found_with_its_inverse(shape):
    fixed, moving, field, matrix = pair(shape)
    result = register(tensor(fixed)[None], tensor(moving)[None], matrix=tensor(matrix))
    error = inner(result.forward - tensor(field)).norm(dim=1).mean()
    assert error < 0.15 < 0.8 < inner(tensor(field)).norm(dim=1).mean()
    assert result.forward.shape == (1, len(shape), *shape)
    assert inner(compose(result.inverse, result.forward)).norm(dim=1).mean() < 0.03


def test_a_batch_is_registered_pair_by_pair():
    shape = SHAPES[0]
    fixed = torch.stack([tensor(texture(shape)), tensor(texture(shape).T.copy().reshape(shape))])
    shift = torch.zeros(2, 2, *shape)
    shift[0, 0], shift[1, 1] = 1.5, -2.0
    moving = warp(fixed, -shift)
    found = inner(register(fixed, moving, inverse=False).forward)
    assert torch.allclose(found.flatten(2).median(dim=2).values, torch.tensor([[1.5, 0.0], [0.0, -2.0]]), atol=0.25)


def test_runs_repeat_exactly_and_fields_are_not_rounded():
    """[hazard] Greedy adds noise to images and rounds fields to a tenth of a voxel unless it is told not to."""
    shape = SHAPES[0]
    images = tensor(texture(shape))[None], warp(tensor(texture(shape))[None], torch.full((1, 2, *shape), 1.23))
    first, second = (register(*images, inverse=False).forward for _ in range(2))
    assert torch.equal(first, second)
    steps = (first * 10 - (first * 10).round()).abs()
    assert steps.mean() == pytest.approx(0.25, abs=0.05)  # rounded values would have 0


def test_invert_undoes_a_field():
    field = tensor(wave(SHAPES[1]))
    there_and_back = compose(field, invert(field))
    assert inner(there_and_back).norm(dim=1).mean() < 0.02 * inner(field).norm(dim=1).mean()


def test_more_smoothing_gives_a_smoother_field():
    fixed, moving, _, matrix = pair(SHAPES[1])
    fields = [
        register(tensor(fixed)[None], tensor(moving)[None], settings, matrix=tensor(matrix), inverse=False).forward
        for settings in (GreedySettings(), GreedySettings(fluid=3.0, elastic=1.0))
    ]
    rough = [torch.diff(field, n=2, dim=2).square().mean() for field in fields]
    assert rough[1] < 0.8 * rough[0]


def test_settings_come_from_the_configuration_and_wrong_ones_are_named():
    settings = settings_from(GreedySettings, {"metric": "SSD", "iterations": [20, 10], "fluid": 2.0}, "greedy")
    assert settings == GreedySettings(metric="SSD", iterations=(20, 10), fluid=2.0)
    assert "-m SSD -n 20x10 -s 2vox 0.707vox" in settings.command(3, 1)
    assert "-m NCC 3x3 " in GreedySettings(metric="NCC", radius=3).command(2, 1)
    with pytest.raises(ValueError, match="WNCC"):
        GreedySettings(metric="CC")


def test_files_of_the_pipeline_reproduce_the_fixed_image_with_ants(tmp_path):
    """Turned grids with an offset and 2 mm voxels; the fields are read by ANTs, not by us."""
    shape = SHAPES[1]
    image, field = texture(shape), wave(shape, 2.5)
    direction = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, -1]])
    geometry = {"origin": (5.0, -7.0, 11.0), "spacing": (2.0, 2.0, 2.0), "direction": direction}
    start = np.eye(4)
    start[:3, 3] = (4.0, 6.0, -3.0)
    points = np.indices(shape).astype(float)
    fixed = ants.from_numpy(image.astype(np.float32), **geometry)
    moving = map_coordinates(image, undone(field, points), order=3, mode="nearest").astype(np.float32)
    moving = ants.from_numpy(moving, **geometry | {"origin": (9.0, -1.0, 8.0)})  # the affine is needed to meet it
    write_affine(tmp_path / "affine.mat", start)
    scans = [SimpleNamespace(image=tensor(i.numpy())[None], grid=Grid.from_ants(i)) for i in (fixed, moving)]
    files = deform_greedy(
        SimpleNamespace(scans=lambda: scans, subject="sub-1"), ATTEMPT, tmp_path / "affine.mat", tmp_path, 1
    )
    chain = {"transformlist": [str(files.warp), str(tmp_path / "affine.mat")], "whichtoinvert": [False, False]}
    warped = ants.apply_transforms(fixed=fixed, moving=moving, **chain).numpy()
    assert not files.diverged and find_engine("greedy").load() is deform_greedy
    box = (slice(6, -6),) * 3
    before = ants.apply_transforms(fixed, moving, [str(tmp_path / "affine.mat")]).numpy()
    assert np.corrcoef(before[box].ravel(), image[box].ravel())[0, 1] < 0.9
    assert np.corrcoef(warped[box].ravel(), image[box].ravel())[0, 1] > 0.99
    forth = ants.apply_transforms(
        fixed=moving,
        moving=fixed,
        transformlist=[str(tmp_path / "affine.mat"), str(files.inverse_warp)],
        whichtoinvert=[True, False],
    ).numpy()
    assert np.corrcoef(forth[box].ravel(), moving.numpy()[box].ravel())[0, 1] > 0.98


@pytest.mark.parametrize(
    ("moving", "message"),
    [
        (torch.ones(1, 1, *SHAPES[0]), "moving image is constant"),
        (torch.full((1, 1, *SHAPES[0]), torch.nan), "moving image has 3072 voxels that are NaN or infinite"),
        (tensor(texture(SHAPES[1]))[None], "fixed image has 2 axes and the moving one 3"),
    ],
)
def test_bad_input_is_refused(moving, message):
    with pytest.raises(InputError, match=rf"{message}.*sub-2"):
        register(tensor(texture(SHAPES[0]))[None], moving, subject="sub-2")


def test_a_metric_without_a_radius_is_told_without():
    said = {metric: GreedySettings(metric=metric).schedule() for metric in ("WNCC", "NCC", "SSD", "NMI")}
    assert {metric for metric, words in said.items() if "radius 2" in words} == {"WNCC", "NCC"}
