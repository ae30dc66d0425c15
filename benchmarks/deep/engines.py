"""The engines of this benchmark, for the workers of `benchmarks.registration`: networks of the zoo beside engines of old.

A network is loaded, and runs once on a small pair, before the clock starts. What is timed is conforming the pair to its
contract, the prediction, the refinement by the instance engine where there is one, the inverse, and bringing both fields
back to the grid of the pair. Images come in RAS order with voxels of 2 mm, as `benchmarks.deep.pairs` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.registration.cases import Array
from benchmarks.registration.peers import ENGINES as PEERS
from benchmarks.registration.peers import Engine, Fields, Run, load_instance

SPACING = 2.0  # mm
T1W, CONTRAST, SLICES = "brain-t1w", "brain-contrast", "brain-t1w-2d"  # shipped networks
IMPORTED = ("voxelmorph-cvpr2018", "voxelmorph-miccai2018", "symnet", "lapirn-lite")
MIND = {"similarity": "mindssc", "options": {}}
# passes of the network and steps of the instance engine after it, as those of the configuration: rough updates at full
# resolution, since the network has the coarse part
REFINEMENTS: dict[int, tuple[int, dict[str, Any]]] = {
    steps: (
        passes,
        {"shrink": (1,), "iterations": (steps,), "field_shrink": (1,), "step": step, "fluid": 0.7, "elastic": 0.3},
    )
    for steps, passes, step in ((4, 1, 1.2), (10, 2, 0.8), (30, 3, 0.5), (50, 3, 0.5))
}


def load_network(weights: str, refine: Mapping[str, Any] | None = None, passes: int = 0) -> Run:
    """Return a network of the zoo; `refine` are settings of the instance engine that goes on from its field.

    `passes` is how often the network looks, 0 as in its training.
    """
    import torch

    from popatlas.images.grid import Grid
    from popatlas.registration.inputs import Scan
    from popatlas.registration.instance import preset, register
    from popatlas.registration.network import back, predict, set_passes
    from popatlas.zoo.contract import conform_pair
    from popatlas.zoo.store import load_weights

    torch.set_num_threads(1)
    net, entry = load_weights(weights)
    set_passes(net, passes)
    settings = replace(preset("default"), **refine) if refine else None

    def run(fixed: Array, moving: Array) -> Callable[[], Fields]:
        grid = Grid(fixed.shape, np.diag([*[-SPACING] * 2, *[SPACING] * (fixed.ndim - 2), 1.0]))
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


def network(weights: str, steps: int = 0, **changes: Any) -> Engine:
    """Return the entry of a network with so many steps of refinement, none by default."""
    passes, refine = REFINEMENTS[steps] if steps else (0, None)
    family = "imported network" if weights in IMPORTED else "network + refinement" if refine else "network"
    settings = None if refine is None else refine | changes
    return Engine(family, load_network, {"weights": weights, "refine": settings, "passes": passes})


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
}
ENGINES = SAME_CONTRAST | OTHER_CONTRAST
TABLE = __name__
