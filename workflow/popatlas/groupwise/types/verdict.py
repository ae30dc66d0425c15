"""Is one template justified? From distances between subjects to a verdict in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from popatlas.errors import InputError
from popatlas.groupwise.types.clusters import APART, Array, Grouping, find_groups
from popatlas.groupwise.types.embedding import Embedding, embed
from popatlas.groupwise.types.regressions import ALL, TYPES, regress
from popatlas.groupwise.types.settings import TypesSettings
from popatlas.settings import Content

TOLD = 0.5  # share of the types that a covariate has to explain to be named in the verdict


@dataclass(frozen=True)
class Found:
    """What was found about the types of a population.

    Attributes
    ----------
    names : tuple of str
        Subjects.
    embeddings : dict of str to Embedding
        Distance to embedding.
    grouping : Grouping
        Types.
    regressions : DataFrame
        See `popatlas.groupwise.types.regressions.regress`.
    """

    names: tuple[str, ...]
    embeddings: Mapping[str, Embedding]
    grouping: Grouping
    regressions: pd.DataFrame

    @property
    def apart(self) -> list[str]:
        """Subjects that belong to no type."""
        return [name for name, kind in zip(self.names, self.grouping.types, strict=True) if kind == APART]

    @property
    def sentence(self) -> str:
        """The verdict."""
        found = self.grouping
        if found.count == 1:
            return f"One template serves the {len(self.names)} subjects: {found.why}."
        sizes = np.bincount(found.types)[1:]
        counts = f"{', '.join(map(str, sizes[:-1]))} and {sizes[-1]} subjects"
        numbers = f"silhouette {found.silhouettes[found.best]:.2f}, at most {found.reference:.2f} without any groups"
        text = f"{found.count} groups: {counts} ({numbers}; found again in subsets: {found.stability:.2f} of 1)."
        return text + (f" {len(self.apart)} lie apart from all." if self.apart else "") + self._along

    @property
    def _along(self) -> str:
        """Name the covariate that the types go along with most, where there is one."""
        of_types = self.regressions[self.regressions["dimension"] == TYPES]
        of_types = of_types[(of_types["covariate"] != ALL) & (of_types["r2"] >= TOLD)]
        if of_types.empty:
            return ""
        most = of_types.sort_values("r2", ascending=False).iloc[0]
        return f" They go along with {most['covariate']} ({100 * most['r2']:.0f} % of the types)."

    def table(self) -> pd.DataFrame:
        """Return a row for each subject: subject, type (0 lies apart), certainty and coordinates."""
        columns = {"subject": list(self.names), "type": self.grouping.types, "certainty": self.grouping.certainty}
        table = pd.DataFrame(columns)
        for name, embedding in self.embeddings.items():
            for place, values in enumerate(embedding.points.T, start=1):
                table[f"{name}_{place}"] = values
        return table

    def content(self) -> Content:
        """Return the verdict and its numbers for JSON."""
        found = self.grouping
        sizes = {str(kind): int((found.types == kind).sum()) for kind in range(1, found.count + 1)}
        return {
            "verdict": self.sentence,
            "one_template_serves": found.count == 1,
            "types": found.count,
            "sizes": sizes,
            "apart": self.apart,
            "best_grouping": found.best,
            "bic": {str(key): value for key, value in found.bic.items()},
            "silhouette": {str(key): value for key, value in found.silhouettes.items()},
            "silhouette_without_groups": None if np.isnan(found.reference) else found.reference,
            "stability": None if np.isnan(found.stability) else found.stability,
            "embeddings": {name: _described(embedding) for name, embedding in self.embeddings.items()},
        }


def _described(embedding: Embedding) -> Content:
    dimension = None if np.isnan(embedding.dimension) else embedding.dimension
    shares = [float(share) for share in embedding.shares]
    return {"correlation_dimension": dimension, "neighbours": embedding.neighbours, "variance": shares}


def find_types(
    distances: Mapping[str, Array],
    plan: TypesSettings | None = None,
    names: Sequence[str] | None = None,
    covariates: pd.DataFrame | None = None,
) -> Found:
    """Look for types in a population.

    Parameters
    ----------
    distances : mapping of str to (subjects, subjects) ndarray
        Name of a distance to its matrix; each is embedded on its own, and all count alike.
    plan : TypesSettings, optional
        How they are looked for.
    names : sequence of str, optional
        Subjects.
    covariates : DataFrame, optional
        A column for each covariate, a row for each subject, in the same order.

    Returns
    -------
    Found

    Raises
    ------
    InputError
        There are no distances or too few subjects, the matrices do not fit, or the neighbour graph falls apart.
    """
    plan = plan or TypesSettings()
    if not distances:
        raise InputError("no distance is given", remedy="name at least one")
    counts = {len(distance) for distance in distances.values()}
    count = counts.pop()
    told = tuple(names) if names is not None else tuple(f"subject {number}" for number in range(1, count + 1))
    if counts or len(told) != count or (covariates is not None and len(covariates) != count):
        raise InputError("distances, names and covariates are of different subjects", remedy="give each for all subjects")
    embeddings = {name: embed(np.asarray(distance, dtype=np.float64), plan) for name, distance in distances.items()}
    scaled = [one.points / np.sqrt(one.points.var(axis=0).sum()) for one in embeddings.values()]
    grouping = find_groups(np.hstack(scaled), plan)
    points = {name: one.points for name, one in embeddings.items()}
    shares = {name: one.shares for name, one in embeddings.items()}
    asked = covariates if covariates is not None else pd.DataFrame(index=range(count))
    return Found(told, embeddings, grouping, regress(points, shares, grouping.types, asked))
