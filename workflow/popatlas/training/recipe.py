"""Recipes: which architecture is trained on what, by which losses and which schedule. Small YAML files that are validated.

A recipe is architecture x transform x similarity x regulariser x supervision x schedule. Those of the package are in
`popatlas/recipes`; a user's own file may say `extends: NAME` and only what differs.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from popatlas.errors import InputError
from popatlas.images.io import PathLike
from popatlas.resources import PACKAGE, schema_path
from popatlas.schema import schema_problems
from popatlas.settings import merge, not_finite
from popatlas.training.grid import TrainingGrid
from popatlas.yamlfile import parse_yaml, read_yaml

FOLDER = PACKAGE / "recipes"
BASE = "base"  # defaults of all recipes; not one itself
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Recipe:
    """A validated recipe.

    Attributes
    ----------
    name, title : str
        Of the recipe.
    content : dict
        The complete recipe: sections `network`, `grid`, `data`, `augment`, `synthesis`, `loss` and `schedule`, each with all
        of its keys, as `workflow/schemas/recipe.schema.yaml` describes them.
    """

    name: str
    title: str
    content: dict[str, Any]

    def __getitem__(self, section: str) -> Any:
        return self.content[section]

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.content["grid"]["shape"])

    def as_json(self) -> str:
        """Return the recipe as text that is the same for the same recipe."""
        return json.dumps(self.content, sort_keys=True)


def recipe_names() -> list[str]:
    """Return the names of the recipes of the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != BASE)


def load_recipe(source: PathLike, changes: Mapping[str, Any] | None = None, *, build: bool = True) -> Recipe:
    """Read a recipe.

    Parameters
    ----------
    source : str or path-like
        Name of a recipe of the package, or a YAML file.
    changes : mapping, optional
        Values that replace those of the recipe, as nested mappings.
    build : bool
        Try the network's options too; without, torch is not imported.

    Raises
    ------
    InputError
        When there is no such recipe, or a key or a value is wrong; all problems are listed.
    """
    own = _read(source)
    content = laid_over(_extended(own, [str(source)]), changes or {})
    problems = _problems(content, build=build)
    if problems:
        lines = "\n  - ".join(problems)
        remedy = "correct the keys; popatlas/recipes/base.yaml lists all of them"
        raise InputError(f"recipe {source}: {len(problems)} problem(s)\n  - {lines}\n", remedy=remedy)
    return Recipe(content["name"], content["title"], content)


def learns_from_labels(recipe: Recipe) -> bool:
    """Tell whether a recipe needs the label maps of scans."""
    source, loss = recipe["data"]["source"], recipe["loss"]
    weights = (loss[key]["weight"] for key in ("labels", "painted", "boxes"))
    return source == "labels" or (source == "scans" and any(weights))


def slice_places(content: Mapping[str, Any]) -> list[float]:
    """Return the places of the slices of a 2D recipe, one for each voxel size, mm; none in 3D."""
    grid = content["grid"]
    if not grid["slice_axis"]:
        return []
    low, high = grid["slices_mm"]
    return [float(place) for place in np.arange(low, high + 1e-6, grid["spacing_mm"])]


def parse_changes(settings: list[str]) -> dict[str, Any]:
    """Turn ``section.key=value`` texts, values in YAML, into nested mappings.

    Raises
    ------
    InputError
        For a text without ``=``, or a value that is no YAML.
    """
    changes: dict[str, Any] = {}
    for setting in settings:
        key, found, text = setting.partition("=")
        if not found or not key:
            raise InputError(f"cannot read the setting {setting!r}", remedy="write section.key=value")
        value = parse_yaml(text, f"the value of {key}")
        for part in reversed(key.split(".")):
            value = {part: value}
        changes = merge(changes, value)
    return changes


def _read(source: PathLike) -> dict[str, Any]:
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


def _extended(own: Mapping[str, Any], chain: list[str]) -> dict[str, Any]:
    """Lay a recipe over the one that it extends, that one over its own, and so on down to the defaults."""
    rest = {key: value for key, value in own.items() if key != "extends"}
    parent = own.get("extends", BASE if chain[-1] != BASE else None)
    if parent is None:
        return rest
    if Path(parent).suffix in SUFFIXES:  # a file beside this one
        parent = str(Path(chain[-1]).parent / parent)
    if parent in chain:
        raise InputError(
            f"recipes extend each other in a circle: {' -> '.join([*chain, parent])}", remedy="break the circle"
        )
    return laid_over(_extended(_read(parent), [*chain, parent]), rest)


def laid_over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe with another's values over it; options of another architecture or similarity do not stay."""
    below = copy.deepcopy(below)
    for section in (("network",), ("loss", "similarity")):
        old, new = _within(below, section), _within(above, section)
        if new.get("name", old.get("name")) != old.get("name"):
            old["options"] = {}
    return merge(below, above)


def _within(content: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return a nested section; an empty one where there is none, or something else."""
    found: Any = content
    for key in keys:
        found = found.get(key, {}) if isinstance(found, Mapping) else {}
    return found if isinstance(found, dict) else {}


def _problems(content: Mapping[str, Any], *, build: bool) -> list[str]:
    """Return one readable line for each problem."""
    schema = yaml.safe_load(schema_path("recipe").read_text(encoding="utf-8"))
    if problems := schema_problems(schema, content):
        return problems
    if endless := list(not_finite(content)):
        return endless
    return [*(_network_problems(content) + _settings_problems(content) if build else ()), *_contradictions(content)]


def _network_problems(content: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the network, its grid and the similarity."""
    import torch

    from popatlas.networks.registration import build_registration_network
    from popatlas.similarity.registry import make

    network, shape, similarity = content["network"], content["grid"]["shape"], content["loss"]["similarity"]
    try:
        with torch.device("meta"):
            net = build_registration_network(network["name"], len(shape), **network["options"])
    except InputError as error:
        return [f"network: {error.message}"]
    try:
        make(similarity["name"], **similarity["options"])
    except InputError as error:
        return [f"loss.similarity: {error.message}"]
    if any(n % net.stride for n in shape):
        return [f"grid.shape: {shape} are not multiples of {net.stride}, which {network['name']} needs"]
    return []


def _settings_problems(content: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with augmentation and synthesis, whose keys are those of their settings."""
    from popatlas.training.augment import AugmentSettings
    from popatlas.training.motion import MotionSettings
    from popatlas.training.settings import settings_from
    from popatlas.training.synthesis import SynthesisSettings

    augment, found = content["augment"], []
    parts: list[tuple[type, Mapping[str, Any], str]] = [
        (MotionSettings, augment["common"], "augment.common"),
        (AugmentSettings, augment["each"], "augment.each"),
        (SynthesisSettings, content["synthesis"]["options"], "synthesis.options"),
    ]
    for kind, values, where in parts:
        try:
            settings_from(kind, values, where)
        except InputError as error:
            found.append(f"{error.message} ({error.remedy})")
    return found


def _grid_problems(grid: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with shape, voxel size and slices."""
    shape = tuple(grid["shape"])
    try:
        TrainingGrid(shape, (float(grid["spacing_mm"]),) * len(shape), slice_axis=grid["slice_axis"])
    except ValueError as error:
        return [f"grid: {error}"]
    low, high = grid["slices_mm"]
    return [f"grid.slices_mm: {low} is above {high}; give the lowest place first"] if low > high else []


def _contradictions(content: Mapping[str, Any]) -> list[str]:
    """Return what is wrong though each key is right by itself."""
    found = _grid_problems(content["grid"])
    loss, schedule = content["loss"], content["schedule"]
    learns = ("similarity", "labels", "painted", "boxes")
    if not any(loss[key]["weight"] for key in learns):
        found.append(f"loss: all weights of {', '.join(learns)} are 0, there is nothing to learn from")
    source, synthesis = content["data"]["source"], content["synthesis"]
    behind = synthesis["compare"] == "scans"
    if behind and source != "labels":
        found.append(f"synthesis.compare: scans: with data.source {source} there are no scans behind the images")
    if synthesis["options"].get("recoloured") and not behind:
        found.append("synthesis.options.recoloured: needs the scans behind the images; set synthesis.compare to scans")
    if source != "scans" and loss["similarity"]["weight"] and synthesis["contrast"] == "each" and not behind:
        found.append("loss.similarity: synthetic pairs of different contrasts have no similarity; set its weight to 0")
    if schedule["warm_up"] >= schedule["steps"]:
        found.append(f"schedule.warm_up: {schedule['warm_up']} of {schedule['steps']} steps leave nothing to train in")
    return found
