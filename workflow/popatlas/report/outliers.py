"""One row of key measures per scan, and how far each scan lies from the others.

The distance is the modified z of Iglewicz B, Hoaglin DC (How to detect and handle outliers, ASQC, 1993): that from the
median over 1.4826 times the median absolute deviation. They call values beyond 3.5 outliers, however many there are; of
eight healthy scans one is often beyond that in some measure. Here the limit follows from the number of scans and of measures
(`popatlas.report.limits`), and the score of a scan is its largest distance as a share of the limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from popatlas.measures.dictionary import BRAIN, MASK, REGISTRATION, TRUTH
from popatlas.measures.metrics import METRICS
from popatlas.report.limits import FEWEST, MAD_TO_SD, limit
from popatlas.settings import Content

OUTLIER = 1.0  # score beyond which a scan is one
# With many nearly equal values the MAD shrinks to nothing; differences below this share of the median are never odd
SMALLEST_SPREAD = 0.005
FOLDED = 1e-4  # share of folded voxels below which differences mean nothing; most scans have none


@dataclass(frozen=True)
class Measure:
    """A column of the cohort table.

    Attributes
    ----------
    key, title, unit : str
        Column name, heading, unit ("" for none).
    better : str
        higher, lower or neither: which side is suspicious.
    digits : int
        Decimals shown.
    about : str
        One sentence for the tooltip.
    smallest : float
        Spread of the cohort below which differences mean nothing, in its unit.
    """

    key: str
    title: str
    unit: str
    better: str
    digits: int
    about: str
    smallest: float = 0.0


_FROM_METRICS = {
    (MASK, "volume"): ("Brain volume", 0),
    (REGISTRATION, "correlation"): ("Correlation", 3),
    (REGISTRATION, "log_jacobian_sd"): ("SD of log J", 3),
    (REGISTRATION, "nonpositive_jacobian"): ("J \u2264 0", 5),
    (REGISTRATION, "landmark_error"): ("Landmark error", 2),
    (MASK, "mask_dice"): ("Mask Dice (truth)", 3),
    (TRUTH, "known_field_error"): ("Field error (truth)", 2),
}
_FROM_GATE = {
    "mask_dice": Measure("gate_mask_dice", "Mask Dice", "", "higher", 3, "gate: overlap of brain masks"),
    "edges": Measure("gate_edges", "Edges", "", "higher", 3, "gate: agreement of edges, whatever the contrast"),
    "sides": Measure(
        "gate_sides", "Sides", "", "higher", 2, "gate: asymmetry of the brain, 1 in people, -1 in mirror images"
    ),
    "shear": Measure("gate_shear", "Shear", "", "lower", 3, "gate: shear of the affine"),
    "scale_max": Measure("gate_scale_max", "Largest scale", "", "neither", 3, "gate: largest scale of the affine"),
}
_FROM_MASK = {
    "brain_ml": Measure("mask_brain_ml", "Brain volume", "ml", "neither", 0, "volume of the brain mask"),
    "compactness": Measure("mask_compactness", "Mask compactness", "", "neither", 3, "1 for a ball, low when ragged"),
    "contrast": Measure("mask_contrast", "Brain contrast", "", "neither", 2, "mean inside over mean just outside the mask"),
}


def key_measures(
    metrics: pd.DataFrame,
    gates: Mapping[str, Content],
    masks: Mapping[str, Content],
    methods: Sequence[str],
) -> tuple[pd.DataFrame, list[Measure]]:
    """Return the key measures of each scan.

    Parameters
    ----------
    metrics : DataFrame
        Tidy table (participant_id, session_id, method, label, metric, value); may be empty.
    gates, masks : mapping
        Content of the gate and mask QC files by scan name (`sub-01_ses-1`).
    methods : sequence of str
        Fusion methods.

    Returns
    -------
    table : DataFrame
        Index: scan name; one float column per measure.
    measures : list of Measure
        The columns, in the table's order.
    """
    found: dict[str, pd.Series] = {}
    measures: list[Measure] = []

    def add(measure: Measure, values: pd.Series) -> None:
        if values.notna().any():
            found[measure.key] = values
            measures.append(measure)

    means = _means(metrics)
    for (method, metric), (title, digits) in _FROM_METRICS.items():
        add(_measure(f"{method}_{metric}", title, metric, digits), means.get((method, metric), _NONE))
    if "mask_volume" in found:
        masks = {scan: {key: value for key, value in mask.items() if key != "brain_ml"} for scan, mask in masks.items()}
    for metric, name, digits in (("dice", "Dice", 3), ("hd95", "HD95", 2)):
        for method in methods:
            add(_measure(f"{method}_{metric}", f"{name} {method}", metric, digits), means.get((method, metric), _NONE))
    for source, columns in ((gates, _FROM_GATE), (masks, _FROM_MASK)):
        for key, measure in columns.items():
            add(measure, pd.Series({scan: values.get(key) for scan, values in source.items()}, dtype=float))
    return pd.DataFrame(found, dtype=float).sort_index(), measures


_NONE = pd.Series(dtype=float)


def _measure(key: str, title: str, metric: str, digits: int) -> Measure:
    known = METRICS[metric]
    smallest = FOLDED if metric == "nonpositive_jacobian" else 0.0
    return Measure(key, title, "" if known.unit == "1" else known.unit, known.better, digits, known.description, smallest)


def _means(metrics: pd.DataFrame) -> dict[tuple[str, str], pd.Series]:
    """Return the mean over labels of each (method, metric) by scan name; volumes of the whole brain only."""
    if metrics.empty:
        return {}
    rows = metrics[(metrics["metric"] != "volume") | ((metrics["label"] == BRAIN) & (metrics["method"] == MASK))]
    rows = rows.assign(name=scan_names(rows))
    means = rows.groupby(["method", "metric", "name"])["value"].mean()
    keys = rows[["method", "metric"]].drop_duplicates().itertuples(index=False, name=None)
    return {(str(method), str(metric)): means.loc[method, metric] for method, metric in keys}


def scan_names(table: pd.DataFrame) -> pd.Series:
    """Return `sub-01` or `sub-01_ses-1` for each row of a table with columns participant_id and session_id."""
    session = table["session_id"].astype(object).where(table["session_id"].notna(), "").astype(str)
    return table["participant_id"].astype(str) + session.where(session == "", "_" + session)


def robust_z(values: pd.Series, better: str = "neither", smallest: float = 0.0) -> pd.Series:
    """Return the modified z of each value; towards the good side it is 0.

    Parameters
    ----------
    values : Series
        One value per scan; missing ones stay missing.
    better : str
        "higher": only low values count, "lower": only high values, "neither": both.
    smallest : float
        A smaller spread counts as this; where it is 0 too, as for more than half of the values alike at 0, nothing is far.

    Returns
    -------
    Series
        0 for all when there are fewer values than `popatlas.report.limits.FEWEST`.
    """
    median = values.median()
    spread = max(MAD_TO_SD * (values - median).abs().median(), SMALLEST_SPREAD * abs(median), smallest)
    if values.notna().sum() < FEWEST or not spread > 0:
        return values * 0.0
    z = (values - median) / spread
    if better == "higher":
        return (-z).clip(lower=0.0)
    return z.clip(lower=0.0) if better == "lower" else z.abs()


def limits(table: pd.DataFrame, measures: Sequence[Measure]) -> dict[str, float]:
    """Return the robust standard deviations beyond which a scan is an outlier, by the key of the measure.

    Parameters
    ----------
    table : DataFrame
        From `key_measures`.
    measures : sequence of Measure
        Those that are looked at; the more there are, the farther is each limit.

    Returns
    -------
    dict
        Infinite where too few scans have the measure.
    """
    counts = {measure.key: int(table[measure.key].notna().sum()) for measure in measures}
    compared = sum(count >= FEWEST for count in counts.values())
    return {key: limit(count, compared) for key, count in counts.items()}


def outlier_scores(table: pd.DataFrame, measures: Sequence[Measure]) -> pd.DataFrame:
    """Return the outlier score of each scan: its largest distance as a share of the limit, and the measure of that.

    Parameters
    ----------
    table : DataFrame
        From `key_measures`.
    measures : sequence of Measure
        Columns that count.

    Returns
    -------
    DataFrame
        Index as in `table`; columns score (0 when nothing can be compared, above `OUTLIER` for an outlier) and measure
        (title, "" without score).
    """
    if table.empty or not measures:
        return pd.DataFrame({"score": pd.Series(0.0, index=table.index), "measure": ""})
    far = limits(table, measures)
    scores = pd.DataFrame({one.title: robust_z(table[one.key], one.better, one.smallest) / far[one.key] for one in measures})
    best = scores.fillna(0.0).to_numpy()
    titles = np.array(scores.columns)[best.argmax(axis=1)]
    largest = best.max(axis=1)
    return pd.DataFrame({"score": largest, "measure": np.where(largest > 0, titles, "")}, index=table.index)


def far_scans(values: pd.Series, measure: Measure, far: float) -> dict[str, float]:
    """Return the distance of the scans beyond the limit of a measure."""
    z = robust_z(values, measure.better, measure.smallest)
    return {str(name): float(distance) for name, distance in z[z > far].items()}
