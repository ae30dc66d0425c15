"""Draw a graph without circles from top to bottom, as SVG: the same graph always gives the same picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise, product
from xml.sax.saxutils import escape

import networkx as nx

ROW, WIDTH, HEIGHT, LANE = 72, 122, 30, 24  # pixels: distance of rows, size of a box, width of a line that passes boxes
MARGIN, SWEEPS = 24, 24
STYLE = (
    "text{font:13px sans-serif;fill:#1f2933;text-anchor:middle}.small{font-size:11px;fill:#52606d}"
    "rect{fill:#e0f2f1;stroke:#00796b;rx:5}.page{fill:#fff;stroke:none}.base{fill:#f5f7fa;stroke:#9aa5b1}"
    "path{fill:none;stroke:#7b8794;stroke-width:1.3}marker path{fill:#7b8794;stroke:none}"
)
MARKER = (
    '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0 8 4 0 8z"/></marker>'
)
Rows = list[list[str]]


def draw(edges: Iterable[tuple[str, str]], base: Sequence[str], note: str, base_note: str) -> str:
    """Return a picture of a graph, arrows downwards, with a band of boxes below it.

    Parameters
    ----------
    edges : iterable of (str, str)
        From the upper to the lower box.
    base : sequence of str
        Boxes of the band, without arrows.
    note, base_note : str
        Written above the graph and above the band.
    """
    graph = nx.DiGraph(sorted(edges))
    chains = with_lanes(graph)
    rows = ordered(rows_of(graph, chains), chains)
    x, y = places(rows, chains, graph)
    lines = [path([(x[name], y[name]) for name in chain]) for chain in chains]
    boxes = [box(x[name], y[name], name) for name in graph]
    right = max(x[name] + WIDTH / 2 for name in graph) + MARGIN
    top = len(rows) * ROW + MARGIN
    columns = max(1, int((right - MARGIN) // (WIDTH + 10)))
    boxes += [text(right / 2, MARGIN, note), text(right / 2, top + 18, base_note)]
    for number, name in enumerate(base):
        row, column = divmod(number, columns)
        count = min(columns, len(base) - row * columns)
        left = right / 2 - (count - 1) * (WIDTH + 10) / 2
        boxes.append(box(left + column * (WIDTH + 10), top + 46 + row * (HEIGHT + 8), name, "base"))
    height = top + 46 + -(-len(base) // columns) * (HEIGHT + 8) + 8
    size, drawn = f'width="{right:.0f}" height="{height:.0f}"', "\n".join([*lines, *boxes])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right:.0f} {height:.0f}" {size}>\n'
        f'<style>{STYLE}</style>\n<defs>{MARKER}</defs>\n<rect class="page" {size}/>\n{drawn}\n</svg>\n'
    )


def rows_of(graph: nx.DiGraph, chains: Sequence[Sequence[str]]) -> Rows:
    """Return the boxes of each row, from the top, each as low as its arrows let it; lanes are in the rows that they pass."""
    depth = depths(graph)
    rows: Rows = [[] for _ in range(max(depth.values()) + 1)]
    for name in graph:
        rows[max(depth.values()) - depth[name]].append(name)
    for chain in chains:
        for number, lane in enumerate(chain[1:-1], 1):
            rows[max(depth.values()) - depth[chain[0]] + number].append(lane)
    return rows


def depths(graph: nx.DiGraph) -> dict[str, int]:
    """Return how many arrows the longest way down from each box has."""
    found: dict[str, int] = {}
    for name in reversed(list(nx.lexicographical_topological_sort(graph))):
        found[name] = max((found[below] + 1 for below in graph.successors(name)), default=0)
    return found


def with_lanes(graph: nx.DiGraph) -> list[list[str]]:
    """Return each arrow as the boxes that it joins, with a lane in each row that it passes in between."""
    depth = depths(graph)
    return [[a, *(f"{a}>{b}:{row}" for row in range(depth[a] - 1, depth[b], -1)), b] for a, b in graph.edges]


def ordered(rows: Rows, chains: Sequence[Sequence[str]]) -> Rows:
    """Return rows in an order in which few arrows cross: by the mean place of what they are joined to, down and up again."""
    links = [pair for chain in chains for pair in pairwise(chain)]
    above = {name: [a for a, b in links if b == name] for row in rows for name in row}
    below = {name: [b for a, b in links if a == name] for row in rows for name in row}
    best, fewest = rows, crossings(rows, links)
    for sweep in range(SWEEPS):
        rows, near = [list(row) for row in rows], above if sweep % 2 == 0 else below
        for number in range(len(rows)) if sweep % 2 == 0 else reversed(range(len(rows))):
            at = {name: place for row in rows for place, name in enumerate(row)}
            mean = {
                name: sum(at[n] for n in near[name]) / len(near[name]) if near[name] else at[name] for name in rows[number]
            }
            rows[number].sort(key=lambda name, mean=mean: (mean[name], name))  # type: ignore[misc]
        if (count := crossings(rows, links)) < fewest:
            best, fewest = rows, count
    return best


def crossings(rows: Rows, links: Sequence[tuple[str, str]]) -> int:
    """Return how many pairs of links between two rows cross."""
    at = {name: (number, place) for number, row in enumerate(rows) for place, name in enumerate(row)}
    total = 0
    for (a, b), (c, d) in product(links, links):
        total += at[a][0] == at[c][0] and at[a][1] < at[c][1] and at[b][1] > at[d][1]
    return total


def places(rows: Rows, chains: Sequence[Sequence[str]], graph: nx.DiGraph) -> tuple[dict[str, float], dict[str, float]]:
    """Return the middles of boxes and lanes: each near what it is joined to, none over another."""
    links = [pair for chain in chains for pair in pairwise(chain)]
    near: dict[str, list[str]] = {name: [] for row in rows for name in row}
    for a, b in links:
        near[a].append(b)
        near[b].append(a)
    half = {name: (WIDTH + 16) / 2 if name in graph else LANE / 2 for name in near}
    x = {name: float(place * WIDTH) for row in rows for place, name in enumerate(row)}
    for _ in range(SWEEPS * 4):
        for row in rows:
            wanted = [sum(x[n] for n in near[name]) / len(near[name]) for name in row]
            x |= dict(zip(row, spread(wanted, [half[name] for name in row]), strict=True))
    left = min(x[name] - half[name] for name in near)
    x = {name: at - left + MARGIN for name, at in x.items()}
    return x, {name: MARGIN + (number + 0.6) * ROW for number, row in enumerate(rows) for name in row}


def spread(wanted: Sequence[float], half: Sequence[float]) -> list[float]:
    """Return places in the same order, as near to the wanted ones as their widths let them (least squares)."""
    offset = [0.0]
    for a, b in pairwise(half):
        offset.append(offset[-1] + a + b)
    groups: list[tuple[float, int]] = []  # mean and count of neighbours that touch
    for place, shift in zip(wanted, offset, strict=True):
        groups.append((place - shift, 1))
        while len(groups) > 1 and groups[-2][0] > groups[-1][0]:
            (b, m), (a, n) = groups.pop(), groups.pop()
            groups.append(((a * n + b * m) / (n + m), n + m))
    flat = [mean for mean, count in groups for _ in range(count)]
    return [mean + shift for mean, shift in zip(flat, offset, strict=True)]


def path(points: Sequence[tuple[float, float]]) -> str:
    """Return an arrow through points: straight down beside boxes, bent between rows."""
    words = [f"M{points[0][0]:.1f} {points[0][1] + HEIGHT / 2:.1f}"]
    for (a, upper), (b, lower) in pairwise(points):
        top, bottom = upper + HEIGHT / 2, lower - HEIGHT / 2 - 1
        middle = (top + bottom) / 2
        words.append(f"V{top:.1f}C{a:.1f} {middle:.1f} {b:.1f} {middle:.1f} {b:.1f} {bottom:.1f}")
    return f'<path marker-end="url(#tip)" d="{" ".join(words)}"/>'


def box(x: float, y: float, name: str, kind: str = "") -> str:
    """Return a box with a name."""
    look = f' class="{kind}"' if kind else ""
    place = f'x="{x - WIDTH / 2:.1f}" y="{y - HEIGHT / 2:.1f}" width="{WIDTH}" height="{HEIGHT}"'
    return f'<rect{look} {place}/><text x="{x:.1f}" y="{y + 4.5:.1f}">{escape(name)}</text>'


def text(x: float, y: float, words: str) -> str:
    """Return a line of small text."""
    return f'<text class="small" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def reduced(edges: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """Return the edges of a graph without circles that do not follow from others."""
    graph = nx.DiGraph([(a, b) for a, targets in sorted(edges.items()) for b in sorted(targets)])
    return sorted(nx.transitive_reduction(graph).edges)
