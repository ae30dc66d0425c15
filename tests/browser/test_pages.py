"""The report in a browser: layout, sorting, filtering, decisions, and the way from scan to scan."""

import os
import shutil
from pathlib import Path

import pytest

from tests.unit.report_fixture import METHODS, TEMPLATE, build, run_fusion

pytestmark = pytest.mark.browser

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    from popatlas.report.cohort import write_report
    from popatlas.report.subject import draw_subject

    out = build(tmp_path_factory.mktemp("pages"), spacing=4.0, subjects=5)
    for scan in ("sub-01/anat/sub-01", "sub-03/anat/sub-03"):
        page, thumbnail = out / f"report/subjects/{Path(scan).name}.html", out / f"report/thumbnails/{scan}.png"
        draw_subject(out, scan, TEMPLATE, METHODS, page, thumbnail)
    run_fusion(out)
    config = out / "cohort" / "config.yaml"
    write_report(out, out / "cohort/ledger.tsv", TEMPLATE, METHODS, 50, config, out / "report/index.html")
    return out / "report"


@pytest.fixture(scope="module")
def long_report(report):
    """The same scans as on the page of the cohort, as those of a cohort that is too large for a page."""
    from popatlas.report.cohort import write_report

    out, page = report.parent, report.parent / "long" / "index.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("popatlas.report.scans.MOST_ROWS", 3)
        patch.setattr("popatlas.report.scans.FIRST_ROWS", 2)
        write_report(out, out / "cohort/ledger.tsv", TEMPLATE, METHODS, 50, out / "cohort/config.yaml", page)
    return page


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (CHROMIUM and DRIVER):
        if os.environ.get("CI") == "true":
            pytest.fail("Chromium and its driver are not installed: apt-get install chromium chromium-driver")
        pytest.skip("Chromium and its driver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def show(browser, page, width=1280, height=2000, dark=False):
    """Open a page at a size; nothing may be written to the console."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []


def column(browser, number, table="table"):
    """Return the texts of a column of a table, of scans when left out, without hidden rows."""
    rows = browser.find_elements("css selector", f"#{table} tbody tr:not([hidden])")
    return [row.find_elements("css selector", "th, td")[number].text for row in rows]


@pytest.mark.parametrize("page", ["index.html", "fusion.html", "subjects/sub-03.html", "subjects/sub-991.html"])
@pytest.mark.parametrize(("width", "height"), [(1280, 2000), (390, 1200)])
def test_pages_fit_the_window_and_load_their_pictures(browser, report, tmp_path, page, width, height):
    show(browser, report / page, width, height)
    browser.save_screenshot(str(tmp_path / f"{Path(page).stem}-{width}.png"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    for image in browser.find_elements("css selector", "main img"):
        browser.execute_script("arguments[0].loading = 'eager'; return arguments[0].decode()", image)
        assert image.get_property("naturalWidth") == int(image.get_dom_attribute("width"))
        assert image.get_dom_attribute("alt")


def test_dark_and_light_follow_the_system(browser, report, tmp_path):
    colours = {}
    for dark in (False, True):
        show(browser, report / "index.html", dark=dark)
        browser.save_screenshot(str(tmp_path / f"dark-{dark}.png"))
        script = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        colours[dark] = [sum(map(int, c[4:-1].split(","))) for c in browser.execute_script(script)]
    assert colours[False][0] > colours[False][1] and colours[True][0] < colours[True][1]


def test_the_table_sorts_by_click_and_by_key_and_says_so(browser, report):
    from selenium.webdriver.common.keys import Keys

    show(browser, report / "index.html")
    assert column(browser, 0)[:2] == ["sub-991", "sub-03"]
    headings = browser.find_elements("css selector", "#table thead th")
    assert [heading.text for heading in headings[:3]] == ["Scan", "Decision", "State"]
    assert headings[3].get_attribute("aria-sort") == "descending"
    headings[0].find_element("css selector", "button").click()
    assert column(browser, 0) == sorted(column(browser, 0))
    assert headings[0].get_attribute("aria-sort") == "ascending" and not headings[3].get_attribute("aria-sort")
    assert "Brain volume" in headings[7].text
    volume = headings[7].find_element("css selector", "button")
    for direction in (1, -1):
        volume.send_keys(Keys.ENTER)
        shown = column(browser, 7)
        numbers = [direction * float(text) for text in shown if text != "\u2013"]
        assert numbers == sorted(numbers) and len(numbers) == 5
        assert shown[5:] == ["\u2013"] * 3, "missing values stay at the end"


def test_the_filter_hides_rows_and_cards(browser, report):
    show(browser, report / "index.html")
    search = browser.find_element("id", "filter")
    search.send_keys("gate failed")
    assert column(browser, 0) == ["sub-991"]
    assert browser.find_element("id", "shown").text == "1 of 8 scans"
    assert len(browser.find_elements("css selector", ".card:not([hidden])")) == 1
    search.clear()
    search.send_keys("x")
    search.send_keys("\b")
    browser.find_element("css selector", "[data-show=outlier]").click()
    assert column(browser, 0) == ["sub-03"]


# the table by each of its columns, twice by the first, and what three searches leave
WALK = """
    const rows = () => [...document.querySelectorAll("#table tbody tr:not([hidden]):not([aria-hidden])")];
    const texts = () => rows().map((row) => [...row.cells].map((cell) => cell.innerText.trim()));
    const headings = [...document.querySelectorAll("#table thead th")], found = [texts()];
    for (const heading of [headings[0], ...headings]) {
      heading.querySelector("button")?.click();
      found.push(texts(), headings.map((other) => other.getAttribute("aria-sort")));
    }
    const search = document.getElementById("filter");
    for (const words of ["gate failed", "outlier", "sub-03"]) {
      search.value = words;
      search.dispatchEvent(new Event("input"));
      found.push(document.getElementById("shown").textContent, texts());
    }
    return [found, rows().map((row) => row.querySelector("a")?.getAttribute("href").split("/").pop())];
"""


def test_a_long_table_shows_sorts_and_filters_what_a_short_one_does(browser, report, long_report):
    from selenium.webdriver.support.select import Select

    found = []
    for page in (report / "index.html", long_report):
        show(browser, page)
        found.append(browser.execute_script(WALK))
    assert found[0] == found[1]
    assert found[0][1] == ["sub-03.html"]
    assert len(found[0][0][0]) == 8
    show(browser, long_report)
    Select(browser.find_element("css selector", "select[data-scan=sub-03]")).select_by_visible_text("check")
    show(browser, long_report)
    assert browser.find_element("css selector", "select[data-scan=sub-03]").get_property("value") == "check"


def test_a_page_of_ten_thousand_scans_is_quick(browser, long_report):
    """The rows of the file are repeated: the page holds some tens of them, and sorts all in less than half a second."""
    script = long_report.with_name("scans.js")
    kept = script.read_text()
    repeat = "popatlasRows.rows = Array.from({length: 10000}, (_, n) => ["
    many = "`sub-${n}`, ...popatlasRows.rows[n % popatlasRows.rows.length].slice(1)]);"
    try:
        script.write_text(f"{kept}{repeat}{many}")
        show(browser, long_report)
        assert browser.find_element("id", "shown").text == "10000 of 10000 scans"
        assert len(browser.find_elements("css selector", "#table tbody tr")) < 100
        timed = """
            const before = performance.now();
            document.querySelectorAll("#table thead th")[arguments[0]].querySelector("button").click();
            document.body.offsetHeight;
            return performance.now() - before;
        """
        assert max(browser.execute_script(timed, number) for number in (0, 3, 7)) < 500
        browser.execute_script("document.querySelector('#scans .box').scrollTop = 1e9")
        browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        last = browser.find_elements("css selector", "#table tbody tr:not([aria-hidden])")[-1]
        assert last.get_attribute("aria-rowindex") == "10001"
    finally:
        script.write_text(kept)


def test_structures_sort_and_filter_on_the_page_of_the_bench(browser, report):
    show(browser, report / "fusion.html")
    assert len(column(browser, 0, "label-table")) == 5
    browser.find_element("css selector", "#label-table th:nth-child(5) button").click()
    margins = [float(text) for text in column(browser, 4, "label-table")]
    assert margins == sorted(margins)
    browser.find_element("css selector", "[data-filter=label-table]").send_keys("white left")
    assert column(browser, 0, "label-table") == ["white-matter-left"]
    assert browser.find_element("css selector", "[data-count=label-table]").text == "1 of 5 structures"


def test_one_walks_from_the_cohort_page_to_the_bench_and_back(browser, report):
    show(browser, report / "index.html")
    browser.find_element("css selector", "#fusion a[href='fusion.html']").click()
    assert browser.find_element("css selector", "h1").text == "Which fusion method?"
    browser.find_element("css selector", ".eyebrow a").click()
    assert browser.find_element("id", "fusion").is_displayed()


def test_decisions_are_kept_in_the_browser(browser, report):
    from selenium.webdriver.support.select import Select

    show(browser, report / "index.html")
    Select(browser.find_element("css selector", "select[data-scan=sub-03]")).select_by_visible_text("exclude")
    show(browser, report / "index.html")
    assert browser.find_element("css selector", "select[data-scan=sub-03]").get_property("value") == "exclude"


def test_decisions_are_exported_as_a_table_of_bids(browser, report):
    from selenium.webdriver.support.select import Select

    show(browser, report / "index.html")
    for scan, decision in (("sub-02_ses-1", "check"), ("sub-03", "exclude")):
        Select(browser.find_element("css selector", f"select[data-scan={scan}]")).select_by_visible_text(decision)
    script = """
        const done = arguments[0];
        HTMLAnchorElement.prototype.click = () => {};
        URL.createObjectURL = (blob) => { blob.text().then(done); return "#"; };
        document.getElementById("export").click();
    """
    lines = [line.split("\t") for line in browser.execute_async_script(script).splitlines()]
    assert lines == [
        ["participant_id", "session_id", "decision"],
        ["sub-02", "ses-1", "check"],
        ["sub-03", "n/a", "exclude"],
    ]


def test_no_markup_of_a_reason_runs(browser, report):
    show(browser, report / "index.html")
    assert browser.find_elements("css selector", "td.reason script, .card script, td.reason b") == []
    assert "<script>alert('x')</script>" in browser.find_element("id", "out").text


def test_one_walks_from_scan_to_scan_in_the_order_of_the_table(browser, report):
    show(browser, report / "index.html")
    browser.find_element("css selector", "#table tbody a").click()
    assert browser.find_element("css selector", "h1").text == "sub-991"
    browser.find_element("id", "next").click()
    assert browser.find_element("css selector", "h1").text == "sub-03"
    assert browser.find_element("id", "previous").get_attribute("href").endswith("sub-991.html")


def test_the_registered_brain_can_be_swapped_with_the_template(browser, report):
    show(browser, report / "subjects" / "sub-01.html")
    image, button = (browser.find_element("css selector", path) for path in ("#registration img", ".compare"))
    shown = []
    for pressed in ("true", "false"):
        button.click()
        assert button.get_attribute("aria-pressed") == pressed
        shown.append(Path(image.get_attribute("src")).name)
    assert shown == ["sub-01_template.webp", "sub-01_registration.webp"]
