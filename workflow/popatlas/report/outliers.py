"""One row of key measures per scan, and how far each scan lies from the others.

The score is the modified z of Iglewicz B, Hoaglin DC (How to detect and handle outliers, ASQC, 1993): distance from the
median over 1.4826 times the median absolute deviation; they call values beyond 3.5 outliers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from popatlas.measures.dictionary import BRAIN, MASK, REGISTRATION, TRUTH
from popatlas.measures.metrics import METRICS
from popatlas.settings import Content

OUTLIER = 3.5
MAD_TO_SD = 1.4826
# With many nearly equal values the MAD shrinks to nothing; differences below this share of the median are never odd
SMALLEST_SPREAD = 0.005
FEWEST_SCANS = 4


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
    """

    key: str
    title: str
    unit: str
    better: str
    digits: int
    about: str


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
    return Measure(key, title, "" if known.unit == "1" else known.unit, known.better, digits, known.description)


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


def robust_z(values: pd.Series, better: str = "neither") -> pd.Series:
    """Return the modified z of each value; towards the good side it is 0.

    Parameters
    ----------
    values : Series
        One value per scan; missing ones stay missing.
    better : str
        "higher": only low values count, "lower": only high values, "neither": both.

    Returns
    -------
    Series
        0 for all when there are fewer than four scans.
    """
    median = values.median()
    spread = max(MAD_TO_SD * (values - median).abs().median(), SMALLEST_SPREAD * abs(median), 1e-9)
    if values.notna().sum() < FEWEST_SCANS:
        return values * 0.0
    z = (values - median) / spread
    if better == "higher":
        return (-z).clip(lower=0.0)
    return z.clip(lower=0.0) if better == "lower" else z.abs()


def outlier_scores(table: pd.DataFrame, measures: Sequence[Measure]) -> pd.DataFrame:
    """Return the outlier score of each scan: its largest modified z, and the measure that it comes from.

    Parameters
    ----------
    table : DataFrame
        From `key_measures`.
    measures : sequence of Measure
        Columns that count.

    Returns
    -------
    DataFrame
        Index as in `table`; columns score (0 when nothing can be compared) and measure (title, "" without score).
    """
    if table.empty or not measures:
        return pd.DataFrame({"score": pd.Series(0.0, index=table.index), "measure": ""})
    scores = pd.DataFrame({measure.title: robust_z(table[measure.key], measure.better) for measure in measures})
    best = scores.fillna(0.0).to_numpy()
    titles = np.array(scores.columns)[best.argmax(axis=1)]
    largest = best.max(axis=1)
    return pd.DataFrame({"score": largest, "measure": np.where(largest > 0, titles, "")}, index=table.index)
