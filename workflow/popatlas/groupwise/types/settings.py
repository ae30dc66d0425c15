"""Settings of the search for types, without what it loads."""

from __future__ import annotations

from popatlas.settings import option, settings

FEWEST = 10  # subjects; with fewer no group can be told from chance


@settings
class TypesSettings:
    """How types of subjects are found."""

    dimensions: int = option(4, "Most dimensions of an embedding; fewer for distances, or subjects, that have less", ge=1)
    neighbours: int = option(0, "Neighbours of the graph of ISOMAP; 0 for 3 of 8 subjects, more until all are joined", ge=0)
    most_types: int = option(8, "Most groups that are tried", ge=2, le=50)
    smallest_share: float = option(
        0.05, "Smallest share of the subjects that makes a type (and at least 3 subjects); others lie apart", gt=0, le=0.5
    )
    references: int = option(20, "Populations without groups, of each of two kinds, that it is compared with", ge=1)
    draws: int = option(50, "Subsets of 4 of 5 subjects that are grouped anew, for the stability", ge=2)
    stable: float = option(0.8, "Least mean agreement (adjusted Rand index) of these with the grouping", ge=0, le=1)
    seed: int = option(0, "Seed of all draws", ge=0)
