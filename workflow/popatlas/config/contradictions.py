"""What is wrong with a configuration although each of its values is right by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

from popatlas.config.attempts import engine_weights
from popatlas.config.sections import DEFAULT, REFERENCE, Config, shipped_presets
from popatlas.errors import InputError
from popatlas.networks.architectures import ARCHITECTURES
from popatlas.registration.engines.registry import ENGINES
from popatlas.registration.engines.unigradicon.weights import check_unigradicon
from popatlas.schema import Place
from popatlas.settings import suggest
from popatlas.zoo.find import check_kind, find_weights

Check = Callable[[Config], Iterator[str]]
PRESETS: Place = ("register", "presets")


def find_contradictions(config: Config, faulty: Sequence[Place] = ()) -> tuple[list[str], bool]:
    """Return a readable line for each contradiction, and whether all was looked at.

    Parameters
    ----------
    config : Config
        The configuration.
    faulty : sequence of tuple
        Places that hold another value than the user's, which was wrong: what needs them is not looked at.
    """
    # what has no engine to belong to takes the names of presets away
    faulty = [PRESETS if place[:2] == PRESETS and len(place) == 3 else place for place in faulty]
    found: list[str] = []
    whole = not any(_touch(place, PRESETS) for place in faulty)  # a preset may say more against itself
    for check, needs in CHECKS:
        if any(_touch(place, need) for place in faulty for need in needs):
            whole = False
        else:
            found += check(config)
    return found, whole


def _touch(place: Place, other: Place) -> bool:
    """Tell whether one of two places is within the other."""
    return all(one == two for one, two in zip(place, other, strict=False))


def _rising(where: str) -> Check:
    def check(config: Config) -> Iterator[str]:
        low, high = attrgetter(where)(config)
        if low >= high:
            yield f"{where}: the first value must be below the second, got {[low, high]}"

    return check


def _preset_faults(config: Config) -> Iterator[str]:
    """Yield what is wrong with presets, whose keys have been checked one by one."""
    shipped = shipped_presets()
    for engine, presets in config.register.presets.items():
        for name, preset in presets.items():
            if preset == shipped[engine].get(name):
                continue
            where = f"register.presets.{engine}.{name}"
            yield from ENGINES[engine].faults(preset, where)
            if "options" in preset:
                yield from _similarity_faults(where, preset)


def _similarity_faults(where: str, preset: Mapping[str, Any]) -> Iterator[str]:
    """Yield what options of a similarity say against each other; loads torch, so only where they are the user's own."""
    from popatlas.similarity.registry import make

    try:
        make(preset["similarity"], **preset["options"])
    except InputError as error:
        yield f"{where}.options: {error.message}"


def _unknown_presets(config: Config) -> Iterator[str]:
    register = config.register
    wanted = [("register.preset", register.engine, register.preset)]
    wanted += [("atlas.presets", register.engine, name) for name in config.atlas.presets]
    wanted += [
        (f"register.fallback.{number}", attempt.engine or register.engine, attempt.preset)
        for number, attempt in enumerate(register.fallback)
        if attempt.preset
    ]
    for where, engine, name in wanted:
        known = register.presets.get(engine, {})
        if name not in known:
            yield f"{where}: no preset is called '{name}'{suggest(name, known)} (engine {engine})"


def _similarities_of_attempts(config: Config) -> Iterator[str]:
    for number, attempt in enumerate(config.register.fallback):
        engine = attempt.engine or config.register.engine
        if attempt.similarity is None:
            continue
        if ENGINES[engine].presets[DEFAULT].with_similarity(attempt.similarity) is None:
            yield f"register.fallback.{number}: the engine {engine} takes no similarity from this key; leave it out"


def _weights_contradictions(config: Config) -> Iterator[str]:
    register = config.register
    used = {register.engine, *(attempt.engine for attempt in register.fallback)}
    for name, engine in ENGINES.items():
        if engine.weights and name in used:
            yield from _wrong_weights(name, engine_weights(register, name) or "", f"register.{engine.weights}")


def _wrong_weights(engine: str, name: str, where: str) -> Iterator[str]:
    try:
        entry = check_unigradicon(name) if engine == "unigradicon" else find_weights(name)
        check_kind(entry)
    except InputError as error:
        yield f"{where}: {error} (engine {engine})"
        return
    if entry.ndim != 3:
        yield f"{where}: {entry.name} is for images of {entry.ndim} axes; see `popatlas weights list`"


def _fusion_contradictions(config: Config) -> Iterator[str]:
    fuse = config.fuse
    methods, segmenter, dataparams, atlases = fuse.methods, fuse.segmenter, fuse.dataparams, fuse.atlases
    chosen = f"fuse.methods has {', '.join(methods) or 'none'}"
    if segmenter.enabled and segmenter.labels not in methods:
        yield f"fuse.segmenter.labels: '{segmenter.labels}' is not made, {chosen}; name one of them, or add it there"
    if fuse.select_by == "trust" and "dataparams" not in methods:
        yield f"fuse.select_by: trust is learned by the method dataparams, {chosen}; add it there, or select by similarity"
    if dataparams.warm_up >= dataparams.epochs:
        epochs = f"{dataparams.warm_up} of {dataparams.epochs} epochs"
        yield f"fuse.dataparams.warm_up: after {epochs} no epoch is left to learn data parameters in"
    if "dataparams" in methods and dataparams.votes == "label" and not dataparams.per_label:
        yield "fuse.dataparams.votes: 'label' needs the parameters of labels (fuse.dataparams.per_label: true)"
    if fuse.bench and not methods:
        yield "fuse.bench: there is nothing to compare, fuse.methods is empty"
    count = atlases if isinstance(atlases, int) else len(atlases)
    if fuse.bench and not isinstance(atlases, str) and count < 2:
        given = atlases if isinstance(atlases, int) else list(atlases)
        yield f"fuse.bench: atlases are labelled by each other, at least 2 are needed (fuse.atlases: {given})"


def _tissue_contradictions(config: Config) -> Iterator[str]:
    section, channels = config.tissues, config.cohort.channels
    for name in section.channels:
        if section.enabled and name not in channels:
            yield f"tissues.channels: '{name}' is none of cohort.channels ({', '.join(channels) or 'none'}); add it there"
    if section.enabled and section.maps is not None and config.atlas.template is None:
        yield "tissues.maps: maps are those of an existing template, and atlas.template is null; leave them out"


def _training_contradictions(config: Config) -> Iterator[str]:
    from popatlas.training.recipe import learns_from_labels, load_brain_recipe

    train = config.train
    if train.recipe is None:
        return
    methods, recipe, labels = config.fuse.methods, None, config.train.labels
    try:
        recipe = load_brain_recipe(train.recipe, train.changes, light=True)
    except InputError as error:
        yield f"train.recipe: {error.message.strip()}; {error.remedy}"
    if labels == REFERENCE and not config.measure.reference:
        yield "train.labels: there are no reference labels, measure.reference is empty"
    elif labels not in (None, REFERENCE, *methods):
        chosen = f"fuse.methods has {', '.join(methods) or 'none'}"
        yield f"train.labels: '{labels}' is not made, {chosen}; name one of them, or add it there, or use reference"
    if recipe is None:
        return
    if labels is None and learns_from_labels(recipe):
        yield f"train.labels: the recipe {recipe.name} learns from labels; name one of fuse.methods, or reference"
    try:
        ARCHITECTURES[recipe.network.name].check_packages()
    except InputError as error:
        yield f"train.recipe: {error.message}; {error.remedy}"


# what is looked at, and the places that it needs; of presets it is their names, and not what is in one
CHECKS: tuple[tuple[Check, tuple[Place, ...]], ...] = (
    (_preset_faults, ()),
    (
        _unknown_presets,
        (
            ("register", "engine"),
            ("register", "preset"),
            ("register", "fallback"),
            ("atlas", "presets"),
            (*PRESETS, "all engines"),
        ),
    ),
    (_similarities_of_attempts, (("register", "engine"), ("register", "fallback"))),
    (
        _weights_contradictions,
        (("register", "engine"), ("register", "fallback"), ("register", "weights"), ("register", "unigradicon")),
    ),
    (_rising("cohort.spacing_mm"), (("cohort", "spacing_mm"),)),
    (_rising("preprocess.brain.volume_ml"), (("preprocess", "brain", "volume_ml"),)),
    (_rising("register.gate.scale"), (("register", "gate", "scale"),)),
    (_fusion_contradictions, (("fuse",),)),
    (_tissue_contradictions, (("tissues",), ("cohort", "channels"), ("atlas", "template"))),
    (_training_contradictions, (("train",), ("fuse", "methods"), ("measure", "reference"))),
)
