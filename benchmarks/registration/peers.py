"""The engines: a table of names, and for each kind a function that loads it and returns what is timed.

Everything here runs in a fresh process of one thread (see `worker`). Loading (imports, compiling) is measured apart. What
is timed takes two arrays of one grid and returns a function that collects the fields, which is measured apart too: reading
files back and turning axes is no part of an engine. All fields are displacements (3, x, y, z) in voxels: a fixed point x
goes to x + u(x).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.registration.cases import Array
from popatlas.registration.engines.registry import ENGINES as ENGINE_TABLE
from popatlas.settings import Content, as_content

Fields = tuple[Array, Array | None]
Run = Callable[[Array, Array], Callable[[], Fields]]


@dataclass(frozen=True)
class Engine:
    """One engine with its settings.

    Attributes
    ----------
    family : str
        Engines of one family share a colour.
    load : callable
        Imports what is needed and returns the function that is timed; ImportError means that it is absent.
    options : mapping
        Given to `load`.
    """

    family: str
    load: Callable[..., Run]
    options: Mapping[str, object] = field(default_factory=dict)


def load_instance(preset: str, symmetric: bool = True, device: str = "cpu", **changes: object) -> Run:
    """Our engine, a preset with some settings changed; a tiny run compiles its kernels before the clock starts."""
    import torch

    from popatlas.registration.engines.instance.core import register
    from popatlas.registration.engines.instance.settings import preset as settings_of

    if device != "cpu" and not torch.cuda.is_available():
        raise ImportError("no GPU is visible")
    torch.set_num_threads(1)
    settings = settings_of(preset, symmetric=symmetric, **changes)

    def run(fixed: Array, moving: Array) -> Callable[[], Fields]:
        images = [torch.from_numpy(image)[None, None].to(device) for image in (fixed, moving)]
        result = register(images[0], images[1], settings)
        if device != "cpu":
            torch.cuda.synchronize()
        return lambda: (result.forward[0].cpu().numpy(), result.inverse[0].cpu().numpy())

    blobs = np.random.default_rng(0).random((2, 32, 32, 32), dtype=np.float32)
    run(blobs[0], blobs[1])
    return run


def load_forward(engine: Literal["ffd", "lddmm"], preset: str, **changes: object) -> Run:
    """One of our engines without an inverse of its own, a preset changed; its inverse is made within the call, as in use."""
    import torch

    from popatlas.transforms.fields import invert

    torch.set_num_threads(1)
    settings = ENGINE_TABLE[engine].presets[preset].changed(**changes)
    register = import_module(f"popatlas.registration.engines.{engine}.core").register

    def run(fixed: Array, moving: Array) -> Callable[[], Fields]:
        images = [torch.from_numpy(image)[None, None] for image in (fixed, moving)]
        forward = register(images[0], images[1], settings).displacement
        inverse = invert(forward)
        return lambda: (forward[0].numpy(), inverse[0].numpy())

    return run


load_ffd, load_lddmm = partial(load_forward, "ffd"), partial(load_forward, "lddmm")
OURS: dict[Callable[..., Run], str] = {load_instance: "instance", load_ffd: "ffd", load_lddmm: "lddmm"}  # whose presets


def settings_of(engine: Engine) -> Content:
    """Return the settings of an engine, those of its preset too: results belong to what a preset says, not to its name."""
    options = dict(engine.options)
    if engine.load in OURS:
        options["preset"] = as_content(ENGINE_TABLE[OURS[engine.load]].presets[str(options["preset"])])
    return options


def load_syn(metric: str, sampling: int, iterations: tuple[int, ...]) -> Run:
    """SyN of ANTsPy without linear stage; it starts from the identity."""
    import ants

    ants.config.set_ants_deterministic(True)  # `random_seed` alone is ignored

    def run(fixed: Array, moving: Array) -> Callable[[], Fields]:
        folder = tempfile.TemporaryDirectory(prefix="popatlas-syn-")
        result = ants.registration(
            ants.from_numpy(fixed),
            ants.from_numpy(moving),
            "SyNOnly",
            outprefix=f"{folder.name}/",
            syn_metric=metric,
            syn_sampling=sampling,
            reg_iterations=iterations,
        )
        return lambda: _ants_fields(result, folder)

    return run


def _ants_fields(result: Mapping[str, Sequence[str]], folder: tempfile.TemporaryDirectory[str]) -> Fields:
    """Read the two warps; the images have unit voxels and ITK's axes, so millimetres are voxels."""
    import ants

    names = [next(name for name in result[kind] if "Warp" in Path(name).name) for kind in ("fwdtransforms", "invtransforms")]
    warps = [np.moveaxis(ants.image_read(name).numpy(), -1, 0).astype(np.float32) for name in names]
    folder.cleanup()
    return warps[0], warps[1]


def load_greedy(fluid: float, elastic: float, metric: Literal["WNCC", "NMI"] = "WNCC") -> Run:
    """Greedy; its inverse is an extra that it does not compute while it registers, so it is not in its time."""
    import torch

    from popatlas.registration.engines.greedy import core as greedy
    from popatlas.registration.engines.greedy.settings import GreedySettings

    settings = GreedySettings(fluid=fluid, elastic=elastic, metric=metric)

    def run(fixed: Array, moving: Array) -> Callable[[], Fields]:
        images = [torch.from_numpy(image)[None, None] for image in (fixed, moving)]
        forward = greedy.register(images[0], images[1], settings, inverse=False).forward
        return lambda: (forward[0].numpy(), greedy.invert(forward)[0].numpy())

    return run


def load_dipy(iterations: Sequence[int], radius: int) -> Run:
    """SyN of DIPY with local correlation."""
    from dipy.align.imwarp import SymmetricDiffeomorphicRegistration
    from dipy.align.metrics import CCMetric

    def run(fixed: Array, moving: Array) -> Callable[[], Fields]:
        engine = SymmetricDiffeomorphicRegistration(CCMetric(3, radius=radius), level_iters=list(iterations))
        engine.verbosity = 0
        mapping = engine.optimize(
            fixed, moving
        )  # `mapping.forward` is the way from moving to fixed: the map is marked as inverse
        return lambda: (_channels_first(mapping.get_forward_field()), _channels_first(mapping.get_backward_field()))

    return run


def _channels_first(vectors: np.ndarray) -> Array:
    return np.ascontiguousarray(np.moveaxis(vectors, -1, 0), dtype=np.float32)


def load_demons(kind: str, shrink: Sequence[int], iterations: Sequence[int], smoothing: float) -> Run:
    """Demons of SimpleITK on a pyramid, after histogram matching: they compare intensities."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

    def run(fixed: Array, moving: Array) -> Callable[[], Fields]:
        target, source = (sitk.GetImageFromArray(np.ascontiguousarray(image.T)) for image in (fixed, moving))
        source = sitk.HistogramMatching(source, target, 256, 15, True)
        displacement = sitk.Image(target.GetSize(), sitk.sitkVectorFloat64)
        for factor, count in zip(shrink, iterations, strict=True):
            demons = getattr(sitk, kind)()
            demons.SetNumberOfIterations(count)
            demons.SetSmoothDisplacementField(True)
            demons.SetStandardDeviations(smoothing)
            small = [sitk.BinShrink(image, [factor] * 3) for image in (target, source)]
            start = sitk.Resample(displacement, small[0], useNearestNeighborExtrapolator=True)
            displacement = demons.Execute(small[0], small[1], start)
        full = sitk.Resample(displacement, target, useNearestNeighborExtrapolator=True)
        return lambda: (np.ascontiguousarray(sitk.GetArrayFromImage(full).T, dtype=np.float32), None)

    return run


def load_convexadam(multiple: int) -> Run:
    """ConvexAdam with its defaults; images are padded, because its grids are off where they do not divide the image."""
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    torch.set_num_threads(1)

    def run(fixed: Array, moving: Array) -> Callable[[], Fields]:
        padding = [(0, -n % multiple) for n in fixed.shape]
        images = [torch.from_numpy(np.pad(image, padding)) for image in (fixed, moving)]
        vectors = convex_adam_pt(images[0], images[1], dtype=torch.float32, device=torch.device("cpu"))
        box = tuple(slice(0, n) for n in fixed.shape)
        return lambda: (_channels_first(vectors[box]), None)

    return run


_DEMONS = {"shrink": (4, 2, 1), "iterations": (100, 60, 30), "smoothing": 1.5}
PRESETS = ("fast", "default", "accurate")
ENGINES: dict[str, Engine] = {
    **{f"instance-{name}": Engine("instance", load_instance, {"preset": name}) for name in PRESETS},
    **{
        f"instance-{name}-plain": Engine("instance", load_instance, {"preset": name, "symmetric": False}) for name in PRESETS
    },
    **{f"instance-{name}-gpu": Engine("instance", load_instance, {"preset": name, "device": "cuda"}) for name in PRESETS},
    **{f"ffd-{name}": Engine("free form", load_ffd, {"preset": name}) for name in ("default", "accurate")},
    **{f"lddmm-{name}": Engine("flows", load_lddmm, {"preset": name}) for name in ("fast", "default")},
    "greedy": Engine("greedy", load_greedy, {"fluid": 1.732, "elastic": 0.707}),
    "greedy-smooth": Engine("greedy", load_greedy, {"fluid": 3.0, "elastic": 1.0}),
    "syn": Engine("SyN (ANTsPy)", load_syn, {"metric": "mattes", "sampling": 32, "iterations": (40, 20, 0)}),
    "syn-cc": Engine("SyN (ANTsPy)", load_syn, {"metric": "CC", "sampling": 2, "iterations": (40, 20, 5)}),
    "dipy-cc": Engine("SyN (DIPY)", load_dipy, {"iterations": (10, 10, 5), "radius": 4}),
    "dipy-cc-long": Engine("SyN (DIPY)", load_dipy, {"iterations": (100, 50, 10), "radius": 4}),
    "demons": Engine("demons", load_demons, {"kind": "FastSymmetricForcesDemonsRegistrationFilter", **_DEMONS}),
    "demons-diffeo": Engine("demons", load_demons, {"kind": "DiffeomorphicDemonsRegistrationFilter", **_DEMONS}),
    "convexadam": Engine("ConvexAdam", load_convexadam, {"multiple": 12}),
}
