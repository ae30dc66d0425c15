"""The scans of a study: what the index says of them, and which have failed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from popatlas.cohort.opened import inspected_digests
from popatlas.images.io import read_table
from popatlas.stages import SIDE_STAGES

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Scans:
    """The scans that can be read, and what has become of them.

    Attributes
    ----------
    images : dict
        Scan to its T1w, of all that can be read.
    raw_digests : dict
        Scan to the SHA-256 of that image.
    channels, channel_digests : dict
        Scan to channel to its image, or to the SHA-256 of it.
    alive : frozenset of str
        Those that have not failed.
    serving : frozenset of str
        Those whose brain can be used: a target that failed may still be an atlas of the others.
    own : tuple of str
        Those of the cohort that are alive.
    dead : tuple of str
        Those of the cohort that have failed: nothing is made for them, but what others need of them as atlases.
    outside : list
        Scan, state and reason of all of the cohort that are not alive; of those that failed, as the group results tell it.
    incomplete : list
        Scan, stage, code and reason of what failed at a stage that no other scan needs.
    voxels : dict
        Scan to the millions of voxels of its T1w, and of cubic millimetres that it covers.
    unaligned, undivided, undrawn, unbenched : frozenset of str
        Those that failed at a stage that no other scan needs: an extra channel, tissues, their page, the bench.
    """

    images: dict[str, str]
    raw_digests: dict[str, str]
    channels: dict[str, dict[str, str]]
    channel_digests: dict[str, dict[str, str]]
    alive: frozenset[str]
    serving: frozenset[str]
    own: tuple[str, ...]
    dead: tuple[str, ...]
    outside: list[list[str]]
    incomplete: list[list[str]]
    unaligned: frozenset[str]
    undivided: frozenset[str]
    undrawn: frozenset[str]
    unbenched: frozenset[str]
    voxels: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, out_dir: Path) -> Scans:
        """Read the index of an output folder and its list of failures."""
        from popatlas.cohort.ledger import failed_atlases, failed_scans, read_failures

        index, failed = read_table(out_dir / "cohort" / "index.parquet"), failed_scans(out_dir)
        good, cohort = index[index["state"] == "ok"], index[index["role"] == "cohort"]
        usable = good[~good["scan"].isin(failed[""])]
        alive = frozenset(usable["scan"])
        out = cohort.loc[~cohort["scan"].isin(alive), ["scan", "state", "reason"]].to_numpy().tolist()
        failures = read_failures(out_dir).fillna("")
        beside = failures["stage"].isin(list(SIDE_STAGES))
        why = failures[~beside].drop_duplicates("scan").set_index("scan")[["stage", "code", "reason"]]
        channels = {row["scan"]: json.loads(row["channels"] or "{}") for row in good.to_dict("records")}
        return cls(
            images=dict(zip(good["scan"], good["t1w"], strict=True)),
            raw_digests=dict(zip(good["scan"], good["sha256"], strict=True)),
            channels=channels,
            channel_digests=_channel_digests(channels, good),
            alive=alive,
            serving=frozenset(good["scan"]) - failed_atlases(out_dir),
            own=tuple(usable.loc[usable["role"] == "cohort", "scan"]),
            dead=tuple(good.loc[~good["scan"].isin(alive) & (good["role"] == "cohort"), "scan"]),
            outside=[[*row, *why.loc[row[0]].tolist()] if row[0] in why.index else row for row in out],
            incomplete=failures[beside].to_numpy().tolist(),
            unaligned=frozenset(failed["channel"]),
            undivided=frozenset(failed["tissues"]),
            undrawn=frozenset(failed["page"]),
            unbenched=frozenset(failed["bench"]),
            voxels={
                scan: _voxels(*row)
                for scan, *row in zip(good["scan"], good["shape"], good["spacing_mm"], strict=True)
                if all(row)
            },
        )


def _voxels(shape: str, spacing_mm: str) -> tuple[float, float]:
    """Return the millions of voxels of an image, and of cubic millimetres, from its row of the index."""
    voxels = math.prod(int(n) for n in shape.split("x")[:3]) / 1e6
    return voxels, voxels * math.prod(float(size) for size in spacing_mm.split("x")[:3])


def _channel_digests(channels: Mapping[str, Mapping[str, str]], index: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of the image of each channel of each scan."""
    texts = zip(index["scan"], index["inspected"], strict=True)
    found = {scan: inspected_digests(text) for scan, text in texts if channels[scan]}
    return {
        scan: {channel: found[scan][path] for channel, path in named.items()} if named else {}
        for scan, named in channels.items()
    }
