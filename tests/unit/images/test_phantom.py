"""Facts about the head model: labels are where anatomy is, and sizes are those of people."""

from functools import lru_cache

import numpy as np
import pytest
from nibabel.affines import apply_affine

from popatlas.images.phantom import (
    CEREBELLUM,
    CSF,
    DEEP,
    LANDMARKS,
    LEFT,
    RIGHT,
    STRUCTURES,
    VENTRICLE,
    head_model,
    label_table,
    landmark_table,
    lateral_ventricles,
)


@lru_cache
def volumes() -> np.ndarray:
    """Return the volume of each label, ml."""
    return np.bincount(head_model().labels.ravel()) / 1000  # voxels of 1 mm


def center(label: int) -> np.ndarray:
    model = head_model()
    return apply_affine(model.affine, np.argwhere(model.labels == label)).mean(axis=0)


def label_at(name: str) -> int:
    model = head_model()
    return int(model.labels[tuple(np.rint(apply_affine(np.linalg.inv(model.affine), LANDMARKS[name])).astype(int))])


def test_every_label_of_the_table_exists_and_no_other() -> None:
    table = label_table()
    assert table["index"].is_unique
    assert table["name"].is_unique
    assert len(table) == 28
    assert set(table["index"]) | {0} == set(np.unique(head_model().labels))


def test_labels_cover_a_brain_without_holes() -> None:
    from scipy.ndimage import binary_fill_holes, label

    mask = head_model().labels > 0
    _, pieces = label(mask)
    assert pieces == 1
    assert (binary_fill_holes(mask) == mask).all()
    assert volumes()[1:].sum() == pytest.approx(1887, abs=10)  # ICBM 2009a brain


def test_volumes_are_plausible() -> None:
    ventricles = volumes()[LEFT + VENTRICLE] + volumes()[RIGHT + VENTRICLE]
    assert 10 < ventricles < 25
    assert 100 < volumes()[LEFT + CEREBELLUM] + volumes()[RIGHT + CEREBELLUM] < 200
    assert 40 < volumes()[LEFT + DEEP] + volumes()[RIGHT + DEEP] < 80
    assert 80 < volumes()[CSF] < 250
    assert (volumes()[label_table()["index"]] > 5).all()


@pytest.mark.parametrize("structure", range(len(STRUCTURES)))
def test_sides_mirror_each_other(structure: int) -> None:
    left, right = LEFT + structure, RIGHT + structure
    assert volumes()[left] == pytest.approx(volumes()[right], rel=0.06)
    np.testing.assert_allclose(center(left) * [-1, 1, 1], center(right), atol=1.5)
    assert center(left)[0] < -5


def test_structures_lie_where_they_should() -> None:
    places = {name: center(LEFT + i) for i, name in enumerate(STRUCTURES)}
    assert places["frontal cortex"][1] > places["central cortex"][1] > places["parietal cortex"][1]
    assert places["occipital cortex"][1] < -60
    assert places["temporal cortex"][2] < places["insula"][2] < places["central cortex"][2]
    assert places["cerebellum"][2] < -25
    assert np.abs(places["lateral ventricle"] - [-14, -15, 14]).max() < 10


def test_landmarks_lie_on_their_structures() -> None:
    assert label_at("left frontal horn") == LEFT + VENTRICLE
    assert label_at("right frontal horn") == RIGHT + VENTRICLE
    assert label_at("left putamen") == LEFT + DEEP
    assert label_at("right putamen") == RIGHT + DEEP
    assert all(label_at(name) > 0 for name in LANDMARKS)
    assert list(landmark_table()) == ["name", "x", "y", "z"]


def test_ventricles_are_dark_and_enclosed() -> None:
    from scipy.ndimage import binary_erosion

    model = head_model()
    ventricles = lateral_ventricles(model.labels)
    assert np.median(model.t1w[ventricles]) < 0.5 < np.median(model.t1w[model.labels > CSF])
    deep = binary_erosion(model.labels > 0, iterations=15)
    assert (ventricles & deep).sum() == ventricles.sum()


def test_tissues_share_each_voxel() -> None:
    model = head_model()
    inside = model.labels > 0
    total = sum(part.astype(int) for part in model.brain.values())
    assert np.abs(total[inside] - 255).max() <= 1
    assert total[~inside].max() == 0
    around = sum(part.astype(int) for part in model.head.values())
    assert around.max() <= 258  # rounding
