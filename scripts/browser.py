"""A headless Chromium, driven by the DevTools protocol: for the docs' pictures and the tests of the page."""

import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from websockets.sync.client import ClientConnection, connect

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-port=0",
)
PAUSE_SECONDS = 0.05

PLACE = """
(() => {
    const shown = [...document.querySelectorAll('body *')].filter(
        (element) => element.textContent.trim() === TEXT && element.getClientRects().length
    );
    const target = shown.at(-1);
    if (!target) return null;
    target.scrollIntoView({block: 'nearest'});
    const {left, top, width, height} = target.getBoundingClientRect();
    return [left + width / 2, top + height / 2];
})()
"""
"""Where the innermost visible element is that reads so, in pixels of the window."""


class NoBrowser(RuntimeError):
    """There is no Chromium on this machine; the message says how to get one."""


class BrowserError(RuntimeError):
    """The browser did not do what it was asked."""


def program() -> str:
    """The path of a Chromium.

    Raises:
        NoBrowser: there is none.
    """
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        raise NoBrowser("no Chromium here: install one, on Debian with `apt install chromium`")
    return found


class Page:
    """A tab of the browser."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = count(1)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result.

        Raises:
            BrowserError: the browser refuses it.
        """
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._connection.recv(timeout=60))
            if answer.get("id") == number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result

    def resize(self, width: int, height: int, scale: int = 1) -> None:
        """Make the window so large, in pixels of the page; a picture has `scale` times as many."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    def go(self, url: str) -> None:
        """Load an address, and wait until the document is there; what its scripts fetch comes later.

        Raises:
            BrowserError: it cannot be reached.
        """
        failed = self.call("Page.navigate", url=url).get("errorText")
        if failed:
            raise BrowserError(f"{url}: {failed}")
        self.wait("document.readyState === 'complete'")

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page, awaited if it is a promise.

        Raises:
            BrowserError: it throws.
        """
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> Any:
        """The value of an expression, once it is true.

        Raises:
            BrowserError: it does not become so in time.
        """
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(script)):
            if time.monotonic() > deadline:
                raise BrowserError(f"{script} did not become true in {seconds:g} s")
            time.sleep(PAUSE_SECONDS)
        return value

    def click(self, text: str) -> None:
        """Click on what reads so, once it is there.

        Raises:
            BrowserError: nothing does in time.
        """
        x, y = self.wait(PLACE.replace("TEXT", json.dumps(text)))
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Type a text into what has the focus."""
        self.call("Input.insertText", text=text)

    def screenshot(self) -> bytes:
        """What is seen, as a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextmanager
def opened_browser() -> Iterator[Page]:
    """A headless Chromium with one empty page, and a profile that is gone afterwards.

    Raises:
        NoBrowser: there is none on this machine.
        BrowserError: it does not start.
    """
    found = program()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = subprocess.Popen(
            [found, *OPTIONS, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.DEVNULL
        )
        try:
            port = _port(browser, Path(profile) / "DevToolsActivePort")
            with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
                tabs = json.load(answer)
            address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            with connect(address, max_size=None) as connection:
                yield Page(connection)
        finally:
            browser.terminate()
            browser.wait()


def _port(browser: "subprocess.Popen[bytes]", written: Path, seconds: float = 60) -> int:
    """The port that the browser chose, as it writes it down."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if browser.poll() is not None:
            raise BrowserError(f"Chromium ended with {browser.returncode}")
        if written.exists() and (lines := written.read_text().split()):
            return int(lines[0])
        time.sleep(PAUSE_SECONDS)
    raise BrowserError(f"Chromium did not start in {seconds:g} s")
