"""Population types as a step: distances between subjects, their embedding, groups among them, and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nipype.interfaces.base import File, Str, isdefined, traits

from popatlas.errors import InputError
from popatlas.images.io import write_json, write_table
from popatlas.images.tables import column_of, read_text_table
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface
from popatlas.settings import settings_from

if TYPE_CHECKING:
    import pandas as pd

    from popatlas.groupwise.types.verdict import Found

KEYS = ("subject", "participant_id", "scan")  # columns that name the subjects of a table, the first that is there


class _OutputSpec(PopatlasInputSpec):
    """What is asked and written, wherever the distances come from."""

    covariates = traits.List(Str, desc="columns that the dimensions and types are regressed on")
    options = traits.Dict(desc="settings to change (JSON), for example neighbours or most_types")
    spacing = traits.Float(4.0, usedefault=True, desc="voxels that images are compared on, mm")
    out_types = File(mandatory=True, desc="table of subject, type (0 lies apart), certainty and coordinates")
    out_distances = File(mandatory=True, desc="table of first, second and a column for each distance")
    out_regressions = File(mandatory=True, desc="table of distance, dimension, covariate, subjects, variance, r2, p")
    out_verdict = File(mandatory=True, desc="verdict and its numbers, JSON")


class FindTypesInputSpec(_OutputSpec):
    """Inputs of FindTypes; one kind at least. Images of all subjects are in the same order."""

    in_labels = traits.List(File(exists=True), desc="label image of each subject in the common space, or with in_affines")
    in_affines = traits.List(File(exists=True), desc="affine of each, from points of the common space to its own")
    in_jacobians = traits.List(File(exists=True), desc="log-Jacobian of each subject in the common space")
    in_reference = File(exists=True, desc="image that lies in the common space (the first log-Jacobian, or label image)")
    in_mask = File(exists=True, desc="mask in the common space, for the log-Jacobians")
    in_profiles = File(exists=True, desc="table of amounts, such as volumes: a row for each subject")
    in_covariates = File(exists=True, desc="table with a row for each subject (subject or participant_id)")
    subjects = traits.List(Str, desc="names of the subjects, in the order of the images (those of the files)")


class FindTypes(PopatlasInterface):
    """Tell whether one template serves all subjects, or whether they fall into groups."""

    input_spec = FindTypesInputSpec

    def _execute(self) -> None:
        from popatlas.groupwise.types.distances import hellinger_distance
        from popatlas.groupwise.types.files import coarse_grid

        inputs = self.inputs
        given = {name: _paths(getattr(inputs, f"in_{name}")) for name in ("labels", "affines", "jacobians")}
        profiles = _table(inputs.in_profiles) if isdefined(inputs.in_profiles) else None
        names = self._names(given, profiles)
        for name, files in given.items():
            if files and len(files) != len(names):
                message = f"{len(files)} files of in_{name}, for {len(names)} subjects"
                raise InputError(message, remedy="give one for each subject, in the same order")
        images = [*given["jacobians"][:1], *given["labels"][:1]]
        distances: dict[str, Any] = {}
        if images:
            reference = Path(inputs.in_reference) if isdefined(inputs.in_reference) else images[0]
            mask = Path(inputs.in_mask) if isdefined(inputs.in_mask) else None
            distances = image_distances(names, coarse_grid(reference, inputs.spacing), **given, mask=mask)
            distances.pop("volumes", None)
        if profiles is not None:
            numbers = profiles.reindex(names).select_dtypes("number")
            distances["profile"] = hellinger_distance(numbers.to_numpy(dtype=np.float64), names)
        covariates = list(inputs.covariates) if isdefined(inputs.covariates) else []
        table = chosen_columns(inputs.in_covariates, names, covariates) if isdefined(inputs.in_covariates) else None
        if covariates and table is None:
            raise InputError("covariates are named without a table", remedy="give in_covariates")
        self.notes = tell_types(inputs, distances, names, table)

    def _names(self, given: Mapping[str, Sequence[Path]], profiles: pd.DataFrame | None) -> list[str]:
        if isdefined(self.inputs.subjects):
            names = [str(name) for name in self.inputs.subjects]
        elif files := given["labels"] or given["jacobians"]:
            names = [path.name.split(".")[0].split("_")[0] for path in files]
            if len(set(names)) < len(names):
                names = [path.name.split(".")[0] for path in files]
        elif profiles is not None:
            return [str(name) for name in profiles.index]
        else:
            raise InputError("no distance can be measured", remedy="give in_labels, in_jacobians or in_profiles")
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"{doubled[0]} is named twice", remedy="name the subjects (subjects)")
        if profiles is not None and (missing := [name for name in names if name not in profiles.index]):
            message = f"the table has no row for {', '.join(missing[:3])}"
            raise InputError(message, file=self.inputs.in_profiles, subject=missing[0], remedy="add a row, or leave it out")
        return names


def image_distances(
    names: Sequence[str],
    grid: Any,
    labels: Sequence[Path] = (),
    affines: Sequence[Path] = (),
    jacobians: Sequence[Path] = (),
    mask: Path | None = None,
) -> dict[str, Any]:
    """Return the distances that images give: labels, volumes (of the labels), deformation."""
    from popatlas.groupwise.types.distances import deformation_distance, hellinger_distance, label_distance
    from popatlas.groupwise.types.files import jacobian_rows, label_rows

    found: dict[str, Any] = {}
    if labels:
        rows, amounts = label_rows(labels, grid, affines)
        found["labels"] = label_distance(rows, names)
        found["volumes"] = hellinger_distance(amounts, names)
    if jacobians:
        found["deformation"] = deformation_distance(*jacobian_rows(jacobians, grid, mask), names)
    return found


def tell_types(inputs: Any, distances: Mapping[str, Any], names: Sequence[str], covariates: pd.DataFrame | None) -> Any:
    """Find the types and write everything; return what the record of the job tells."""
    from popatlas.groupwise.types.settings import TypesSettings
    from popatlas.groupwise.types.verdict import find_types

    plan = settings_from(TypesSettings, inputs.options if isdefined(inputs.options) else {}, "options")
    found = find_types(distances, plan, names, covariates)
    write_table(found.table(), inputs.out_types)
    write_table(_pairs(found, distances), inputs.out_distances)
    write_table(found.regressions, inputs.out_regressions)
    write_json(inputs.out_verdict, found.content())
    print(found.sentence, flush=True)
    return {"subjects": len(found.names), "types": found.grouping.count}


def _pairs(found: Found, distances: Mapping[str, Any]) -> pd.DataFrame:
    import pandas as pd

    first, second = np.triu_indices(len(found.names), 1)
    names = np.array(found.names, dtype=object)
    return pd.DataFrame(
        {"first": names[first], "second": names[second]}
        | {name: matrix[first, second] for name, matrix in distances.items()}
    )


def _paths(value: Any) -> list[Path]:
    return [Path(path) for path in value] if isdefined(value) else []


def _table(path: str) -> pd.DataFrame:
    """Return a table by subject, its columns as what they hold: numbers, or text."""
    import pandas as pd

    text = read_text_table(path)
    key = next((name for name in KEYS if name in text), None)
    if key is None:
        remedy = "give a table with the column subject or participant_id"
        raise InputError(f"it has the columns {', '.join(map(str, text.columns))}", file=path, remedy=remedy)
    held = {str(name): column_of(text[name]) for name in text if name not in KEYS}
    columns = {
        name: column.numbers.astype(float) if column.kind == "numbers" and not column.is_code else column.text.astype(object)
        for name, column in held.items()
    }
    table = pd.DataFrame(columns, index=text.index).set_index(pd.Index(text[key].astype(str)))
    if table.index.has_duplicates:
        doubled = str(table.index[table.index.duplicated()][0])
        raise InputError(f"{doubled} has several rows", file=path, subject=doubled, remedy="keep one row for each subject")
    return table


def chosen_columns(path: str, names: Sequence[str], wanted: Sequence[str]) -> pd.DataFrame:
    """Return the covariates of the subjects from a table; all its columns where none is named.

    Raises
    ------
    InputError
        A column or a subject is not in it.
    """
    table = _table(path)
    if lacking := [name for name in wanted if name not in table]:
        message = f"it has no column {lacking[0]}"
        raise InputError(message, file=path, remedy=f"name some of {', '.join(map(str, table.columns))}")
    if missing := [name for name in names if name not in table.index]:
        message = f"it has no row for {len(missing)} of the subjects: {', '.join(missing[:3])}"
        raise InputError(message, file=path, subject=missing[0], remedy="add their rows, n/a where a value is missing")
    return table.loc[list(names), list(wanted) or list(table.columns)]
