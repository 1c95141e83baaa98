"""What a stranger does: copy the tree to an empty directory, `make demo` twice, `somabrain replay`; timed.

Exit 0 and `first light: ok` only if all three succeed and the second demo takes less than a minute.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
AGAIN_SECONDS = 60


def main() -> None:
    """Run it, and leave nothing behind."""
    place = Path(tempfile.mkdtemp(prefix="somabrain-first-light-", dir="/var/tmp"))
    place.chmod(0o755)
    tree = place / "somabrain"
    copy_tree(tree)
    try:
        first = timed(tree, "make", "demo")
        again = timed(tree, "make", "demo")
        replayed = timed(tree, ".venv/bin/somabrain", "replay")
    finally:
        subprocess.run(["make", "down"], cwd=tree, env=clean_environment(), check=False)
        shutil.rmtree(place, ignore_errors=True)
    if again >= AGAIN_SECONDS:
        sys.exit(f"first light: the second demo took {again:.0f} s, not less than {AGAIN_SECONDS}")
    print(f"first light: ok (demo {first:.0f} s, again {again:.0f} s, replay {replayed:.1f} s)")


def copy_tree(tree: Path) -> None:
    """Copy what git tracks or would track, as it is in the working tree."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)


def clean_environment() -> dict[str, str]:
    """The environment of somebody who has configured nothing."""
    inherited = ("SOMABRAIN_", "DAGSTER_", "MAKE", "MFLAGS", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(inherited)}


def timed(tree: Path, *command: str) -> float:
    """Run a command in the tree; its seconds.

    Raises:
        SystemExit: it failed.
    """
    print(f"first light: {' '.join(command)}", flush=True)
    start = time.monotonic()
    result = subprocess.run(command, cwd=tree, env=clean_environment(), stdin=subprocess.DEVNULL, check=False)
    if result.returncode != 0:
        sys.exit(f"first light: `{' '.join(command)}` ended with {result.returncode}")
    return time.monotonic() - start


if __name__ == "__main__":
    main()
