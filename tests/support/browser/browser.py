"""Headless Chromium in a network namespace, driven through Debian's chromedriver by selenium.

Debian ships both programs in one version, so the tests download nothing and guess no protocol.
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
    """One browser with a fresh profile. ``driver`` is selenium's; the methods are what tests need often."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self._events: list[dict[str, Any]] = []

    def open(self, url: str) -> None:
        self.driver.get(url)

    def script(self, source: str, *arguments: object) -> Any:
        """Run JavaScript; a ``return`` in ``source`` gives the value."""
        return self.driver.execute_script(source, *arguments)

    def text_of(self, selector: str) -> list[str]:
        """Return the text of each element that matches the CSS selector."""
        found = self.script(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", selector
        )
        return [str(text) for text in found]

    def class_of(self, selector: str) -> list[str]:
        return str(self.script("return document.querySelector(arguments[0]).className", selector)).split()

    def click(self, selector: str) -> None:
        self.driver.find_element("css selector", selector).click()

    def network_events(self, method: str) -> list[dict[str, Any]]:
        """Return the parameters of every ``Network.*`` event of this name since the browser started."""
        for entry in self.driver.get_log("performance"):
            self._events.append(json.loads(entry["message"])["message"])
        return [event["params"] for event in self._events if event["method"] == method]

    def console_errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def screenshot(self, path: Path) -> None:
        self.driver.save_screenshot(str(path))


@contextlib.contextmanager
def open_browser(folder: Path, namespace: Namespace, *arguments: str) -> Iterator[Browser]:
    """Run a browser in ``namespace``, with ``arguments`` in addition to the usual ones.

    Writes ``failure.png`` into ``folder`` if the body fails.
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
