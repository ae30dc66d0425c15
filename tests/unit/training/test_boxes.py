"""Boxes around labels: bounds, errors of annotators, maps and their loss."""

import numpy as np
import pytest
import torch

from popatlas.similarity.registry import make
from popatlas.training.boxes import box_maps, boxes_of, jittered, rasterised
from popatlas.transforms.fields import warp

SHAPES = {2: (11, 14), 3: (11, 14, 9)}


def random_labels(ndim, batch=2, seed=0):
    """Labels 0, 3 and 7 strewn over an image, so that their boxes overlap and touch the borders."""
    values = np.random.default_rng(seed).choice([0, 3, 7], p=[0.96, 0.02, 0.02], size=(batch, 1, *SHAPES[ndim]))
    return torch.as_tensor(values)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("ndim", [2, 3])
def test_boxes_are_tight(ndim):
    labels = random_labels(ndim)
    boxes = boxes_of(labels, [7, 3])
    assert boxes.shape == (2, 2, ndim, 2)
    for row in range(2):
        for column, value in enumerate([7, 3]):
            where = np.argwhere(labels[row, 0].numpy() == value)
            assert len(where) > 1
            np.testing.assert_array_equal(boxes[row, column, :, 0], where.min(0))
            np.testing.assert_array_equal(boxes[row, column, :, 1], where.max(0) + 1)
    torch.testing.assert_close(boxes_of(labels, torch.tensor([7, 3])), boxes)


def test_an_absent_label_has_an_empty_box_and_an_empty_map():
    labels = torch.zeros(1, 1, 5, 6, dtype=torch.int32)
    labels[..., 2:4, 1:] = 4
    assert boxes_of(labels, [9, 4])[0].tolist() == [[[0, 0], [0, 0]], [[2, 4], [1, 6]]]
    maps = box_maps(labels, [9, 4], 0.05, generator())
    assert float(maps[0, 0].abs().max()) == 0 and float(maps[0, 1].max()) == 1


def test_no_labels_are_refused():
    with pytest.raises(ValueError, match="no labels"):
        boxes_of(random_labels(2), [])


@pytest.mark.parametrize("ndim", [2, 3])
def test_maps_of_whole_voxels_are_exact(ndim):
    labels = random_labels(ndim, seed=1)
    maps, boxes = box_maps(labels, [3, 7]), boxes_of(labels, [3, 7])
    expected = np.zeros(maps.shape, dtype=np.float32)
    for row in range(2):
        for column in range(2):
            expected[(row, column, *(slice(*side) for side in boxes[row, column].tolist()))] = 1
    np.testing.assert_array_equal(maps, expected)


def test_faces_that_cut_voxels_count_their_share():
    maps = rasterised(torch.tensor([[[[1.25, 3.5], [-2.0, 1.5]]]]), (5, 3))
    sides = torch.tensor([0, 0.75, 1, 0.5, 0]), torch.tensor([1, 0.5, 0])
    torch.testing.assert_close(maps[0, 0], torch.outer(*sides))
    tiny = rasterised(torch.tensor([[[[1.2, 1.5], [0.0, 3.0]]]]), (5, 3))
    assert float(tiny.sum()) == pytest.approx(0.3 * 3)


def test_errors_of_boxes_fill_their_range_and_no_more():
    boxes = torch.tensor([[10, 30], [0, 200], [5, 6]]).expand(500, 4, 3, 2)
    moves = (jittered(boxes, 0.05, generator()) - boxes) / torch.tensor([20.0, 200.0, 1.0]).reshape(3, 1)
    assert float(moves.abs().max()) <= 0.05 + 1e-6
    for face in moves.reshape(-1, 6).unbind(1):  # every face of every axis moves, both ways
        assert float(face.min()) < -0.049 and float(face.max()) > 0.049
        assert abs(float(face.mean())) < 0.003
    assert torch.equal(jittered(boxes, 0.0, generator()), boxes.float())


def test_faces_move_independently_and_repeatably():
    boxes = torch.tensor([[0, 100], [0, 100]]).expand(400, 1, 2, 2)
    first, again, other = (jittered(boxes, 0.05, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    correlation = np.corrcoef((first - boxes).reshape(-1, 4).T.numpy()) - np.eye(4)
    assert np.abs(correlation).max() < 0.2
    labels = random_labels(3)
    assert torch.equal(box_maps(labels, [3], 0.05, generator(1)), box_maps(labels, [3], 0.05, generator(1)))


@pytest.mark.parametrize("share", [-0.1, 0.5])
def test_errors_that_would_turn_a_box_inside_out_are_refused(share):
    with pytest.raises(ValueError, match="share"):
        jittered(torch.zeros(1, 1, 2, 2), share)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_loss_of_equal_boxes_is_zero_and_pulls_others(ndim):
    labels = torch.zeros(1, 1, *SHAPES[ndim], dtype=torch.int64)
    labels[(slice(None), slice(None), *[slice(3, 7)] * ndim)] = 1
    fixed, moving = box_maps(labels, [1]), box_maps(labels.roll(1, 2), [1])
    shift = torch.zeros(1, ndim, *SHAPES[ndim], requires_grad=True)
    assert float(make("ssd")(fixed, warp(fixed, shift)).detach()) < 1e-12
    loss = make("ssd")(fixed, warp(moving, shift))
    gradient = torch.autograd.grad(loss.sum(), shift)[0]
    assert float(loss.detach()) > 0
    assert float(gradient[:, 0].sum()) < 0  # a larger first component is better: the moving box lies further along
    exact = shift.detach().clone()
    exact[:, 0] = 1
    assert float(make("ssd")(fixed, warp(moving, exact))) < 1e-12
