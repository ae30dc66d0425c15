"""What nothing asks for any more, and a template whose members are not used any more."""

import json
import shutil

import pytest

from popatlas.config.load import load_config
from popatlas.errors import ConfigError
from popatlas.images.io import write_text
from popatlas.receipts import FOLDER
from popatlas.study.benchstudy import CONFIG, bench_config
from popatlas.study.inventory import Inventory
from popatlas.study.opening import begin, clear
from popatlas.study.orphans import kept_results

from ..cohorts import noise_labels
from .test_dag import opened
from .test_fusion import leave
from .test_inventory import SCAN, SETTINGS, changed, cohort, left, stock

__all__ = ["cohort"]  # a fixture


def cleared(folder, settings):
    """Clear a study for its group results, as the last pass of a run does."""
    inventory = stock(folder, settings)
    clear(inventory, "all")
    return inventory


def there(folder, pattern):
    return sorted(path.relative_to(folder / "out").as_posix() for path in (folder / "out").glob(pattern))


def test_group_results_of_methods_that_are_not_asked_for_are_taken_away(cohort, capsys):
    assert there(cohort, "group/trust.*") and there(cohort, f"{FOLDER}/group/tabulate_trust.json")
    inventory = cleared(cohort, changed(methods=[]))
    assert there(cohort, "group/trust.*") == there(cohort, "report/figures/trust.png") == []
    assert there(cohort, f"{FOLDER}/group/tabulate_trust.json") == []
    assert "taken away, for nothing asks for it any more: group/trust.json" in capsys.readouterr().err
    assert (cohort / "out" / f"{SCAN}_desc-jlf_dseg.nii.gz").is_file(), "labels of scans are kept"
    assert kept_results(inventory) == [
        "8 results that the settings no longer ask for are kept: jlf (4), majority (4)",
    ]
    assert kept_results(stock(cohort)) == []


def test_pages_of_scans_that_are_left_out_are_taken_away(cohort):
    page = "report/thumbnails/sub-04/anat/sub-04.png"
    inventory = cleared(cohort, SETTINGS | {"cohort": {"exclude": ["04"]}})
    assert not (cohort / "out" / page).exists() and there(cohort, "report/thumbnails/*") == [
        f"report/thumbnails/sub-0{number}" for number in (1, 2, 3)
    ]
    assert (cohort / "out" / "sub-04/anat/sub-04_desc-jlf_dseg.nii.gz").is_file()
    assert kept_results(inventory) == [], "of scans that are left out the run tells otherwise"


def test_truth_scores_that_are_not_asked_for_are_taken_away(cohort):
    write_text(cohort / "bids/derivatives/truth/simulation.json", "{}")
    leave(opened(cohort, SETTINGS), "all")
    assert left(cleared(cohort, SETTINGS)) == {} and there(cohort, "group/truth.tsv")
    cleared(cohort, SETTINGS | {"measure": {"truth": ""}})
    assert there(cohort, "group/truth.tsv") == []


def test_a_bench_stays_while_it_is_what_it_would_be_today(cohort):
    methods = ["majority", "staple"]
    settings = bench_config(opened(cohort, SETTINGS).config, methods)
    leave(opened(cohort, settings), "fusion_bench")
    write_text(cohort / "out" / CONFIG, json.dumps(settings.content))
    for other in (changed(methods=[]), SETTINGS):
        inventory = cleared(cohort, other)
        assert len(there(cohort, "group/fusion-bench.*")) == 3 and there(cohort, f"{FOLDER}/group/bench_fusion.json")
        assert not any("staple" in line for line in kept_results(inventory)), "the bench has asked for it"
    noise_labels(cohort / "bids/derivatives/truth/sub-03/anat/sub-03_desc-truth_dseg.nii.gz", seed=99)
    cleared(cohort, SETTINGS)
    assert there(cohort, "group/fusion-bench.*") == there(cohort, f"{FOLDER}/group/bench_fusion.json") == []


def test_a_template_is_not_built_again_without_some_of_its_members(cohort):
    """It was built of sub-01, sub-03 and sub-04, and then sub-04 is left out."""
    config = load_config(
        SETTINGS | {"cohort": {"exclude": ["04"]}}, bids_dir=str(cohort / "bids"), out_dir=str(cohort / "out")
    )
    stock(cohort)  # which notes that the template is built
    (cohort / "out/tpl-popatlas/template_description.json").unlink()
    study = begin(config, ["all", "-n"], main=True)
    assert {"publish_template"} == {
        job.rule for name, job in Inventory(study).jobs.jobs.items() if name in Inventory(study).needed("subjects")
    }, "what it is made of is there"
    shutil.rmtree(cohort / "out/work")
    for arguments in (["all", "-n"], ["all"]):
        with pytest.raises(ConfigError, match=r"built again, and 1 of its frozen members .*: sub-04\. Remedy: select"):
            begin(config, arguments, main=True)
