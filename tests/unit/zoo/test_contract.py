"""Images brought to what a network expects, and displacements brought back."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from popatlas.errors import InputError
from popatlas.images.grid import Grid
from popatlas.images.scan import Scan
from popatlas.transforms.fields import coordinates, sample
from popatlas.zoo.contract import _cut, conform_pair, field_to_grid, reoriented, to_contract
from popatlas.zoo.metadata import InputContract, Intensity

AS_IS = Intensity("none")
ANY = InputContract(spacing_mm=(1.0, 1.0, 1.0), multiple=8, intensity=AS_IS, stripped=False)
CODES = st.permutations([0, 1, 2]).flatmap(
    lambda axes: st.tuples(*(st.sampled_from(("LR", "PA", "SI")[axis]) for axis in axes)).map("".join)
)


def grid_of(code, shape, spacing, centre=(5.0, -7.0, 11.0)):
    """Return a grid whose axes point as the letters say."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, letter in enumerate(code):
        world = "LRPASI".find(letter) // 2
        affine[world, axis] = spacing[axis] * (1 if letter in "LPS" else -1)
    affine[:3, 3] = np.array(centre) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def points(grid):
    """Return the LPS points (D, *shape) of the voxels of a grid."""
    index = coordinates(grid.shape, dtype=torch.float64)[0].numpy()
    return np.einsum("ij,j...->i...", grid.affine[:-1, :-1], index) + grid.origin.reshape(-1, *[1] * grid.ndim)


def brain(grid, radius=14.0, centre=(5.0, -7.0, 11.0), seed=0):
    """Return a ball of smooth positive values, 0 outside, as a scan; its values depend on the point only."""
    x = points(grid) - np.array(centre).reshape(3, 1, 1, 1)
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    values = 2 + sum(np.sin(0.25 * x[i] + phase[i]) for i in range(3)) / 3
    return Scan(torch.tensor(values * (np.linalg.norm(x, axis=0) < radius))[None, None].float(), grid)


def push(grid):
    """Return a displacement known in millimetres, as voxels of a grid (1, 3, *shape) float64: LPS vectors of each point."""
    x = points(grid) - np.array([5.0, -7.0, 11.0]).reshape(3, 1, 1, 1)
    bump = np.exp(-(x**2).sum(0) / (2 * 9.0**2))
    millimetres = np.stack([3 * bump, -2 * bump * np.cos(x[0] / 12), bump * np.sin(x[1] / 10)])
    return torch.tensor(np.einsum("ij,j...->i...", np.linalg.inv(grid.affine[:3, :3]), millimetres))[None]


def test_voxels_that_fit_are_taken_as_they_are():
    grid = grid_of("RAS", (30, 33, 32), (1.0, 1.0, 1.0))
    image = torch.rand(1, 1, *grid.shape, generator=torch.Generator().manual_seed(1))
    image[0, 0, 3, 4, 5] = 0
    found = to_contract(image, grid, ANY)
    assert found.grid.shape == (32, 40, 32)
    # every voxel is there once, bit by bit, at its place
    offset = np.rint(np.linalg.inv(found.grid.affine) @ np.append(grid.origin, 1)).astype(int)[:3]
    inner = tuple(slice(o, o + n) for o, n in zip(offset, grid.shape, strict=True))
    assert torch.equal(found.image[0, 0][inner], image[0, 0])
    assert np.allclose(found.grid.affine @ [*offset, 1], [*grid.origin, 1])
    outside = torch.ones(found.grid.shape, dtype=torch.bool)
    outside[inner] = False
    assert not found.image[0, 0][outside].any()
    # images with another least value get that outside
    assert float(to_contract(image + 3, grid, ANY).image[0, 0][outside].max()) == 3


def test_a_network_of_any_shape_sees_the_brain_and_a_margin():
    grid = grid_of("RAS", (60, 50, 40), (1.0, 1.0, 1.0))
    image = torch.zeros(1, 1, 60, 50, 40)
    image[0, 0, 30:48, 4:20, 10:31] = torch.rand(18, 16, 21) + 0.5
    found = to_contract(image, grid, InputContract((1.0,) * 3, 8, orientation="RAS", intensity=AS_IS))
    assert found.grid.shape == (32, 24, 32)  # 18, 16 and 21 voxels with 4 on each side, up to multiples of 8
    assert float(found.image.sum()) == pytest.approx(float(image.sum()), rel=1e-6)


def test_a_brain_that_fits_is_seen_in_the_shape_of_the_training():
    grid = grid_of("RAS", (60, 50, 40), (1.0, 1.0, 1.0))
    image = torch.zeros(1, 1, 60, 50, 40)
    image[0, 0, 30:48, 4:20, 10:31] = torch.rand(18, 16, 21) + 0.5
    usual = InputContract((1.0,) * 3, 8, orientation="RAS", intensity=AS_IS, usual_shape=(24, 16, 16))
    found = to_contract(image, grid, usual)
    # no margin where it fits (18 and 16 voxels), as above where it does not (21)
    assert found.grid.shape == (24, 16, 32)
    assert float(found.image.sum()) == pytest.approx(float(image.sum()), rel=1e-6)


def test_a_network_of_heads_sees_what_is_outside_of_the_brain():
    grid = grid_of("RAS", (40, 40, 40), (1.0, 1.0, 1.0))
    image = torch.rand(1, 1, 40, 40, 40, generator=torch.Generator().manual_seed(0)) + 0.5
    image[0, 0, 0, 0, 0] = 0  # the air
    mask = torch.zeros_like(image)
    mask[0, 0, 15:25, 15:25, 15:25] = 1
    conformed = conform_pair(Scan(image, grid, mask), Scan(image, grid, mask), np.eye(4), ANY)
    assert torch.equal(conformed.fixed.image, image) and torch.equal(conformed.moving, image)
    # the least value fills what a fixed shape has around the image, and the mask still gives the range
    shifted = to_contract(image + 3, grid, replace(ANY, shape=(48, 48, 48), intensity=Intensity("zscore")), mask)
    values = (image + 3)[mask > 0]
    inner = shifted.image[0, 0, 4:-4, 4:-4, 4:-4]
    expected = (0.5 + 0.25 * (image[0, 0] + 3 - values.mean()) / values.std(correction=0)).clamp(0, 1.5)
    assert torch.allclose(inner, expected, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(code=CODES, wanted=CODES)
def test_axes_are_exchanged_and_turned_over_and_nothing_else(code, wanted):
    grid = grid_of(code, (9, 10, 11), (1.0, 1.0, 1.0))
    found, axes = reoriented(grid, replace(ANY, orientation=wanted))
    assert found.same_as(grid_of(wanted, tuple(grid.shape[axis] for axis, _ in axes), (1.0, 1.0, 1.0)))
    image = torch.rand(1, 1, *grid.shape).mul_(torch.arange(9).reshape(9, 1, 1))
    order = [axis for axis, _ in axes]
    turned = image[0, 0].permute(order).flip([n for n, (_, flipped) in enumerate(axes) if flipped])
    conformed = to_contract(image, grid, replace(ANY, orientation=wanted, multiple=1))
    assert conformed.grid.same_as(found) and torch.equal(conformed.image[0, 0], turned)


@settings(max_examples=15, deadline=None)
@given(code=CODES, wanted=CODES, spacing=st.sampled_from([(1.0, 1.0, 1.0), (1.3, 1.0, 0.8), (2.0, 2.0, 2.0)]))
def test_a_known_displacement_comes_back_whatever_the_axes_and_spacings(code, wanted, spacing):
    shape = tuple(round(44 / size) for size in spacing)
    source = grid_of(code, shape, spacing)
    contract = replace(ANY, orientation=wanted, spacing_mm=(1.2, 1.2, 1.2))
    conformed = to_contract(brain(source).image, source, contract)
    found = conformed.back(push(conformed.grid).float())
    error = (found - push(source)).norm(dim=1) * np.linalg.norm(source.spacing) / np.sqrt(3)
    # linear interpolation of a bump of 9 mm and 3.7 mm height at 1.2 mm
    assert float(error.max()) < 0.05
    assert float(push(source).norm(dim=1).max()) > 1.2


@settings(max_examples=15, deadline=None)
@given(code=CODES, wanted=CODES)
def test_an_image_shows_the_same_at_the_same_point(code, wanted):
    source = grid_of(code, (40, 42, 44), (1.0, 1.0, 1.0))
    contract = replace(ANY, orientation=wanted, spacing_mm=(0.9, 0.9, 0.9))
    conformed = to_contract(brain(source).image, source, contract)
    at = points(conformed.grid)
    inner = torch.tensor(np.linalg.norm(at - np.array([5.0, -7.0, 11.0]).reshape(3, 1, 1, 1), axis=0) < 11)
    expected = brain(conformed.grid).image[0, 0]
    assert float((conformed.image[0, 0] - expected)[inner].abs().max()) < 0.02
    assert float(expected[inner].std()) > 0.1


def test_no_displacement_stays_none_and_outside_is_that_of_the_border():
    small, large = grid_of("RAS", (12, 12, 12), (1.0, 1.0, 1.0)), grid_of("LIA", (30, 30, 30), (1.0, 1.0, 1.0))
    assert not field_to_grid(torch.zeros(2, 3, 12, 12, 12), small, large).any()
    found = field_to_grid(torch.ones(1, 3, 12, 12, 12), small, large)
    # R, A, S of one voxel each are -L, -P, S: L, I, A of -1, -1, 1
    assert torch.equal(found, torch.tensor([-1.0, -1.0, 1.0]).reshape(1, 3, 1, 1, 1).expand(1, 3, 30, 30, 30))


def test_flat_images_have_two_axes_throughout():
    grid = Grid((20, 25), np.array([[-2.0, 0, 30], [0, -1.0, 40], [0, 0, 1]]))
    contract = InputContract((1.0, 1.0), 16, orientation="AR", intensity=AS_IS, stripped=False)
    conformed = to_contract(torch.rand(1, 1, 20, 25), grid, contract)
    assert conformed.grid.shape == (32, 48)
    assert np.allclose(conformed.grid.direction, [[0, -1], [-1, 0]])
    u = torch.stack([torch.full((32, 48), 2.0), torch.full((32, 48), 4.0)])[None]
    assert torch.allclose(conformed.back(u)[0, :, 10, 12], torch.tensor([2.0, 2.0]))  # 4 mm right, 2 mm forward


def test_an_image_with_itself_is_a_pair_of_equal_images():
    scan = brain(grid_of("PSR", (35, 40, 45), (1.3, 1.0, 0.7)))
    contract = InputContract((1.0, 1.0, 1.0), 16, orientation="LIA", shape=(48, 48, 48))
    pair = conform_pair(scan, scan, np.eye(4), contract)
    assert torch.equal(pair.fixed.image, pair.moving)
    assert pair.moving.shape == (1, 1, 48, 48, 48)


def test_the_moving_image_comes_through_the_affine():
    grid = grid_of("RAS", (44, 44, 44), (1.0, 1.0, 1.0))
    affine = np.eye(4)
    affine[:3, 3] = 4.0, -3.0, 2.0
    fixed, moving = brain(grid), brain(grid_of("LPS", (50, 52, 54), (1.0, 1.0, 1.0)), centre=(9.0, -10.0, 13.0))
    contract = replace(ANY, spacing_mm=(1.1, 1.1, 1.1), orientation="LIA")
    pair = conform_pair(fixed, moving, affine, contract)
    core = pair.fixed.image > 0.5
    assert float((pair.fixed.image - pair.moving)[core].abs().median()) < 0.005
    still = conform_pair(fixed, moving, np.eye(4), contract)
    assert float((still.fixed.image - still.moving)[core].abs().median()) > 0.05


def test_a_pair_of_a_warped_image_is_undone_by_the_displacement_that_comes_back():
    """End to end: a field on the network's grid that aligns there aligns the original images through field, then affine."""
    grid = grid_of("PSR", (44, 44, 44), (1.0, 1.0, 1.0))
    affine = np.array([[1.05, 0.04, 0, 2], [-0.03, 0.97, 0, -4], [0, 0, 1.0, 3], [0, 0, 0, 1]])
    fixed, moving = brain(grid, radius=30), brain(grid_of("LPS", (60, 60, 60), (1.0, 1.0, 1.0)), radius=60, seed=3)
    pair = conform_pair(fixed, moving, affine, replace(ANY, orientation="LIA", spacing_mm=(0.8, 0.8, 0.8)))
    field = push(pair.fixed.grid).float()
    index = coordinates(pair.fixed.grid.shape)
    on_network = sample(pair.moving, index + field)
    back = pair.back(field)
    index = coordinates(grid.shape).double() + back
    at = np.einsum("ij,j...->i...", grid.affine[:3, :3], index[0].numpy()) + grid.origin.reshape(3, 1, 1, 1)
    at = np.einsum("ij,j...->i...", affine[:3, :3], at) + affine[:3, 3].reshape(3, 1, 1, 1)
    inverse = np.linalg.inv(moving.grid.affine)
    voxel = np.einsum("ij,j...->i...", inverse[:3, :3], at) + inverse[:3, 3].reshape(3, 1, 1, 1)
    direct = sample(moving.image, torch.tensor(voxel)[None].float())
    expected = to_contract(direct, grid, replace(ANY, orientation="LIA", spacing_mm=(0.8, 0.8, 0.8))).image
    inner = tuple(slice(12, -12) for _ in range(3))
    assert float((on_network - expected)[0, 0][inner].abs().max()) < 0.03
    assert float((pair.moving - expected)[0, 0][inner].abs().max()) > 0.1


def test_intensities_are_scaled_in_the_brain():
    scan = brain(grid_of("RAS", (40, 40, 40), (1.0, 1.0, 1.0)))
    robust = replace(ANY, intensity=Intensity("robust", 0.0, 0.5), stripped=True)
    values = to_contract(scan.image, scan.grid, robust).image
    inside = to_contract(scan.image, scan.grid, replace(ANY, stripped=True)).image > 0
    assert np.percentile(values[inside], [1, 99]) == pytest.approx([0, 0.5], abs=1e-4)
    assert 0.5 < float(values.max()) <= 0.75
    assert float(values.min()) == 0
    assert torch.allclose(to_contract(7 * scan.image, scan.grid, robust).image, values, atol=1e-5)
    spread = to_contract(scan.image, scan.grid, replace(ANY, intensity=Intensity("minmax", -1.0, 1.0), stripped=True)).image
    assert (float(spread.min()), float(spread.max())) == (-1, 1)


def test_the_mask_takes_the_skull_away():
    scan = brain(grid_of("RAS", (40, 40, 40), (1.0, 1.0, 1.0)))
    mask = (scan.image > 0).float()
    contract = replace(ANY, stripped=True)
    head = scan.image + 5 * (1 - mask)
    assert torch.equal(
        to_contract(head, scan.grid, contract, mask).image, to_contract(scan.image, scan.grid, contract).image
    )
    with pytest.raises(InputError, match=r"takes brains, and only 0 % of the image are 0.*give the brain mask"):
        to_contract(head, scan.grid, contract)


def test_a_fixed_shape_is_centred_on_the_brain():
    grid = grid_of("RAS", (60, 50, 40), (1.0, 1.0, 1.0), centre=(0.0, 0.0, 0.0))
    scan = brain(grid, radius=10, centre=(8.0, -6.0, 5.0))
    contract = replace(ANY, stripped=True, orientation="LIA", shape=(32, 32, 32), multiple=16)
    found = to_contract(scan.image, grid, contract)
    assert found.grid.shape == (32, 32, 32)
    assert np.linalg.norm(found.grid.centre - [8, -6, 5]) < 1
    assert float(found.image.sum()) == pytest.approx(float(scan.image.sum()))


def test_finer_images_are_smoothed_before_they_lose_voxels():
    grid = grid_of("RAS", (64, 64, 64), (0.5, 0.5, 0.5))
    noise = torch.randn(1, 1, 64, 64, 64, generator=torch.Generator().manual_seed(0))
    kept = float(to_contract(noise, grid, replace(ANY, spacing_mm=(2.0, 2.0, 2.0))).image.std())
    assert kept < 0.25 * float(noise.std())
    smooth = torch.tensor(gaussian_filter(noise[0, 0].numpy(), 6))[None, None]
    low = to_contract(smooth, grid, replace(ANY, spacing_mm=(2.0, 2.0, 2.0))).image
    assert float(low.std()) > 0.8 * float(smooth.std())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.zeros(1, 1, 40, 40, 40)}, "the image is empty or constant"),
        ({"image": torch.full((1, 1, 40, 40, 40), torch.nan)}, "64000 voxels that are NaN"),
        ({"grid": Grid((40, 40, 40), np.diag([6.0, 6, 6, 1]))}, "6 x 6 x 6 mm, the network was trained with 1 x 1 x 1 mm"),
        ({"mask": torch.zeros(1, 1, 40, 40, 40)}, "the image is empty or constant"),
        ({"mask": torch.ones(1, 1, 40, 40, 8)}, r"mask of the image has shape \(40, 40, 8\)"),
        ({"contract": InputContract((1.0, 1.0), 8)}, "the image has 3 axes, the network takes 2"),
        (
            {"contract": replace(ANY, shape=(16, 48, 48), stripped=True)},
            "brain of 28 mm along axis 0, the network takes 16 mm",
        ),
    ],
)
def test_images_outside_the_contract_are_refused_by_name(change, message):
    scan = brain(grid_of("RAS", (40, 40, 40), (1.0, 1.0, 1.0)))
    given = {"image": scan.image, "grid": scan.grid, "contract": ANY, "mask": None} | change
    with pytest.raises(InputError, match=message) as error:
        to_contract(given["image"], given["grid"], given["contract"], given["mask"], file="t1.nii.gz", subject="sub-3")
    assert (error.value.file, error.value.subject) == ("t1.nii.gz", "sub-3")
    assert error.value.remedy


def test_an_affine_that_loses_the_moving_image_is_refused():
    scan = brain(grid_of("RAS", (40, 40, 40), (1.0, 1.0, 1.0)))
    away = np.eye(4)
    away[0, 3] = 500
    with pytest.raises(InputError, match=r"no voxel of the moving image .*m\.nii.*check the affine"):
        conform_pair(scan, scan, away, replace(ANY, stripped=True), files=("f.nii", "m.nii"))


@pytest.mark.parametrize("letters", ["RAA", "RA", "XAS", "RLS", ""])
def test_orientations_that_are_none_are_refused(letters):
    with pytest.raises(ValueError, match="does not name 3 axes"):
        replace(ANY, orientation=letters)


def test_letters_mean_what_nibabel_means():
    import nibabel as nib

    for code in ("LIA", "RAS", "PSR"):
        grid = grid_of(code, (4, 5, 6), (1.0, 1.0, 1.0))
        found, _ = reoriented(grid_of("RAS", (4, 5, 6), (1.0, 1.0, 1.0)), replace(ANY, orientation=code))
        for one in (grid, found):
            assert "".join(nib.aff2axcodes(np.diag([-1, -1, 1, 1]) @ one.affine)) == code


def test_a_shift_by_whole_voxels_interpolates_nothing_and_equals_the_interpolation():
    """The fast way of grids that share their axes gives what sampling gives."""
    field = torch.rand(2, 3, 9, 8, 7, generator=torch.Generator().manual_seed(0))
    small = grid_of("RAS", (9, 8, 7), (2.0,) * 3)
    step = np.eye(4)
    step[:3, 3] = [-2, 3, -1]
    moved = Grid((14, 6, 12), small.affine @ step)
    step[:3, 3] += 1e-4
    fast, nudged = field_to_grid(field, small, moved), Grid((14, 6, 12), small.affine @ step)
    torch.testing.assert_close(fast, field_to_grid(field, small, nudged), atol=1e-3, rtol=0)
    assert set(fast.unique().tolist()) <= set(field.unique().tolist())


def test_a_cut_of_an_image_equals_its_sampling_also_beyond_its_border():
    image = torch.rand(1, 1, 9, 8, 7, generator=torch.Generator().manual_seed(0))
    axes = [torch.arange(n, dtype=torch.float32) for n in (12, 6, 5)]
    for starts in ([-2, 1, 1], [3, -4, 0], [0, 5, 6], [9, 0, 0], [-12, 0, 0]):
        at = torch.stack(torch.meshgrid(*(axis + s for axis, s in zip(axes, starts, strict=True)), indexing="ij"))[None]
        assert torch.equal(_cut(image, starts, (12, 6, 5)), sample(image, at, "nearest", padding="zeros")), starts
