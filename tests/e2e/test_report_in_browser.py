"""The report in a real browser: quiet, alone, as wide as a phone, and dark where the reader wants it."""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from pargolf.cli import dispatch

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --hide-scrollbars"
)  # --no-sandbox: root in a container has none


@pytest.fixture(scope="module")
def browser(page_of_finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Chromium with the tiny run's page open."""
    binary = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("needs chromium (or google-chrome) and chromedriver, to look at the page")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options, Service(executable_path=driver))
    try:
        chrome.get(page_of_finished.as_uri())
        yield chrome
    finally:
        chrome.quit()


def test_the_page_opens_without_complaints_or_requests(
    browser: webdriver.Chrome, page_of_finished: Path
) -> None:
    browser.get_log("performance")  # forget the browser's own start
    browser.get(page_of_finished.as_uri())
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {url for url in urls if not url.startswith("data:")} == {page_of_finished.as_uri()}


def test_figures_equal_the_result(browser: webdriver.Chrome, finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    expected = {"val_bpb": result["artifact"]["sliding"]["val_bpb"]}
    expected |= {name: result[name] for name in ("bytes_total", "budget")}
    for name, value in expected.items():
        element = browser.find_element(By.CSS_SELECTOR, f"#{name} data")
        assert float(element.get_attribute("value") or "nan") == value
        text = element.text.replace(",", "")
        assert float(text) == pytest.approx(value, abs=5e-5)
    assert f"{expected['val_bpb']:.4f}" in browser.title


def test_figures_are_drawn_and_described(browser: webdriver.Chrome) -> None:
    plots = browser.find_elements(By.CSS_SELECTOR, "[role=img]")
    assert len(plots) == 8
    for plot in plots:
        assert plot.accessible_name and plot.aria_role == "image"
        assert plot.size["width"] > 200 and plot.size["height"] > 100
    headings = browser.find_elements(By.CSS_SELECTOR, "h1, h2, h3")
    levels = [int(heading.tag_name[1]) for heading in headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


@pytest.mark.parametrize("width", [320, 375, 1200])
def test_nothing_scrolls_sideways(browser: webdriver.Chrome, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_what_is_too_wide_for_a_phone_scrolls_in_its_box_with_a_cue(browser: webdriver.Chrome) -> None:
    size = {"width": 320, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    boxes = browser.find_elements(By.CSS_SELECTOR, ".scroll")
    hidden = [box for box in boxes if int(box.get_property("scrollWidth")) > box.size["width"]]  # type: ignore[arg-type]
    assert {box.find_elements(By.TAG_NAME, "table") != [] for box in hidden} == {True, False}  # and pictures
    assert len(browser.find_elements(By.CSS_SELECTOR, "table")) == len(
        browser.find_elements(By.CSS_SELECTOR, ".scroll > table")
    )
    for box in hidden:
        assert box.get_dom_attribute("tabindex") == "0"  # the keyboard's arrows scroll it
        # The shadows stay at the box's edges; the covers are the content's, and hide them at its ends.
        assert box.value_of_css_property("background-attachment") == "local, local, scroll, scroll"
        assert box.value_of_css_property("background-image").count("linear-gradient") == 4
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_dark_and_light_differ_and_are_both_readable(browser: webdriver.Chrome) -> None:
    inks = (("body", "color"), (".muted", "color"), (".verdict", "color"), (".pair text", "fill"))
    papers = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        paper = papers[scheme] = luminance(browser, "body", "backgroundColor")
        for where, what in inks:
            ink = luminance(browser, where, what)
            contrast = (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05)
            assert contrast > 4.5, (scheme, where)  # WCAG 2, level AA
    assert papers["light"] > 0.8 and papers["dark"] < 0.05


@pytest.mark.parametrize("width", [375, 1200])
def test_the_page_of_a_text_is_as_quiet_and_fits_too(
    browser: webdriver.Chrome, finished: Path, tmp_path: Path, width: int
) -> None:
    source, page = tmp_path / "text.txt", tmp_path / "page.html"
    source.write_text("A city <script>alert(1)</script> of 漢字.\n" + "x" * 300)
    assert dispatch(["explain", str(finished), "--text", str(source), "-o", str(page)]) == 0
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("performance")
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {url for url in urls if not url.startswith("data:")} == {page.as_uri()}
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    text = browser.find_element(By.TAG_NAME, "blockquote").text
    assert text.replace("↵", "") == source.read_text()


@pytest.mark.parametrize("width", [320, 1200])
def test_a_token_s_detail_is_told_by_pointer_tap_and_keyboard(
    browser: webdriver.Chrome, finished: Path, tmp_path: Path, width: int
) -> None:
    source, page = tmp_path / "text.txt", tmp_path / "page.html"
    source.write_text("The city of Zürich, and 漢字. " * 30)
    assert dispatch(["explain", str(finished), "--text", str(source), "-o", str(page)]) == 0
    size = {"width": width, "height": 600, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    still = {"name": "prefers-reduced-motion", "value": "reduce"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [still]})
    browser.get(page.as_uri())
    tokens = browser.find_elements(By.CSS_SELECTOR, "blockquote span")
    details = browser.find_elements(By.CSS_SELECTOR, "blockquote i")
    shown = "return arguments[0].flatMap((detail, i) => detail.checkVisibility() ? [i] : [])"
    assert len(tokens) == len(details) and not browser.execute_script(shown, details)

    def assert_told(place: int) -> None:
        assert browser.execute_script(shown, details) == [place]
        assert "likeliest: " in details[place].text and " bits, " in details[place].text
        box = browser.execute_script(
            "const b = arguments[0].getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]",
            details[place],
        )
        assert box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= 600
        assert browser.execute_script("return document.documentElement.scrollWidth") == width

    lengths = browser.execute_script("return arguments[0].map(detail => detail.textContent.length)", details)
    long = max(range(len(tokens)), key=lengths.__getitem__)
    for place in (0, long, len(tokens) - 1):
        ActionChains(browser).move_to_element(tokens[place]).perform()
        assert_told(place)
    ActionChains(browser).move_to_element(browser.find_element(By.TAG_NAME, "h2")).perform()
    tokens[2].click()
    ActionChains(browser).move_to_element(browser.find_element(By.TAG_NAME, "h2")).perform()
    assert_told(2)  # a tap leaves the focus there
    ActionChains(browser).send_keys(Keys.TAB).perform()
    assert_told(3)
    assert tokens[3].value_of_css_property("outline-style") == "solid"
    assert tokens[3].value_of_css_property("outline-width") == "2px"
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def luminance(browser: webdriver.Chrome, where: str, what: str) -> float:
    """Relative luminance, by WCAG 2, of a computed colour, "rgb(r, g, b)"."""
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    color: str = browser.execute_script(script, where, what)
    channels = [int(part) / 255 for part in color.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
