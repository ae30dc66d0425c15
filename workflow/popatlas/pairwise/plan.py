"""What is tried on two files, and what they are judged by: as in a study, from the shipped configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from popatlas.config.attempts import resolve_attempt, resolve_fallback
from popatlas.config.load import default_content, parse_config
from popatlas.errors import InputError
from popatlas.registration.engines.registry import ENGINES, planned_attempt
from popatlas.registration.engines.unigradicon.weights import check_unigradicon
from popatlas.registration.gate import Limits
from popatlas.registration.types import Attempt
from popatlas.settings import Content, merge, suggest
from popatlas.zoo.find import check_kind, find_weights

REFINEMENTS = ("none", "rigid", "affine", "deformable")  # what follows the start
OF_BRAINS = ("sides",)  # limits that say something of people's brains only
ONLY_3D = ("search",)  # starts
AUTO = "auto"  # similarity of our engine, which takes any contrasts


@dataclass(frozen=True)
class Wanted:
    """What a user asks for; what is left out is that of a study.

    Attributes
    ----------
    engine, preset, linear, start : str
        See `popatlas.config.sections.Register` and `Attempt`.
    weights : str
        Of the engine network or unigradicon.
    similarity : str
        Instead of that of the preset; our engine takes `auto` when it is left out.
    options : mapping
        Keys of the preset to change.
    refine : {"none", "rigid", "affine", "deformable"}
        What follows the start; each includes those before it.
    fallback : bool
        Try other starts and engines when the gate refuses the first result.
    brains : bool
        The images are brains without skull.
    gpu : int
        GPUs that may be used.
    threads : int
        CPU threads.
    """

    engine: str = ""
    preset: str = ""
    weights: str = ""
    similarity: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    linear: str = "affine"
    start: str = "mass"
    refine: str = "deformable"
    fallback: bool = True
    brains: bool = False
    gpu: int = 0
    threads: int = 1


def plan_attempts(wanted: Wanted, ndim: int) -> list[Attempt]:
    """Return what is tried, in order.

    Parameters
    ----------
    wanted : Wanted
        What the user asks for.
    ndim : int
        Axes of the images.

    Raises
    ------
    InputError
        For an engine, preset or option that does not exist or would not be used, an engine without weights that needs some,
        and weights for images of another kind.
    """
    _require_use(wanted)
    engine = _engine(wanted)
    known = ENGINES[engine]
    if ndim not in known.axes:
        raise InputError(f"the engine {engine} does not take images of {ndim} axes", remedy="choose another --engine")
    preset = wanted.preset or "default"
    if preset not in known.presets:
        near = suggest(preset, known.presets)
        raise InputError(f"the engine {engine} has no preset '{preset}'{near}", remedy="see popatlas register --help")
    register: Content = {"engine": engine, "linear": wanted.linear} | _weights(engine, wanted, ndim)
    config = parse_config(merge(default_content(), {"register": register}))
    first = _with_options(resolve_attempt(config, preset, wanted.start), wanted)
    others = resolve_fallback(config, preset) if wanted.fallback else []
    others = [one for one in others if ndim == 3 or one["start"] not in ONLY_3D]
    return [planned_attempt(one, wanted.gpu) for one in (first, *others)]


def _require_use(wanted: Wanted) -> None:
    """Refuse what only a deformable stage would take, where there is none."""
    if wanted.refine == "deformable":
        return
    for name in ("engine", "preset", "weights", "similarity", "options"):
        if getattr(wanted, name):
            option = "--set" if name == "options" else f"--{name}"
            message = f"{option} is of the deformable stage, and --refine {wanted.refine} has none"
            raise InputError(message, remedy="leave out one of the two")


def limits_for(wanted: Wanted) -> Limits:
    """Return the limits of the gate: those of a study, without what is known of people's brains only."""
    limits: Content = default_content()["register"]["gate"]
    return {name: limit for name, limit in limits.items() if wanted.brains or name not in OF_BRAINS}


def _engine(wanted: Wanted) -> str:
    """Return the engine: that of the weights where only these are given."""
    engine = wanted.engine or ("instance" if not wanted.weights else _engine_of(wanted.weights))
    if engine not in ENGINES:
        raise InputError(f"no engine is called '{engine}'{suggest(engine, ENGINES)}", remedy="see popatlas register --help")
    return engine


def _engine_of(weights: str) -> str:
    return "unigradicon" if find_weights(weights).architecture == "unigradicon" else "network"


def _weights(engine: str, wanted: Wanted, ndim: int) -> Content:
    """Return what a configuration says of the weights, after a look at them; empty for an engine without."""
    key = ENGINES[engine].weights
    if not key:
        if wanted.weights:
            raise InputError(f"the engine {engine} takes no weights", remedy="leave out --engine, or --weights")
        return {}
    register = default_content()["register"]
    name = wanted.weights or (register["weights"] if engine == "network" else register[engine]["weights"])
    entry = check_unigradicon(name) if engine == "unigradicon" else find_weights(name)
    if entry.ndim != ndim:
        message = f"the weights {entry.name} are for images of {entry.ndim} axes, these have {ndim}"
        raise InputError(message, file=entry.path, remedy="see popatlas weights list")
    check_kind(entry, stripped=wanted.brains)
    return {"weights": name} if engine == "network" else {engine: {"weights": name}}


def _with_options(attempt: Content, wanted: Wanted) -> Content:
    """Return an attempt with the similarity and the options of the user."""
    preset = dict(attempt["preset"])
    similarity = wanted.similarity
    if not similarity and attempt["engine"] == "instance" and not {"similarity", "options"} & set(wanted.options):
        similarity = AUTO
    if similarity:
        if "similarity" not in preset:
            remedy = "leave out --similarity, or choose another --engine"
            raise InputError(f"the engine {attempt['engine']} takes no similarity", remedy=remedy)
        preset |= {"similarity": similarity, "options": {}}
    return {**attempt, "preset": merge(preset, wanted.options)}
