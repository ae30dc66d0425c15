"""What is said of label files: the summary and its hints, and what check tells of a template."""

import re
import shutil

import pandas as pd
import pytest

from popatlas.cli.check import describe_members, describe_template
from popatlas.cohort.labelfiles import inspect_label_files, used_as
from popatlas.cohort.labelsummary import labels_summary, nearest_file
from popatlas.config.load import changed, load_config
from tests.cohorts import noise_image, noise_labels
from tests.unit.cohort.labelled import NAMES, SPOIL, no_forms, scan


def test_the_summary_counts_and_names(setup):
    setup.config = changed(setup.config, {"measure": {"reference": "derivatives/refs/{scan}_dseg.nii.gz"}})
    noise_labels(setup.bids / f"derivatives/refs/{scan('sub-01')}_dseg.nii.gz", seed=60)
    setup.spoil("sub-02", "NaN")
    setup.inspect()
    first, bad = labels_summary(setup.config, setup.index, setup.out)
    assert first == "labels         atlases: 6 files, 5 good (115 to 119 labels); references: 1 files, 1 good (115 labels)"
    assert bad.startswith(f"  left out    {scan('sub-02')}: {setup.label('sub-02')} (it is no atlas): the label image holds")
    assert "remedy: " in bad
    for name in NAMES[2:]:
        setup.spoil(name)
    setup.inspect()
    assert (
        labels_summary(setup.config, setup.index, setup.out, named=2)[-1]
        == "  left out    3 more, see cohort/label-files.tsv"
    )


def test_patterns_without_a_match_are_named_with_the_file_that_may_be_meant(setup):
    right = setup.label("sub-01").relative_to(setup.bids)
    for section, key, wrong in (
        ("fuse", "labels", "derivatives/trut/{scan}_desc-truth_dseg.nii.gz"),
        ("measure", "reference", "derivatives/truth/{scan}_desc-true_dseg.nii.gz"),
    ):
        config = load_config({section: {key: wrong}}, bids_dir=str(setup.bids))
        inspect_label_files(config, setup.index, setup.scans, setup.out)
        (line,) = [line for line in labels_summary(config, setup.index, setup.out) if "no file" in line]
        assert f"{section}.{key} ('{wrong}') matches no file" in line
        assert f"did you mean {right}?" in line
    shutil.rmtree(setup.bids / "derivatives")
    setup.inspect()
    (line,) = [line for line in labels_summary(setup.config, setup.index, setup.out) if "no file" in line]
    assert "fuse.labels and measure.reference" in line and "did you mean" not in line
    assert "nothing is fused and nothing is scored" in line


def test_no_hint_leads_out_of_the_dataset_or_to_the_scan_itself(setup):
    assert nearest_file("{scan}_T1x.nii.gz", setup.scans[0], setup.bids) is None
    assert nearest_file("/nowhere/{scan}.nii.gz", setup.scans[0], setup.bids) is None
    assert nearest_file("derivatives/truth/{scan}_desc-truth_dseg.nii", setup.scans[0], setup.bids)


def test_labels_that_several_subjects_share_are_told(setup):
    shutil.copy(setup.label("sub-01"), setup.label("sub-05"))
    setup.inspect()
    (line,) = [line for line in labels_summary(setup.config, setup.index, setup.out) if "the same" in line]
    assert "2 subjects share one label image (sub-01/anat/sub-01, sub-05/anat/sub-05)" in line


def test_nothing_asked_for_nothing_told(setup):
    setup.config = changed(setup.config, {"fuse": {"methods": []}, "measure": {"reference": ""}})
    setup.inspect()
    assert labels_summary(setup.config, setup.index, setup.out) == ["labels         none are asked for"]


def test_check_looks_at_an_existing_template_and_its_mask(setup):
    template, mask = setup.folder / "tpl-x_T1w.nii.gz", setup.folder / "tpl-x_mask.nii.gz"
    assert describe_template(setup.config) == []
    setup.config = changed(setup.config, {"atlas": {"template": str(noise_image(template, seed=1))}})
    assert describe_template(setup.config) == ["template       ok, no mask beside it"]
    noise_image(mask, seed=2)
    assert describe_template(setup.config) == ["template       ok, with tpl-x_mask.nii.gz"]
    SPOIL["moved"](mask)
    (line,) = describe_template(setup.config)
    assert "CANNOT BE USED: grids of template and its mask differ" in line and "Remedy" in line
    no_forms(template)
    assert "neither sform nor qform" in describe_template(setup.config)[0]


def test_uses_are_told_apart(setup):
    setup.config = changed(setup.config, {"measure": {"reference": ""}})
    table = setup.inspect()
    assert (
        len(used_as(table, "atlas")) == 6 and used_as(table, "reference").empty and used_as(table, "atlas", good=False).empty
    )


@pytest.mark.parametrize(
    ("settings", "count", "said"),
    [
        ({}, 200, "built from all 200 scans"),
        (
            {},
            350,
            r"built from 200 of 350 scans \(atlas.most_members\), drawn evenly over age; .*--set atlas.members=NUMBER",
        ),
        ({"members": 300}, 350, r"built from 300 of 350 scans \(atlas.members\)"),
        ({"members": ["sub-01", "sub-02"]}, 350, "built from the 2 subjects of atlas.members"),
        ({"most_members": 5}, 350, r"built from 5 of 350 scans \(atlas.most_members\)"),
        ({}, 1, "CANNOT BE BUILT from fewer than 2 scans"),
        ({"template": "/tpl.nii.gz"}, 350, "^$"),
    ],
)
def test_check_says_who_a_template_is_built_from(settings, count, said):
    config = load_config({"atlas": settings})
    usable = pd.DataFrame({"role": ["cohort"] * count + ["atlas"]})
    assert re.search(said, " ".join(describe_members(config, usable)))
