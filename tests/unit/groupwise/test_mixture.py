"""Tissues by mixtures: known mixtures, known moves, a likelihood that does not fall, and refusals."""

import itertools

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from popatlas.errors import InputError
from popatlas.groupwise.mixture import moved_slices, segment
from popatlas.groupwise.settings import MixtureSettings
from popatlas.images.io import save_image
from popatlas.interfaces import load_interface
from popatlas.transforms.ffd import control_shape, dense_from_control
from popatlas.transforms.fields import warp


def drawn(shares, means, spreads, count=40_000, seed=0):
    """Return intensities (1, side, side) of a one-dimensional mixture, and the class of each."""
    rng = np.random.default_rng(seed)
    classes = rng.choice(len(shares), count, p=shares)
    values = rng.normal(np.array(means)[classes], np.array(spreads)[classes])
    side = int(np.sqrt(count))
    return torch.from_numpy(values.reshape(1, side, side)).float(), torch.from_numpy(classes.reshape(side, side))


def test_a_known_mixture_is_found():
    """Two classes with known shares as prior: means and spreads come out, and the classes as well as Bayes' rule allows."""
    shares, means, spreads = (0.3, 0.7), (2.0, 8.0), (0.8, 1.4)
    values, classes = drawn(shares, means, spreads)
    hint = torch.where(classes == 0, 0.6, 0.4)
    prior = torch.stack([hint, 1 - hint])
    result = segment(values, prior, plan=MixtureSettings(components=1))
    assert result.mixtures.means[0, :, 0].tolist() == pytest.approx(means, abs=0.05)
    assert result.mixtures.spreads[0, :, 0].tolist() == pytest.approx(spreads, abs=0.05)
    assert float((result.labels() - 1 == classes).float().mean()) > 0.99


def test_components_find_a_class_of_two_humps():
    values, _ = drawn((0.2, 0.3, 0.5), (1.0, 4.0, 9.0), (0.3, 0.3, 0.4), seed=1)
    first = (values[0] < 6.5).float()
    prior = torch.stack([0.8 * first + 0.1, 0.9 - 0.8 * first])
    result = segment(values, prior, plan=MixtureSettings(components=2))
    assert sorted(result.mixtures.means[0, 0].tolist()) == pytest.approx([1.0, 4.0], abs=0.1)


@given(seed=st.integers(0, 1000), components=st.integers(1, 3))
@settings(max_examples=10, deadline=None)
def test_likelihood_does_not_fall(seed, components):
    chance = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 20, 20, generator=chance)
    prior = torch.softmax(torch.randn(3, 20, 20, generator=chance), 0)
    result = segment(images, prior, plan=MixtureSettings(components=components, tolerance=0.0, iterations=15))
    losses = result.log_likelihoods
    assert all(later >= earlier - 2e-5 for earlier, later in itertools.pairwise(losses))
    torch.testing.assert_close(result.posterior.sum(0), torch.ones(20, 20))


def bodies(shape=(12, 48, 48)):
    """Return the classes of a volume: an ellipse with a hole that changes from slice to slice."""
    z, y, x = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    radius = np.hypot(x, 1.2 * y) + 0.5 * np.abs(z)
    return torch.from_numpy((radius < 18).astype(int) + (np.hypot(x - 3, y + 2) + 0.4 * z < 9))


def softened(classes, width=1.5):
    one_hot = torch.nn.functional.one_hot(classes).movedim(-1, 0).float()
    kernel = torch.exp(-(torch.arange(-4, 5) ** 2) / (2 * width**2))
    kernel = kernel / kernel.sum()
    for axis in range(1, 4):
        shape = [1, 1, 1, 1, 1]
        shape[axis + 1] = 9
        pad = [0] * 6
        pad[2 * (3 - axis)] = pad[2 * (3 - axis) + 1] = 4
        padded = torch.nn.functional.pad(one_hot[:, None], pad, mode="replicate")
        one_hot = torch.nn.functional.conv3d(padded, kernel.reshape(shape))[:, 0]
    return one_hot


def contrasts(classes, seed=0):
    chance = torch.Generator().manual_seed(seed)
    images = torch.stack([torch.tensor(levels)[classes] for levels in ((0.1, 0.5, 1.0), (0.2, 1.0, 0.3))])
    return images + 0.04 * torch.randn(images.shape, generator=chance)


def test_slices_that_moved_are_put_back():
    """Slices of the second contrast lie up to 3 pixels away, 1.5 on average: a sixth of that is left."""
    classes = bodies()
    images = contrasts(classes)
    chance = torch.Generator().manual_seed(3)
    shifts = (torch.rand(12, 2, generator=chance) * 6 - 3).round(decimals=1)
    moves = torch.eye(2, 3).repeat(1, 12, 1, 1)
    moves[0, :, :, 2] = shifts
    images[1:] = moved_slices(images[1:], moves, 0)
    result = segment(images, softened(classes), plan=MixtureSettings(slices="shift", slice_axis=0))
    assert result.slice_moves is not None
    rest = (result.slice_moves[1, :, :, 2] + shifts).abs()
    assert float(shifts.abs().mean()) > 1.4
    assert float(rest.mean()) < 0.3
    assert float(rest.max()) < 0.8
    assert torch.equal(result.slice_moves[0], torch.eye(2, 3).expand(12, -1, -1))
    still = segment(images, softened(classes))
    right, before = (float((found.labels() - 1 == classes).float().mean()) for found in (result, still))
    assert right > before + 0.01


def test_the_prior_follows_the_subject():
    classes = bodies()
    chance = torch.Generator().manual_seed(5)
    shape = tuple(classes.shape)
    field = dense_from_control(torch.rand(1, 3, *control_shape(shape, 12), generator=chance) * 2 - 1, shape, 12)
    field = field * 3 / float(field.abs().max())
    prior = warp(softened(classes, 1.0)[None], field)[0]
    images = contrasts(classes) * 0.3 + 0.35  # noise counts
    images = images + 0.15 * torch.randn(images.shape, generator=chance)
    right = {}
    for deform in (False, True):
        result = segment(images, prior, plan=MixtureSettings(deform=deform, rounds=5))
        right[deform] = float((result.labels() - 1 == classes).float().mean())
    assert right[True] > right[False] + 0.005


def test_only_the_mask_is_labelled():
    classes = bodies()
    mask = torch.zeros(classes.shape, dtype=torch.bool)
    mask[3:9, 10:40, 10:40] = True
    result = segment(contrasts(classes), softened(classes), mask)
    assert bool((result.labels() > 0).eq(mask).all())


IMAGES, PRIOR = contrasts(bodies()), softened(bodies())
BAD = {
    "shapes": ((IMAGES, PRIOR[:, :5], None), "have shapes"),
    "one class": ((IMAGES, PRIOR[:1], None), "fewer than two classes"),
    "NaN": ((IMAGES * torch.nan, PRIOR, None), "contrast 1 has 27648 voxels that are NaN"),
    "NaN in the prior": ((IMAGES, torch.cat([PRIOR[:2], PRIOR[2:] * torch.inf]), None), "the prior of class 3 has"),
    "prior above 1": ((IMAGES, 3 * PRIOR, None), "above 1"),
    "empty mask": ((IMAGES, PRIOR, torch.zeros(IMAGES.shape[1:])), "no voxel is left"),
    "constant": ((torch.ones_like(IMAGES), PRIOR, None), "contrast 1 is constant"),
    "vanished class": ((IMAGES, torch.cat([PRIOR, 0 * PRIOR[:1]]), None), "class 4 has no prior"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_refused(case):
    arguments, message = BAD[case]
    with pytest.raises(InputError, match=message):
        segment(*arguments)


def test_slices_of_a_plane_are_refused():
    values, classes = drawn((0.5, 0.5), (0, 1), (0.1, 0.1), count=400)
    prior = torch.stack([(classes == k) * 0.8 + 0.1 for k in range(2)])
    with pytest.raises(InputError, match="slices move in volumes only"):
        segment(values, prior, plan=MixtureSettings(slices="shift"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return the folder of a subject of two contrasts with its prior."""
    folder = tmp_path_factory.mktemp("subject")
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = 5, -9, 3
    for name, image in zip(("t1", "t2"), IMAGES, strict=True):
        save_image(image.numpy(), affine, folder / f"{name}.nii.gz", np.float32)
    save_image(np.moveaxis(PRIOR.numpy(), 0, -1), affine, folder / "prior.nii.gz", np.float32)
    save_image(IMAGES[0, :, :, 1:].numpy(), affine, folder / "other.nii.gz", np.float32)
    return folder


def run_step(folder, **change):
    inputs = {
        "in_images": [str(folder / "t1.nii.gz"), str(folder / "t2.nii.gz")],
        "in_prior": str(folder / "prior.nii.gz"),
        "out_posterior": str(folder / "posterior.nii.gz"),
    }
    load_interface("SegmentTissues")(**inputs | change).run()


def test_step_writes_labels_and_volumes(files):
    run_step(
        files,
        names=["around", "body", "core"],
        out_labels=str(files / "labels.nii.gz"),
        out_volumes=str(files / "volumes.tsv"),
    )
    labels = np.asarray(nib.load(files / "labels.nii.gz").dataobj)
    assert (labels - 1 == bodies().numpy()).mean() > 0.98
    table = pd.read_csv(files / "volumes.tsv", sep="\t").set_index("name")
    true_ml = [(bodies() == k).sum().item() * 0.008 for k in range(3)]
    assert table["label_ml"].tolist() == pytest.approx(true_ml, rel=0.04)
    assert table["volume_ml"].sum() == pytest.approx(sum(true_ml), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_images": ["t1.nii.gz", "other.nii.gz"]}, r"does not lie on the grid of t1.nii.gz .*other.nii.gz"),
        ({"in_prior": "other.nii.gz"}, "does not lie on the grid of t1.nii.gz"),
        ({"names": ["a", "b"]}, "2 names for 3 classes"),
        ({"options": {"components": 0}}, "options.components"),
    ],
)
def test_bad_files_are_refused(files, change, message):
    def place(key, value):
        if key == "in_images":
            return [str(files / name) for name in value]
        return str(files / value) if key == "in_prior" else value

    placed = {key: place(key, value) for key, value in change.items()}
    with pytest.raises(InputError, match=message):
        run_step(files, **placed)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_amounts_of_the_classes_are_found_where_the_prior_knows_none(share):
    """A prior that is the same everywhere: shares, means and spreads of a known mixture come out."""
    values, classes = drawn((share, 1 - share), (2.0, 8.0), (0.8, 1.4))
    flat = torch.full((2, *values.shape[1:]), 0.5)
    found = segment(values, flat, plan=MixtureSettings(components=1, amounts=True))
    assert float(found.posterior[0].mean()) == pytest.approx(float((classes == 0).float().mean()), abs=0.005)
    assert found.mixtures.means[0, :, 0].tolist() == pytest.approx((2.0, 8.0), abs=0.05)
    losses = found.log_likelihoods
    assert all(later >= earlier - 2e-5 for earlier, later in itertools.pairwise(losses))


def test_a_flat_prior_of_many_classes_is_refused():
    with pytest.raises(InputError, match="says nothing"):
        segment(torch.rand(1, 8, 8), torch.full((5, 8, 8), 0.2))
