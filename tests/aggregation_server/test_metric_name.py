"""What a model is measured by has its own name and form wherever people read it: here, of a model of numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from aggregation_server.rounds import RoundConfig
from cli.main import main
from device_runtime.bundle import Bundle
from device_runtime.messages import EvaluationReport
from tests.aggregation_server.running import KEYS, Running
from tests.browser import headless_chromium, size_of_the_page

NAME = "Mean absolute error"
ERRORS = (1.25, 123456.75)  # of versions 1 and 2; the smaller one is the better one


@pytest.fixture(scope="module")
def server(
    start_server: Callable[..., Running], bundle_of_numbers: Bundle, make_report: Callable[..., bytes]
) -> Running:
    """A server with two versions, both evaluated."""
    server = start_server(RoundConfig(1, over_selection=1), served=bundle_of_numbers, evaluate_every=1)
    for number, error in enumerate(ERRORS, 1):
        assert server.report("a", make_report(round_number=number), server.check_in("a"))[0] == 200
        server.status_when("round_task", "evaluation")
        said = EvaluationReport(number, 8, 8 * error, 4.0)
        assert server.report("a", json.dumps(said.to_json()), server.check_in("a"))[0] == 200
        server.status_when("round_task", "training")
    return server


@pytest.fixture(scope="module")
def browser(server: Running) -> Iterator[Chrome]:
    """The page of it."""
    with headless_chromium() as chrome:
        size_of_the_page(chrome, 1280)
        chrome.get(server.url.replace("://", f"://viewer:{KEYS.viewer}@") + "/")
        drawn = "#metric-chart .main-svg"
        WebDriverWait(chrome, 30).until(lambda _: chrome.find_elements(By.CSS_SELECTOR, drawn))
        yield chrome


def test_the_page_names_it(browser: Chrome) -> None:
    def text(name: str) -> str:
        return browser.find_element(By.ID, name).text

    assert (text("metric-title"), text("metric"), text("metric-note")) == (NAME, "1.235e+5", "version 2, +1.235e+5")
    assert text("metric-summary") == "On devices' own test examples: 1.235e+5 at version 2, at best 1.2500"
    titles = browser.find_elements(By.CSS_SELECTOR, "h2, th")
    assert [title.text for title in titles].count(NAME) == 4  # a card, a chart and two tables
    for table, expected in (("versions", ["1.235e+5", "1.2500", ""]), ("rounds", ["1.235e+5", "", "1.2500", ""])):
        cells = browser.find_elements(By.CSS_SELECTOR, f"#{table} td[data-name='{NAME}']")
        assert [cell.text for cell in cells] == expected
    assert "ccuracy" not in browser.find_element(By.TAG_NAME, "body").text


def test_its_axis_is_of_numbers(browser: Chrome) -> None:
    chart = browser.execute_script(
        "const chart = document.getElementById('metric-chart');"
        "return [chart.data[0].y, chart.data[0].hovertemplate, chart.layout.yaxis.tickformat ?? '']"
    )
    assert chart == [list(ERRORS), "version %{x}: %{y:.4f}<extra>evaluation</extra>", ""]
    ticks = browser.find_elements(By.CSS_SELECTOR, "#metric-chart .ytick text")
    assert ticks and not any("%" in tick.text for tick in ticks)


def test_the_command_line_names_it(
    server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "viewer.key").write_text(KEYS.viewer)
    assert main(["rounds", "--server", server.url, "--keys", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    lines = [line.split() for line in table.splitlines()]
    assert [line[-1] for line in lines[:3]] == ["mean", "absolute", "error"]
    assert [line[1:3] + line[-2:] for line in lines[3:7]] == [
        ["training", "committed", "1", "0.5000"],
        ["evaluation", "committed", "0.5000", "1.2500"],
        ["training", "committed", "1", "0.5000"],
        ["evaluation", "committed", "0.5000", "1.235e+05"],
    ]
    assert "accuracy" not in table and "%" not in table


def test_prometheus_has_it_by_name(server: Running) -> None:
    metrics = server.viewer.get("/metrics").text
    assert 'pocketfed_evaluation_metric{metric="mean_absolute_error"} 123456.75\n' in metrics
    assert "pocketfed_accuracy" not in metrics  # the alert on it is of shares
