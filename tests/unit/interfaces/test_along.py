"""Templates along a covariate as steps: planted growth comes out of turned brains, and the page shows it."""

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.transform import Rotation

from popatlas.errors import InputError
from popatlas.images.io import load_image, read_json, read_table, save_image, write_json, write_table
from popatlas.interfaces import load_interface
from popatlas.report.along import along_section
from popatlas.transforms.itk import write_affine

SIDE, MM = 28, 5.0
AGES = np.linspace(20, 80, 9)
BASE, RATE = 12.0, 0.12  # mm, mm for each year: radius of the fluid in the middle
AFFINE = np.diag([MM, MM, MM, 1.0])
AFFINE[:3, 3] = -MM * (SIDE - 1) / 2
VALUES, OPTIONS = (35.0, 50.0, 65.0), {"width": 9.0, "iterations": 2, "bootstrap": 30}

pytestmark = pytest.mark.slow


def head(age, turn=None):
    """Return brain, mask and labels of an ellipsoid with fluid in the middle, turned and shifted."""
    points = np.moveaxis(np.indices((SIDE,) * 3) - (SIDE - 1) / 2, 0, -1) * MM
    points = points if turn is None else points @ turn  # the inverse rotation
    shell = np.linalg.norm(points / [48, 58, 44], axis=-1)
    fluid = np.linalg.norm(points / [1.0, 1.3, 0.9], axis=-1) - (BASE + RATE * age)
    brain = 1 / (1 + np.exp((shell - 1) * 20)) * (1 - 0.7 / (1 + np.exp(fluid / 1.5)))
    return brain * (shell < 1.15), shell < 1, (fluid < 0) * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of nine subjects, whose affines also stretch: only their rotation may be used."""
    place, rng = tmp_path_factory.mktemp("along"), np.random.default_rng(0)
    for number, age in enumerate(AGES):
        turn = Rotation.from_rotvec(np.deg2rad(8) * rng.standard_normal(3)).as_matrix()
        for name, data in zip(("brain", "mask", "labels"), head(age, turn), strict=True):
            save_image(data, AFFINE, place / f"{number}_{name}.nii.gz", np.float32 if name == "brain" else np.int16)
        lps = np.diag([-1.0, -1, 1])
        matrix = np.eye(4)
        matrix[:3, :3] = lps @ turn @ lps @ np.diag([1.1, 0.95, 1.05])
        write_affine(place / f"{number}.mat", matrix)
    brain, mask, _ = head(50)
    save_image(brain, AFFINE, place / "template.nii.gz", np.float32)
    save_image(mask, AFFINE, place / "template_mask.nii.gz", np.uint8)
    scans = [f"sub-{number}/anat/sub-{number}" for number in range(len(AGES))]
    write_table(pd.DataFrame({"scan": scans, "value": AGES}), place / "people.tsv")
    write_table(pd.DataFrame({"index": [4], "name": ["fluid"]}), place / "names.tsv")
    return place


def build(folder, value, **change):
    files = {
        f"in_{name}": [str(folder / f"{number}{end}") for number in range(len(AGES))]
        for name, end in (
            ("brains", "_brain.nii.gz"),
            ("masks", "_mask.nii.gz"),
            ("labels", "_labels.nii.gz"),
            ("affines", ".mat"),
        )
    }
    given = {"in_covariates": "people.tsv", "in_template": "template.nii.gz", "in_template_mask": "template_mask.nii.gz"}
    made = {name: f"{value:g}_{name}" for name in ("row.tsv", "volumes.tsv", "members.tsv", "template.nii.gz")}
    outputs = {f"out_{name.split('.')[0]}": str(folder / file) for name, file in made.items()}
    inputs = {name: str(folder / file) for name, file in given.items()} | files | outputs
    load_interface("BuildTemplateAlong")(**inputs | {"value": value, "options": OPTIONS} | change).run()


@pytest.fixture(scope="module")
def published(folder):
    """Return the output folder of a study that has published its templates."""
    for value in VALUES:
        build(folder, value)
    stem = folder / "out/tpl-x/tpl-x_desc-along"
    lists = {
        f"in_{name}s".replace("memberss", "members").replace("volumess", "volumes"): [
            str(folder / f"{value:g}_{name}.{'nii.gz' if name == 'template' else 'tsv'}") for value in VALUES
        ]
        for name in ("template", "row", "volumes", "members")
    }
    tables = {"table": "templates", "volumes": "volumes", "members": "members"}
    outputs = {f"out_{name}": f"{stem}_{called}.tsv" for name, called in tables.items()}
    outputs |= {f"out_{name}_dictionary": f"{stem}_{called}.json" for name, called in tables.items()}
    outputs |= {"out_templates": f"{stem}_T1w.nii.gz", "out_description": f"{stem}_T1w.json"}
    names = {"in_names": str(folder / "names.tsv"), "along": "age", "method": "jlf", "options": OPTIONS}
    load_interface("PublishAlong")(**lists, **outputs, **names).run()
    return folder / "out"


def radius(volume_ml):
    return (volume_ml * 1000 / (4 / 3 * np.pi * 1.0 * 1.3 * 0.9)) ** (1 / 3)


def test_planted_growth_is_found_in_brains_of_any_pose(published):
    """The brain, which does not grow, keeps its volume; the fluid grows by the planted rate, within 5 %."""
    volumes = read_table(published / "tpl-x/tpl-x_desc-along_volumes.tsv")
    means = read_table(published / "tpl-x/tpl-x_desc-along_templates.tsv")["mean_value"]
    fluid, brain = (volumes[volumes["label"] == name] for name in ("fluid", "brain"))
    assert np.polyfit(means, radius(fluid["volume_ml"].to_numpy()), 1)[0] == pytest.approx(RATE, rel=0.05)
    assert np.ptp(brain["volume_ml"]) < 0.03 * brain["volume_ml"].mean()
    assert ((fluid["low_ml"] <= fluid["volume_ml"]) & (fluid["volume_ml"] <= fluid["high_ml"])).all()
    assert set(fluid["method"]) == {"jlf"} and set(brain["method"]) == {"mask"}


def test_the_series_names_its_values_and_scans(published):
    stem = published / "tpl-x/tpl-x_desc-along"
    told, members = read_json(f"{stem}_T1w.json"), read_table(f"{stem}_members.tsv")
    assert told["Along"] == "age" and told["Values"] == list(VALUES) and told["Scans"] == sorted(set(members["scan"]))
    assert load_image(f"{stem}_T1w.nii.gz").shape[3] == len(VALUES)
    assert members.groupby("at")["weight"].sum().tolist() == pytest.approx([1, 1, 1])
    for name in ("templates", "volumes", "members"):
        assert list(read_json(f"{stem}_{name}.json")) == list(read_table(f"{stem}_{name}.tsv").columns)


def test_the_page_shows_strip_film_and_volumes_with_single_scans(published):
    from PIL import Image

    table = pd.DataFrame({"participant_id": [f"sub-{n}" for n in range(9)], "session_id": "", "jlf_fluid": AGES})
    write_table(table, published / "group/volumes.tsv")
    write_json(published / "group/volumes.json", {"jlf_fluid": {"Method": "jlf", "Label": "fluid"}})
    section = along_section(published, "x", published / "report/index.html")
    assert section is not None and section.column == "age" and section.scans == 9
    assert section.strip[0] == "figures/along.webp" and (published / "report" / section.strip[0]).is_file()
    with Image.open(published / "report" / section.film[0]) as film:
        assert film.n_frames == 4 and film.size == section.film[1:]
    assert [path.name for path in (published / "report/figures").iterdir() if path.suffix == ".png"] == []
    fluid = section.bands[0]
    assert fluid.title.startswith("fluid (jlf)") and len(fluid.dots) == 9 and len(fluid.curve) == 3
    assert "the scans +1 " in f"{fluid.text} "
    assert along_section(published, "y", published / "report/index.html") is None


def test_lists_of_other_scans_are_refused(folder):
    with pytest.raises(InputError, match="8 in_masks"):
        build(folder, 50.0, in_masks=[str(folder / f"{number}_mask.nii.gz") for number in range(8)])
