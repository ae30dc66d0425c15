"""Miniature brains: the same for the same seed, as large as they should be, and in a fraction of a second."""

import numpy as np
import pytest

from popatlas.images.io import load_image
from popatlas.images.miniature import NAMES, draw_miniature
from popatlas.measures.overlap import overlap


def test_a_seed_is_an_anatomy_whatever_the_contrast():
    one, again, other = draw_miniature(1), draw_miniature(1, contrast="T2w"), draw_miniature(2)
    assert np.array_equal(one.labels, again.labels)
    assert not np.array_equal(one.labels, other.labels)
    white, grey = np.isin(one.labels, (3, 6)), np.isin(one.labels, (2, 5))
    assert one.image[white].mean() > one.image[grey].mean()
    assert again.image[white].mean() < again.image[grey].mean()


def test_voxels_are_samples_of_one_anatomy():
    coarse, fine = (draw_miniature(3, size) for size in (4, 2))
    volumes = [np.bincount(brain.labels.ravel())[1:] * size**3 for brain, size in ((coarse, 4), (fine, 2))]
    assert volumes[0][[1, 2, 4, 5]] == pytest.approx(volumes[1][[1, 2, 4, 5]], rel=0.1)
    places = [np.argwhere(brain.labels > 0).mean(0) @ brain.affine[:3, :3] + brain.affine[:3, 3] for brain in (coarse, fine)]
    assert places[0] == pytest.approx(places[1], abs=0.5)


def test_it_is_as_large_and_as_bent_as_it_should_be():
    plain = draw_miniature(1, bend_mm=0)
    larger = draw_miniature(1, bend_mm=0, log_volume=0.2)
    assert np.count_nonzero(larger.labels) / np.count_nonzero(plain.labels) == pytest.approx(np.exp(0.2), rel=0.02)
    scores = [overlap(plain.labels, draw_miniature(1, bend_mm=bend).labels).dice.mean() for bend in (1.0, 4.0)]
    assert 1 > scores[0] > scores[1]


def test_files_slices_and_tensors_hold_the_same(tmp_path):
    brain = draw_miniature(1)
    image, mask, dseg = (load_image(path) for path in brain.save(tmp_path, "one"))
    assert np.array_equal(image.dataobj, brain.image) and np.array_equal(dseg.dataobj, brain.labels)
    assert np.array_equal(np.asarray(mask.dataobj) > 0, brain.labels > 0) and np.array_equal(image.affine, brain.affine)
    assert set(np.unique(brain.labels)) == {0, *NAMES}
    assert np.array_equal(brain.image > 0, brain.labels > 0)
    scan, slice_ = brain.scan(), brain.axial(20).scan()
    assert scan.grid.spacing == (*slice_.grid.spacing, 4.0)
    assert np.array_equal(slice_.image[0, 0], scan.image[0, 0, :, :, 20])
