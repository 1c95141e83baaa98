"""Take the pictures of the docs from the real UI, as the demo leaves it.

Needs a Chromium (Debian: `apt install chromium`) and the demo to have run. Usage: scripts/screenshots.py
"""

import base64
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from websockets.sync.client import ClientConnection, connect

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
PORT, DEBUGGER_PORT = 3187, 3188
SETTLED_SECONDS = 3.0
"""How long a page is left alone after it shows what was waited for: animations end, the graph is laid out."""

BROWSER = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--no-first-run",
]


@dataclass(frozen=True)
class Picture:
    """A page as somebody would come to see it.

    Attributes:
        page: its address below the UI's.
        clicks: the texts to click on, one after the other, each once it is there.
        width, height: of the window.
        again: load the page once more after the clicks, so that a graph is fitted to the window.
    """

    page: str
    clicks: Sequence[str]
    width: int
    height: int
    again: bool = False


PICTURES = {
    "asset-graph": Picture("/asset-groups", ["landed", "learning"], 1500, 1000, again=True),
    "adaptation-state": Picture("/assets/adaptation_state?view=events", ["[Show Markdown]"], 1300, 1000),
}

CLICK = """
(() => {
    const shown = [...document.querySelectorAll('main *, body *')].filter(
        (element) => element.textContent.trim() === TEXT && element.getClientRects().length
    );
    const target = shown.at(-1);
    if (!target) return false;
    const {left, top, width, height} = target.getBoundingClientRect();
    return [left + width / 2, top + height / 2];
})()
"""


class Page:
    """A tab of the browser, by the Chrome DevTools protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = count(1)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._connection.recv(timeout=60))
            if answer.get("id") == number:
                result: dict[str, Any] = answer["result"]
                return result

    def click(self, text: str) -> None:
        """Click on the last element that reads so, once there is one.

        Raises:
            SystemExit: there is none in time.
        """
        deadline = time.monotonic() + 60
        script = CLICK.replace("TEXT", json.dumps(text))
        while time.monotonic() < deadline:
            place = self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"]["value"]
            if place:
                for kind in ("mousePressed", "mouseReleased"):
                    x, y = place
                    self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
                time.sleep(SETTLED_SECONDS)
                return
            time.sleep(0.5)
        sys.exit(f"no element reads {text!r}")

    def take(self, picture: Picture) -> bytes:
        """Go to the page, click, and return what is seen, as a PNG."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=picture.width,
            height=picture.height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("Page.navigate", url=f"http://127.0.0.1:{PORT}{picture.page}")
        time.sleep(SETTLED_SECONDS)
        for text in picture.clicks:
            self.click(text)
        if picture.again:
            self.call("Page.reload")
            time.sleep(3 * SETTLED_SECONDS)
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextmanager
def opened_browser() -> Iterator[Page]:
    """A headless Chromium with one empty page."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        sys.exit("no Chromium here: install one, on Debian with `apt install chromium`")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        places = [f"--user-data-dir={profile}", f"--remote-debugging-port={DEBUGGER_PORT}"]
        browser = subprocess.Popen([program, *BROWSER, *places, "about:blank"], stderr=subprocess.DEVNULL)
        try:
            tabs = json.loads(wait_for(f"http://127.0.0.1:{DEBUGGER_PORT}/json/list"))
            address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            with connect(address, max_size=None) as connection:
                yield Page(connection)
        finally:
            browser.terminate()
            browser.wait()


@contextmanager
def opened_ui() -> Iterator[None]:
    """Dagster's UI with its code location loaded."""
    ui = subprocess.Popen([Path(sys.executable).parent / "somabrain", "ui", "--port", str(PORT)])
    try:
        wait_for(f"http://127.0.0.1:{PORT}/server_info")
        yield
    finally:
        ui.terminate()
        ui.wait()


def wait_for(url: str, seconds: float = 60) -> bytes:
    """What the address answers, once it does.

    Raises:
        SystemExit: it does not in time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urlopen(url, timeout=2) as answer:
                body: bytes = answer.read()
                return body
        except OSError:
            time.sleep(0.5)
    sys.exit(f"{url} did not answer in {seconds} s")


def main() -> None:
    """Take every picture."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with opened_ui(), opened_browser() as page:
        for name, picture in PICTURES.items():
            target = IMAGES / f"{name}.png"
            target.write_bytes(page.take(picture))
            print(target.relative_to(ROOT), flush=True)


if __name__ == "__main__":
    main()
