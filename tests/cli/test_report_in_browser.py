"""The demo's report in a real browser: it fits a desk's screen and a phone's, and nothing in it fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from cli.demo_report import Curve, write_report
from tests.browser import headless_chromium, size_of_the_page

CURVES = (
    Curve("simulated, 20 clients", (0.1, 0.83, 0.9, 0.95), 1_929_700, 1_954_400, 1.3),
    Curve("simulated, 5 devices", (0.1, 0.9, 0.96), 964_850, 977_200, 0.5),
    Curve("device processes, <q8>", (0.1, 0.91, 0.96), 245_750, 1_616_065, 6.6),
)
SUMMARY = {
    "model": "digits_mlp",
    "seed": 4,
    "fleet_accuracy": 0.9611,
    "fleet_simulated_accuracy": 0.9639,
    "codec": "q8",
    "parity": {"steps": 60, "max_rel": 6.2e-7},
    "rounds": 2,
    "fleet_difference": 3e-3,
    "upload_bytes": 245_750,
    "upload_bytes_float32": 964_850,
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with headless_chromium() as chrome:
        yield chrome


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, CURVES, SUMMARY)
    return folder / "report.html"


@pytest.mark.parametrize("width", [1200, 360])
def test_the_page_fits_the_screen(browser: Chrome, report: Path, width: int) -> None:
    size_of_the_page(browser, width)
    browser.get(report.as_uri())
    assert browser.execute_script("return window.innerWidth") == width
    scrolled = browser.execute_script("return document.documentElement.scrollWidth")
    assert scrolled <= width
    picture = browser.find_element(By.TAG_NAME, "svg")
    assert picture.is_displayed()
    assert 0.8 * min(width, 832) < picture.size["width"] <= width
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]


def test_the_table_says_what_was_measured(browser: Chrome, report: Path) -> None:
    size_of_the_page(browser, 1200)
    browser.get(report.as_uri())
    rows = browser.find_elements(By.CSS_SELECTOR, "table tr")
    assert [row.text for row in rows[1:]] == [
        "simulated, 20 clients 3 95.00% 1,929,700 1,954,400 1.3",
        "simulated, 5 devices 2 96.00% 964,850 977,200 0.5",
        "device processes, <q8> 2 96.00% 245,750 1,616,065 6.6",
    ]
    cards = [card.text for card in browser.find_elements(By.CSS_SELECTOR, ".cards div")]
    assert [card.split("\n")[0] for card in cards] == ["96.1%", "6.2e-07", "25.5%"]


def test_a_phone_shows_every_figure_with_its_name(browser: Chrome, report: Path) -> None:
    size_of_the_page(browser, 360)
    browser.get(report.as_uri())
    cells = browser.find_elements(By.CSS_SELECTOR, "table tr:nth-child(4) td")
    assert [cell.text for cell in cells] == ["device processes, <q8>", "2", "96.00%", "245,750", "1,616,065", "6.6"]
    names = browser.execute_script(
        "return [...arguments].map(cell => getComputedStyle(cell, '::before').content)", *cells[1:]
    )
    assert names == ['"rounds"', '"test accuracy"', '"bytes up"', '"bytes down"', '"seconds"']
    for cell in cells:
        assert cell.is_displayed()
        assert cell.location["x"] >= 0 and cell.location["x"] + cell.size["width"] <= 360
