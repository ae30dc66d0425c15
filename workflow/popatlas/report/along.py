"""The templates along a covariate on the cohort page: side by side, as a film, and the volumes along them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from popatlas.images.io import atomic_path, load_image
from popatlas.report.figures import Cell, Gray, View, draw_sheet, window
from popatlas.report.outliers import scan_names
from popatlas.report.pages import link, optional_json, optional_table
from popatlas.report.plots import Band, band

if TYPE_CHECKING:
    import pandas as pd

    from popatlas.images.arrays import RealArray

STRIP, FILM = "figures/along.webp", "figures/along.gif"  # beside the page
MOST = 6  # structures that are drawn
SHARES = (0.52, 0.47, 0.46)  # where the slices lie: axial, coronal, sagittal beside the midline
FRAME_MS, FRAME_PX = 900, 700
TILE_PX, MOST_PX = 280, 1400  # width of a template, and of the strip


Points = dict[tuple[str, str], dict[str, tuple[float, float]]]  # method and label to scan to value and volume


@dataclass(frozen=True)
class AlongSection:
    """What the page shows of templates along a covariate.

    Attributes
    ----------
    column : str
        The covariate.
    strip, film : tuple of str, int, int
        Address, width and height of the pictures.
    rows : list of dict
        What is told of each template.
    bands : list of Band
        Volumes along the templates, of the structures that change most.
    level : float
        Share of the draws within the bands, per cent.
    scans : int
        Scans that take part.
    """

    column: str
    strip: tuple[str, int, int]
    film: tuple[str, int, int]
    rows: list[dict[str, float]]
    bands: list[Band]
    level: float
    scans: int


def along_section(out_dir: Path, label: str, page: Path) -> AlongSection | None:
    """Draw the templates along a covariate beside a page, and return what it shows; None where there are none."""
    stem = out_dir / f"tpl-{label}" / f"tpl-{label}_desc-along"
    series, told = Path(f"{stem}_T1w.nii.gz"), optional_json(Path(f"{stem}_T1w.json"))
    if not series.is_file() or not told:
        return None
    image, column = load_image(series), str(told["Along"])
    table, members = optional_table(Path(f"{stem}_templates.tsv")), optional_table(Path(f"{stem}_members.tsv"))
    films = np.asarray(image.dataobj)
    strip, film = (page.parent / name for name in (STRIP, FILM))
    titles = [f"{column} {value:g}" for value in told["Values"]]
    sizes = draw_strip(films, image.affine, titles, strip), draw_film(films, image.affine, titles, film)
    volumes = optional_table(Path(f"{stem}_volumes.tsv"), dtype={"label": str})
    bands = volume_bands(volumes, table, points_of(out_dir, members, volumes), column)
    level = 100 * float(told["Settings"].get("level", 0.95))
    rows = [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
    addresses = [(link(path, page), *size) for path, size in zip((strip, film), sizes, strict=True)]
    return AlongSection(column, addresses[0], addresses[1], rows, bands, level, len(told["Scans"]))


def _cells(data: RealArray, view: View, note: str, grey: tuple[float, float]) -> list[Cell]:
    """Return an axial, a coronal and a sagittal slice of a template; the first one has its title."""
    cuts = [view.cuts(axis, 1, (share, share))[0] for axis, share in zip((2, 1, 0), SHARES, strict=True)]
    return [Cell(view, cut, [Gray(data, *grey)], note * (number == 0)) for number, cut in enumerate(cuts)]


def draw_strip(films: RealArray, affine: RealArray, titles: list[str], path: Path) -> tuple[int, int]:
    """Draw the templates (x, y, z, values) side by side, three slices of each; return the size in pixels."""
    view, grey = View.around(films.max(-1), affine), window(films)
    columns = [_cells(films[..., place], view, title, grey) for place, title in enumerate(titles)]
    width = min(TILE_PX * len(titles), MOST_PX)
    return draw_sheet(list(zip(*columns, strict=True)), path, width_px=width, positions=False)


def draw_film(films: RealArray, affine: RealArray, titles: list[str], path: Path) -> tuple[int, int]:
    """Draw the templates one after the other, there and back, as an animated GIF; return its size in pixels."""
    from PIL import Image

    view, grey = View.around(films.max(-1), affine), window(films)
    frames = []
    for place, title in enumerate(titles):
        with atomic_path(path.with_name(f"along-{place}.png")) as frame:
            draw_sheet([_cells(films[..., place], view, title, grey)], frame, width_px=FRAME_PX, positions=False)
            with Image.open(frame) as picture:
                frames.append(picture.convert("L"))
        path.with_name(f"along-{place}.png").unlink()
    frames += frames[-2:0:-1]
    with atomic_path(path, check=False) as temporary:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0)
    return frames[0].size


def points_of(out_dir: Path, members: pd.DataFrame, volumes: pd.DataFrame) -> Points:
    """Return value and volume of each scan that takes part, by name, for each method and label of the templates."""
    table, told = optional_table(out_dir / "group" / "volumes.tsv"), optional_json(out_dir / "group" / "volumes.json")
    if table.empty or members.empty:
        return {}
    own = {scan.rsplit("/", 1)[-1]: float(value) for scan, value in zip(members["scan"], members["value"], strict=True)}
    names = scan_names(table)
    found: Points = {}
    for column, text in told.items():
        key = (str(text.get("Method", "")), str(text.get("Label", "")))
        if column in table and key in set(zip(volumes["method"], volumes["label"], strict=True)):
            pairs = zip(names, table[column].astype(float), strict=True)
            found[key] = {name: (own[name], volume) for name, volume in pairs if name in own and volume == volume}
    return found


def volume_bands(volumes: pd.DataFrame, table: pd.DataFrame, points: Points, column: str) -> list[Band]:
    """Lay out the volumes that change most from the first to the last template; first those whose bands lie apart there."""
    places = dict(zip(table["value"], table["mean_value"], strict=True))
    found: list[tuple[tuple[bool, float], Band]] = []
    for key, rows in volumes.groupby(["method", "label"], sort=False):
        method, label = map(str, key)
        if len(rows) < max(len(places), 2) or not (rows["volume_ml"] > 0).all():
            continue
        x, y = [places[value] for value in rows["value"]], rows["volume_ml"].tolist()
        dots = dict(points.get((method, label), {}))
        slope = f"{_slope(x, y):+.3g} ml per unit of {column}"
        if len(dots) > 2:
            slope += f"; the scans {_slope(*zip(*dots.values(), strict=True)):+.3g}"
        title = f"{label.replace('_', ' ')} ({method}), ml"
        edges = rows["low_ml"].tolist(), rows["high_ml"].tolist()
        is_apart = edges[0][-1] > edges[1][0] or edges[1][-1] < edges[0][0]
        found.append(((not is_apart, -abs(y[-1] - y[0])), band(title, column, slope, x, y, edges, dots)))
    found.sort(key=lambda pair: pair[0])
    return [one for _, one in found[:MOST]]


def _slope(x: object, y: object) -> float:
    from scipy.stats import linregress

    pairs = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    return float(linregress(*pairs).slope) if np.ptp(pairs[0]) > 0 else float("nan")
