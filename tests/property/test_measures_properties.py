"""Properties of measures that hold for any labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from popatlas.measures.dictionary import COLUMNS
from popatlas.measures.overlap import overlap
from popatlas.measures.summary import summarise
from popatlas.measures.surface import label_surface_distances, surface_distances
from popatlas.measures.volumes import volumes

SHAPE = (5, 6, 4)
LABELS = hnp.arrays(np.int32, SHAPE, elements=st.sampled_from([0, 1, 2, 50, 9000]))
MASKS = hnp.arrays(np.bool_, SHAPE)
SPACINGS = st.tuples(*[st.floats(0.3, 6)] * 3)
FEW = settings(max_examples=60, deadline=None)


@FEW
@given(LABELS, LABELS)
def test_overlap_is_symmetric_and_bounded(first: np.ndarray, second: np.ndarray) -> None:
    there, back = overlap(first, second), overlap(second, first)
    metrics = ["dice", "jaccard", "volume_similarity"]
    pd.testing.assert_frame_equal(there[metrics], back[metrics])
    assert there[metrics].ge(0).all(axis=None)
    assert there[metrics].le(1).all(axis=None)
    np.testing.assert_allclose(there["jaccard"], there["dice"] / (2 - there["dice"]))
    assert (there["dice"] <= there["volume_similarity"] + 1e-12).all()
    assert set(there["label"]) == (set(np.unique(first)) | set(np.unique(second))) - {0}


@FEW
@given(LABELS)
def test_a_label_image_equals_itself(labels: np.ndarray) -> None:
    table = overlap(labels, labels)
    assert (table["dice"] == 1).all()
    distances = label_surface_distances(labels, labels, (1, 2, 3), table["label"])
    assert (distances[["hd95", "assd"]] == 0).all(axis=None)


@FEW
@given(MASKS, MASKS, SPACINGS, st.floats(0.5, 3))
def test_surface_distances_are_symmetric_and_scale(
    first: np.ndarray, second: np.ndarray, spacing: tuple[float, float, float], factor: float
) -> None:
    assume(first.any() and second.any())
    there = surface_distances(first, second, spacing)
    np.testing.assert_allclose(there, surface_distances(second, first, spacing), rtol=1e-5)
    scaled = surface_distances(first, second, [factor * step for step in spacing])
    np.testing.assert_allclose(scaled, np.array(there) * factor, rtol=1e-4, atol=1e-5)
    diagonal = np.linalg.norm(np.array(spacing) * (np.array(SHAPE) - 1))
    assert all(0 <= value <= diagonal * (1 + 1e-6) for value in there)


@FEW
@given(MASKS, MASKS, SPACINGS)
def test_padding_changes_no_distance(first: np.ndarray, second: np.ndarray, spacing: tuple[float, ...]) -> None:
    assume(first.any() and second.any())
    padded = surface_distances(np.pad(first, 2), np.pad(second, 2), spacing)
    np.testing.assert_allclose(padded, surface_distances(first, second, spacing), rtol=1e-6)


@FEW
@given(LABELS, SPACINGS)
def test_volumes_add_up(labels: np.ndarray, spacing: tuple[float, float, float]) -> None:
    table = volumes(labels, np.diag([*spacing, 1]))
    np.testing.assert_allclose(table["volume"].sum(), (labels != 0).sum() * np.prod(spacing) / 1000)


@FEW
@given(hnp.arrays(np.float64, (4, 3), elements=st.floats(0, 1)))
def test_every_scan_counts_once_in_the_summary(values: np.ndarray) -> None:
    rows = [
        (f"sub-{i}", "", "t@1", "jlf", str(j), "dice", value, "1")
        for i, line in enumerate(values)
        for j, value in enumerate(line[: i + 1] if i < 3 else line)
    ]
    table = summarise(pd.DataFrame(rows, columns=COLUMNS))
    means = [values[0, 0], values[1, :2].mean(), values[2].mean(), values[3].mean()]
    np.testing.assert_allclose(table.loc[0, ["mean", "sd"]].astype(float), [np.mean(means), np.std(means, ddof=1)])
    assert table.loc[0, "scans"] == 4
