"""Random changes of scans."""

import math

import pytest
import torch

from popatlas.training.augment import augment, augment_pair, changed_look
from popatlas.training.conform import Volume
from popatlas.training.motion import Motion, displacement_of, random_matrix, random_motion
from popatlas.training.settings import AugmentSettings, LookSettings, MotionSettings
from popatlas.training.structures import exchanged
from popatlas.transforms.fields import coordinates, warp, warp_labels

SHAPES = pytest.mark.parametrize("shape", [(20, 24, 22), (28, 30)], ids=["3d", "2d"])
STRONG = MotionSettings(rotation=10.0, scale=0.1, shear=0.05, shift=3.0, bend=2.0)
LOOK = LookSettings(gamma=0.3, noise=0.03, bias=0.2, blur=0.6, invert=0.3, thick=0.3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ramp(shape):
    """An image that is linear in the voxel index."""
    slopes = torch.tensor([1.0, -2.0, 0.5])[: len(shape)].reshape(1, -1, *[1] * len(shape))
    return (coordinates(shape) * slopes).sum(1, keepdim=True) + 100


def volume(shape, seed=0):
    labels = torch.randint(0, 6, (1, 1, *shape), generator=generator(seed), dtype=torch.int32)
    image = torch.rand((1, 1, *shape), generator=generator(seed + 1))
    return Volume(image, (1.0,) * len(shape), labels, (labels > 1).float(), "who")


@SHAPES
def test_nothing_changes_by_default(shape):
    scan = volume(shape)
    found = augment(scan, AugmentSettings(), generator())
    assert torch.equal(found.image, scan.image) and torch.equal(found.labels, scan.labels)
    assert torch.equal(found.mask, scan.mask) and found.name == "who"


@SHAPES
def test_a_ramp_stays_the_analytic_ramp(shape):
    """Through a common motion, a bend and an affine: a second interpolation would round corners off the bend."""
    common = random_motion(shape, MotionSettings(rotation=5.0, shift=1.0), generator(8))
    found = augment(Volume(ramp(shape), (1.0,) * len(shape)), AugmentSettings(STRONG), generator(3), before=common)
    random = generator(3)
    torch.rand((), generator=random, dtype=torch.float64)  # the flip
    own = random_motion(shape, STRONG, random)
    at = coordinates(shape) + displacement_of([common, own], shape)
    slopes = torch.tensor([1.0, -2.0, 0.5])[: len(shape)].reshape(1, -1, *[1] * len(shape))
    size = torch.tensor(shape).reshape(1, -1, *[1] * len(shape))
    inside = ((at >= 0) & (at <= size - 1)).all(1, keepdim=True)
    assert 0.3 < float(inside.float().mean()) < 1
    expected = (at * slopes).sum(1, keepdim=True) + 100
    assert float((found.image - expected)[inside].abs().max()) < 1e-3
    beyond = ((at < -0.51) | (at > size - 0.49)).any(1, keepdim=True)
    assert bool((found.image[beyond] == 0).all())


@SHAPES
def test_everything_is_interpolated_once_by_one_field(shape, monkeypatch):
    fields = []
    plain = Volume.moved
    monkeypatch.setattr(Volume, "moved", lambda self, field: fields.append(field) or plain(self, field))
    scan = volume(shape)
    common = random_motion(shape, STRONG, generator(1))
    found = augment(scan, AugmentSettings(STRONG), generator(2), before=common)
    assert len(fields) == 1
    assert torch.equal(found.labels, warp_labels(scan.labels, fields[0], padding="zeros"))
    assert torch.equal(found.mask, warp(scan.mask, fields[0], "nearest", "zeros"))
    assert torch.equal(found.image, warp(scan.image, fields[0], padding="zeros"))


@SHAPES
def test_the_image_does_not_depend_on_labels_or_mask(shape):
    scan, settings = volume(shape), AugmentSettings(STRONG, LOOK, flip=0.5)
    for seed in range(4):
        whole = augment(scan, settings, generator(seed))
        bare = augment(Volume(scan.image, scan.spacing), settings, generator(seed))
        assert torch.equal(whole.image, bare.image)
        assert bare.labels is None and bare.mask is None


def test_draws_follow_from_the_seed():
    scan, settings = volume((16, 16, 16)), AugmentSettings(STRONG, LOOK)
    first, again, other = (augment(scan, settings, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.image, again.image) and torch.equal(first.labels, again.labels)
    assert not torch.equal(first.image, other.image)


def test_motions_go_one_after_the_other():
    """Two affines are their product, and a bend after an affine is read where the affine leads."""
    shape = (14, 12)
    first, second = (random_motion(shape, MotionSettings(rotation=10.0, shift=1.0), generator(n)) for n in (1, 2))
    both = displacement_of([first, second], shape)
    product = displacement_of([Motion(second.matrix @ first.matrix)], shape)
    assert float((both - product).abs().max()) < 1e-4
    bend = torch.stack(torch.meshgrid(torch.arange(14.0), torch.arange(12.0), indexing="ij"))[None] * 0.1
    shift = torch.eye(3, dtype=torch.float64)[None].clone()
    shift[:, 0, 2] = 2.0
    found = displacement_of([Motion(shift), Motion(torch.eye(3, dtype=torch.float64)[None], bend)], shape)
    assert float(found[0, 0, 5, 5]) == pytest.approx(2.0 + 0.7, abs=1e-5)
    assert float(found[0, 1, 5, 5]) == pytest.approx(0.5, abs=1e-5)


@SHAPES
def test_rotations_are_rigid_in_millimetres(shape):
    spacing = (1.0, 3.0, 2.0)[: len(shape)]
    matrix = random_matrix(shape, MotionSettings(rotation=30.0), generator(5), spacing)[0, :-1, :-1]
    scale = torch.diag(torch.tensor(spacing, dtype=torch.float64))
    rigid = scale @ matrix @ scale.inverse()
    assert torch.allclose(rigid @ rigid.T, torch.eye(len(shape), dtype=torch.float64), atol=1e-9)
    assert not torch.allclose(rigid, torch.eye(len(shape), dtype=torch.float64), atol=1e-2)


@SHAPES
def test_affines_stay_within_their_limits_and_keep_the_middle(shape):
    ndim = len(shape)
    middle = torch.tensor([(n - 1) / 2 for n in shape] + [1.0], dtype=torch.float64)
    moved = []
    for seed in range(100):
        matrix = random_matrix(shape, MotionSettings(scale=0.2, shift=3.0), generator(seed), (2.0,) * ndim)[0]
        stretch = torch.linalg.svdvals(matrix[:-1, :-1]).log()
        assert float(stretch.abs().max()) < 0.2 + 1e-9
        assert float(torch.linalg.det(matrix[:-1, :-1])) > 0
        moved.append((matrix @ middle - middle)[:-1].abs() * 2.0)
    assert float(torch.stack(moved).max()) <= 3.0 + 1e-9
    assert float(torch.stack(moved).max()) > 2.5


@SHAPES
def test_a_mirrored_scan_has_its_sides_exchanged(shape):
    scan = volume(shape)
    settings = AugmentSettings(flip=1.0, flip_axis=1, sides=((2, 3), (4, 5)))
    found = augment(scan, settings, generator())
    assert torch.allclose(found.image, scan.image.flip(3), atol=1e-5)
    expected = torch.tensor([0, 1, 3, 2, 5, 4], dtype=torch.int32)[scan.labels.flip(3).long()]
    assert torch.equal(found.labels, expected)
    assert torch.equal(found.mask, scan.mask.flip(3))
    assert torch.equal(augment(found, settings, generator()).labels, scan.labels)


def test_labels_without_a_partner_stay():
    labels = torch.tensor([0, 1, 2, 7]).reshape(1, 1, 2, 2)
    assert exchanged(labels, ((1, 7),)).flatten().tolist() == [0, 7, 2, 1]


def test_a_pair_is_mirrored_together_and_shares_the_common_motion_only():
    shape = (16, 18, 14)
    scan = volume(shape)
    settings = AugmentSettings(flip=0.5)
    flips = []
    for seed in range(30):
        fixed, moving = augment_pair(scan, scan, settings, generator(seed))
        assert torch.equal(fixed.labels, moving.labels)
        flips.append(not torch.equal(fixed.labels, scan.labels))
    assert 5 < sum(flips) < 25
    fixed, moving = augment_pair(scan, scan, AugmentSettings(), generator(1), STRONG)
    assert torch.equal(fixed.image, moving.image) and not torch.equal(fixed.image, scan.image)
    fixed, moving = augment_pair(scan, scan, AugmentSettings(STRONG), generator(1))
    assert not torch.equal(fixed.labels, moving.labels)
    with pytest.raises(ValueError, match="images of shape"):
        augment_pair(scan, volume((16, 18, 16)), settings, generator())


@SHAPES
def test_looks_stay_in_range_and_leave_the_background(shape):
    image = torch.rand((1, 1, *shape), generator=generator()) * 0.8 + 0.1
    image[..., :6] = 0
    for seed in range(10):
        found = changed_look(image, LOOK, generator(seed))
        assert bool((found[..., :6] == 0).all())
        assert float(found.min()) >= 0 and float(found.max()) <= float(image.max())
        assert float((found - image).abs().mean()) > 1e-3


def test_each_part_of_the_look_does_what_it_says():
    image = ramp((24, 24)) / 200
    low, high = float(image.min()), float(image.max())
    inside = image > low
    inverted = changed_look(image, LookSettings(invert=1.0), generator())
    assert float((inverted - (low + high - image))[inside].abs().max()) < 1e-6
    bent = changed_look(image, LookSettings(gamma=0.5), generator(1))
    logs = ((bent - low) / (high - low))[inside].log() / ((image - low) / (high - low))[inside].log()
    power = logs[(logs > 0) & logs.isfinite()]
    assert float(power.median().log().abs()) > 0.01 and float(power.log().abs().max()) < 0.5 + 1e-3
    assert float((power - power.median()).abs().max()) < 1e-2
    biased = changed_look(image * 0 + 0.5 + (image > 0.5) * 0.5, LookSettings(bias=0.3), generator(2))
    assert float(biased.std()) > 0
    noise = torch.rand((1, 1, 64, 64), generator=generator())
    assert float(changed_look(noise, LookSettings(blur=2.0), generator(4)).std()) < 0.7 * float(noise.std())


def test_thick_slices_blur_one_axis():
    noise = torch.rand((1, 1, 64, 64), generator=generator())
    found = changed_look(noise, LookSettings(thick=1.0, slices=(6.0, 6.0)), generator(3))
    rough = sorted(float(found.diff(dim=axis).std() / noise.diff(dim=axis).std()) for axis in (2, 3))
    assert rough[0] < 0.5 * rough[1]


WRONG = [
    (MotionSettings, {"rotation": 200.0}),
    (MotionSettings, {"scale": -0.1}),
    (MotionSettings, {"shear": math.nan}),
    (MotionSettings, {"shift": math.inf}),
    (MotionSettings, {"bend": -1.0}),
    (MotionSettings, {"bend_spacing": (16.0, 8.0)}),
    (MotionSettings, {"bend_spacing": (1.0, 8.0)}),
    (LookSettings, {"gamma": -0.1}),
    (LookSettings, {"noise": 1.1}),
    (LookSettings, {"bias": -0.1}),
    (LookSettings, {"bias_spacing": (0.0, 8.0)}),
    (LookSettings, {"invert": 2.0}),
    (LookSettings, {"blur": -1.0}),
    (LookSettings, {"thick": -0.1}),
    (LookSettings, {"slices": (0.5, 2.0)}),
    (AugmentSettings, {"flip": 1.1}),
    (AugmentSettings, {"flip_axis": 3}),
    (AugmentSettings, {"sides": ((1, 2), (2, 3))}),
]


@pytest.mark.parametrize(("kind", "wrong"), WRONG)
def test_impossible_settings_are_refused(kind, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        kind(**wrong)


def test_an_image_has_no_axis_to_mirror_that_it_lacks():
    with pytest.raises(ValueError, match="no axis 2"):
        augment(volume((8, 8)), AugmentSettings(flip=1.0, flip_axis=2), generator())
