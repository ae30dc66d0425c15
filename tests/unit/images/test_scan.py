import numpy as np
import pytest
import torch

from popatlas.errors import InputError
from popatlas.images.grid import Grid
from popatlas.images.pyramid import coarsen, shrink
from popatlas.images.scan import Scan, check_pair, check_scans
from tests.unit.pairs import ball, texture

GOOD = texture((8, 9, 7))


def changed(index, value):
    image = GOOD.clone()
    image[(0, 0, *index)] = value
    return image


@pytest.mark.parametrize(
    ("moving", "options", "message"),
    [
        (texture((8, 9)), {}, "fixed image has 3 axes and the moving one 2"),
        (changed((1, 2, 3), float("nan")), {}, "moving image has 1 voxels that are NaN or infinite"),
        (changed((1, 2, 3), float("inf")), {}, "moving image has 1 voxels that are NaN or infinite"),
        (torch.full((1, 1, 8, 9, 7), 3.0), {}, r"moving image is constant \(value 3\)"),
        (GOOD[..., :1], {}, r"moving image has an axis of one voxel \(shape \(8, 9, 1\)\)"),
        (GOOD, {"fixed_mask": torch.zeros_like(GOOD)}, "fixed mask is empty"),
        (GOOD, {"moving_mask": torch.zeros_like(GOOD)}, "moving mask is empty"),
        (GOOD, {"moving_mask": torch.ones(1, 1, 8, 9, 6)}, r"moving mask has shape \(8, 9, 6\) and its image \(8, 9, 7\)"),
        (torch.where(ball((8, 9, 7)) > 0, 2.0, GOOD), {"moving_mask": ball((8, 9, 7))}, "constant inside its mask"),
    ],
)
def test_each_fault_has_one_clear_error_that_names_the_subject(moving, options, message):
    with pytest.raises(InputError, match=rf"{message}.*\[subject: sub-03\]. Remedy: ") as caught:
        check_pair(GOOD, moving, **options, subject="sub-03")
    assert caught.value.remedy


def test_good_pairs_pass():
    check_pair(GOOD, texture((6, 6, 6)), ball((8, 9, 7)), None)
    check_pair(texture((5, 6)).expand(2, 1, 5, 6), texture((7, 6)).expand(2, 1, 7, 6), torch.ones(1, 1, 5, 6))
    check_pair(GOOD + 1e4, GOOD)  # a small contrast on a large offset is none of our business


def test_a_batch_is_checked_pair_by_pair():
    batch = torch.cat([GOOD, torch.ones_like(GOOD)])
    with pytest.raises(InputError, match="fixed image is constant"):
        check_pair(batch, batch)


def test_a_scan_fits_its_grid():
    with pytest.raises(ValueError, match="on a grid of shape"):
        Scan(GOOD, Grid.isotropic((8, 9, 8)))
    with pytest.raises(InputError, match="mask is empty"):
        check_scans(Scan(GOOD, Grid.isotropic((8, 9, 7)), torch.zeros_like(GOOD)), Scan(GOOD, Grid.isotropic((8, 9, 7))))


def test_shrinking_keeps_linear_images_inside_and_constants_everywhere():
    index = torch.arange(40.0)
    ramp = (index[:, None] + 2 * index[None, :30])[None, None]
    small = shrink(ramp, (14, 30), (1.5, 0.0))
    at = torch.linspace(0, 39, 14)
    expected = at[:, None] + 2 * index[None, :30]
    assert torch.allclose(small[0, 0, 3:-3], expected[3:-3], atol=1e-3)
    assert torch.allclose(shrink(torch.ones(1, 1, 9, 8), (4, 5), (2.0, 0.7)), torch.ones(1, 1, 4, 5))


def test_shrinking_without_smoothing_to_the_same_shape_changes_nothing():
    assert shrink(GOOD, GOOD.shape[2:], (0.0, 0.0, 0.0)) is GOOD


def test_a_coarse_scan_keeps_place_extent_and_spacing_of_coarse_axes():
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    affine[:3, 3] = (5, 6, 7)
    scan = Scan(texture((33, 25, 9)), Grid((33, 25, 9), affine), ball((33, 25, 9)))
    coarse = coarsen(scan, 4.0)
    assert coarse.grid.shape == (9, 7, 9)
    assert np.allclose(coarse.grid.spacing, (4, 4, 4))
    assert np.allclose(coarse.grid.corners(), scan.grid.corners())
    volumes = [float((item.mask > 0).sum()) * np.prod(item.grid.spacing) for item in (scan, coarse)]
    assert volumes[1] == pytest.approx(volumes[0], rel=0.15)


def test_a_mask_that_is_thinner_than_the_coarse_voxels_does_not_vanish():
    mask = torch.zeros(1, 1, 33, 33)
    mask[..., 16, 10:20] = 1
    assert coarsen(Scan(texture((33, 33)), Grid.isotropic((33, 33)), mask), 8.0).mask.sum() > 0
