"""Scores of label images, by the registry of metrics."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from popatlas.measures.metrics import Metric, measure
from popatlas.measures.overlap import LabelPair


def label_scores(pair: LabelPair, metrics: Mapping[str, Metric]) -> pd.DataFrame:
    """Score the labels of a pair.

    Parameters
    ----------
    pair : LabelPair
        Reference and fused labels.
    metrics : mapping of str to Metric
        Some of `popatlas.measures.metrics.OF_LABELS`.

    Returns
    -------
    DataFrame
        Columns label, metric, value and unit, metric by metric in the order of `metrics`.
    """
    values = {name: np.asarray(column, dtype=float) for name, column in measure(metrics, pair).items()}
    table = pd.DataFrame({"label": np.array(pair.labels, dtype=np.int64), **values})
    rows = table.melt("label", list(metrics), var_name="metric", value_name="value")
    rows["unit"] = rows["metric"].map({name: metric.unit for name, metric in metrics.items()})
    return rows.astype({"value": float})
