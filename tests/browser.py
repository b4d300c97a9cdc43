"""A real browser without a screen, for tests of pages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

ARTIFACTS = Path(__file__).parents[1] / "test-artifacts"
"""Where screenshots are kept, to be looked at."""


@contextmanager
def headless_chromium(*flags: str) -> Iterator[Chrome]:
    """Chromium with an empty profile and further flags; the test is skipped where there is none."""
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("no chromedriver: install Debian's chromium and chromium-driver")
    options = ChromeOptions()
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-sync", *flags):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with Chrome(options, Service(driver)) as chrome:
        yield chrome


def size_of_the_page(browser: Chrome, width: int, height: int = 800) -> None:
    """Give the page itself this width in pixels: a window has a minimum, a phone's screen is narrower."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def prefer_dark(browser: Chrome, dark: bool) -> None:
    """Have the reader prefer dark pages, or light ones."""
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def keep_screenshot(browser: Chrome, name: str, width: int) -> None:
    """A picture of the page from its top, in `ARTIFACTS`."""
    ARTIFACTS.mkdir(exist_ok=True)
    height: int = browser.execute_script("return document.documentElement.scrollHeight")
    size_of_the_page(browser, width, min(height, 4000))
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    assert browser.save_screenshot(str(ARTIFACTS / f"{name}.png"))
    size_of_the_page(browser, width)


def requested(browser: Chrome) -> set[str]:
    """The URLs that were asked for since the last call, over a network."""
    entries: list[dict[str, Any]] = browser.get_log("performance")  # type: ignore[no-untyped-call]
    messages = [json.loads(entry["message"])["message"] for entry in entries]
    return {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
        and not message["params"]["request"]["url"].startswith(("data:", "blob:"))
    }
