"""Write the page "Which engine, which network": what each is for, with numbers of the committed benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from benchmarks.common import RESULTS
from benchmarks.deep.fine import TITLE as FINE_TITLE
from benchmarks.deep.front import PEER, dice_at
from benchmarks.deep.front import TITLE as FRONT
from benchmarks.deep.scores import CONTRAST_TITLE, PAIRS_TITLE, SLICES_TITLE
from benchmarks.deep.systems import TITLE as SYSTEMS

from popatlas.images.io import read_json

Row = Mapping[str, Any]
NUMBERS = {
    "dice": "Dice",
    "hd95": "HD95, mm",
    "sdlogj": "SD of log-Jacobian",
    "volume_error": "error of volumes",
    "folds": "folds",
    "cpu_s": "CPU s",
}


@dataclass(frozen=True)
class Choice:
    """A question of a user, what to write, and the engine of the benchmark whose numbers stand beside it."""

    question: str
    write: str
    engine: str


CHOICES = (
    Choice("T1w brains; the default", "`engine: instance`", "instance-default"),
    Choice("many scans, a first look", "`engine: instance`, `preset: fast`", "instance-fast"),
    Choice("as much overlap as the engine gives", "`engine: instance`, `preset: accurate`", "instance-accurate"),
    Choice("T1w brains, labels matter most", "`engine: network`", "brain-t1w+10"),
    Choice("T1w brains, seconds matter most", "`engine: network`, `preset: fast`", "brain-t1w+2"),
    Choice(
        "the network alone (before the engine smooths its folds away)", "`engine: network`, `preset: quick`", "brain-t1w"
    ),
    Choice("greedy, to compare", "`engine: greedy`", "greedy"),
    Choice("ANTs SyN, to compare", "`engine: ants`", "syn-cc"),
)
CONTRASTS = (
    Choice("contrasts may differ", "`similarity: auto` in a preset of `instance`", "instance-auto"),
    Choice("the same, seconds matter", "`preset: fast` with `similarity: auto`", "instance-auto-fast"),
    Choice(
        "contrasts differ much, and the map from one to the other is not unique", "`similarity: mindssc`", "instance-mind"
    ),
    Choice(
        "T1w against any contrast, without optimisation", "`engine: network`, `weights: brain-contrast`", "brain-contrast"
    ),
    Choice("greedy with mutual information, to compare", "`engine: greedy`, `metric: NMI`", "greedy-nmi"),
    Choice("what `auto` is there to avoid: local correlation", "`similarity: lncc`", "instance-default"),
)

FINE = (
    Choice("as it is", "`engine: instance`", "instance-short"),
    Choice(
        "a level more at the start",
        "`shrink: [8, 4, 2, 1]`, `iterations: [100, 100, 60, 16]`, `field_shrink: [1, 1, 1, 1]`",
        "instance-longer",
    ),
    Choice("T1w brains, as it is", "`engine: network`", "network-short"),
    Choice(
        "a level more at the start",
        "`engine: network`, `shrink: [2, 1]`, `iterations: [10, 4]`, `field_shrink: [1, 1]`",
        "network-longer",
    ),
    Choice("greedy, to compare", "`engine: greedy`", "greedy"),
)


def choosing() -> str:
    """Return the page."""
    result = read_json(RESULTS / "deep.json")
    return "\n".join(_lines(result["rows"], result.get("dates", {})))


def _lines(tables: Mapping[str, Sequence[Row]], dates: Mapping[str, str]) -> Iterator[str]:
    yield "# Which engine, which network, for what\n"
    yield (
        "Numbers are means over ordered pairs of people whom no network of ours has seen (IXI, 2 mm, one core), from "
        "`python -m benchmarks.deep`; date, machine and all engines stand under [Benchmarks](benchmarks.md). The error of "
        "volumes is the RMS log ratio between the volume of a structure that the Jacobian gives and that of the moving "
        "labels. Folds are the share of the brain's voxels that fold towards some neighbour.\n"
    )
    yield "## Pairs of one contrast\n"
    pairs = {row["engine"]: row for row in tables.get(PAIRS_TITLE, [])} | {
        row["engine"]: row for row in tables.get(FRONT, [])
    }
    yield from _table(CHOICES, pairs, NUMBERS)
    yield (
        "\nAn engine that deforms more reaches more overlap, so compare engines at one smoothness. `elastic` and `bulk` of "
        "a preset set it: more of either is smoother, `bulk` only where volumes change.\n"
    )
    if FRONT in tables:
        yield "![Overlap against smoothness](images/front.png)\n"
        yield _against_greedy(tables[FRONT])
    yield "## Voxels of 1 mm\n"
    yield (
        "The widths of a schedule are in voxels, and the shipped weights are of 2 mm. On the same people with doubled "
        "resolution (no labelled images of 1 mm that no network has seen are at hand):\n"
    )
    yield from _table(FINE, {row["engine"]: row for row in tables.get(FINE_TITLE, [])}, NUMBERS)
    yield ""
    yield "## Pairs of different contrasts\n"
    contrast = {row["engine"]: row for row in tables.get(CONTRAST_TITLE, [])}
    yield from _table(
        CONTRASTS, contrast, {f"Dice, {name}": name for name in ("t1w", "inverted", "t2")} | {"cpu_s": "CPU s"}
    )
    yield (
        "\nThe columns are the Dice with the fixed image as it is, inverted, and like T2. `popatlas register` takes `auto` "
        "by itself; a study says it in its preset. Pairs that look nothing alike (ultrasound) need labels to learn from: "
        "[LabelReg](recipes/labelreg.md).\n"
    )
    yield "## Slices, heads, other bodies\n"
    slices = {row["engine"]: row for row in tables.get(SLICES_TITLE, [])}
    two = (
        Choice("slices, T1w", "weights `brain-t1w-2d`", "brain-t1w-2d"),
        Choice("slices, any", "`engine: instance`", "instance-default"),
    )
    yield from _table(two, slices, {name: NUMBERS[name] for name in ("dice", "sdlogj", "cpu_s")})
    earlier = [f"{title} ({date})" for title, date in dates.items() if title in (PAIRS_TITLE, CONTRAST_TITLE, SLICES_TITLE)]
    if earlier:
        yield f"\nOf an earlier day than the rest: {', '.join(earlier)}."
    yield (
        "\nWhole heads: `popatlas register --extract-brain`, or a network that was trained on heads. CT, animals and other "
        "organs: `instance` or `ants`; no shipped network has seen them.\n"
    )
    if SYSTEMS in tables:
        yield "## Networks of papers\n"
        yield (
            "Each [recipe](recipes/index.md) of a paper, trained with the same CPU time on the same people, in minutes "
            "where the papers take days: what to expect of a first try, not of the method. The shipped network and the "
            "engine stand beside them. Who stays below the affine has learnt nothing yet in that time.\n"
        )
        columns = {"steps": "steps", "dice": "Dice", "hd95": "HD95, mm", "sdlogj": "SD of log-Jacobian", "folds": "folds"}
        columns |= {"train_cpu_s": "training, CPU s", "cpu_s": "CPU s of a pair"}
        yield "| network | " + " | ".join(columns.values()) + " |"
        yield "|---" * (len(columns) + 1) + "|"
        for row in tables[SYSTEMS]:
            yield f"| {row['network']} | " + " | ".join(_number(row.get(key)) for key in columns) + " |"
        yield ""


def _against_greedy(rows: Sequence[Row]) -> str:
    """Return what the engine gains over greedy at the smoothness of its default and at that of its best widths."""
    table = pd.DataFrame(rows)
    greedy = table[table["engine"].str.startswith(PEER)].set_index("engine")
    best = str(greedy["dice"].idxmax())
    gains = {}
    for name in dict.fromkeys((PEER, best)):
        spread, dice = float(greedy.loc[name, "sdlogj"]), float(greedy.loc[name, "dice"])
        gains[name] = dice_at(table, ["instance"], spread) - dice
    told = [f"{value:+.3f} at the smoothness of {name}" for name, value in gains.items()]
    return f"The Dice of `instance` against greedy: {', and '.join(told)}.\n"


def _table(choices: Sequence[Choice], rows: Mapping[str, Row], columns: Mapping[str, str]) -> Iterator[str]:
    """Yield a table; engines that the result does not have are left out."""
    yield "| you have, or want | write | " + " | ".join(columns.values()) + " |"
    yield "|---" * (len(columns) + 2) + "|"
    for choice in choices:
        if choice.engine in rows:
            cells = [_number(rows[choice.engine].get(key)) for key in columns]
            yield f"| {choice.question} | {choice.write} | {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.3g}" if value < 100 else f"{value:.0f}"
