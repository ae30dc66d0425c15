"""Recipes: which architecture is trained on what, by which losses and which schedule. Small YAML files that are validated.

Their keys, types and ranges are in `popatlas.training.sections`. Those of the package are in
`popatlas/recipes`; a user's own file may say `extends: NAME` and only what differs.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from popatlas.errors import InputError
from popatlas.images.io import PathLike
from popatlas.networks.architectures import ARCHITECTURES
from popatlas.networks.limits import check_description
from popatlas.regularisers.registry import has_reductions
from popatlas.resources import PACKAGE
from popatlas.schema import schema_of, schema_problems
from popatlas.settings import Content, find_faults, merge, not_plain, settings_from
from popatlas.similarity.registry import SIMILARITIES
from popatlas.training.grid import TrainingGrid
from popatlas.training.sections import GridSection, ScheduleSection, Sections, SimilaritySection
from popatlas.yamlfile import parse_yaml, read_yaml

FOLDER = PACKAGE / "recipes"
BASE = "base"  # defaults of all recipes; not one itself
SUFFIXES = (".yaml", ".yml")
REGULARISER = ("loss", "regulariser")


@dataclass(frozen=True)
class Recipe(Sections):
    """A validated recipe: its sections with all of their keys.

    Attributes
    ----------
    content : dict
        The same as the files say it, the recipe laid over the defaults: what is shown, written into files and hashed.
    """

    content: Content = field(default_factory=dict)

    @classmethod
    def of(cls, content: Content) -> Recipe:
        """Return the recipe of a complete content.

        Raises
        ------
        InputError
            For an unknown key or an impossible value.
        """
        return cls(**vars(settings_from(Sections, content, "recipe")), content=content)

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.grid.shape)

    def as_json(self) -> str:
        """Return the recipe as text that is the same for the same recipe."""
        return json.dumps(self.content, sort_keys=True)


def recipe_names() -> list[str]:
    """Return the names of the recipes of the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != BASE)


def load_recipe(source: PathLike, changes: Mapping[str, object] | None = None, *, light: bool = False) -> Recipe:
    """Read a recipe.

    Parameters
    ----------
    source : str or path-like
        Name of a recipe of the package, or a YAML file.
    changes : mapping, optional
        Values that replace those of the recipe, as nested mappings.
    light : bool
        Import torch only to check options of a similarity that are the user's own.

    Raises
    ------
    InputError
        When there is no such recipe, or a key or a value is wrong; all problems are listed.
    """
    own = _read(source)
    content = laid_over(_extended(own, [str(source)]), changes or {})
    shipped = Path(source).suffix not in SUFFIXES and not _within(changes or {}, ("loss", "similarity"))
    problems = _problems(content, light=light and shipped)
    if problems:
        lines = "\n  - ".join(problems)
        remedy = "correct the keys; popatlas/recipes/base.yaml lists all of them"
        raise InputError(f"recipe {source}: {len(problems)} problem(s)\n  - {lines}\n", remedy=remedy)
    return Recipe.of(content)


def load_brain_recipe(source: PathLike, changes: Mapping[str, object] | None = None, *, light: bool = False) -> Recipe:
    """Read a recipe for the workflow, which trains on its brains: `grid.stripped` is true, whatever the recipe says.

    Parameters
    ----------
    source, changes, light
        See `load_recipe`.

    Raises
    ------
    InputError
        As `load_recipe`, and for changes that ask for whole heads.
    """
    changes = changes or {}
    if _within(changes, ("grid",)).get("stripped") is False:
        message = "the changes ask for whole heads (grid.stripped: false), and the workflow trains on brains without skull"
        raise InputError(message, remedy="leave that key out, or train on heads by popatlas train")
    return load_recipe(source, merge({"grid": {"stripped": True}}, changes), light=light)


def comparable(content: Mapping[str, Any]) -> Content:
    """Return the content of a recipe as versions before 0.3 wrote it: they knew neither reductions nor known motions."""
    result = copy.deepcopy(dict(content))
    if (regulariser := _within(result, REGULARISER)).get("reduction") == "sum":
        del regulariser["reduction"]
    if _within(result, ("data",)).get("pairs") == "different":
        del result["data"]["pairs"]
    if not _within(result, ("loss", "pose")).get("weight"):
        _within(result, ("loss",)).pop("pose", None)
    return result


def learns_from_labels(recipe: Recipe) -> bool:
    """Tell whether a recipe needs the label maps of scans."""
    source, loss = recipe.data.source, recipe.loss
    weights = (loss.labels.weight, loss.painted.weight, loss.boxes.weight)
    return source == "labels" or (source == "scans" and any(weights))


def slice_places(grid: GridSection) -> list[float]:
    """Return the places of the slices of a 2D recipe, one for each voxel size, mm; none in 3D."""
    if not grid.slice_axis:
        return []
    low, high = grid.slices_mm
    return [float(place) for place in np.arange(low, high + 1e-6, grid.spacing_mm)]


def parse_changes(settings: list[str]) -> Content:
    """Turn ``section.key=value`` texts, values in YAML, into nested mappings.

    Raises
    ------
    InputError
        For a text without ``=``, or a value that is no YAML.
    """
    changes: Content = {}
    for setting in settings:
        key, found, text = setting.partition("=")
        if not found or not key:
            raise InputError(f"cannot read the setting {setting!r}", remedy="write section.key=value")
        value = parse_yaml(text, f"the value of {key}")
        for part in reversed(key.split(".")):
            value = {part: value}
        changes = merge(changes, value)
    return changes


def _read(source: PathLike) -> Content:
    """Return what a recipe's file says itself."""
    path = Path(source)
    if path.suffix not in SUFFIXES:
        path = FOLDER / f"{source}.yaml"
        if not path.is_file():
            raise InputError(f"unknown recipe {str(source)!r}", remedy=f"use one of {', '.join(recipe_names())}, or a file")
    content = read_yaml(path, "the recipe")
    if not isinstance(content, dict):
        raise InputError("the recipe has no keys", file=path, remedy="compare with popatlas/recipes/base.yaml")
    return content


def _extended(own: Content, chain: list[str]) -> Content:
    """Lay a recipe over the one that it extends, that one over its own, and so on down to the defaults."""
    rest = {key: value for key, value in own.items() if key != "extends"}
    parent = own.get("extends", BASE if chain[-1] != BASE else None)
    if parent is None:
        return rest
    if not isinstance(parent, str):
        raise InputError(
            f"extends: {parent!r} is no recipe", file=chain[-1], remedy="name a recipe, or a file beside this one"
        )
    if Path(parent).suffix in SUFFIXES:  # a file beside this one
        parent = str(Path(chain[-1]).parent / parent)
    if parent in chain:
        raise InputError(
            f"recipes extend each other in a circle: {' -> '.join([*chain, parent])}", remedy="break the circle"
        )
    return laid_over(_extended(_read(parent), [*chain, parent]), rest)


def laid_over(below: Content, above: Mapping[str, object]) -> Content:
    """Return a recipe with another's values over it.

    Options of another architecture or similarity do not stay, nor does the reduction of another regulariser that has none.
    """
    below = copy.deepcopy(below)
    old, new = _within(below, REGULARISER), _within(above, REGULARISER)
    if "reduction" in old and not has_reductions(new.get("name", old.get("name"))):
        old["reduction"] = "sum"
    for section in (("network",), ("loss", "similarity")):
        old, new = _within(below, section), _within(above, section)
        if new.get("name", old.get("name")) != old.get("name"):
            old["options"] = {}
    return merge(below, above)


def _within(content: Mapping[str, object], keys: Sequence[str]) -> Content:
    """Return a nested section; an empty one where there is none, or something else."""
    found: object = content
    for key in keys:
        found = found.get(key, {}) if isinstance(found, Mapping) else {}
    return found if isinstance(found, dict) else {}


_schema = functools.cache(functools.partial(schema_of, complete=False))


def _problems(content: Content, *, light: bool) -> list[str]:
    """Return one readable line for each problem."""
    if problems := _faults(Sections, content):
        return problems
    recipe = Recipe.of(content)
    similarity = [] if light else _similarity_problems(recipe.loss.similarity)
    return [*_network_problems(recipe), *similarity, *_contradictions(recipe)]


def _faults(kind: type, values: Content, where: str = "") -> list[str]:
    """Return what a class of settings refuses: a schema has the meaning of a key at hand, the class knows more."""
    schema, content = _schema(kind), values
    for part in reversed(where.split(".") if where else []):
        schema, content = {"properties": {part: schema}}, {part: content}
    return schema_problems(schema, content) or list(not_plain(values, where)) or find_faults(kind, values, where)


def _network_problems(recipe: Recipe) -> list[str]:
    """Return what is wrong with the options of the network, and with its grid."""
    network, shape, where = recipe.network, list(recipe.grid.shape), "network.options"
    kind = ARCHITECTURES[network.name].settings
    try:
        check_description(network.options)
    except ValueError as error:
        return [f"{where}: {error}"]
    if faults := _faults(kind, network.options, where):
        return faults
    stride = settings_from(kind, network.options, where).stride
    if any(n % stride for n in shape):
        return [f"grid.shape: {shape} are not multiples of {stride}, which {network.name} needs"]
    return []


def _similarity_problems(similarity: SimilaritySection) -> list[str]:
    """Return what is wrong with the options of the similarity; imports torch."""
    return _faults(SIMILARITIES[similarity.name].load(), similarity.options, "loss.similarity.options")


def _contradictions(recipe: Recipe) -> list[str]:
    """Return what is wrong though each key is right by itself."""
    return [*_grid_contradictions(recipe.grid), *_loss_contradictions(recipe), *_schedule_contradictions(recipe.schedule)]


def _grid_contradictions(grid: GridSection) -> Iterator[str]:
    """Yield what is wrong with shape, voxel size and slices."""
    try:
        TrainingGrid(grid.shape, (grid.spacing_mm,) * len(grid.shape), slice_axis=grid.slice_axis)
    except ValueError as error:
        yield f"grid: {error}"
    low, high = grid.slices_mm
    if low > high:
        yield f"grid.slices_mm: {low:g} is above {high:g}; give the lowest place first"


def _loss_contradictions(recipe: Recipe) -> Iterator[str]:
    """Yield what is wrong with the losses, and with the pairs that they compare."""
    loss, source, synthesis = recipe.loss, recipe.data.source, recipe.synthesis
    teachers = {name: getattr(loss, name).weight for name in ("similarity", "labels", "painted", "boxes", "pose")}
    if not any(teachers.values()):
        yield f"loss: all weights of {', '.join(teachers)} are 0, there is nothing to learn from"
    yield from _pose_contradictions(recipe)
    smooth = loss.regulariser
    if smooth.reduction != "sum" and not has_reductions(smooth.name):
        yield f"loss.regulariser.reduction: {smooth.name} is no sum over the components of the field; set it to sum"
    behind = synthesis.compare == "scans"
    if behind and source != "labels":
        yield f"synthesis.compare: scans: with data.source {source} there are no scans behind the images"
    if synthesis.options.recoloured and not behind:
        yield "synthesis.options.recoloured: needs the scans behind the images; set synthesis.compare to scans"
    if synthesis.options.recoloured and synthesis.contrast == "same":
        yield "synthesis.contrast: same: recoloured scans and painted images have no contrast in common"
    if source != "scans" and loss.similarity.weight and synthesis.contrast == "each" and not behind:
        yield "loss.similarity: synthetic pairs of different contrasts have no similarity; set its weight to 0"


def _pose_contradictions(recipe: Recipe) -> Iterator[str]:
    """Yield what is wrong with motions that are to be known."""
    same, each = recipe.data.pairs == "same", recipe.augment.each
    if recipe.loss.pose.weight and not same:
        yield "loss.pose: the motion between two scans is not known; set data.pairs to same"
    if same and recipe.data.source != "scans":
        yield f"data.pairs: same: with data.source {recipe.data.source} synthesis.options.same says it; set it to different"
    if same and (each.motion.bend or each.flip):
        yield "data.pairs: same: the motion is known as an affine; set augment.each.motion.bend and augment.each.flip to 0"
    if same and each.motion.still:
        yield "data.pairs: same: nothing moves; set augment.each.motion"


def _schedule_contradictions(schedule: ScheduleSection) -> Iterator[str]:
    if schedule.warm_up >= schedule.steps:
        yield f"schedule.warm_up: {schedule.warm_up} of {schedule.steps} steps leave nothing to train in"
