"""Take the pictures of the docs from the real UI and the real page.

Needs a Chromium (Debian: `apt install chromium`), and a brain in which something happened: SOMABRAIN_HOME
says whose is shown, and the pictures in the repository are of `.somabrain/learn`, as `make learn` leaves it.
Usage: scripts/screenshots.py [NAME …]
"""

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from PIL import Image

from scripts.browser import BrowserError, NoBrowser, Page, opened_browser
from somabrain_dagster.operations import servers
from somabrain_dagster.settings import Settings
from somabrain_dagster.store import audit
from somabrain_dagster.store.adaptation import list_tenants
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.keys import create_key, revoke_key, split_key

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
UI_PORT, SERVICE_PORT = 3187, 8487
SENSOR_SECONDS = "5"
SETTLED_SECONDS = 3.0
"""How long a page is left alone after it shows what was waited for: animations end, the graph is laid out."""

COLORS = 96
MOST_BYTES = 150_000


@dataclass(frozen=True)
class Picture:
    """A page as somebody would come to see it.

    Attributes:
        page: its address below the UI's, or below the service's.
        clicks: the texts to click on, one after the other, each once it is there.
        width, height: of the window.
        scale: pixels of the picture in one of the window, for what is drawn small.
        again: load the page once more after the clicks, so that a graph is fitted to the window.
        service: it is the service's page, seen with an operator's key.
    """

    page: str
    clicks: Sequence[str] = ()
    width: int = 1300
    height: int = 900
    scale: int = 1
    again: bool = False
    service: bool = False


PICTURES = {
    "asset-graph": Picture("/asset-groups", ["learning"], 1400, 760, scale=2, again=True),
    "adaptation-state": Picture("/assets/adaptation_state?view=events", ["[Show Markdown]"], height=1000),
    "checks": Picture("/assets/adaptation_state?view=checks&checkDetail=every_shift_is_rederived"),
    "partitions": Picture("/assets/feedback_daily?view=partitions&partition=2018-05-04"),
    "runs": Picture("/runs"),
    "automation": Picture("/automation"),
    "freshness": Picture("/assets/restore_drill", height=800),
    "page": Picture("/", width=1500, height=1000, service=True),
}


def take(page: Page, picture: Picture, key: str) -> bytes:
    """Go to the page, click, and return what is seen, as a PNG of few colours."""
    page.resize(picture.width, picture.height, picture.scale)
    page.go(f"http://127.0.0.1:{SERVICE_PORT if picture.service else UI_PORT}{picture.page}")
    if picture.service:
        page.evaluate("at('key').focus()")
        page.type(key)
        page.click("open")
        page.wait("!at('room').hidden")
    time.sleep(SETTLED_SECONDS)
    for text in picture.clicks:
        page.click(text)
        time.sleep(SETTLED_SECONDS)
    if picture.again:
        page.call("Page.reload")
        time.sleep(3 * SETTLED_SECONDS)
    reduced = io.BytesIO()
    seen = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    seen.quantize(COLORS).save(reduced, format="png", optimize=True)
    return reduced.getvalue()


@contextmanager
def opened_ui() -> Iterator[None]:
    """Dagster's UI with its code location loaded, its daemon, and the service."""
    ports = ["--port", str(UI_PORT), "--service-port", str(SERVICE_PORT)]
    environment = {"SOMABRAIN_SENSOR_INTERVAL_SECONDS": SENSOR_SECONDS, **os.environ}
    ui = subprocess.Popen([Path(sys.executable).parent / "somabrain", "ui", *ports], env=environment)
    try:
        wait_for(f"http://127.0.0.1:{UI_PORT}/server_info")
        wait_for(f"http://127.0.0.1:{SERVICE_PORT}/readyz")
        yield
    finally:
        ui.terminate()
        ui.wait()


@contextmanager
def operators_key() -> Iterator[str]:
    """A key for the page; it is revoked at the end."""
    with Database(servers.start(Settings()).database_url) as database:
        with database.as_operator() as connection:
            if not list_tenants(connection):
                sys.exit("nothing has happened in this brain: `make learn` first")
            key = create_key(connection, audit.SYSTEM, "operator", "screenshots")
        parts = split_key(key)
        assert parts is not None
        try:
            yield key
        finally:
            with database.as_operator() as connection:
                revoke_key(connection, parts[0], "screenshots")


def wait_for(url: str, seconds: float = 90) -> None:
    """Wait until the address answers.

    Raises:
        SystemExit: it does not in time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    sys.exit(f"{url} did not answer in {seconds:g} s")


def main() -> None:
    """Take every picture, or those that are named."""
    unknown = set(sys.argv[1:]) - set(PICTURES)
    if unknown:
        sys.exit(f"no picture is called {' or '.join(sorted(unknown))}: there are {', '.join(PICTURES)}")
    IMAGES.mkdir(parents=True, exist_ok=True)
    try:
        with opened_ui(), operators_key() as key, opened_browser() as page:
            for name in sys.argv[1:] or PICTURES:
                taken = take(page, PICTURES[name], key)
                if len(taken) > MOST_BYTES:
                    sys.exit(
                        f"{name} has {len(taken)} bytes, more than {MOST_BYTES}: make its window smaller"
                    )
                (IMAGES / f"{name}.png").write_bytes(taken)
                print(f"docs/images/{name}.png: {len(taken) // 1000} kB", flush=True)
    except (NoBrowser, BrowserError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
