"""Geometry of the small plots of a page; the page templates draw them as SVG, in the colours of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT = 320, 120
MARGIN = 14
# height of a lane, and where its axis begins and ends
LANE, LANE_ENDS = 30, (96, 548)
# Above this many scans only the far ones are drawn as dots, the rest is the box; of two variables so many are drawn
MOST_DOTS = 600
MOST_NAMES = 4
# Up to this many scans the dots are large
FEW_DOTS = 80


@dataclass(frozen=True)
class Tick:
    """A tick: place in pixels and text."""

    place: float
    text: str


@dataclass(frozen=True)
class Dot:
    """A scan in a plot."""

    x: float
    y: float
    scan: str
    text: str
    odd: bool = False


@dataclass(frozen=True)
class Name:
    """A written name of an odd scan; `anchor` as in SVG."""

    x: float
    y: float
    text: str
    anchor: str


@dataclass(frozen=True)
class Strip:
    """A distribution: dots over a horizontal axis with quartiles and median."""

    title: str
    unit: str
    about: str
    count: int
    dots: list[Dot]
    names: list[Name]
    quartiles: tuple[float, float, float]
    ticks: list[Tick]

    @property
    def radius(self) -> float:
        """Radius of the dots, smaller when there are many."""
        return 3.4 if self.count <= FEW_DOTS else 2.1


@dataclass(frozen=True)
class Line:
    """A curve over iterations."""

    title: str
    points: list[Dot]
    x_ticks: list[Tick]
    y_ticks: list[Tick]

    @property
    def path(self) -> str:
        """Points as an SVG polyline."""
        return " ".join(f"{dot.x},{dot.y}" for dot in self.points)


@dataclass(frozen=True)
class Scatter:
    """Two variables with a straight fit."""

    title: str
    x_title: str
    text: str
    dots: list[Dot]
    fit: tuple[float, float, float, float]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


@dataclass(frozen=True)
class Band:
    """A curve with a band round it, over the dots of the scans."""

    title: str
    x_title: str
    text: str
    dots: list[Dot]
    curve: list[Dot]
    edge: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]

    @property
    def path(self) -> str:
        """Points of the curve as an SVG polyline."""
        return " ".join(f"{dot.x},{dot.y}" for dot in self.curve)


@dataclass(frozen=True)
class Lane:
    """One row of a plot of lanes: a name, a note at its end, its height, dots, quartiles and median."""

    name: str
    note: str
    y: float
    dots: list[Dot]
    quartiles: tuple[float, float, float]


@dataclass(frozen=True)
class Lanes:
    """Distributions over one axis, one above the other; what belongs together is joined by lines."""

    title: str
    about: str
    lanes: list[Lane]
    lines: list[str]
    ticks: list[Tick]

    @property
    def bottom(self) -> float:
        """Place of the axis."""
        return 12 + LANE * len(self.lanes)


def strip(title: str, unit: str, about: str, values: Mapping[str, float], odd: Mapping[str, float], digits: int) -> Strip:
    """Lay out the distribution of a measure.

    Parameters
    ----------
    title, unit, about : str
        Heading, unit and tooltip.
    values : mapping of str to float
        Scan name to value, none missing, at least one.
    odd : mapping of str to float
        Outliers and their modified z; the farthest are named.
    digits : int
        Decimals of the values in tooltips.
    """
    names, numbers = list(values), np.array(list(values.values()), dtype=float)
    axis = Axis.over(numbers, MARGIN, WIDTH - MARGIN)
    x = axis.place(numbers)
    low, middle, high = (float(value) for value in axis.place(np.percentile(numbers, [25, 50, 75])))
    rows = _swarm(x)
    shown = range(len(names)) if len(names) <= MOST_DOTS else [i for i, name in enumerate(names) if name in odd]
    dots = [
        Dot(round(float(x[i]), 1), rows[i], names[i], f"{numbers[i]:.{digits}f} {unit}".strip(), names[i] in odd)
        for i in shown
    ]
    return Strip(title, unit, about, len(names), dots, _names(dots, odd), (low, middle, high), axis.ticks())


def lanes(title: str, about: str, values: Mapping[str, Mapping[str, float]], digits: int) -> Lanes:
    """Lay out the values of the same scans under several names, for example methods.

    Parameters
    ----------
    title, about : str
        Heading and one sentence.
    values : mapping of str to mapping of str to float
        Name of the lane to values by scan; the same scans in each, none missing, at least one.
    digits : int
        Decimals of the values that are told.
    """
    numbers = {name: np.array(list(scans.values()), dtype=float) for name, scans in values.items()}
    axis = Axis.over(np.concatenate(list(numbers.values())), *LANE_ENDS)
    rows = []
    for place, (name, scans) in enumerate(values.items()):
        y = 12 + LANE * (place + 0.5)
        dots = [Dot(axis.at(value), y, scan, f"{name} {value:.{digits}f}") for scan, value in scans.items()]
        low, middle, high = (float(value) for value in axis.place(np.percentile(numbers[name], [25, 50, 75])))
        rows.append(Lane(name, f"mean {numbers[name].mean():.{digits}f}", y, dots, (low, middle, high)))
    joined = zip(*(row.dots for row in rows), strict=True)
    lines = [" ".join(f"{dot.x},{dot.y}" for dot in dots) for dots in joined] if len(rows) > 1 else []
    return Lanes(title, about, rows, lines, axis.ticks(8))


def _names(dots: Sequence[Dot], odd: Mapping[str, float]) -> list[Name]:
    """Write the names of the farthest outliers, one below the other where they would touch."""
    chosen = sorted((dot for dot in dots if dot.odd), key=lambda dot: -odd[dot.scan])[:MOST_NAMES]
    placed: list[Name] = []
    for dot in sorted(chosen, key=lambda dot: dot.x):
        anchor = "start" if dot.x < WIDTH / 2 else "end"
        level = sum(abs(other.x - dot.x) < 80 for other in placed)
        placed.append(Name(min(max(dot.x, 4), WIDTH - 4), 13 + 11 * level, dot.scan, anchor))
    return placed


def _swarm(x: npt.NDArray[np.float64], middle: float = 62.0, room: float = 28.0) -> list[float]:
    """Return heights that keep dots of similar x apart: alternately above and below the middle, closer when many."""
    columns = np.round(x / (6 if len(x) <= FEW_DOTS else 4)).astype(int)
    step = min(7.0, 2 * room / max(int(np.bincount(columns - columns.min()).max()), 1))
    taken: dict[int, int] = {}
    heights = []
    for column in columns.tolist():
        number = taken.get(column, 0)
        taken[column] = number + 1
        heights.append(round(middle + (number + 1) // 2 * step * (1 if number % 2 else -1), 1))
    return heights


def line(title: str, x: Sequence[float], y: Sequence[float]) -> Line:
    """Lay out a curve over whole numbers (iterations); missing values are left out."""
    pairs = [(float(a), float(b)) for a, b in zip(x, y, strict=True) if np.isfinite(b)]
    across = Axis.over(np.array([a for a, _ in pairs]), 52, WIDTH - 20, pad=0.0)
    up = Axis.over(np.array([b for _, b in pairs]), HEIGHT - 26, 12)
    dots = [Dot(across.at(a), up.at(b), "", f"iteration {a:g}: {b:.4g}") for a, b in pairs]
    x_ticks = [Tick(across.at(a), f"{a:g}") for a, _ in pairs] if len(pairs) <= 12 else across.ticks()
    return Line(title, dots, x_ticks, up.ticks())


def scatter(
    title: str, x_title: str, text: str, points: Mapping[str, tuple[float, float]], slope: float, intercept: float
) -> Scatter:
    """Lay out two variables of the scans with the line `intercept + slope * x`."""
    x, y = (np.array([pair[axis] for pair in points.values()]) for axis in (0, 1))
    across, up = Axis.over(x, 52, 2 * WIDTH - 20), Axis.over(y, 2 * HEIGHT - 40, 12)
    drawn = list(points.items())[:: -(-len(points) // MOST_DOTS)]
    dots = [Dot(across.at(a), up.at(b), scan, f"{x_title} {a:.3g}, {b:.3g} ml") for scan, (a, b) in drawn]
    text += f" Drawn are {len(dots)} of them." if len(dots) < len(points) else ""
    ends = (float(x.min()), float(x.max()))
    fit = (across.at(ends[0]), up.at(intercept + slope * ends[0]), across.at(ends[1]), up.at(intercept + slope * ends[1]))
    return Scatter(title, x_title, text, dots, fit, across.ticks(), up.ticks())


def band(
    title: str,
    x_title: str,
    text: str,
    x: Sequence[float],
    y: Sequence[float],
    edges: tuple[Sequence[float], Sequence[float]],
    points: Mapping[str, tuple[float, float]],
) -> Band:
    """Lay out a curve, the lower and upper edges of its band, and the scans' values."""
    own = np.array(list(points.values()), dtype=float).reshape(-1, 2)
    across = Axis.over(np.concatenate([np.array(x), own[:, 0]]), 52, WIDTH - 12)
    up = Axis.over(np.concatenate([np.array([*y, *edges[0], *edges[1]]), own[:, 1]]), HEIGHT - 26, 10)
    drawn = list(points.items())[:: -(-len(points) // MOST_DOTS) or 1]
    dots = [Dot(across.at(a), up.at(b), scan, f"{x_title} {a:.3g}, {b:.3g} ml") for scan, (a, b) in drawn]
    curve = [Dot(across.at(a), up.at(b), "", f"{x_title} {a:.3g}: {b:.4g} ml") for a, b in zip(x, y, strict=True)]
    around = [*zip(x, edges[0], strict=True), *reversed(list(zip(x, edges[1], strict=True)))]
    edge = " ".join(f"{across.at(a)},{up.at(b)}" for a, b in around)
    return Band(title, x_title, text, dots, curve, edge, across.ticks(), up.ticks())


@dataclass(frozen=True)
class Axis:
    """A linear axis from data to pixels."""

    low: float
    high: float
    start: float
    end: float
    single: bool = False

    @classmethod
    def over(cls, values: npt.NDArray[np.float64], start: float, end: float, pad: float = 0.06) -> Axis:
        """Return the axis that holds all values, with room at both ends; equal values lie in the middle."""
        low, high = float(values.min()), float(values.max())
        if high == low:
            return cls(low - 0.5, high + 0.5, start, end, single=True)
        room = pad * (high - low)
        return cls(low - room, high + room, start, end)

    def place(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return pixels."""
        return self.start + (values - self.low) / (self.high - self.low) * (self.end - self.start)

    def at(self, value: float) -> float:
        """Return the pixel of one value."""
        return round(float(self.place(np.array(value))), 1)

    def ticks(self, most: int = 4) -> list[Tick]:
        """Return ticks at round numbers inside the axis; a single value has one tick."""
        from matplotlib.ticker import MaxNLocator

        if self.single:
            middle = (self.low + self.high) / 2
            return [Tick(self.at(middle), f"{middle:.4g}")]
        places = MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        inside = [float(place) for place in places if self.low <= place <= self.high]
        step = inside[1] - inside[0] if len(inside) > 1 else 1.0
        digits = max(0, int(np.ceil(-np.log10(step) - 1e-9))) if step < 1 else 0
        digits += int(round(step * 10**digits, 6) % 1 != 0)
        return [Tick(self.at(place), f"{place:.{digits}f}".replace("-", "\N{MINUS SIGN}")) for place in inside]
