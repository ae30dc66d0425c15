"""The engines of this benchmark, for the workers of `benchmarks.registration`: networks of the zoo beside engines of old.

A network is loaded, and runs once on a small pair, before the clock starts. What is timed is conforming the pair to its
contract, the prediction, the refinement by the instance engine where there is one, the inverse, and bringing both fields
back to the grid of the pair. Images come in RAS order with voxels of 2 mm, as `benchmarks.deep.pairs` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.deep.papers import PREFIX, SYSTEMS, weights_name
from benchmarks.registration.cases import Array
from benchmarks.registration.peers import ENGINES as PEERS
from benchmarks.registration.peers import Engine, Fields, Run, load_ffd, load_instance, load_lddmm
from popatlas.config.load import default_content

SPACING = 2.0  # mm
T1W, CONTRAST, SLICES = "brain-t1w", "brain-contrast", "brain-t1w-2d"  # shipped networks
IMPORTED = ("voxelmorph-cvpr2018", "voxelmorph-miccai2018", "symnet", "lapirn-lite")
MIND = {"similarity": "mindssc", "options": {}}
AUTO = {"similarity": "auto", "options": {}}
Preset = Mapping[str, object]  # of the network engine
MOST = 50  # steps of the longest refinement


def _refinements() -> dict[int, Preset]:
    """Return the presets of the network engine that refine, by their steps, and the longest with even more."""
    presets = default_content()["register"]["presets"]["network"]
    found: dict[int, Preset] = {sum(item["iterations"]): item for item in presets.values() if any(item["iterations"])}
    return found | {MOST: {**found[max(found)], "iterations": [MOST]}}


REFINEMENTS = _refinements()


def load_network(weights: str, refine: Preset | None = None, repeats: int = 0, spacing: float = SPACING) -> Run:
    """Return a network of the zoo; `refine` is a preset of the network engine, whose refinement goes on from its field.

    `repeats` is how often each network of a recursive cascade is applied, 0 as it was trained; `spacing` the voxels of the
    pairs in mm.
    """
    import torch

    from popatlas.images.grid import Grid
    from popatlas.images.scan import Scan
    from popatlas.registration.engines.instance.core import register
    from popatlas.registration.engines.network.core import back, predict, set_passes, set_repeats
    from popatlas.registration.engines.network.settings import NetworkSettings
    from popatlas.settings import settings_from
    from popatlas.zoo.contract import conform_pair
    from popatlas.zoo.store import load_weights

    torch.set_num_threads(1)
    net, entry = load_weights(weights)
    settings = settings_from(NetworkSettings, refine, "refine") if refine else None
    set_passes(net, settings.passes if settings else 0)
    set_repeats(net, repeats, entry)

    def run(fixed: Array, moving: Array) -> Callable[[], Fields]:
        grid = Grid(fixed.shape, np.diag([*[-spacing] * 2, *[spacing] * (fixed.ndim - 2), 1.0]))
        scans = [Scan(torch.from_numpy(image)[None, None], grid) for image in (fixed, moving)]
        pair = conform_pair(scans[0], scans[1], np.eye(fixed.ndim + 1), entry.input)
        found = predict(net, [pair])[0]
        forward = pair.back(found.displacement)
        if settings is None:
            fields = forward, back(net, pair, found)
        else:
            refined = register(scans[0].image, scans[1].image, settings, initial=forward)
            fields = refined.forward, refined.inverse
        return lambda: (fields[0][0].numpy(), fields[1][0].numpy())

    noise = np.random.default_rng(0).random((2, *[32] * entry.ndim), dtype=np.float32)
    noise[(slice(None), *[slice(0, 8)] * entry.ndim)] = 0
    noise[:, :8] = 0  # a brain has background
    run(noise[0], noise[1])
    return run


def network(weights: str, steps: int = 0, **changes: object) -> Engine:
    """Return the entry of a network with so many steps of refinement, none by default."""
    family = "imported network" if weights in IMPORTED else "network + refinement" if steps else "network"
    return Engine(family, load_network, {"weights": weights, "refine": {**REFINEMENTS[steps], **changes} if steps else None})


def paper(name: str) -> Engine:
    """Return the entry of a paper's network that this benchmark trains."""
    options = {"weights": weights_name(name), "refine": None, "repeats": SYSTEMS[name].repeats}
    return Engine("network of a paper", load_network, options)


REFINED = {f"{T1W}+{steps}": network(T1W, steps) for steps in REFINEMENTS}
SAME_CONTRAST: dict[str, Engine] = {
    **{name: network(name) for name in (T1W, CONTRAST)},
    **REFINED,
    **{
        f"instance-{name}": Engine("instance", load_instance, {"preset": name})
        for name in ("quick", "fast", "default", "accurate")
    },
    **{name: PEERS[name] for name in ("syn", "syn-cc", "greedy")},
    **{name: network(name) for name in IMPORTED},
}
OTHER_CONTRAST: dict[str, Engine] = {
    **{name: network(name) for name in (CONTRAST, T1W)},
    f"{CONTRAST}+mind": network(CONTRAST, 30, **MIND),
    "instance-default": SAME_CONTRAST["instance-default"],
    "instance-signed": Engine(
        "instance", load_instance, {"preset": "default", "options": {"radius": 2, "floor": 1e-3, "squared": False}}
    ),
    "instance-mind": Engine("instance", load_instance, {"preset": "default", **MIND}),
    "instance-auto": Engine("instance", load_instance, {"preset": "default", **AUTO}),
    "instance-auto-fast": Engine("instance", load_instance, {"preset": "fast", **AUTO}),
    **{name: PEERS[name] for name in ("ffd-default", "ffd-accurate")},
    **{
        f"ffd-{name}": Engine("free form", load_ffd, {"preset": "default", "similarity": name, "options": {}})
        for name in ("nmi", "mind")
    },
    "greedy-nmi": Engine("greedy", PEERS["greedy"].load, {**PEERS["greedy"].options, "metric": "NMI"}),
}
PARTS: dict[str, Engine] = {  # of `benchmarks.parts`: engines with and without a part
    **{name: PEERS[name] for name in ("lddmm-fast", "lddmm-default")},
    "lddmm-stationary": Engine("flows", load_lddmm, {"preset": "default", "velocities": 1}),
    "lddmm-auto": Engine("flows", load_lddmm, {"preset": "default", **AUTO}),
    "ffd-loose": Engine("free form", load_ffd, {"preset": "accurate", "weight": 0.05, "folding": 0.0}),
    "ffd-loose-folding": Engine("free form", load_ffd, {"preset": "accurate", "weight": 0.05, "folding": 1.0}),
}
FRONT: dict[str, Engine] = {  # one engine at other smoothnesses than its default
    **{
        f"instance, elastic {width:g}": Engine("instance", load_instance, {"preset": "default", "elastic": width})
        for width in (0.4, 0.6, 0.8, 1.1)
    },
    **{
        f"instance, elastic {width:g}, no bulk": Engine(
            "instance without bulk", load_instance, {"preset": "default", "elastic": width, "bulk": 0.0}
        )
        for width in (0.5, 0.8, 1.1)
    },
    **{
        f"greedy, fluid {width:g}": Engine("greedy", PEERS["greedy"].load, {**PEERS["greedy"].options, "fluid": width})
        for width in (1.2, 2.4, 3.0)
    },
}
FINE_MM = 1.0
LONGER: Mapping[str, Preset] = {  # one level more at the start, for voxels of half the size
    "instance": {"shrink": (8, 4, 2, 1), "iterations": (100, 100, 60, 16), "field_shrink": (1, 1, 1, 1)},
    "network": {"shrink": (2, 1), "iterations": (10, 4), "field_shrink": (1, 1)},
}
FINE: dict[str, Engine] = {  # of pairs with voxels of 1 mm
    "instance-longer": Engine("instance", load_instance, {"preset": "default", **LONGER["instance"]}),
    "network-longer": Engine(
        "network + refinement",
        load_network,
        {"weights": T1W, "refine": {**REFINEMENTS[10], **LONGER["network"]}, "spacing": FINE_MM},
    ),
    "instance-short": Engine("instance as for 2 mm", load_instance, {"preset": "default"}),
    "network-short": Engine(
        "network as for 2 mm", load_network, {"weights": T1W, "refine": REFINEMENTS[10], "spacing": FINE_MM}
    ),
    "greedy": PEERS["greedy"],
}
PAPERS: dict[str, Engine] = {PREFIX + name: paper(name) for name in SYSTEMS}
ENGINES = SAME_CONTRAST | OTHER_CONTRAST | PARTS | FRONT | FINE | PAPERS
TABLE = __name__
