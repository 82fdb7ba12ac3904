"""Headless Chromium in a namespace, driven through Debian's own chromedriver by selenium.

Debian ships the two in one version, so neither a download nor a guess about protocols is needed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.net.namespaces import Namespace
from tests.support.processes import tools

_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # the tests run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--no-proxy-server",
    "--window-size=1400,900",
)


class Browser:
    """One browser with a fresh profile. ``driver`` is selenium's; the rest is what tests ask often."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self._events: list[dict[str, Any]] = []

    def open(self, url: str) -> None:
        self.driver.get(url)

    def script(self, source: str, *arguments: object) -> Any:
        """Runs JavaScript; ``return`` gives its value."""
        return self.driver.execute_script(source, *arguments)

    def text_of(self, selector: str) -> list[str]:
        """The text of each element that matches the CSS selector."""
        found = self.script(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", selector
        )
        return [str(text) for text in found]

    def class_of(self, selector: str) -> list[str]:
        return str(self.script("return document.querySelector(arguments[0]).className", selector)).split()

    def click(self, selector: str) -> None:
        self.driver.find_element("css selector", selector).click()

    def network_events(self, method: str) -> list[dict[str, Any]]:
        """The parameters of every ``Network.*`` event of this name since the browser started."""
        for entry in self.driver.get_log("performance"):
            self._events.append(json.loads(entry["message"])["message"])
        return [event["params"] for event in self._events if event["method"] == method]

    def console_errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def screenshot(self, path: Path) -> None:
        self.driver.save_screenshot(str(path))


@contextlib.contextmanager
def open_browser(folder: Path, namespace: Namespace, *arguments: str) -> Iterator[Browser]:
    """A browser that lives in ``namespace``, started with these arguments more.

    Leaves ``failure.png`` in ``folder`` if the body fails.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is missing: pip install -e .[e2e]")
    options = webdriver.ChromeOptions()
    options.binary_location = tools.path_of("chromium")
    for argument in (*_ARGUMENTS, *arguments, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    log = str(folder / "chromedriver.log")
    service = webdriver.ChromeService(executable_path=tools.path_of("chromedriver"), log_output=log)
    with namespace.entered():
        driver = webdriver.Chrome(options=options, service=service)
        try:
            yield from _shown_on_failure(Browser(driver), folder)
        finally:
            driver.quit()


def _shown_on_failure(browser: Browser, folder: Path) -> Iterator[Browser]:
    try:
        yield browser
    except BaseException:
        browser.screenshot(folder / "failure.png")
        (folder / "failure.txt").write_text("\n".join(browser.console_errors()))
        raise
