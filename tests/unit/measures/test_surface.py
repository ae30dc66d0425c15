"""Surface distances: closed forms, an independent implementation, and MONAI."""

from __future__ import annotations

import numpy as np
import pytest

from popatlas.measures.surface import label_surface_distances, surface_distances
from tests.unit.measures.test_measures import random_labels

SPACINGS = [(1.0, 1.0, 1.0), (0.7, 1.3, 2.9)]


def all_distances(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> tuple[float, float]:
    """Independent implementation: border voxels by their neighbours, and the distances of all of them to all others."""
    from scipy.spatial.distance import cdist

    points = []
    for mask in (a, b):
        padded = np.pad(mask, 1)
        inner = np.logical_and.reduce([np.roll(padded, shift, axis) for axis in range(mask.ndim) for shift in (-1, 1)])
        points.append(np.argwhere((padded & ~inner)[(slice(1, -1),) * mask.ndim]) * spacing)
    apart = cdist(*points)
    there, back = apart.min(1), apart.min(0)
    return max(np.percentile(there, 95), np.percentile(back, 95)), np.concatenate([there, back]).mean()


@pytest.mark.parametrize("spacing", SPACINGS)
def test_surface_distance_of_parallel_planes_is_their_gap(spacing: tuple[float, float, float]) -> None:
    for axis, step in enumerate(spacing):
        first, second = np.zeros((2, 12, 12, 12), dtype=bool)
        index = [slice(None)] * 3
        index[axis] = 3
        first[tuple(index)] = True
        index[axis] = 7
        second[tuple(index)] = True
        assert surface_distances(first, second, spacing) == pytest.approx((4 * step, 4 * step), rel=1e-6)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_surface_distance_of_concentric_spheres_is_the_difference_of_radii(spacing: tuple[float, ...]) -> None:
    half = [int(15 / step) + 2 for step in spacing]
    grids = np.meshgrid(*(np.arange(-n, n + 1) * step for n, step in zip(half, spacing, strict=True)), indexing="ij")
    radius = np.sqrt(sum(grid**2 for grid in grids))
    hd95, assd = surface_distances(radius <= 14, radius <= 9, spacing)
    assert assd == pytest.approx(5, abs=max(spacing) / 3)
    assert hd95 == pytest.approx(5, abs=max(spacing))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_surface_distance_equals_that_of_all_pairs_and_of_monai(spacing: tuple[float, float, float]) -> None:
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    reference, prediction = random_labels(1), np.roll(random_labels(1), (1, 2), axis=(0, 2))
    labels = [label for label in np.unique(reference) if label and (prediction == label).any()]
    table = label_surface_distances(reference, prediction, spacing, labels).set_index("label")
    for label in labels:
        a, b = reference == label, prediction == label
        assert tuple(table.loc[label]) == pytest.approx(all_distances(a, b, spacing), rel=1e-5)
        hot = [torch.from_numpy(mask)[None, None] for mask in (b, a)]
        arguments = {"include_background": True, "spacing": list(spacing)}
        whole = compute_hausdorff_distance(*hot, percentile=95, **arguments)
        assert table.hd95[label] == pytest.approx(float(whole), rel=1e-5)
        mean = compute_average_surface_distance(*hot, symmetric=True, **arguments)
        assert table.assd[label] == pytest.approx(float(mean), rel=1e-5)


def test_surface_distance_without_a_surface_is_missing() -> None:
    image = np.zeros((5, 5, 5), dtype=int)
    other = image.copy()
    image[2, 2, 2], other[1, 1, 1] = 4, 6
    table = label_surface_distances(image, other, (1, 1, 1), [4, 6, 99])
    assert table["label"].tolist() == [4, 6, 99]
    assert table[["hd95", "assd"]].isna().all(axis=None)
    assert label_surface_distances(image, other, (1, 1, 1), []).empty
    assert label_surface_distances(image, image, (1, 1, 1), [4])[["hd95", "assd"]].to_numpy().tolist() == [[0, 0]]
