"""The step that finds types: images and tables in, tables and a verdict out."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from popatlas.errors import InputError
from popatlas.images.io import read_json
from popatlas.interfaces.types import FindTypes

QUICK = {"references": 2, "draws": 3, "most_types": 3}


@pytest.fixture
def cohort(tmp_path):
    """Write labels and log-Jacobians of 14 subjects; the fold of every second one lies elsewhere."""
    rng = np.random.default_rng(0)
    files = {"labels": [], "jacobians": []}
    for number in range(14):
        labels = np.zeros((12, 12, 12), np.int16)
        labels[2:10, 2:10, 2:10] = 1
        start = 3 if number % 2 else 6
        labels[4:8, start : start + 3, 4:8] = 2
        labels[rng.integers(2, 10, 20), rng.integers(2, 10, 20), rng.integers(2, 10, 20)] = 1
        jacobian = rng.normal(0, 0.02, labels.shape)
        jacobian[4:8, start : start + 3] += 0.3
        for kind, data in (("labels", labels), ("jacobians", jacobian.astype(np.float32))):
            path = tmp_path / f"sub-{number:02d}_{kind}.nii.gz"
            nib.save(nib.Nifti1Image(data, np.diag([2, 2, 2, 1.0])), path)
            files[kind].append(path)
    people = pd.DataFrame({"participant_id": [f"sub-{n:02d}" for n in range(14)], "age": range(20, 34)})
    people["scanner"] = ["A" if n % 2 else "B" for n in range(14)]
    people.to_csv(tmp_path / "people.tsv", sep="\t", index=False)
    return files


def outputs(folder):
    """Return where the step writes."""
    kinds = {"types": "tsv", "distances": "tsv", "regressions": "tsv", "verdict": "json"}
    return {f"out_{name}": str(folder / f"{name}.{suffix}") for name, suffix in kinds.items()}


def run(folder, **inputs):
    """Run the step."""
    given = {name: [str(path) for path in value] if isinstance(value, list) else value for name, value in inputs.items()}
    FindTypes(**given, **outputs(folder), options=QUICK, spacing=2.0).run()
    return read_json(folder / "verdict.json")


def test_two_variants_are_told(cohort, tmp_path):
    verdict = run(
        tmp_path, in_labels=cohort["labels"], in_jacobians=cohort["jacobians"], in_covariates=str(tmp_path / "people.tsv")
    )
    assert verdict["verdict"].startswith("2 groups: 7 and 7 subjects")
    assert "go along with scanner" in verdict["verdict"]
    table = pd.read_csv(tmp_path / "types.tsv", sep="\t")
    assert table["subject"].tolist() == [f"sub-{n:02d}" for n in range(14)]
    assert table["type"].nunique() == table["type"].iloc[::2].nunique() + 1 == 2
    pairs = pd.read_csv(tmp_path / "distances.tsv", sep="\t")
    assert len(pairs) == 14 * 13 / 2
    assert {"labels", "deformation"} < set(pairs.columns)
    assert {"scanner", "age", "all"} == set(pd.read_csv(tmp_path / "regressions.tsv", sep="\t")["covariate"])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda given: given | {"in_labels": given["in_labels"][:5]}, "5 subjects"),
        (lambda given: given | {"in_jacobians": given["in_labels"][:5]}, "5 files of in_jacobians"),
        (lambda given: given | {"covariates": ["weight"]}, "no column weight"),
        (lambda given: given | {"subjects": [f"sub-{n}" for n in range(100, 114)]}, "no row for 14"),
        (lambda given: given | {"subjects": ["sub-01"] * 14}, "named twice"),
        (lambda given: {"covariates": ["age"]}, "in_labels, in_jacobians or in_profiles"),
    ],
)
def test_bad_input(cohort, tmp_path, spoil, told):
    given = {"in_labels": cohort["labels"], "in_covariates": str(tmp_path / "people.tsv")}
    with pytest.raises(InputError, match=told):
        run(tmp_path, **spoil(given))


def test_a_profile_with_a_gap_is_named(tmp_path):
    table = pd.DataFrame({"subject": [f"s{n}" for n in range(12)], "a": range(1, 13), "b": range(2, 14)}).astype(object)
    table.loc[4, "b"] = "n/a"
    table.to_csv(tmp_path / "profile.tsv", sep="\t", index=False)
    with pytest.raises(InputError, match=r"missing.*s4"):
        run(tmp_path, in_profiles=str(tmp_path / "profile.tsv"))
