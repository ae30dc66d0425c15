"""Types of subjects: distances are metrics, planted templates are told, and one population is one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from popatlas.errors import InputError
from popatlas.groupwise.types.clusters import find_groups, stability_of
from popatlas.groupwise.types.distances import deformation_distance, hellinger_distance, label_distance
from popatlas.groupwise.types.embedding import correlation_dimension, embed
from popatlas.groupwise.types.regressions import explained, regress
from popatlas.groupwise.types.settings import TypesSettings
from popatlas.groupwise.types.verdict import find_types

QUICK = TypesSettings(references=2, draws=4, most_types=6)


def dirichlet(seed: int, concentration: float, templates: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Return profiles of 64 cells about some templates, and the template of each."""
    rng = np.random.default_rng(seed)
    drawn = [rng.dirichlet(concentration * one + 1e-9, each) for one in rng.dirichlet(np.ones(64), templates)]
    return np.concatenate(drawn), np.repeat(np.arange(templates), each)


# Distances


@pytest.mark.parametrize("kind", ["labels", "hellinger", "deformation"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_distances_are_metrics(kind, data):
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    if kind == "labels":
        rows = rng.integers(0, data.draw(st.integers(2, 5)), (5, 30))
        rows[:, :2] = 0, 1  # none is constant
        distance, most = label_distance(rows), 1.0
    elif kind == "hellinger":
        distance, most = hellinger_distance(rng.gamma(0.3, size=(5, 8)) + 1e-9), 2**0.5
    else:
        distance, most = deformation_distance(rng.normal(size=(5, 9)), rng.uniform(0, 1, 9)), np.inf
    assert np.allclose(np.diag(distance), 0, atol=1e-12)
    assert np.array_equal(distance, distance.T)
    assert (distance >= 0).all() and (distance <= most + 1e-9).all()
    assert (distance[:, None] <= distance[:, :, None] + distance[None] + 1e-9).all()


def test_hellinger_of_known_profiles():
    profiles = [[1, 0], [0, 2], [1, 1], [3, 3]]
    distance = hellinger_distance(profiles)
    assert distance[0, 1] == pytest.approx(2**0.5)  # disjoint
    assert distance[2, 3] == pytest.approx(0, abs=1e-8)  # the same shares
    assert distance[0, 2] == pytest.approx((2 - 2**0.5) ** 0.5)


def test_label_distance_against_another_implementation():
    rng = np.random.default_rng(3)
    a = rng.integers(0, 4, 500)
    b = np.where(rng.random(500) < 0.7, a, rng.integers(0, 4, 500))
    found = label_distance([a, b, 9 - a])
    halves = normalized_mutual_info_score(a, b, average_method="arithmetic")  # 2 I / (H + H)
    assert 1 - found[0, 1] == pytest.approx(halves / (2 - halves))
    assert found[0, 2] == pytest.approx(0, abs=1e-12)  # numbers are only names


def test_a_change_of_size_is_no_deformation():
    rows = np.random.default_rng(0).normal(size=(2, 50))
    moved = np.stack([rows[0], rows[0] + 0.7, rows[1]])
    distance = deformation_distance(moved)
    assert distance[0, 1] == pytest.approx(0, abs=1e-12)
    left = (rows[0] - rows[0].mean()) - (rows[1] - rows[1].mean())
    assert distance[0, 2] == pytest.approx(np.sqrt((left**2).mean()))


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: label_distance([[1, 1, 1], [1, 2, 3]], ["sub-01", "sub-02"]), "sub-01"),
        (lambda: label_distance([[1, 2, np.nan], [1, 2, 3]], ["sub-01", "sub-02"]), "missing or infinite"),
        (lambda: hellinger_distance([[1, -1], [1, 1]], ["sub-01", "sub-02"]), "sub-01"),
        (lambda: hellinger_distance([[1, 1], [0, 0]], ["sub-01", "sub-02"]), "sub-02"),
        (lambda: deformation_distance([[0, np.inf]]), "infinite"),
        (lambda: deformation_distance([[0, 1]], [0, 0]), "weights"),
        (lambda: embed(np.ones((4, 4)), QUICK), "4 subjects"),
        (lambda: embed(np.zeros((12, 12)), QUICK), "alike"),
        (lambda: embed(np.full((12, 12), np.nan), QUICK), "missing"),
        (lambda: find_types({}), "no distance"),
        (lambda: find_types({"a": np.zeros((12, 12))}, names=["x"]), "different subjects"),
    ],
)
def test_bad_input_is_told(call, told):
    with pytest.raises(InputError, match=told):
        call()


# Embedding


@pytest.mark.parametrize("dimension", [1, 2])
def test_correlation_dimension_of_spheres(dimension):
    rng = np.random.default_rng(dimension)
    points = rng.normal(size=(600, dimension + 1))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    turned = points @ np.linalg.qr(rng.normal(size=(10, 10)))[0][: dimension + 1]
    distance = np.linalg.norm(turned[:, None] - turned[None], axis=-1)
    assert correlation_dimension(distance) == pytest.approx(dimension, abs=0.2)


@pytest.mark.parametrize("dimension", [1, 2, 3, 4])
def test_correlation_dimension_of_flat_tori(dimension):
    angles = np.random.default_rng(dimension).uniform(0, 1, (600, dimension))
    apart = np.abs(angles[:, None] - angles[None])
    distance = np.linalg.norm(np.minimum(apart, 1 - apart), axis=-1)  # no border: the law holds exactly
    assert correlation_dimension(distance) == pytest.approx(dimension, abs=0.2)


def test_isomap_unrolls_and_keeps_shares():
    rng = np.random.default_rng(0)
    angle = np.sort(rng.uniform(0, 1.5 * np.pi, 120))
    points = np.stack([np.cos(angle), np.sin(angle)], 1)
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    found = embed(distance, TypesSettings(neighbours=6))
    assert found.points.shape == (120, 1)  # an arc has one dimension
    assert abs(np.corrcoef(found.points[:, 0], angle)[0, 1]) > 0.999
    assert 0.98 < found.shares[0] <= 1


def test_neighbour_graphs_that_fall_apart():
    points = np.r_[np.random.default_rng(0).normal(size=(12, 3)), np.random.default_rng(1).normal(size=(12, 3)) + 50]
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    with pytest.raises(InputError, match="2 pieces"):
        embed(distance, TypesSettings(neighbours=4))
    assert embed(distance, TypesSettings()).neighbours == 12  # the fewest that join them


# Groups


@pytest.mark.slow
@pytest.mark.parametrize("concentration", [60, 200])
def test_four_templates_are_four_types(concentration):
    for seed in range(10):
        profiles, truth = dirichlet(seed, concentration, 4, 40)
        found = find_types({"profile": hellinger_distance(profiles)}, QUICK).grouping
        assert found.count == 4
        assert adjusted_rand_score(truth, found.types) == 1


@pytest.mark.slow
def test_one_template_is_one_type():
    counts = []
    for seed in range(20):
        profiles, _ = dirichlet(seed, 60, 1, 240)
        counts.append(find_types({"profile": hellinger_distance(profiles)}, QUICK).grouping.count)
    assert counts.count(1) >= 19


@pytest.mark.slow
def test_two_groups_with_one_that_lies_apart():
    rng = np.random.default_rng(1)
    points = np.r_[rng.normal(size=(16, 2)), rng.normal(size=(14, 2)) + 12, [[300.0, -300.0]]]
    found = find_groups(points, TypesSettings(references=5))
    assert found.types.tolist() == [1] * 16 + [2] * 14 + [0]
    assert found.silhouettes[2] > found.reference
    assert found.stability == 1


def test_a_continuum_is_no_group():
    line = np.c_[np.linspace(0, 20, 80), np.random.default_rng(0).normal(size=(80, 1))]
    found = find_groups(line, TypesSettings(references=5))
    assert found.count == 1
    assert found.why


def test_arbitrary_splits_are_not_stable():
    points = np.random.default_rng(0).normal(size=(60, 2))
    labels = (np.arange(60) % 2).astype(np.int64)
    assert stability_of(points, labels, 2, QUICK) < 0.3


# Regressions and the verdict


def test_shares_are_weighted_by_variance():
    rng = np.random.default_rng(0)
    age = rng.normal(size=50)
    other = rng.normal(size=50)
    other -= explained_part(age, other)
    points = np.stack([age - age.mean(), 0.5 * other], 1)
    shares = np.array([0.6, 0.2])
    table = regress({"d": points}, {"d": shares}, np.ones(50, dtype=np.int64), pd.DataFrame({"age": age}))
    rows = table.set_index("dimension")
    assert rows.loc["1", "r2"] == pytest.approx(1)
    assert rows.loc["2", "r2"] == pytest.approx(0, abs=1e-9)
    assert rows.loc["all", "r2"] == pytest.approx(0.75)  # 0.6 of 0.8, not the mean of 1 and 0
    assert rows.loc["all", "r2_total"] == pytest.approx(0.6)
    assert rows.loc["2", "p"] == pytest.approx(1, abs=1e-3)


def explained_part(by: np.ndarray, values: np.ndarray) -> np.ndarray:
    centred = by - by.mean()
    return values.mean() + centred * (centred @ (values - values.mean())) / (centred @ centred)


def test_p_values_are_those_of_scipy():
    from scipy.stats import linregress

    rng = np.random.default_rng(5)
    age, y = rng.normal(size=30), rng.normal(size=30)
    shares = np.array([1.0])
    table = regress({"d": y[:, None]}, {"d": shares}, np.ones(30, dtype=np.int64), pd.DataFrame({"age": age}))
    expected = linregress(age, y)
    assert table["r2"][0] == pytest.approx(expected.rvalue**2)
    assert table["p"][0] == pytest.approx(expected.pvalue)
    assert explained(np.ones((30, 1)) * 0, y[:, None]) == (0.0, 0)


@pytest.mark.slow
def test_the_verdict_names_groups_and_what_goes_along():
    profiles, truth = dirichlet(0, 200, 2, 15)
    people = pd.DataFrame({"site": np.where(truth == 0, "A", "B"), "age": np.linspace(20, 80, 30) % 7})
    people.loc[3, "age"] = np.nan
    plan = dataclasses.replace(QUICK, references=5)
    found = find_types({"profile": hellinger_distance(profiles)}, plan, covariates=people)
    assert found.sentence.startswith("2 groups: 15 and 15 subjects")
    assert "They go along with site (100 % of the types)" in found.sentence
    assert found.content()["one_template_serves"] is False
    assert set(found.regressions["covariate"]) == {"site", "age", "all"}
    assert found.regressions.set_index("covariate").loc["age", "subjects"].max() == 29
    alone = find_types({"profile": hellinger_distance(dirichlet(0, 60, 1, 40)[0])}, QUICK)
    assert alone.sentence.startswith("One template serves the 40 subjects")
