"""The curve of a training: a CSV, a picture, and optionally TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from popatlas.errors import InputError
from popatlas.images.io import atomic_path

Terms = dict[str, float]  # name of a loss term or of a score to its value
Row = dict[str, float | str]  # step, phase and seconds, and terms
TITLES = {"loss": "loss and its terms", "dice": "Dice of validation pairs", "ncc": "correlation of validation pairs"}


def write_curve(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as CSV: columns step, phase (train or validation), seconds, and the terms."""
    with atomic_path(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def draw_curve(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw loss terms, Dice and correlation against the steps."""
    from matplotlib.figure import Figure

    table = pd.DataFrame(rows)
    train, held = (table[table["phase"] == phase].dropna(axis=1, how="all") for phase in ("train", "validation"))
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    for name in [column for column in train if column not in ("step", "phase", "seconds", "rate", "pairs")]:
        axes[0].plot(train["step"], train[name], label=name, linewidth=2 if name == "loss" else 1)
    for axis, name in zip(axes[1:], ("dice", "ncc"), strict=True):
        for column, style in ((name, "-"), (f"{name}_before", ":")):
            if column in held:
                axis.plot(held["step"], held[column], style, marker=".", label=column.replace("_before", ", unregistered"))
    for axis, text in zip(axes, TITLES.values(), strict=True):
        axis.set(title=text, xlabel="step")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.suptitle(title)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


class TensorBoard:
    """Writes rows for TensorBoard; the package `tensorboard` is optional.

    Raises
    ------
    InputError
        When it is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError("--tensorboard needs the package tensorboard", remedy="pip install tensorboard") from error
        self.writer = SummaryWriter(str(folder))

    def add(self, row: Row) -> None:
        """Add a row of the curve."""
        for name, value in row.items():
            if name not in ("step", "phase") and isinstance(value, int | float):
                self.writer.add_scalar(f"{row['phase']}/{name}", value, row["step"])
        self.writer.flush()
