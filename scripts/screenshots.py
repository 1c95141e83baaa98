"""Take the pictures of the docs from the real UI, as the demo leaves it.

Needs a Chromium (Debian: `apt install chromium`) and the demo to have run. Usage: scripts/screenshots.py
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
PORT = 3187
PICTURES = {
    "asset-graph": ("/locations/somabrain/jobs/learning_chain", 1500, 800),
    "adaptation-state": ("/assets/adaptation_state?view=events", 1500, 1250),
}
"""For each picture, the page and the size of the window."""

QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--no-first-run",
    "--virtual-time-budget=25000",
]


def main() -> None:
    """Open the UI, look at each page, close it."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no Chromium here: install one, on Debian with `apt install chromium`")
    IMAGES.mkdir(parents=True, exist_ok=True)
    ui = subprocess.Popen([Path(sys.executable).parent / "somabrain", "ui", "--port", str(PORT)])
    try:
        wait_for(f"http://127.0.0.1:{PORT}/server_info")
        time.sleep(10)  # until the code location is loaded
        for name, (page, width, height) in PICTURES.items():
            with tempfile.TemporaryDirectory() as profile:
                target = IMAGES / f"{name}.png"
                size = f"--window-size={width},{height}"
                place = [f"--user-data-dir={profile}", f"--screenshot={target}"]
                subprocess.run(
                    [browser, *QUIET, size, *place, f"http://127.0.0.1:{PORT}{page}"],
                    check=True,
                    capture_output=True,
                )
            print(target.relative_to(ROOT))
    finally:
        ui.terminate()
        ui.wait()


def wait_for(url: str, seconds: float = 60) -> None:
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
    sys.exit(f"{url} did not answer in {seconds} s")


if __name__ == "__main__":
    main()
