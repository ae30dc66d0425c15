"""The pages of the QC report: of scans and of the cohort, on an output folder made of MNI152 variants."""

import json
import os
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
from PIL import Image

from popatlas.cli.step import parse_traits
from popatlas.images.io import read_json, write_json, write_table
from popatlas.interfaces.report import DrawSubject, WriteReport
from popatlas.report.cohort import write_report
from popatlas.report.subject import draw_subject
from tests.unit.report_fixture import EVIL, METHODS, TEMPLATE, build, ledger_rows

LEDGER_COLUMNS = ["scan", "subject", "session", "stage", "state", "reason", "log"]


class Reader(HTMLParser):
    """Collect links, pictures, identifiers and open tags of a page."""

    VOID = frozenset({"meta", "link", "img", "input", "circle", "rect", "line", "polyline", "br"})

    def __init__(self, page):
        super().__init__()
        self.links, self.images, self.ids, self.scripts, self.open = [], [], [], [], []
        self.text = page.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag == "img":
            self.images.append(values)
        if tag == "script":
            self.scripts.append(values.get("src"))
        if "id" in values:
            self.ids.append(values["id"])

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def local(self, page):
        """Return the files that the page points to."""
        found = [*self.links, *(image["src"] for image in self.images)]
        names = [link for link in found if not link.startswith(("http", "#", "data:"))]
        return [(page.parent / unquote(name.partition("#")[0])).resolve() for name in names]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = build(tmp_path_factory.mktemp("report"), spacing=4.0, subjects=5)
    for scan in ("sub-01/anat/sub-01", "sub-02/ses-1/anat/sub-02_ses-1", "sub-03/anat/sub-03"):
        draw(folder, scan)
    report(folder)
    return folder


def draw(folder, scan):
    page = folder / "report" / "subjects" / f"{Path(scan).name}.html"
    thumbnail = folder / "report" / "thumbnails" / f"{scan}.png"
    inputs = {"scan": scan, "out_dir": str(folder), "template_label": TEMPLATE, "methods": METHODS}
    DrawSubject(**inputs, out_page=str(page), out_thumbnail=str(thumbnail)).run()
    return page


def report(folder, per_page=50, **extra):
    page = folder / "report" / "index.html"
    ledger = folder / "cohort" / "ledger.tsv"
    config = folder / "cohort" / "config.yaml"
    extra |= {"config": str(config)} if config.exists() else {}
    inputs = {"out_dir": str(folder), "ledger": str(ledger), "template_label": TEMPLATE, "methods": METHODS}
    WriteReport(**inputs, per_page=per_page, out_page=str(page), **extra).run()
    return page


def write_ledger(folder, rows):
    write_table(pd.DataFrame(rows, columns=LEDGER_COLUMNS), folder / "cohort" / "ledger.tsv")


# Pictures


# Scores


# Methods text


# Pages


def test_a_subject_page_shows_every_picture_with_alternative_text(out):
    page = out / "report" / "subjects" / "sub-01.html"
    reader = Reader(page)
    names = ["correction", "mask", "channels", "brain", "registration", "template", "jacobian", "labels"]
    assert [Path(image["src"]).stem for image in reader.images] == [f"sub-01_{name}" for name in names]
    assert all(image["alt"] and image["loading"] == "lazy" and image["width"] for image in reader.images)
    assert all(path.exists() for path in reader.local(page))
    assert len(reader.ids) == len(set(reader.ids)) and not reader.open
    size = page.stat().st_size + sum((page.parent / image["src"]).stat().st_size for image in reader.images)
    assert size < 1.5e6


def test_a_subject_page_tells_numbers_limits_steps_and_versions(out):
    text = Reader(out / "report" / "subjects" / "sub-03.html").text
    for words in (
        "ventricles",
        "RegisterImages",
        "antspyx",
        "\u2265 0.85",
        "Attempt 1 (instance-affine-mass): mask Dice 0.712 below 0.85",
        "Attempt 2 (ants-ants-search): passed",
        'class="badge pass"',
    ):
        assert words in text


def test_pages_tell_of_an_atlas_s_own_labels_and_of_volumes_by_staple(out):
    """Two of the five scans are atlases; each is labelled by the other one, the other scans by both."""
    atlas, other = ((out / "report" / "subjects" / f"{name}.html").read_text() for name in ("sub-01", "sub-03"))
    assert "STAPLE makes structures too large" in atlas and "STAPLE makes structures too large" in other
    assert "its labels come from 1 atlas, those of others from up to 2" in atlas and "atlas itself" not in other
    text = (out / "report" / "index.html").read_text()
    assert "Of the subjects of labelled atlases themselves: sub-01, sub-02_ses-1." in text and ">Atlases</button>" in text
    counts = dict(re.findall(r'data-scan="(sub-0\d)[^"]*".*?<td class="n">(\d)</td>', text, re.DOTALL))
    assert counts == {"sub-01": "1", "sub-02": "1", "sub-03": "2", "sub-04": "2", "sub-05": "2"}


def test_a_scan_with_nothing_still_gets_a_page(tmp_path):
    figures = draw_subject(tmp_path, "sub-9/anat/sub-9", TEMPLATE, [], tmp_path / "r/s/sub-9.html", tmp_path / "t.png")
    assert figures == 0
    assert "no images" in (tmp_path / "r/s/sub-9.html").read_text()
    with Image.open(tmp_path / "t.png") as picture:
        assert picture.size == (456, 290)


def test_thumbnails_of_all_scans_have_one_size_the_one_in_the_page(out):
    sizes = set()
    for path in (out / "report" / "thumbnails").rglob("*.png"):
        with Image.open(path) as picture:
            sizes.add(picture.size)
    assert sizes == {(456, 290)}


def test_the_cohort_page_lists_everyone_the_most_suspicious_first(out):
    page = out / "report" / "index.html"
    reader = Reader(page)
    order = re.findall(r'<tr data-words="(\S+) ', reader.text)
    assert order[:2] == ["sub-991", "sub-03"] and len(order) == 8 and order[-2:] == ["sub-993", "sub-992"]
    assert all(path.exists() for path in reader.local(page))
    assert len(reader.ids) == len(set(reader.ids)) and not reader.open
    assert reader.text.count('class="card') == 8 and reader.text.count('class="empty"') == 4
    assert next(image["alt"] for image in reader.images).startswith("Template")
    assert "instance-affine-mass: 4; ants-ants-search (attempt 2): 1." in reader.text


def test_reasons_are_escaped(out):
    text = (out / "report" / "index.html").read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert "<growth>" not in text and "Ageing &amp; &lt;growth&gt; study" in text
    assert EVIL not in text


def test_a_failed_scan_is_drawn_as_far_as_it_came_with_its_reason(out):
    page = out / "report" / "subjects" / "sub-991.html"
    reader = Reader(page)
    assert "mask Dice 0.641 below 0.85" in reader.text
    assert "Attempt 2 (instance-affine-global): mask Dice 0.641 below 0.85" in reader.text
    assert "sub-991_mask" in reader.text and "sub-991_registration" not in reader.text
    assert "../../logs/register/sub-991/anat/sub-991_register.log" in reader.links


def test_pages_do_not_reach_outside(out):
    for page in (out / "report").rglob("*.html"):
        reader = Reader(page)
        outside = [link for link in reader.links if link.startswith("http")]
        assert all(link.startswith("https://doi.org/") for link in outside)
        assert set(reader.scripts) <= {None, "order.js"}
        assert str(out.parent) not in reader.text.replace("&#34;", "")


def test_a_report_is_the_same_when_it_is_written_again(out, monkeypatch):
    page = report(out)
    first = page.read_bytes()
    os.utime(out / "report" / "subjects" / "sub-991.html")
    report(out)
    assert page.read_bytes() == first
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    report(out)
    assert b"1970-01-01 00:00 UTC" in page.read_bytes()


def test_many_scans_are_spread_over_pages_and_old_pages_go(tmp_path):
    out = build(tmp_path, subjects=5, images=False)
    assert len(list(report(out, per_page=3).parent.glob("*.html"))) == 3
    cards = [Reader(path).text.count('class="card') for path in sorted((out / "report").glob("*.html"))]
    assert sorted(cards) == [2, 3, 3]
    report(out, per_page=50)
    assert [path.name for path in (out / "report").glob("*.html")] == ["index.html"]


@pytest.mark.parametrize("scans", [0, 1])
def test_a_report_needs_nothing_but_a_ledger(tmp_path, scans):
    write_ledger(tmp_path, ledger_rows("sub-1/anat/sub-1") if scans else [])
    text = Reader(report(tmp_path)).text
    assert f"{scans} of {scans} in the group results" in text
    assert "There is no template yet" in text
    assert ("The cohort has no scans" in text) == (scans == 0)


def test_atlases_from_outside_are_no_scans_of_the_cohort(tmp_path):
    write_ledger(tmp_path, [*ledger_rows("sub-1/anat/sub-1"), *ledger_rows("atlases/sub-A/anat/sub-A")])
    assert "1 of 1 in the group results" in Reader(report(tmp_path)).text


def test_what_is_worth_a_look_stands_on_the_pages(tmp_path):
    """A head that lies turned passes; who opens the report should read of it, on its page and on that of the cohort."""
    scan, turned = "sub-01/anat/sub-01", "the image lies turned by 179 degrees"
    write_ledger(tmp_path, ledger_rows(scan))
    write_table(
        pd.DataFrame([(scan, "register", turned), (scan, "preprocess", EVIL)], columns=["scan", "stage", "remark"]),
        tmp_path / "cohort" / "remarks.tsv",
    )
    write_json(tmp_path / f"{scan}_space-{TEMPLATE}_desc-gate_registration.json", {"notes": [turned]})
    write_json(tmp_path / f"{scan}_desc-qc_mask.json", {"note": EVIL})
    for text in (draw(tmp_path, scan).read_text(), report(tmp_path).read_text()):
        assert "worth a look" in text.lower() and turned in text.replace("The image", "the image")
        assert "<script>alert" not in text


def test_three_hundred_scans_take_less_than_ten_seconds(tmp_path):
    out = build(tmp_path, subjects=300, images=False)
    started = time.process_time()
    write_report(out, out / "cohort" / "ledger.tsv", TEMPLATE, METHODS, 50, None, out / "report" / "index.html")
    assert time.process_time() - started < 10
    assert (out / "report" / "index.html").stat().st_size < 3e6
    assert json.loads((out / "report/subjects/order.js").read_text().partition("= ")[2].rstrip(";\n")) == []


def test_steps_can_be_called_from_the_command_line():
    options = [
        "--scan",
        "s",
        "--out_dir",
        ".",
        "--template_label",
        "t",
        "--methods",
        "a",
        "b",
        "--out_page",
        "p",
        "--out_thumbnail",
        "q",
    ]
    assert parse_traits(DrawSubject, options)["methods"] == ["a", "b"]
    options = ["--out_dir", ".", "--ledger", "l", "--template_label", "t", "--per_page", "7", "--out_page", "p"]
    assert parse_traits(WriteReport, options)["per_page"] == 7


def test_the_receipt_of_the_report_holds_all_that_was_written(out, monkeypatch):
    """A file without a receipt could be lost without anybody's notice."""
    monkeypatch.chdir(out)
    before = {path for path in Path("report").rglob("*") if path.is_file()}
    (out / "report/subjects/order.js").unlink()
    report(Path(), receipt="receipt.json")
    written = {str(path) for path in before if path.parent == Path("report")}
    receipt = read_json("receipt.json")
    assert set(receipt["outputs"]) == written | {"report/figures/template.webp", "report/subjects/order.js"}
    assert {"report/index.html", "report/methods.bib"} <= written
