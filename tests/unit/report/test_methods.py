"""The methods text says what the run did, and nothing of what it did not."""

import pytest
import yaml

from popatlas.config.load import default_config, load_config
from popatlas.images.io import read_table, write_json, write_table
from popatlas.report.cohort import Cohort, count
from popatlas.report.methods import Counts, write_methods
from tests.unit.report.test_pages import report
from tests.unit.report_fixture import BENCH, METHODS, TEMPLATE, build


def sections(config=None, methods=("majority",), **counts):
    text = write_methods(
        config or default_config(), Counts(**({"scans": 9, "included": 9, "out": {}} | counts)), methods, {}
    )
    return dict(text.sections)


@pytest.fixture
def out(tmp_path):
    return build(tmp_path, subjects=5, images=False)


def counted(out):
    cohort = Cohort.read(out, out / "cohort/ledger.tsv", TEMPLATE, METHODS, out / "cohort/config.yaml")
    return count(cohort, cohort.rows(out / "report/index.html"), {})


def changed(out, section, **keys):
    path = out / "cohort/config.yaml"
    content = yaml.safe_load(path.read_text())
    content[section] |= keys
    path.write_text(yaml.safe_dump(content))


def test_only_channels_that_scans_have_are_told():
    assert "T2w" not in sections()["Preprocessing"]
    text = sections(channels={"T2w": 3, "FLAIR": 1, "PDw": 0})["Preprocessing"]
    assert "T2w images of 3 scans and FLAIR images of 1 scan were aligned rigidly" in text and "PDw" not in text


def test_channels_are_counted_from_what_was_aligned(out):
    changed(out, "cohort", channels=["T2w", "FLAIR"])
    assert counted(out).channels == {"T2w": 0, "FLAIR": 0}
    (out / "sub-01/anat/sub-01_space-T1w_desc-preproc_T2w.nii.gz").parent.mkdir(parents=True, exist_ok=True)
    (out / "sub-01/anat/sub-01_space-T1w_desc-preproc_T2w.nii.gz").touch()
    assert counted(out).channels == {"T2w": 1, "FLAIR": 0}
    assert "T2w images of 1 scan were aligned" in report(out).read_text()


def test_scores_are_told_only_where_scans_were_scored(out):
    assert "reference labels" not in sections()["Measures and quality control"]
    assert "labels of 2 scans were scored" in sections(referenced=2)["Measures and quality control"]
    assert counted(out).referenced == 5


def test_outliers_are_told_only_where_there_can_be_any():
    assert "outlier" in sections(included=5)["Measures and quality control"]
    assert "Measures and quality control" not in sections(included=4)


def test_a_segmenter_is_no_fusion():
    text = sections(methods=["segmenter", "majority"])["Label fusion"]
    assert "fused by majority voting" in text and "segmentation network that was trained on labels fused by jlf" in text
    assert "segmentation network" not in sections()["Label fusion"]


def test_a_set_of_external_atlases_labels_no_scan_of_its_own(tmp_path):
    table = tmp_path / "atlases.tsv"
    table.write_text("atlas\tt1w\tdseg\n")
    assert "never used for itself" in sections()["Label fusion"]
    assert "never used for itself" not in sections(load_config({"fuse": {"atlases": str(table)}}))["Label fusion"]


def write_bench(out, targets, methods=METHODS):
    shared = {"sentence": "Use jlf.", "recommended": "jlf", "n_targets": len(targets), "targets": targets}
    found = {method: {key: {"mean": 1.0} for key in ("dice", "hd95", "assd", "volume_error")} for method in methods}
    costs = {method: {"cpu_seconds": 1.0} for method in methods}
    write_json(out / BENCH["json"], shared | {"methods": found, "costs": costs})


def test_a_bench_of_this_run_is_told(out):
    changed(out, "fuse", bench=True)
    atlases = list(read_table(out / "cohort/label-atlases.tsv")["atlas"])
    write_bench(out, atlases)
    text = report(out).read_text()
    assert f"compared on {len(atlases)} held-out atlases" in text and "Use jlf." in text


@pytest.mark.parametrize("case", ["not asked for", "other methods", "other atlases"])
def test_a_bench_of_other_settings_is_not_told(out, case):
    changed(out, "fuse", bench=case != "not asked for")
    atlases = list(read_table(out / "cohort/label-atlases.tsv")["atlas"])
    write_bench(out, atlases, ["local"] if case == "other methods" else METHODS)
    if case == "other atlases":
        write_table(read_table(out / "cohort/label-atlases.tsv").head(1), out / "cohort/label-atlases.tsv")
    text = report(out).read_text()
    assert "held-out atlas" not in text[text.index('id="methods"') :]
    assert ("Use jlf." in text) == (case != "other atlases"), "labels of other atlases are others"


def test_a_study_of_an_earlier_version_still_has_its_page(out):
    """Its tables call the participant otherwise; names of labels are as they were written."""
    path = out / "group/metrics.parquet"
    old = {"participant_id": "subject", "session_id": "session"}
    write_table(read_table(path).rename(columns=old), path)
    volumes = read_table(out / "group/volumes.tsv").rename(columns=old)
    write_table(volumes.rename(columns={"jlf_ventricles": "jlf_both ventricles"}), out / "group/volumes.tsv")
    text = report(out).read_text()
    assert "Dice jlf" in text and "Volume and age" in text
