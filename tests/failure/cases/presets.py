"""Presets of engines, and options of similarities and fusion, that are misspelt or impossible."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..casebook import STOPS, Case, checked

TITLE = "Presets and options"


def preset(engine: str, **changes: object) -> Callable[[Path], str]:
    return checked({"register": {"presets": {engine: {"default": changes}}}})


def register(**values: object) -> Callable[[Path], str]:
    return checked({"register": values})


CASES = [
    Case("preset", "option misspelt", STOPS, "did you mean 'radius'", preset("instance", options={"raduis": 2})),
    Case("preset", "negative radius", STOPS, "options.radius: -1 is less", preset("instance", options={"radius": -1})),
    Case("preset", "options of another similarity", STOPS, "unknown key 'radius'",
         preset("instance", similarity="nmi", options={"radius": 2})),
    Case("preset", "percentiles that fall", STOPS, "percentiles must rise",
         preset("ffd", similarity="nmi", options={"percentiles": [99, 1]})),
    Case("preset", "unknown similarity", STOPS, "'lcc' is not one of", preset("instance", similarity="lcc")),
    Case("preset", "levels of other lengths", STOPS, "one entry for each level", preset("instance", iterations=[9, 9])),
    Case("preset", "key of greedy misspelt", STOPS, "did you mean 'radius'", preset("greedy", raduis=2)),
    Case("preset", "key of ANTs misspelt", STOPS, "did you mean 'iterations'", preset("ants", iteration=[9])),
    Case("preset", "bins of mattes in which SyN moves nothing", STOPS, "sampling is the number of histogram bins of mattes",
         preset("ants", metric="mattes", sampling=5)),
    Case("preset", "no iterations at any level", STOPS, "there are none", preset("ants", iterations=[0, 0, 0])),
    Case("preset", "smoothing larger than any image", STOPS, "1000000.0 is greater than the maximum of 50",
         preset("greedy", fluid=1e6)),
    Case("preset", "network that sees nothing", STOPS, "passes: -1 is less", preset("network", passes=-1)),
    Case("preset", "regulariser misspelt", STOPS, "'bendin' is not one of", preset("ffd", regulariser="bendin")),
    Case("preset", "fallback without a start", STOPS, "'start' is a required", register(fallback=[{"engine": "ants"}])),
    Case("preset", "fallback twice by two names", STOPS, "remove the old", register(fallback=[], ladder=[])),
    Case("preset", "engine that does not exist", STOPS, "'syn' is not one of", register(engine="syn")),
]  # fmt: skip
