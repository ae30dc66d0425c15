"""Conditional templates: planted places and growth are found, means vanish, bands hold the truth, refusals."""

from functools import lru_cache

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from popatlas.errors import InputError
from popatlas.groupwise.conditional import conditional_atlas, structure_volumes, weighted_median
from popatlas.groupwise.neighbours import ConditionalSettings, kernel_width
from popatlas.images.io import save_image
from popatlas.interfaces import load_interface

SIDE = 64
BASE, GROWTH = 12.0, 0.12  # pixels, pixels for each year
AGES = tuple(np.linspace(20, 80, 25).tolist())


def disc(radius, y=0.0, x=0.0):
    rows, columns = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    distance = torch.from_numpy(np.hypot(rows - y, columns - x)).float()
    return (torch.sigmoid(1.5 * (radius - distance)) + 0.5 * torch.sigmoid(1.5 * (radius / 2 - distance)))[None, None]


def radius_of(image):
    return (float((image > 0.5).sum()) / np.pi) ** 0.5


def middle_of(image):
    weight = image[0, 0].clamp(min=0)
    axes = torch.arange(SIDE).float() - (SIDE - 1) / 2
    return np.array([float((weight.sum(1 - axis) * axes).sum() / weight.sum()) for axis in range(2)])


@lru_cache
def grown():
    """Return subjects whose radius grows with age, with a spread of their own, and templates of three ages."""
    rng = np.random.default_rng(1)
    own = rng.normal(0, 0.3, len(AGES))
    images = [disc(BASE + GROWTH * age + extra) for age, extra in zip(AGES, own, strict=True)]
    labels = [(image > 0.5).float() for image in images]
    plan = ConditionalSettings(width=8.0)
    return labels, conditional_atlas(images, AGES, (35.0, 50.0, 65.0), plan), own


def expected(value, own, width=8.0):
    """Return the radius that the kernel means at a value."""
    ages = np.array(AGES)
    weights = np.exp(-0.5 * ((ages - value) / width) ** 2)
    return float((weights * (BASE + GROWTH * ages + own)).sum() / weights.sum())


def test_planted_growth_is_found():
    _, found, own = grown()
    radii = [radius_of(one.template) for one in found]
    assert radii == pytest.approx([expected(one.value, own) for one in found], abs=0.25)
    assert (radii[2] - radii[0]) / 30 == pytest.approx(GROWTH, rel=0.05)


def test_weighted_mean_of_the_maps_vanishes():
    _, found, _ = grown()
    for one in found:
        mean = sum(weight * field for weight, field in zip(one.weights, one.maps, strict=True))
        assert float(mean.abs().max()) < 0.05
        assert sum(one.weights) == pytest.approx(1)
        assert 2 <= one.effective <= len(one.members)


def test_volumes_follow_and_their_bands_hold_the_truth():
    labels, found, own = grown()
    for one in found:
        (row,) = structure_volumes(one, labels, [1], ConditionalSettings(bootstrap=100))
        truth = np.pi * expected(one.value, own) ** 2
        assert row["volume"] == pytest.approx(truth, rel=0.03)
        assert row["low"] < row["volume"] < row["high"]
        assert row["high"] - row["low"] < 0.2 * truth


def test_template_lies_at_the_mean_place_wherever_it_begins():
    """One shape at known offsets: the template lies at their mean, within 0.2 pixels."""
    offsets = np.array([[2.4, 1.6], [-3, 0.5], [1, 4], [3.5, -2], [-1.2, 3.6], [2, 2]])
    images = [disc(14, *offset) for offset in offsets]
    ages = [50.0, 50.5, 49.5, 50.2, 49.8, 50.0]
    (found,) = conditional_atlas(images, ages, (50.0,), ConditionalSettings(width=1000.0, iterations=3))
    np.testing.assert_allclose(middle_of(found.template), offsets.mean(0), atol=0.2)


def test_the_median_is_weighted():
    images = [torch.full((1, 1, 4, 4), float(level)) for level in (5, 1, 3)]
    assert float(weighted_median(images, [1, 1, 1])[0, 0, 0, 0]) == 3
    assert float(weighted_median(images, [5, 1, 1])[0, 0, 0, 0]) == 5


def test_silverman():
    values = np.random.default_rng(0).normal(50, 10, 1000)
    assert kernel_width(values) == pytest.approx(0.9 * 10 * 1000**-0.2, rel=0.1)


IMAGES = [disc(10 + i) for i in range(6)]
BAD = {
    "missing": (IMAGES, [20, 30, float("nan"), 50, 60, 70], (40,), "missing for subject 3"),
    "one value": (IMAGES, [20.0] * 6, (20,), "one value only"),
    "outside": (IMAGES, [20, 30, 40, 50, 60, 70], (10,), "asked for at 10"),
    "no value": (IMAGES, [20, 30, 40, 50, 60, 70], (), "asked for at no value"),
    "lengths": (IMAGES, [20, 30], (25,), "6 images, 2 values"),
    "alone": (IMAGES, [20, 21, 22, 23, 24, 70], (70,), "too few subjects"),
    "shapes": ([*IMAGES[:5], IMAGES[5][..., :40]], [20, 30, 40, 50, 60, 70], (40,), "subject 6 has shape"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_refused(case):
    images, covariate, values, message = BAD[case]
    with pytest.raises(InputError, match=message):
        conditional_atlas(images, covariate, values, ConditionalSettings(width=5.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of seven subjects in files, with their ages."""
    place = tmp_path_factory.mktemp("ages")
    affine = np.diag([2.0, 2, 1, 1])
    for number in range(7):
        image = disc(12 + number)
        save_image(image[0, 0].numpy(), affine, place / f"{number}.nii.gz", np.float32)
        save_image((image > 0.5)[0, 0].numpy(), affine, place / f"{number}_dseg.nii.gz", np.int16)
    pd.DataFrame({"age": np.arange(40, 47), "site": list("aabbabc")}).to_csv(place / "people.tsv", sep="\t", index=False)
    return place


def run_step(folder, **change):
    load_interface("BuildConditionalAtlas")(
        **{
            "in_images": [str(folder / f"{number}.nii.gz") for number in range(7)],
            "in_labels": [str(folder / f"{number}_dseg.nii.gz") for number in range(7)],
            "in_covariates": str(folder / "people.tsv"),
            "values": [42.0, 44.0],
            "options": {"width": 1.5, "bootstrap": 20, "iterations": 2},
            "out_templates": str(folder / "templates.nii.gz"),
            "out_table": str(folder / "table.tsv"),
            "out_volumes": str(folder / "volumes.tsv"),
        }
        | change
    ).run()


def test_step_writes_templates_and_volumes(folder):
    run_step(folder)
    templates = nib.load(folder / "templates.nii.gz")
    assert templates.shape == (SIDE, SIDE, 2)
    volumes = pd.read_csv(folder / "volumes.tsv", sep="\t")
    assert volumes["label"].tolist() == [1, 1]
    assert volumes["volume_ml"].tolist() == pytest.approx([np.pi * radius**2 * 4 / 1000 for radius in (14, 16)], rel=0.06)
    assert pd.read_csv(folder / "table.tsv", sep="\t")["effective_subjects"].between(2, 7).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"along": "weight"}, "a column 'weight'"),
        ({"along": "site"}, "is not of numbers"),
        ({"in_labels": []}, "7 images and 0 label images"),
        ({"values": [90.0]}, "asked for at 90"),
        ({"options": {"width": -1.0}}, "options.width"),
    ],
)
def test_bad_files_are_refused(folder, change, message):
    with pytest.raises(InputError, match=message):
        run_step(folder, **change)


def test_rows_of_other_subjects_are_refused(folder, tmp_path):
    """Ages in another order than the images would be those of others, and no number would look wrong."""
    table = pd.read_csv(folder / "people.tsv", sep="\t")
    images = []
    for number in range(7):
        (tmp_path / f"sub-{number}").mkdir()
        images.append(tmp_path / f"sub-{number}" / "brain.nii.gz")
        images[-1].symlink_to(folder / f"{number}.nii.gz")
    table.assign(participant_id=[f"sub-{number}" for number in range(7)]).to_csv(tmp_path / "p.tsv", sep="\t", index=False)
    change = {"in_images": [str(path) for path in images], "in_covariates": str(tmp_path / "p.tsv")}
    run_step(folder, **change)
    with pytest.raises(InputError, match=r"the row of sub-0 stands where brain.nii.gz is"):
        run_step(folder, **change | {"in_images": [str(path) for path in reversed(images)]})
