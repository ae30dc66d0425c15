"""The files that the how-to pages show are what popatlas takes, and the example of own atlases works from end to end."""

import json
import re
from pathlib import Path

import pytest

from popatlas.config.load import load_config
from popatlas.images.io import read_table
from popatlas.measures.metrics import METRICS
from popatlas.measures.names import read_names

from ..cohorts import noise_cohort, noise_image, noise_labels, popatlas

HOWTO = Path(__file__).parents[2] / "docs" / "howto"
FILE = re.compile(r'(?ms)^```\w+ title="([^"]+)"\n(.*?)^```')


def shown(page):
    """Return the files that a page shows, by their names."""
    return dict(FILE.findall((HOWTO / f"{page}.md").read_text()))


@pytest.mark.parametrize("page", sorted(path.stem for path in HOWTO.glob("*.md") if "my.yaml" in shown(path.stem)))
def test_settings_of_a_page_are_settings(page, tmp_path):
    (tmp_path / "my.yaml").write_text(shown(page)["my.yaml"])
    assert load_config(tmp_path / "my.yaml").content != load_config().content


def test_own_atlases_are_found_with_their_names(tmp_path, monkeypatch):
    files = shown("atlases")
    assert set(files) == {"my.yaml", "atlases/atlases.tsv", "atlases/dseg.tsv"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    table = read_table(tmp_path / "atlases/atlases.tsv")
    for number, atlas in enumerate(table.to_dict("records")):
        noise_image(tmp_path / "atlases" / atlas["t1w"], seed=number)
        noise_labels(tmp_path / "atlases" / atlas["dseg"], seed=number)
    noise_cohort(tmp_path / "BIDS_DIR", ["sub-01", "sub-02"], labels=False)
    monkeypatch.chdir(tmp_path)
    assert "atlases: 3 files, 3 good" in popatlas("check", "BIDS_DIR", "--config", "my.yaml").stdout
    jobs = dict(
        re.findall(r"^  ([a-z_]+) +(\d+)$", popatlas("plan", "BIDS_DIR", "OUT_DIR", "--config", "my.yaml").stdout, re.M)
    )
    assert jobs["prepare_scan"] == jobs["register_to_template"] == "5", "atlases are preprocessed and registered too"
    assert jobs["fuse_scan"] == "2"
    assert read_names(tmp_path / "atlases/dseg.tsv")[17] == "Left Hippocampus"
    assert not (tmp_path / "OUT_DIR").exists()


def test_every_metric_is_explained():
    page = (HOWTO / "metrics.md").read_text()
    assert all(f"| `{name}` |" in page for name in METRICS)
    gate = load_config().content["register"]["gate"]
    assert f"Limit: at least {gate['mask_dice']:g}" in page and f"Limit: at most {gate['scale'][1]:g}" in page


def test_recordings_name_no_place_of_this_machine():
    texts = sorted((HOWTO.parent / "recordings").glob("*.txt"))
    for text in texts:
        said = text.read_text()
        assert not re.search(r"/(work|tmp|home|root)/", said), text
        assert said.startswith("# popatlas ") and "$ " in said


def test_names_of_tables_on_the_pages_are_names_of_files():
    described = json.dumps(sorted(METRICS))
    for metric in re.findall(r"metric == ['\"](\w+)['\"]", "".join(path.read_text() for path in HOWTO.glob("*.md"))):
        assert f'"{metric}"' in described
