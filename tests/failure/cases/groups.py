"""Groups of images, tissues and templates along a covariate that cannot be made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from popatlas.images.io import save_image
from popatlas.interfaces import load_interface

from ..casebook import SAID, STOPS, Case, step

TITLE = "Groups of images"
SIDE = 32
AFFINE = np.diag([2.0, 2.0, 1.0, 1.0])
LEVELS = ((0.1, 0.5, 1.0), (0.2, 1.0, 0.4))
Maps = Sequence[np.ndarray]


def tissues(radius: float = 11.0) -> np.ndarray:
    """Three classes: around, a disc, its core."""
    distance = np.hypot(*(np.indices((SIDE, SIDE)) - (SIDE - 1) / 2))
    return (distance < radius).astype(int) + (distance < radius / 2)


def contrast(number: int) -> np.ndarray:
    noise = 0.02 * np.random.default_rng(number).standard_normal((SIDE, SIDE))
    return np.array(LEVELS[number % 2])[tissues()] + noise


def prior(*shares: float) -> np.ndarray:
    """The classes, softened and times their shares."""
    return (0.8 * np.eye(3)[tissues()] + 0.1) * np.array(shares)


def written(folder: Path, images: Maps, affine: np.ndarray = AFFINE, name: str = "image") -> list[str]:
    """Write images; the last one lies where `affine` says."""
    files = [folder / f"{name}{number}.nii.gz" for number in range(len(images))]
    for file, image in zip(files, images, strict=True):
        save_image(image, affine if file == files[-1] else AFFINE, file, np.float32)
    return [str(file) for file in files]


def nan(image: np.ndarray) -> np.ndarray:
    changed = image.copy()
    changed[4, 4] = np.nan
    return changed


def group(
    images: Maps,
    *,
    masks: Maps | None = None,
    affine: np.ndarray = AFFINE,
    maps: np.ndarray | None = None,
    **options: object,
) -> Callable[[Path], str]:
    """Register a group that must be refused."""

    def run(folder: Path) -> str:
        inputs: dict[str, object] = {"in_images": written(folder, images, affine)}
        if masks is not None:
            inputs["in_masks"] = written(folder, masks, name="mask")
        if maps is not None:
            inputs["in_prior"] = written(folder, [maps], name="prior")[0]
        made = folder / "posterior.nii.gz"
        message = step("CoRegisterGroup", out_posterior=str(made), options={"classes": 3} | options, **inputs)
        assert not made.exists()
        return message

    return run


def too_many_classes(folder: Path) -> str:
    """Two levels and four classes: the group is registered, and the step says what is not there."""
    inside = (tissues() > 0).astype(float)
    options = {"classes": 4, "shrink": [2], "iterations": [5]}
    made = load_interface("CoRegisterGroup")(
        in_images=written(folder, [inside, 1 - inside]), out_posterior=str(folder / "p.nii.gz"), options=options
    )
    made.run()
    assert (folder / "p.nii.gz").is_file()
    return "; ".join(made.said)


def segmented(
    images: Maps, maps: np.ndarray, *, mask: np.ndarray | None = None, affine: np.ndarray = AFFINE, **inputs: object
) -> Callable[[Path], str]:
    """Segment a subject that must be refused."""

    def run(folder: Path) -> str:
        files = {"in_images": written(folder, images, affine), "in_prior": written(folder, [maps], name="prior")[0]}
        if mask is not None:
            inputs["in_mask"] = written(folder, [mask], name="mask")[0]
        return step("SegmentTissues", out_posterior=str(folder / "p.nii.gz"), **files, **inputs)

    return run


def along(
    ages: Sequence[object] = (40, 41, 42, 43, 44),
    *,
    images: Maps | None = None,
    affine: np.ndarray = AFFINE,
    people: Sequence[str] | None = None,
    **inputs: object,
) -> Callable[[Path], str]:
    """Make a conditional atlas that must be refused."""

    def run(folder: Path) -> str:
        table = pd.DataFrame({"age": list(ages)})
        if people is not None:
            table["participant_id"] = list(people)
        table.to_csv(folder / "people.tsv", sep="\t", index=False, na_rep="n/a")
        given: dict[str, object] = {
            "in_images": written(folder, images or [np.array(LEVELS[0])[tissues(9 + i)] for i in range(5)], affine),
            "in_covariates": str(folder / "people.tsv"),
            "values": [42.0],
            "options": {"width": 2.0},
            "out_templates": str(folder / "templates.nii.gz"),
            "out_table": str(folder / "table.tsv"),
        }
        return step("BuildConditionalAtlas", **(given | inputs))

    return run


AWAY, COARSE = np.diag([2.0, 2.0, 1.0, 1.0]), np.diag([3.0, 3.0, 1.0, 1.0])
AWAY[0, 3] = 900
ONE, OTHER = contrast(0), contrast(1)
EMPTY = np.zeros((SIDE, SIDE))
NOISE = [np.random.default_rng(number).standard_normal((SIDE, SIDE)) for number in range(2)]
FIVE = [np.array(LEVELS[0])[tissues(9 + i)] for i in range(5)]
PRIOR = prior(1, 1, 1)

CASES = [
    Case("CoRegisterGroup", "one image", STOPS, "a group of 1 image", group([ONE])),
    Case("CoRegisterGroup", "constant image", STOPS, "constant", group([ONE, EMPTY + 3])),
    Case(
        "CoRegisterGroup",
        "constant in its mask",
        STOPS,
        "constant",
        group([ONE, EMPTY + 3 * (ONE > 0.9)], masks=[ONE > 0.9] * 2),
    ),
    Case("CoRegisterGroup", "NaN in an image", STOPS, "1 voxels that are NaN", group([ONE, nan(OTHER)])),
    Case("CoRegisterGroup", "image far from the others", STOPS, "does not overlap", group([ONE, OTHER], affine=AWAY)),
    Case("CoRegisterGroup", "empty mask", STOPS, "the mask is empty", group([ONE, OTHER], masks=[ONE > 0, EMPTY])),
    Case(
        "CoRegisterGroup", "prior of fewer classes", STOPS, "the prior has shape", group([ONE, OTHER], maps=PRIOR[..., :2])
    ),
    Case(
        "CoRegisterGroup", "prior without a class", STOPS, "class 2 has no prior", group([ONE, OTHER], maps=prior(1, 0, 1))
    ),
    Case(
        "CoRegisterGroup",
        "all classes but one vanish",
        STOPS,
        "2 of 3 classes",
        group(NOISE, maps=EMPTY[..., None] + [1, 1e-3, 1e-3]),
    ),
    Case(
        "CoRegisterGroup", "more classes than tissues", SAID, "are nowhere the most probable", too_many_classes, remedy=False
    ),
    Case("SegmentTissues", "NaN in an image", STOPS, "contrast 1 has 1 voxels", segmented([nan(ONE)], PRIOR)),
    Case("SegmentTissues", "constant image", STOPS, "contrast 2 is constant", segmented([ONE, EMPTY + 1], PRIOR)),
    Case("SegmentTissues", "prior on another grid", STOPS, "does not lie on the grid", segmented([ONE], PRIOR[:-1])),
    Case(
        "SegmentTissues",
        "contrasts on two grids",
        STOPS,
        "does not lie on the grid",
        segmented([ONE, OTHER], PRIOR, affine=COARSE),
    ),
    Case("SegmentTissues", "class without prior", STOPS, "class 3 has no prior", segmented([ONE], prior(1, 1, 0))),
    Case("SegmentTissues", "one class", STOPS, "fewer than two classes", segmented([ONE], PRIOR[..., :1])),
    Case("SegmentTissues", "percentages as prior", STOPS, "above 1", segmented([ONE], 100 * PRIOR)),
    Case("SegmentTissues", "empty mask", STOPS, "the mask is empty", segmented([ONE], PRIOR, mask=EMPTY)),
    Case("SegmentTissues", "names of other classes", STOPS, "2 names for 3", segmented([ONE], PRIOR, names=["a", "b"])),
    Case("BuildConditionalAtlas", "age missing for a subject", STOPS, "missing for", along((40, None, 42, 43, 44))),
    Case("BuildConditionalAtlas", "no such column", STOPS, "a column 'weight'", along(along="weight")),
    Case("BuildConditionalAtlas", "column of words", STOPS, "is not of numbers", along(("a", "b", "c", "d", "e"))),
    Case("BuildConditionalAtlas", "one age for all", STOPS, "one value only", along((42,) * 5)),
    Case("BuildConditionalAtlas", "value beyond all ages", STOPS, "asked for at 90", along(values=[42.0, 90.0])),
    Case(
        "BuildConditionalAtlas", "nobody near a value", STOPS, "too few subjects", along((20, 21, 22, 23, 80), values=[80.0])
    ),
    Case("BuildConditionalAtlas", "fewer rows than images", STOPS, "it has 4 rows", along((40, 41, 42, 43))),
    Case(
        "BuildConditionalAtlas",
        "rows of other subjects",
        STOPS,
        "among the images",
        along(people=("s1", "s2", "s3", "s4", "s5")),
    ),
    Case("BuildConditionalAtlas", "image on another grid", STOPS, "another grid", along(affine=COARSE)),
    Case(
        "BuildConditionalAtlas", "NaN in an image", STOPS, "1 voxels that are NaN", along(images=[*FIVE[:4], nan(FIVE[4])])
    ),
]
