"""Types of subjects: planted templates, told by popatlas and by ways that ask a part of what it asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.common import Bar, Record, at_least
from popatlas.groupwise.types.clusters import find_groups, mixture, silhouette
from popatlas.groupwise.types.distances import hellinger_distance
from popatlas.groupwise.types.embedding import embed
from popatlas.groupwise.types.settings import TypesSettings

Labels = npt.NDArray[np.int64]
Points = npt.NDArray[np.float64]
CELLS = 64
PLAN = TypesSettings()
# templates, subjects of each, and how closely they follow them (concentration of Dirichlet's distribution)
CASES = ((4, 40, 60.0), (4, 40, 200.0), (2, 20, 60.0), (1, 240, 60.0))
OURS = "popatlas"


def draw(seed: int, templates: int, each: int, concentration: float) -> tuple[Points, Labels]:
    """Return profiles (subjects, cells), and the template of each subject."""
    rng = np.random.default_rng(seed)
    means = rng.dirichlet(np.ones(CELLS), templates)
    profiles = [rng.dirichlet(concentration * mean + 1e-9, each) for mean in means]
    return np.concatenate(profiles), np.repeat(np.arange(templates), each)


def by_bic(points: Points) -> Labels:
    """Return the mixture with the best BIC."""
    fits = [mixture(points, groups, PLAN.seed) for groups in _tried(points, first=1)]
    return min(fits, key=lambda fit: fit[1])[0]


def by_silhouette(points: Points) -> Labels:
    """Return the mixture with the best silhouette: never one group."""
    fits = [mixture(points, groups, PLAN.seed)[0] for groups in _tried(points)]
    return max(fits, key=lambda labels: silhouette(points, labels))


def by_kmeans(points: Points) -> Labels:
    """Return the k-means grouping with the best silhouette: never one group."""
    from sklearn.cluster import KMeans

    fits = [
        np.asarray(KMeans(groups, n_init=5, random_state=PLAN.seed).fit_predict(points), dtype=np.int64)
        for groups in _tried(points)
    ]
    return max(fits, key=lambda labels: silhouette(points, labels))


def _tried(points: Points, first: int = 2) -> Sequence[int]:
    return range(first, min(PLAN.most_types, len(points) // 5) + 1)


METHODS: dict[str, Callable[[Points], Labels]] = {
    OURS: lambda points: find_groups(points, PLAN).types,
    "bic": by_bic,
    "silhouette": by_silhouette,
    "kmeans-silhouette": by_kmeans,
}


def type_table(seeds: int) -> pd.DataFrame:
    """Return how often each method finds the planted number of types, and the agreement (adjusted Rand index)."""
    from sklearn.metrics import adjusted_rand_score

    rows: list[Record] = []
    for templates, each, concentration in CASES:
        for seed in range(seeds):
            profiles, truth = draw(seed, templates, each, concentration)
            points = embed(hellinger_distance(profiles), PLAN).points
            for name, method in METHODS.items():
                started = time.process_time()
                labels = method(points)
                rows.append(
                    {
                        "templates": float(templates),
                        "subjects": float(templates * each),
                        "concentration": concentration,
                        "method": name,
                        "right_number": float(len(np.unique(labels)) == templates),
                        "ari": float(adjusted_rand_score(truth, labels)),
                        "least_ari": float(adjusted_rand_score(truth, labels)),
                        "cpu_s": time.process_time() - started,
                    }
                )
            print(f"{templates} templates, concentration {concentration:g}, seed {seed}", flush=True)
    keys = ["templates", "subjects", "concentration", "method"]
    kinds = {"right_number": "mean", "ari": "mean", "least_ari": "min", "cpu_s": "mean"}
    table = pd.DataFrame(rows).groupby(keys, sort=False).agg(kinds)
    table["seeds"] = seeds
    return table.reset_index()


def type_bars(table: pd.DataFrame) -> list[Bar]:
    """Return what has to hold."""
    found = table[table["method"] == OURS].set_index(["templates", "concentration"])
    bars = [
        at_least(f"types, {templates} templates at concentration {concentration:g}: least agreement", least, 1.0)
        for (templates, _, concentration), least in zip(CASES[:2], found["least_ari"].tolist()[:2], strict=True)
    ]
    return [*bars, at_least("types, one template: share of seeds that tell one", found["right_number"].iloc[-1], 0.95)]
