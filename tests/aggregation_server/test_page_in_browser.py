"""The page at ``/`` in a real browser, before a real server that devices call meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from aggregation_server.rounds import RoundConfig
from aggregation_server.server import Listening
from device_runtime.messages import EvaluationReport
from tests.aggregation_server.running import KEYS, Running
from tests.browser import headless_chromium, keep_screenshot, prefer_dark, requested, size_of_the_page

Start = Callable[..., Running]
MakeReport = Callable[..., bytes]
ROUND = RoundConfig(goal_count=2, over_selection=1.5, selection_timeout=600, reporting_timeout=600)
RUNTIMES = {"a": "tflite-runtime 2.14.0", "b": "tflite-runtime 2.14.0", "c": "<b onclick=alert(1)>litert</b>"}
SECONDS = 30  # until the page shows what has happened; it asks every 1.5 seconds


class Watched:
    """A server with a history, whose devices are moved on by the tests."""

    def __init__(self, start: Start, folder: Path, make_report: MakeReport) -> None:
        self._start = start
        self._folder = folder
        self._make_report = make_report
        self.tokens: dict[str, str] = {}
        self.server = self.started(Listening())

    def started(self, listening: Listening) -> Running:
        """A server on the files of this one."""
        url, spool = f"sqlite:///{self._folder / 'server.db'}", self._folder / "spool"
        return self._start(ROUND, url, spool, listening=listening, evaluate_every=2)

    def restart(self, between: Callable[[], None]) -> None:
        """End the server in good order, do something, and start it at the same address."""
        assert self.server.process.pid is not None
        os.kill(self.server.process.pid, signal.SIGTERM)
        self.server.process.join(20)
        assert self.server.process.exitcode == 0
        between()
        self.server = self.started(Listening(port=urlsplit(self.server.url).port or 0))

    def join(self, *names: str) -> None:
        """Fill the cohort's three seats."""
        for name in names:
            runtime = RUNTIMES.get(name, "test")
            self.tokens[name] = self.server.checked_in(name, runtime=runtime).json()["token"]

    def train(self, name: str, number: int, **fields: float) -> None:
        """Report a training; the configuration and the weights are fetched before."""
        work = self.server.configuration(name, self.tokens[name])
        assert self.server.device(name).get(f"/v1/weights/{work.weights}").status_code == 200
        body = self._make_report(round_number=number, **fields)
        assert self.server.report(name, body, self.tokens[name])[0] == 200

    def evaluate(self, name: str, number: int, count: int, correct: float, loss_sum: float) -> None:
        """Report an evaluation."""
        body = json.dumps(EvaluationReport(number, count, correct, loss_sum).to_json())
        assert self.server.report(name, body, self.tokens[name])[0] == 200

    def operate(self, path: str, **body: int) -> None:
        """Call as the operator."""
        answer = self.server.operator.post(path, json=body)
        assert answer.status_code == 200, answer.text


@pytest.fixture(scope="module")
def watched(start_server: Start, tmp_path_factory: pytest.TempPathFactory, make_report: MakeReport) -> Watched:
    """Two rounds, an evaluation, an abandoned round, a rollback; and an open round with one report of two."""
    fleet = Watched(start_server, tmp_path_factory.mktemp("watched"), make_report)
    server = fleet.server
    fleet.join("a", "b", "c")
    assert server.checked_in("d").json()["reason"] == "cohort_full"
    assert server.report("a", b"rubbish", fleet.tokens["a"])[1].reason == "truncated"
    fleet.train("a", 1, loss=2.0, weight=1)
    fleet.train("b", 1, loss=1.0, weight=3)
    server.status_when("round", 2)
    late = make_report(round_number=1)
    assert server.report("c", late, fleet.tokens["c"])[1].reason == "late"
    fleet.join("a", "b", "c")
    fleet.train("a", 2, loss=0.5)
    fleet.train("c", 2, loss=0.75)
    server.status_when("round_task", "evaluation")
    fleet.join("a", "b", "c")
    fleet.evaluate("a", 2, 10, 9, 2.0)
    fleet.evaluate("b", 2, 30, 25, 8.0)
    server.status_when("round", 3)
    fleet.join("a")
    fleet.operate("/v1/pause")
    fleet.operate("/v1/release", version=1)
    fleet.operate("/v1/rollback", version=1)
    fleet.operate("/v1/resume")
    server.device("e")
    server.device("f")
    answer = server.operator.post("/v1/revoke", json={"client": "f"})
    assert answer.status_code == 200
    server.status_when("round", 4)
    fleet.join("a", "b", "c")
    fleet.train("a", 4, loss=0.4)
    return fleet


@pytest.fixture(scope="module")
def browser(watched: Watched) -> Iterator[Chrome]:
    """A browser that knows the viewer's key: once, it was in the page's address, which is one way to give it."""
    with headless_chromium() as chrome:
        place = urlsplit(watched.server.url)
        chrome.get(f"http://viewer:{KEYS.viewer}@{place.netloc}/")
        _until(chrome, lambda: _text(chrome, "connection") == "live")
        yield chrome


def _open(browser: Chrome, watched: Watched, width: int = 1280, dark: bool = False) -> None:
    size_of_the_page(browser, width)
    prefer_dark(browser, dark)
    browser.get(f"{watched.server.url}/")
    _until(browser, lambda: _text(browser, "connection") == "live")
    _until(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, ".chart .main-svg")) >= 6)


def _until(browser: Chrome, holds: Callable[[], bool]) -> None:
    WebDriverWait(browser, SECONDS, 0.05).until(lambda _: holds())


def _text(browser: Chrome, name: str) -> str:
    return str(browser.execute_script("return document.getElementById(arguments[0]).innerText", name)).strip()


def _funnel(browser: Chrome, choice: str) -> dict[str, str]:
    """What the cohort's panel says of a round, by stage, with its reasons behind the number."""
    Select(browser.find_element(By.ID, "funnel-of")).select_by_visible_text(choice)
    lines = [line.text.split("\n") for line in browser.find_elements(By.CSS_SELECTOR, "#funnel li")]
    return {name: ", ".join(rest) for name, *rest in lines}


def _rows(browser: Chrome, name: str) -> list[list[str]]:
    rows = browser.find_elements(By.CSS_SELECTOR, f"#{name} tr")
    return [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")] for row in rows]


def _errors(browser: Chrome) -> list[str]:
    entries = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in entries]


def test_what_goes_on_is_shown_at_once(browser: Chrome, watched: Watched) -> None:
    _open(browser, watched)
    assert _text(browser, "population") == "tiny"
    assert (_text(browser, "round"), _text(browser, "phase")) == ("Round 4", "Reporting")
    assert (_text(browser, "seats"), _text(browser, "reports")) == ("3 of 3", "1 of 2")
    assert _text(browser, "version") == "3"
    assert _text(browser, "version-note").endswith("1 released")
    assert (_text(browser, "metric-title"), _text(browser, "metric")) == ("Accuracy", "85.0 %")
    assert _text(browser, "metric-note") == "version 2"
    assert _text(browser, "active") == "4"
    assert _text(browser, "active-note") == "1 enrolled only, 1 revoked"
    counts = watched.server.status()["counts"]
    assert _text(browser, "upload") == f"{counts['upload_bytes']} B"
    assert _errors(browser) == []


def test_every_cohort_can_be_looked_at(browser: Chrome, watched: Watched) -> None:
    _open(browser, watched)
    now = _funnel(browser, "the current round")
    assert now["Have a seat"] == "3" and now["Reported"] == "1"
    assert now["Still out: a seat without a report yet"] == "2"
    first = _funnel(browser, "round 1")
    assert first == {
        "Checked in": "4",
        "Accepted": "3",
        "Rejected": "1, cohort full 1",
        "Had a seat": "3",
        "Reported": "2",
        "Late": "0",
        "Refused": "1, truncated 1",
        "Dropped: a seat without a report": "1",
    }
    assert _funnel(browser, "round 2")["Late"] == "1"
    assert _funnel(browser, "evaluation of 2")["Reported"] == "2"
    assert _funnel(browser, "round 3 (abandoned)")["Dropped: a seat without a report"] == "1"
    everything = _funnel(browser, "all rounds")
    assert (everything["Checked in"], everything["Accepted"], everything["Reported"]) == ("14", "13", "7")
    assert "Dropped: a seat without a report" not in everything  # nobody counts it for all rounds


def test_versions_rounds_and_abandonments_are_listed(browser: Chrome, watched: Watched) -> None:
    _open(browser, watched)
    history = watched.server.status()["history"]
    weights = {record["number"]: record["weights"][:12] for record in history if record["outcome"] == "committed"}
    versions = [[row[0], row[2], row[3], row[4], row[5]] for row in _rows(browser, "versions")]
    initial = watched.server.status()["initial_weights"][:12]
    assert versions == [
        ["3", "rollback to 1", "", weights[1], "in force rollback"],
        ["2", "2 reports", "85.0 %", weights[2], ""],
        ["1", "2 reports", "", weights[1], "released"],
        ["0", "the bundle", "", initial, ""],
    ]
    rounds = _rows(browser, "rounds")
    assert [(row[0], row[2]) for row in rounds] == [
        ("Rollback 3", "back to 1"),
        ("Round 3", "abandoned paused"),
        ("Evaluation of 2", "committed"),
        ("Round 2", "committed"),
        ("Round 1", "committed"),
    ]
    assert rounds[4][3:11] == ["4", "3", "2", "0", "1", "1", "1.2500", ""]
    assert rounds[2][9:11] == ["0.2500", "85.0 %"]
    assert _text(browser, "abandoned-note") == "1 of all 5 rounds"
    assert browser.find_element(By.CSS_SELECTOR, "#abandoned-reasons li").text == "Paused\n1"
    assert browser.find_element(By.CSS_SELECTOR, "#abandoned li").text.startswith("Round 3: paused")


def test_what_devices_say_is_text_and_never_markup(browser: Chrome, watched: Watched) -> None:
    _open(browser, watched)
    runtimes = [line.text for line in browser.find_elements(By.CSS_SELECTOR, "#runtimes li")]
    assert runtimes == ["tflite-runtime 2.14.0\n2", "<b onclick=alert(1)>litert</b>\n1", "test\n1"]
    assert browser.find_elements(By.CSS_SELECTOR, "#runtimes b") == []
    states = [line.text for line in browser.find_elements(By.CSS_SELECTOR, "#states li")]
    assert states == ["Enrolled\n1", "Active\n4", "Revoked\n1"]


def test_the_curves_are_what_rounds_found(browser: Chrome, watched: Watched) -> None:
    _open(browser, watched)
    script = "return document.getElementById(arguments[0]).data.map(trace => [trace.name, trace.x, trace.y])"
    assert browser.execute_script(script, "metric-chart") == [["evaluation", [2], [0.85]]]
    assert browser.execute_script(script, "loss-chart") == [
        ["training", [1, 2], [1.25, 0.625]],
        ["evaluation", [2], [0.25]],
    ]
    cohorts = {name: values for name, _, values in browser.execute_script(script, "cohorts-chart")}
    assert cohorts["reported"] == [2, 2, 2, 0] and cohorts["without a report"] == [1, 1, 1, 1]
    assert cohorts["refused"] == [1, 0, 0, 0] and cohorts["late"] == [0, 1, 0, 0]
    for name in ("metric", "loss", "cohorts"):  # what a reader hears who does not see it
        chart = browser.find_element(By.ID, f"{name}-chart")
        assert chart.aria_role == "image"
        assert len(chart.accessible_name) > 20


@pytest.mark.parametrize("width, dark", [(1280, False), (1280, True), (820, False), (390, False), (390, True)])
def test_the_page_fits_every_screen(browser: Chrome, watched: Watched, width: int, dark: bool) -> None:
    _open(browser, watched, width, dark)
    _errors(browser)
    assert browser.execute_script("return window.innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    wide = browser.execute_script(
        "return [...document.querySelectorAll('main *:not(svg *)')].filter(element =>"
        " element.getBoundingClientRect().right > window.innerWidth && element.checkVisibility()).map(e => e.outerHTML)"
    )
    assert wide == []
    assert _contrasts(browser) == []
    keep_screenshot(browser, f"page-{width}{'-dark' if dark else ''}", width)


def _contrasts(browser: Chrome) -> list[object]:
    """Texts whose contrast with what is behind them is below 4.5, the least of WCAG 2.2 AA."""
    found: list[object] = browser.execute_script("""
        const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
        const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        const light = (colour) => {
          const [r, g, b] = channels(colour).map((channel) => linear(channel / 255));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const behind = (element) => {
          for (let one = element; one; one = one.parentElement) {
            const colour = getComputedStyle(one).backgroundColor;
            if (!/, 0\\)$/.test(colour)) return colour;
          }
          return "rgb(255, 255, 255)";
        };
        const found = [];
        for (const element of document.querySelectorAll("body *:not(svg *):not(script)")) {
          if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
          const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x);
          const ratio = (a + 0.05) / (b + 0.05);
          if (ratio < 4.5) found.push([element.textContent, ratio]);
        }
        return found;
    """)
    return found


def test_nothing_is_loaded_from_elsewhere_and_plotly_is_kept(browser: Chrome, watched: Watched) -> None:
    requested(browser)
    _open(browser, watched)
    urls = requested(browser)
    assert any(url.endswith("/plotly.min.js") for url in urls)
    assert {urlsplit(url).netloc for url in urls} == {urlsplit(watched.server.url).netloc}
    _open(browser, watched)
    sizes = browser.execute_script(
        "return performance.getEntriesByType('resource').filter(entry => entry.name.includes('/page/'))"
        ".map(entry => entry.transferSize)"
    )
    assert len(sizes) >= 4 and set(sizes) == {0}  # all from the browser's own cache
    assert _errors(browser) == []


def test_a_report_shows_without_reloading_and_a_restart_is_survived(browser: Chrome, watched: Watched) -> None:
    _open(browser, watched)
    browser.execute_script("window.loaded = true")
    watched.train("b", 4, loss=0.2)
    _until(browser, lambda: _text(browser, "version") == "4")
    _until(browser, lambda: _text(browser, "round") == "Evaluation of 4")
    assert _rows(browser, "rounds")[0][0] == "Round 4"
    assert _errors(browser) == []
    watched.operate("/v1/pause")
    _until(browser, lambda: _text(browser, "phase") == "Paused")

    def seen() -> None:
        _until(browser, lambda: _text(browser, "connection").startswith("no connection since "))
        assert _text(browser, "connection").endswith("the server does not answer")
        assert _text(browser, "version") == "4"  # what was known last stays

    before = watched.server.status()["counts"]
    watched.restart(seen)
    _until(browser, lambda: _text(browser, "connection") == "live")
    assert watched.server.status()["counts"] == before
    watched.operate("/v1/resume")
    _until(browser, lambda: _text(browser, "phase") == "Selection")
    watched.join("a", "b", "c")
    _until(browser, lambda: _text(browser, "seats") == "3 of 3")
    assert browser.execute_script("return window.loaded") is True
    refused = [message for message in _errors(browser) if not re.search("ERR_CONNECTION_(REFUSED|RESET)", message)]
    assert refused == []
