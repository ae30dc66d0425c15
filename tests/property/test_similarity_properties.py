"""What similarities and penalties promise for images of any size, content and mask."""

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from popatlas.regularisers.bending import bending
from popatlas.regularisers.diffusion import diffusion, magnitude
from popatlas.regularisers.folding import folding_penalty
from popatlas.regularisers.registry import REGULARISERS, find_regulariser
from popatlas.regularisers.tv import total_variation
from popatlas.similarity.registry import SIMILARITIES, make

SOME = settings(max_examples=40, deadline=None)
OPTIONS = {
    "dice": {"sigmas": [0.0, 1.5]},
    "nmi": {"bins": 16},
    "mattes": {"bins": 12},
    "lncc": {"floor": 1e-6},
    "nmi_mind": {"strategy": "fixed", "nmi": {"bins": 16}},
}
SHAPE = st.one_of(st.tuples(*[st.integers(4, 9)] * 2), st.tuples(*[st.integers(4, 7)] * 3))
NAME = st.sampled_from(sorted(SIMILARITIES))
BOUNDS = {"ssd": (0, 1), "ncc": (-1, 1), "lncc": (-1, 0), "mattes": (-np.log(12), 0), "nmi": (-2, -1), "mind": (0, 1),
          "mindssc": (0, 1), "ngf": (-1, 0), "dice": (-1, 0), "nmi_mind": (-1, 0)}  # fmt: skip
SYMMETRIC = sorted(name for name, entry in SIMILARITIES.items() if entry.symmetric)
CONTRAST_BLIND = ("mind", "mindssc")


@st.composite
def pairs(draw, flat=False):
    """Two images in 0..1, some with constant parts, and a mask that is not empty."""
    shape, batch = draw(SHAPE), draw(st.integers(1, 2))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    images = rng.random((2, batch, 1, *shape))
    if draw(st.booleans()):
        images = np.round(images * 3) / 3
    if flat or draw(st.booleans()):
        images[draw(st.integers(0, 1)), ..., : draw(st.integers(1, shape[-1]))] = draw(st.floats(0, 1))
    mask = rng.random((batch, 1, *shape)) < draw(st.floats(0.2, 1))
    mask.reshape(batch, -1)[:, 0] = True
    return torch.as_tensor(images[0]), torch.as_tensor(images[1]), torch.as_tensor(mask)


def loss(name):
    return make(name, **OPTIONS.get(name, {}))


@SOME
@given(name=NAME, pair=pairs())
def test_values_are_within_their_bounds_and_gradients_finite(name, pair):
    fixed, moving, mask = pair
    moving = moving.requires_grad_(True)
    value = loss(name)(fixed, moving, mask)
    low, high = BOUNDS.get(name, (-np.inf, np.inf))
    assert value.shape == (fixed.shape[0],)
    assert (value >= low - 1e-6).all()
    assert (value <= high + 1e-6).all()
    (slope,) = torch.autograd.grad(value.sum(), moving)
    assert torch.isfinite(slope).all()


@SOME
@given(name=NAME, pair=pairs(flat=True), single=st.booleans())
def test_constant_parts_never_give_nan(name, pair, single):
    fixed, moving, mask = pair
    if single:
        fixed, moving = fixed.float(), moving.float()
    moving = moving.requires_grad_(True)
    value = loss(name)(fixed, moving, mask)
    (slope,) = torch.autograd.grad(value.sum(), moving)
    assert torch.isfinite(value).all()
    assert torch.isfinite(slope).all()


@SOME
@given(name=NAME, pair=pairs(), flip=st.booleans())
def test_the_orientation_of_the_grid_does_not_matter(name, pair, flip):
    """Exchanged and reversed axes give the same value: no axis is treated in its own way."""

    def turned(x):
        x = x.transpose(2, -1)
        return x.flip(2) if flip else x

    value = loss(name)(*pair)
    torch.testing.assert_close(loss(name)(*[turned(x) for x in pair]), value, rtol=1e-7, atol=1e-9)


@SOME
@given(name=st.sampled_from(SYMMETRIC), pair=pairs())
def test_exchanging_the_images_does_not_matter(name, pair):
    fixed, moving, mask = pair
    torch.testing.assert_close(loss(name)(fixed, moving, mask), loss(name)(moving, fixed, mask), rtol=1e-7, atol=1e-9)


def test_those_that_say_so_are_not_symmetric():
    fixed, moving = torch.as_tensor(np.random.default_rng(1).random((2, 1, 1, 9, 9)))
    assert "mattes" not in SYMMETRIC
    for name in set(SIMILARITIES) - set(SYMMETRIC):
        assert abs(float(loss(name)(fixed, moving)) - float(loss(name)(moving, fixed))) > 1e-3, name


@SOME
@given(name=NAME, pair=pairs(), weight=st.floats(0.1, 10))
def test_only_the_relative_weight_of_a_mask_counts(name, pair, weight):
    fixed, moving, mask = pair
    torch.testing.assert_close(
        loss(name)(fixed, moving, weight * mask.double()), loss(name)(fixed, moving, mask), rtol=1e-6, atol=1e-9
    )


@SOME
@given(
    pair=pairs(),
    gain=st.one_of(st.floats(0.1, 10), st.floats(-10, -0.1)),
    offset=st.floats(-5, 5),
    name=st.sampled_from(["mattes", "nmi", *CONTRAST_BLIND]),
)
def test_information_and_self_similarity_ignore_linear_changes(pair, gain, offset, name):
    """Histograms follow the range, reversed or not; descriptors are divided by their mean."""
    fixed, moving, mask = pair
    assume(gain > 0 or name != "mattes")  # its bins are not symmetric: the value changes a little when reversed
    before, after = loss(name)(fixed, moving, mask), loss(name)(fixed, gain * moving + offset, mask)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


@SOME
@given(pair=pairs(), offset=st.floats(-5, 5), name=st.sampled_from(["ngf", "lncc"]))
def test_local_squares_ignore_inversion(pair, offset, name):
    fixed, moving, mask = pair
    torch.testing.assert_close(
        loss(name)(fixed, offset - moving, mask), loss(name)(fixed, moving, mask), rtol=1e-5, atol=1e-7
    )


@SOME
@given(shape=SHAPE, seed=st.integers(0, 2**16), move=st.floats(-5, 5), factor=st.floats(0.1, 4))
def test_penalties_scale_ignore_translations_and_have_no_preferred_axis(shape, seed, move, factor):
    ndim = len(shape)
    field = torch.as_tensor(np.random.default_rng(seed).standard_normal((1, ndim, *shape)))
    for penalty, degree in ((diffusion, 2), (bending, 2), (magnitude, 2)):
        torch.testing.assert_close(penalty(factor * field), factor**degree * penalty(field))
    near_l1 = total_variation(factor * field, epsilon=1e-9)
    torch.testing.assert_close(near_l1, factor * total_variation(field, epsilon=1e-9), rtol=1e-5, atol=1e-8)
    for penalty in (diffusion, bending, total_variation, folding_penalty):
        torch.testing.assert_close(penalty(field + move), penalty(field), rtol=1e-7, atol=1e-9)
    exchanged = field.flip(1).permute(0, 1, *range(ndim + 1, 1, -1))
    for penalty in map(find_regulariser, REGULARISERS):
        torch.testing.assert_close(penalty(exchanged), penalty(field), rtol=1e-7, atol=1e-9)
