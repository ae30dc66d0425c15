"""Contact sheets: slices of images with outlines, edges, labels and colour maps, aligned on a dark ground.

Every sheet is one set of axes in pixels, so that tiles line up to the pixel and outlines stay smooth lines.
Slices are shown in neurological convention: the left of the picture is the subject's left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from popatlas.images.arrays import RealArray
from popatlas.images.colours import label_rgb
from popatlas.images.io import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = RealArray
Take = Callable[[Array], Array]
Extent = tuple[float, float, float, float]

GROUND = "#000000"
TEXT = "#9aa4ae"
OUTLINE = "#38d6c4"
EDGE = "#ff5a2b"
GUTTER_PX = 26
GAP_PX = 3
EDGE_ZOOM = 2
LABEL_ZOOM = 3
# headroom of the grey scale under coloured lines, so that they stand out on white matter
DIM = 1.25
# colours of disagreement, full at this share of the atlases
FEW_COLOURS, FEW = "autumn_r", 0.25


@dataclass(frozen=True)
class Cut:
    """A slice: axis 0 sagittal, 1 coronal, 2 axial, and the voxel along it."""

    axis: int
    index: int


@dataclass(frozen=True)
class View:
    """A box of a grid that is shown: voxel ranges and the voxel-to-RAS affine."""

    box: tuple[slice, slice, slice]
    affine: npt.NDArray[np.float64]

    @classmethod
    def around(cls, mask: Array, affine: Array, margin_mm: float = 8.0) -> View:
        """Return the view of the box round a mask; an empty mask shows everything."""
        sizes = _spacing(affine)
        found = np.argwhere(mask > 0)
        low, high = (found.min(0), found.max(0)) if len(found) else (np.zeros(3, int), np.array(mask.shape) - 1)
        room = np.ceil(margin_mm / sizes).astype(int)
        low, high = np.maximum(low - room, 0), np.minimum(high + room, np.array(mask.shape) - 1)
        first, second, third = (slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
        return cls((first, second, third), np.asarray(affine, dtype=np.float64))

    def cuts(self, axis: int, count: int, span: tuple[float, float] = (0.22, 0.80)) -> list[Cut]:
        """Return `count` slices spread over a span of the box; a single one lies in the middle, beside the midline."""
        start, stop = self.box[axis].start, self.box[axis].stop
        shares = np.linspace(*span, count) if count > 1 else np.array([0.5 if axis else 0.45])
        return [Cut(axis, round(start + share * (stop - 1 - start))) for share in shares]

    def mixed(self) -> list[Cut]:
        """Return three axial, two coronal and two sagittal slices."""
        return [*self.cuts(2, 3, (0.34, 0.66)), *self.cuts(1, 2, (0.36, 0.6)), *self.cuts(0, 2, (0.32, 0.56))]

    def take(self, cut: Cut) -> Take:
        """Return a function that takes the slice of a volume, superior or anterior up."""
        ranges: list[slice | int] = list(self.box)
        ranges[cut.axis] = cut.index

        def slice_of(data: Array) -> Array:
            return np.asarray(data[tuple(ranges)].T[::-1])

        return slice_of

    def size_mm(self, cut: Cut) -> tuple[float, float]:
        """Return width and height of a slice in millimetres."""
        lengths = [(part.stop - part.start) * size for part, size in zip(self.box, _spacing(self.affine), strict=True)]
        width, height = (lengths[axis] for axis in range(3) if axis != cut.axis)
        return float(width), float(height)

    def position(self, cut: Cut) -> str:
        """Return where a slice is, for example `z +12`, in millimetres of the world."""
        middle = [(part.start + part.stop - 1) / 2 for part in self.box]
        middle[cut.axis] = cut.index
        world = (self.affine @ [*middle, 1.0])[cut.axis]
        return f"{'xyz'[cut.axis]} {world:+.0f}".replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True)
class Gray:
    """An image in grey, `low` black and `high` white."""

    data: Array
    low: float
    high: float

    def draw(self, axes: Axes, take: Take, extent: Extent) -> None:
        """Draw the slice."""
        axes.imshow(take(self.data), cmap="gray", vmin=self.low, vmax=self.high, extent=extent, interpolation="bicubic")


@dataclass(frozen=True)
class Outline:
    """The border of a mask as a line."""

    mask: Array
    colour: str = OUTLINE
    width: float = 1.1

    def draw(self, axes: Axes, take: Take, extent: Extent) -> None:
        """Draw the border; nothing where the slice misses the mask."""
        plane = np.pad((take(self.mask) > 0).astype(np.float32), 1)
        if not plane.any():
            return
        left, right, bottom, top = extent
        rows, columns = plane.shape[0] - 2, plane.shape[1] - 2
        x = left + (np.arange(-1, columns + 1) + 0.5) * (right - left) / columns
        y = top + (np.arange(-1, rows + 1) + 0.5) * (bottom - top) / rows
        axes.contour(x, y, plane, levels=[0.5], colors=[self.colour], linewidths=self.width)


@dataclass(frozen=True)
class Edges:
    """The edges of an image inside a mask (Canny on the enlarged slice)."""

    data: Array
    mask: Array
    colour: str = EDGE

    def draw(self, axes: Axes, take: Take, extent: Extent) -> None:
        """Draw the edges."""
        from matplotlib.colors import to_rgb
        from scipy.ndimage import zoom
        from skimage.feature import canny

        plane = np.clip(zoom(take(self.data).astype(np.float32), EDGE_ZOOM, order=1), 0, None)
        inside = zoom((take(self.mask) > 0).astype(np.float32), EDGE_ZOOM, order=1) > 0.3
        if not inside.any():
            return
        spread = max(float(np.percentile(plane[inside], 95)), 1e-6)
        found = canny(plane / spread, sigma=0.9 * EDGE_ZOOM, low_threshold=0.02, high_threshold=0.06) & inside
        axes.imshow(_tinted(found, to_rgb(self.colour), 1.0), extent=extent, interpolation="antialiased")


@dataclass(frozen=True)
class Labels:
    """Labels as transparent colours with solid borders."""

    data: Array
    alpha: float = 0.32

    def draw(self, axes: Axes, take: Take, extent: Extent) -> None:
        """Draw the labels of a slice."""
        plane = np.kron(take(self.data).astype(np.int64), np.ones((LABEL_ZOOM, LABEL_ZOOM), dtype=np.int64))
        values, indices = np.unique(plane, return_inverse=True)
        colours = np.array([(*label_rgb(int(value)), self.alpha) if value else (0, 0, 0, 0) for value in values])
        picture = colours[indices.reshape(plane.shape)]
        border = np.zeros(plane.shape, dtype=bool)
        for axis in (0, 1):
            for step in (1, -1):
                border |= plane != np.roll(plane, step, axis=axis)
        picture[border & (plane > 0), 3] = 1.0
        axes.imshow(picture, extent=extent, interpolation="antialiased")


@dataclass(frozen=True)
class Diverging:
    """A signed map inside a mask, symmetric about 0: red positive, blue negative."""

    data: Array
    mask: Array
    limit: float

    def draw(self, axes: Axes, take: Take, extent: Extent) -> None:
        """Draw the slice."""
        plane = np.where(take(self.mask) > 0, take(self.data), np.nan)
        axes.imshow(plane, cmap="RdBu_r", vmin=-self.limit, vmax=self.limit, extent=extent, interpolation="nearest")


@dataclass(frozen=True)
class Disagreement:
    """A map of shares in [0, 1]: nothing where all agree, the stronger the colour the fewer."""

    data: Array

    def draw(self, axes: Axes, take: Take, extent: Extent) -> None:
        """Draw the slice."""
        from matplotlib import colormaps

        plane = np.clip((1.0 - take(self.data)) / (1 - FEW), 0, 1)
        picture = colormaps[FEW_COLOURS](plane)
        picture[..., 3] = np.where(plane > 0, 0.2 + 0.8 * plane, 0)
        axes.imshow(picture, extent=extent, interpolation="nearest")


Layer = Gray | Outline | Edges | Labels | Diverging | Disagreement


@dataclass(frozen=True)
class Cell:
    """One tile: a slice of a view, what is drawn on it, bottom first, and what is written at its upper edge."""

    view: View
    cut: Cut
    layers: Sequence[Layer]
    note: str = ""


@dataclass(frozen=True)
class ColourBar:
    """A colour bar drawn under the sheet; ticks are pairs of place, 0 to 1, and text."""

    text: str
    colours: str
    ticks: tuple[tuple[float, str], ...]

    @classmethod
    def symmetric(cls, limit: float, text: str) -> ColourBar:
        """Return the bar of a signed map."""
        low, high = (f"{sign * limit:+.3g}".replace("-", "\N{MINUS SIGN}") for sign in (-1, 1))
        return cls(text, "RdBu_r", ((0.0, low), (0.5, "0"), (1.0, high)))

    @classmethod
    def agreement(cls) -> ColourBar:
        """Return the bar of a map of agreement."""
        return cls("atlases with the label", FEW_COLOURS, ((0.0, "all"), (1.0, f"{100 * FEW:g} % or fewer")))


def planes(view: View, layers: Sequence[Layer], count: int = 7, over: View | None = None) -> list[list[Cell]]:
    """Return a row of `count` slices for each plane: axial, coronal, sagittal; spread over another view's box if given."""
    return [[Cell(view, cut, layers) for cut in (over or view).cuts(axis, count)] for axis in (2, 1, 0)]


def draw_sheet(
    rows: Sequence[Sequence[Cell]],
    path: Path,
    *,
    titles: Sequence[str] = (),
    width_px: int = 1400,
    bar: ColourBar | None = None,
    positions: bool = True,
    tile_mm: Sequence[tuple[float, float]] | None = None,
) -> tuple[int, int]:
    """Draw a contact sheet and write it as WebP or PNG, by the extension.

    Parameters
    ----------
    rows : sequence of sequence of Cell
        Tiles; a row is as high as its highest slice, all columns are as wide as the widest.
    path : Path
        Output file.
    titles : sequence of str
        One title per row, written upright at the left.
    width_px : int
        Width of the picture.
    bar : ColourBar, optional
        Colour bar under the tiles.
    positions : bool
        Write the position of each slice in its corner.
    tile_mm : sequence of pair of float, optional
        Width and height of the tiles of each row, so that sheets of different brains have one size; larger slices are
        shrunk. Taken from the slices when left out.

    Returns
    -------
    tuple of int
        Width and height in pixels.
    """
    from matplotlib.figure import Figure

    gutter = GUTTER_PX if titles else GAP_PX
    columns = max(len(row) for row in rows)
    tiles = tile_mm or [_largest(row) for row in rows]
    widest = max(width for width, _ in tiles)
    scale = (width_px - gutter - columns * GAP_PX) / (columns * widest)
    heights = [round(height * scale) for _, height in tiles]
    height_px = sum(heights) + GAP_PX * (len(rows) + 1) + (44 if bar else 0)
    figure = Figure(figsize=(width_px / 100, height_px / 100), dpi=100, facecolor=GROUND)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    top = GAP_PX
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for column, cell in enumerate(row):
            corner = (gutter + column * (widest * scale + GAP_PX), top)
            _draw_cell(axes, cell, corner, (widest * scale, height), scale, positions)
        if titles:
            _write(axes, (gutter / 2, top + height / 2), titles[number], 8.5, rotation=90)
        top += height + GAP_PX
    if bar:
        _draw_bar(axes, bar, width_px, top)
    axes.set(xlim=(0, width_px), ylim=(height_px, 0), aspect="auto")
    with atomic_path(path) as temporary:
        webp = {"quality": 82, "method": 4} if path.suffix == ".webp" else {}
        figure.savefig(temporary, dpi=100, facecolor=GROUND, pil_kwargs=webp)
        if path.suffix == ".png":
            _reduce_colours(temporary)
    return width_px, height_px


def _largest(row: Sequence[Cell]) -> tuple[float, float]:
    sizes = [cell.view.size_mm(cell.cut) for cell in row]
    return max(width for width, _ in sizes), max(height for _, height in sizes)


def _draw_cell(
    axes: Axes, cell: Cell, corner: tuple[float, float], size: tuple[float, float], scale: float, position: bool
) -> None:
    width, height = (length * scale for length in cell.view.size_mm(cell.cut))
    shrink = min(1.0, size[0] / width, size[1] / height)
    width, height = width * shrink, height * shrink
    left = corner[0] + (size[0] - width) / 2
    top = corner[1] + (size[1] - height) / 2
    for layer in cell.layers:
        layer.draw(axes, cell.view.take(cell.cut), (left, left + width, top + height, top))
    if cell.note:
        _write(axes, (corner[0] + size[0] / 2, corner[1] + 9), cell.note, 8.5)
    if position:
        where = cell.view.position(cell.cut)
        _write(axes, (corner[0] + 4, corner[1] + size[1] - 8), where, 7, "left")


def _draw_bar(axes: Axes, bar: ColourBar, width: float, top: float) -> None:
    half, y = 160, top + 10
    ramp = np.linspace(0, 1, 256)[None]
    axes.imshow(ramp, cmap=bar.colours, extent=(width / 2 - half, width / 2 + half, y + 10, y), interpolation="bilinear")
    for place, label in bar.ticks:
        _write(axes, (width / 2 + (2 * place - 1) * half, y + 21), label, 8)
    _write(axes, (width / 2 + half + 16, y + 5), bar.text, 8, "left")


def _write(axes: Axes, at: tuple[float, float], text: str, size: float, ha: str = "center", rotation: float = 0) -> None:
    axes.text(*at, text, color=TEXT, fontsize=size, ha=ha, va="center", rotation=rotation)


def _reduce_colours(path: Path) -> None:
    """Store a PNG with a palette: a third of the bytes, no visible change at thumbnail size."""
    from PIL import Image

    with Image.open(path) as picture:
        reduced = picture.convert("RGB").quantize(160, dither=Image.Dither.NONE)
    reduced.save(path, optimize=True)


def _tinted(found: Array, rgb: Iterable[float], alpha: float) -> Array:
    picture = np.zeros((*found.shape, 4))
    picture[..., :3] = tuple(rgb)
    picture[..., 3] = alpha * found
    return picture


def _spacing(affine: Array) -> npt.NDArray[np.float64]:
    return np.asarray(np.sqrt((np.asarray(affine)[:3, :3] ** 2).sum(axis=0)))


def under(data: Array) -> Gray:
    """Return an image as the dimmed ground of coloured lines."""
    low, high = window(data)
    return Gray(data, low, low + DIM * (high - low))


def window(data: Array, mask: Array | None = None, high: float = 99.5) -> tuple[float, float]:
    """Return the grey window of an image: 0.5th and `high` percentile of the non-zero voxels of a mask."""
    values = data[mask > 0] if mask is not None else data[np.isfinite(data) & (data != 0)]
    if values.size == 0:
        return 0.0, 1.0
    low, top = np.percentile(values, [0.5, high])
    return (float(min(low, 0.0)), float(top)) if top > low else (0.0, 1.0)


def symmetric_limit(data: Array, mask: Array) -> float:
    """Return the limit of a signed map: its 99th percentile of magnitude, up to the next quarter, at least 0.5."""
    values = np.abs(data[mask > 0])
    return max(0.5, float(np.ceil(np.percentile(values, 99) * 4) / 4)) if values.size else 0.5
