"""Pairs of images that are made of label maps."""

import pytest
import torch

from popatlas.training.contrast import paint, random_contrast, random_recolouring, random_table
from popatlas.training.motion import displacement_of, flow, random_motion, random_velocity
from popatlas.training.random_fields import bias_field, smooth_noise, unit_range
from popatlas.training.settings import STRONG, ContrastSettings, MotionSettings, ShapeSettings, SynthesisSettings
from popatlas.training.synthesis import SyntheticPairs, random_labels
from popatlas.transforms.fields import compose, warp_labels
from popatlas.transforms.jacobian import jacobian_determinant

SHAPES = pytest.mark.parametrize("shape", [(20, 24, 22), (28, 30)], ids=["3d", "2d"])
PLAIN = ContrastSettings(sd=(0.0, 0.0), noise=0.0, blur=0.0, bias=0.0, gamma=0.0, strip=0.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def maps(count, shape=(20, 24, 22), labels=12):
    return [random_labels(shape, ShapeSettings(labels, (6.0, 8.0)), generator(seed)) for seed in range(count)]


@SHAPES
def test_random_labels_are_all_there_and_nothing_else_is(shape):
    labels = random_labels(shape, ShapeSettings(8, (5.0, 8.0)), generator(1))
    assert labels.shape == (1, 1, *shape) and labels.dtype == torch.int32
    counts = torch.bincount(labels.flatten().long())
    assert len(counts) == 8 and bool((counts > 0).all())


def test_random_labels_are_shapes_rather_than_noise():
    """Neighbours share a label far more often than the 1 in 8 of shuffled voxels."""
    labels = random_labels((24, 24, 24), ShapeSettings(8, (8.0, 12.0)), generator(2))
    assert float((labels[:, :, 1:] == labels[:, :, :-1]).float().mean()) > 0.8


def test_smooth_noise_has_unit_variance_and_is_smooth():
    noise = smooth_noise(generator(), (32, 32, 32), 8.0, channels=40)
    assert noise.shape == (1, 40, 32, 32, 32)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.1)
    assert float(noise.diff(dim=2).abs().mean()) < 0.2


@SHAPES
def test_a_plain_image_is_the_table_of_means(shape):
    labels = maps(1, shape)[0]
    table = random_table(12, PLAIN, generator(3))
    assert float(table[0].min()) >= 0.1 and float(table[0].max()) <= 0.9
    image = paint(labels, table, generator())
    assert len(labels.unique()) > 8
    for label in labels.unique():
        assert torch.equal(image[labels == label].unique(), table[0, int(label)].reshape(1))
    assert torch.equal(random_contrast(labels, PLAIN, generator(), table), unit_range(image))


def test_noise_of_a_label_has_its_standard_deviation():
    labels = torch.arange(2).repeat_interleave(20_000).reshape(1, 1, 200, 200)
    image = paint(labels, torch.tensor([[0.2, 0.8], [0.05, 0.1]]), generator())
    for label, (mean, sd) in enumerate([(0.2, 0.05), (0.8, 0.1)]):
        values = image[labels == label]
        assert float(values.mean()) == pytest.approx(mean, abs=0.003)
        assert float(values.std()) == pytest.approx(sd, rel=0.03)


@SHAPES
def test_images_go_from_0_to_1_and_their_background_is_0_when_stripped(shape):
    labels = maps(1, shape)[0]
    for seed in range(6):
        stripped = random_contrast(labels, ContrastSettings(strip=1.0), generator(seed))
        assert float(stripped.min()) == 0 and float(stripped.max()) == 1
        assert bool((stripped[labels == 0] == 0).all())
        whole = random_contrast(labels, ContrastSettings(strip=0.0), generator(seed))
        assert float(whole.min()) == 0 and float(whole.max()) == 1
        assert float(whole[labels == 0].std()) > 0


def test_half_of_the_images_are_stripped():
    labels = maps(1, (24, 26))[0]
    random = generator(8)
    count = sum(bool((random_contrast(labels, ContrastSettings(), random)[labels == 0] == 0).all()) for _ in range(200))
    assert 70 < count < 130


def test_contrasts_differ_and_follow_from_the_seed():
    labels = maps(1)[0]
    first, again, other = (random_contrast(labels, ContrastSettings(), generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert float((first - other).abs().mean()) > 0.05


def test_the_bias_field_is_smooth_and_positive():
    field = bias_field(generator(5), (30, 30, 30), 0.5, (24.0, 64.0))
    assert float(field.min()) > 0
    assert float(field.log().diff(dim=3).abs().max()) < 0.1


@SHAPES
def test_moved_labels_are_the_warped_map(shape):
    labels = maps(1, shape)[0]
    pairs = SyntheticPairs([labels], SynthesisSettings())
    pair = pairs.draw(generator(4))
    random = generator(4)
    torch.rand((), generator=random, dtype=torch.float64)  # the choice of the map
    for found in (pair.fixed_labels, pair.moving_labels):
        field = displacement_of([random_motion(shape, STRONG, random)], shape)
        assert torch.equal(found, warp_labels(labels, field, padding="zeros"))
        assert float(field.abs().max()) > 1


@SHAPES
def test_images_show_their_own_labels(shape):
    """With plain contrasts each image is constant in each of its labels."""
    pair = SyntheticPairs(maps(3, shape), SynthesisSettings(contrast=PLAIN)).draw(generator(6))
    for image, labels in ((pair.fixed, pair.fixed_labels), (pair.moving, pair.moving_labels)):
        assert image.shape == labels.shape == (1, 1, *shape)
        assert all(len(image[labels == label].unique()) == 1 for label in labels.unique())
    assert not torch.equal(pair.fixed_labels, pair.moving_labels)


def test_one_contrast_is_that_of_both_images():
    settings = SynthesisSettings(one_contrast=True, contrast=PLAIN, motion=MotionSettings(shift=2.0))
    labels = maps(1)[0]
    pair = SyntheticPairs([labels], settings).draw(generator(1))
    greys = []
    for image, own in ((pair.fixed, pair.fixed_labels), (pair.moving, pair.moving_labels)):
        greys.append({int(label): round(float(image[own == label][0]), 5) for label in own.unique()})
    common = set(greys[0]) & set(greys[1])
    assert len(common) > 8
    assert [greys[0][label] for label in common] == [greys[1][label] for label in common]
    other = SyntheticPairs([labels], SynthesisSettings(contrast=PLAIN, motion=settings.motion)).draw(generator(1))
    assert [float(other.fixed[other.fixed_labels == 3][0])] != [float(other.moving[other.moving_labels == 3][0])]


def test_maps_of_a_pair_differ_or_are_the_same_as_asked():
    constant = [torch.full((1, 1, 8, 8), number, dtype=torch.int32) for number in (1, 2, 3)]
    still = {"motion": MotionSettings(), "contrast": PLAIN}
    random = generator(3)
    different = SyntheticPairs(constant, SynthesisSettings(same=0.0, **still))
    drawn = [different.draw(random) for _ in range(60)]
    found = {(int(pair.fixed_labels[0, 0, 4, 4]), int(pair.moving_labels[0, 0, 4, 4])) for pair in drawn}
    assert found == {(i, j) for i in (1, 2, 3) for j in (1, 2, 3) if i != j}
    same = SyntheticPairs(constant, SynthesisSettings(same=1.0, **still))
    drawn = [same.draw(random) for _ in range(30)]
    assert all(torch.equal(pair.fixed_labels, pair.moving_labels) for pair in drawn)
    assert {int(pair.fixed_labels[0, 0, 4, 4]) for pair in drawn} == {1, 2, 3}


def test_random_shapes_need_no_map_and_correspond():
    settings = SynthesisSettings(motion=MotionSettings(), shapes=ShapeSettings(10, (6.0, 8.0)))
    pairs = SyntheticPairs([], settings, shape=(20, 20, 20))
    pair = pairs.draw(generator(2))
    assert torch.equal(pair.fixed_labels, pair.moving_labels)
    assert int(pair.fixed_labels.max()) == 9
    again = pairs.draw(generator(2))
    assert torch.equal(pair.fixed, again.fixed) and torch.equal(pair.moving, again.moving)


def test_large_label_values_are_painted():
    labels = torch.zeros(1, 1, 16, 16, dtype=torch.int32)
    labels[..., 4:9, 4:9], labels[..., 10:14, 10:14] = 2035, 12_175
    pair = SyntheticPairs([labels], SynthesisSettings(motion=MotionSettings(), contrast=PLAIN)).draw(generator())
    assert set(pair.fixed_labels.unique().tolist()) == {0, 2035, 12_175}
    assert len(pair.fixed.unique()) == 3


@pytest.mark.parametrize("shape", [(40, 48, 40), (64, 72)], ids=["3d", "2d"])
def test_drawn_diffeomorphisms_do_not_fold(shape):
    for seed in range(10):
        field = displacement_of([random_motion(shape, STRONG, generator(seed))], shape)
        assert float(jacobian_determinant(field).min()) > 0
    for seed in range(10):  # the densest control points and the strongest velocity there is
        field = flow(random_velocity(shape, 100.0, (8.0, 8.0), generator(seed)), shape)
        assert float(field.abs().max()) > 1
        assert float(jacobian_determinant(field).min()) > 0


def test_the_flow_of_the_negative_velocity_is_the_inverse():
    shape = (40, 44, 36)
    velocity = random_velocity(shape, 2.0, (12.0, 16.0), generator(3))
    forward, backward = flow(velocity, shape), flow(-velocity, shape)
    rest = compose(forward, backward)[..., 8:-8, 8:-8, 8:-8]
    assert float(forward.abs().max()) > 1.0
    assert float(rest.abs().max()) < 0.25


def test_the_velocity_has_the_standard_deviation_that_was_asked_for():
    """Uniform up to the limit: on average half of it, in voxels of the image whatever the coarse grid is."""
    shape = (41, 41)
    sds = [float(flow(random_velocity(shape, 0.5, (8.0, 16.0), generator(n)), shape).std()) for n in range(200)]
    assert sum(sds) / len(sds) == pytest.approx(0.25, abs=0.04)
    assert max(sds) < 0.9


WRONG_CONTRAST = {
    "mean": (0.5, 0.2),
    "sd": (-0.1, 0.1),
    "noise": 2.0,
    "blur": -1.0,
    "bias": -0.1,
    "gamma": 3.0,
    "strip": 1.5,
}


@pytest.mark.parametrize("name", list(WRONG_CONTRAST))
def test_impossible_contrasts_are_refused(name):
    with pytest.raises(ValueError, match=name):
        ContrastSettings(**{name: WRONG_CONTRAST[name]})


def test_impossible_settings_and_maps_are_refused():
    with pytest.raises(ValueError, match="count"):
        ShapeSettings(count=1)
    with pytest.raises(ValueError, match="same"):
        SynthesisSettings(same=-0.5)
    with pytest.raises(ValueError, match="shape is needed"):
        SyntheticPairs([])
    with pytest.raises(ValueError, match="one shape"):
        SyntheticPairs([torch.ones(1, 1, 4, 4, dtype=torch.int32), torch.ones(1, 1, 5, 4, dtype=torch.int32)])
    with pytest.raises(ValueError, match="for images of shape"):
        SyntheticPairs([torch.ones(1, 1, 4, 4, dtype=torch.int32)], shape=(8, 8))
    for wrong in (torch.full((1, 1, 4, 4), -1), torch.full((1, 1, 4, 4), 70_000), torch.zeros(1, 1, 4, 4)):
        with pytest.raises(ValueError, match="integers"):
            SyntheticPairs([wrong])


def test_labels_of_a_class_have_one_grey_value_but_for_the_spread():
    settings = ContrastSettings(classes=(((3, 5), (9, 9)), ((6, 7),)), spread=0.0)
    mean, sd = random_table(12, settings, torch.Generator().manual_seed(0))
    assert mean[[3, 4, 5, 9]].unique().numel() == 1 and sd[[3, 4, 5, 9]].unique().numel() == 1
    assert mean.unique().numel() == 12 - 3 - 1 and mean[6] == mean[7] != mean[3]
    spread = ContrastSettings(classes=(((0, 999),),), spread=0.05)
    means = random_table(1000, spread, torch.Generator().manual_seed(0))[0]
    assert 0.045 < float(means.std()) < 0.055
    with pytest.raises(ValueError, match="classes"):
        ContrastSettings(classes=(((3, 5),), ((5, 6),)))


@SHAPES
def test_the_scans_behind_a_pair_move_as_its_labels_do(shape):
    """A scan that shows label 3: wherever linear interpolation leaves no doubt, it still does."""
    labels = maps(2, shape)
    scans = [(one == 3).float() for one in labels]
    strong = SynthesisSettings(motion=STRONG)
    for seed in range(3):
        drawn = SyntheticPairs(labels, strong, scans=scans).draw(generator(seed))
        for scan, shown in ((drawn.fixed_scan, drawn.fixed_labels), (drawn.moving_scan, drawn.moving_labels)):
            assert scan.shape == shown.shape and bool((scan > 0).any())
            assert bool((shown[scan > 0.9] == 3).all()) and not bool((shown[scan < 0.1] == 3).any())


def test_scans_change_nothing_else_about_a_pair():
    labels = maps(3)
    plain, behind = (
        SyntheticPairs(labels, SynthesisSettings(), scans=scans).draw(generator(1))
        for scans in ((), [one.float() for one in labels])
    )
    assert plain.fixed_scan is None and plain.moving_scan is None
    assert torch.equal(plain.fixed, behind.fixed) and torch.equal(plain.moving, behind.moving)


def test_each_label_map_needs_its_scan():
    with pytest.raises(ValueError, match="each label map needs a scan of its shape"):
        SyntheticPairs(maps(2), scans=[torch.zeros(1, 1, 20, 24, 22)])


@SHAPES
def test_a_recoloured_scan_is_a_function_of_its_grey_values(shape):
    """Equal values stay equal, background stays 0, and the curve is not always a rising one."""
    scan = (smooth_noise(generator(5), shape, 6.0).clamp(-0.3, 1) * 20).round().clamp_(min=0) / 20
    falls = 0
    for seed in range(6):
        image = random_recolouring(scan, PLAIN, generator(seed))
        assert float(image.min()) == 0 and float(image.max()) == 1
        assert bool((image[scan == 0] == 0).all()) and bool((image[scan > 0] > 0).all())
        curve = torch.tensor([float(image[scan == value].mean()) for value in scan.unique()])
        spread = max(float(image[scan == value].max() - image[scan == value].min()) for value in scan.unique())
        assert spread < 1e-5 and float(curve.diff().abs().max()) > 0.01
        falls += int((curve.diff() < 0).any())
    assert falls > 3


def test_recoloured_pairs_show_their_scans():
    labels = maps(2)
    scans = [torch.where(one > 4, 0.3, 0.9) * (one > 0) for one in labels]
    still = MotionSettings(rotation=0.0, scale=0.0, shear=0.0, shift=0.0, bend=0.0)
    settings = SynthesisSettings(recoloured=1.0, motion=still, contrast=PLAIN)
    drawn = SyntheticPairs(labels, settings, scans=scans).draw(generator(2))
    for image, scan in ((drawn.fixed, drawn.fixed_scan), (drawn.moving, drawn.moving_scan)):
        assert bool((image[scan == 0] == 0).all())
        for value in (0.3, 0.9):
            grey = image[(scan - value).abs() < 1e-4]
            assert len(grey) > 100 and float(grey.max() - grey.min()) < 1e-3


def test_recolouring_needs_scans_and_has_no_contrast_in_common():
    with pytest.raises(ValueError, match="to recolour scans, each label map needs its scan"):
        SyntheticPairs(maps(2), SynthesisSettings(recoloured=0.5))
    with pytest.raises(ValueError, match="no contrast in common"):
        SynthesisSettings(recoloured=0.5, one_contrast=True)
