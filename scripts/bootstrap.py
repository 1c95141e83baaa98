"""Make the virtual environment: what the lock file pins, each file checked by its hash, and this project.

Needs nothing but a Python from 3.11 with its venv module. Usage: python3 scripts/bootstrap.py .venv
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

OLDEST, TOO_NEW = (3, 11), (3, 15)
ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements.lock"


def main() -> None:
    """Create or refresh the environment at the path given."""
    environment = Path(sys.argv[1]).absolute()
    if not OLDEST <= sys.version_info[:2] < TOO_NEW:
        run_with_another_python()
    python = environment / "bin" / "python"
    if not python.exists():
        print(f"making {environment} with Python {sys.version.split()[0]}", flush=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        except subprocess.CalledProcessError:
            shutil.rmtree(environment, ignore_errors=True)
            sys.exit("python3 cannot make virtual environments here: on Debian, `apt install python3-venv`")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as only_uv:
        only_uv.write(locked("uv"))
        only_uv.flush()
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "--require-hashes", "--no-deps", "-r", only_uv.name], check=True)
    print(f"installing what {LOCK.name} pins: about 1 GB, a minute on a good line", flush=True)
    uv = [str(environment / "bin" / "uv"), "pip", "install", "--quiet", "--python", str(python)]
    # The interpreter is the one given: none is to be downloaded.
    without_downloads = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    for arguments in (
        ["--require-hashes", "-r", str(LOCK)],
        ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)],
    ):
        subprocess.run([*uv, *arguments], check=True, env=without_downloads)


def run_with_another_python() -> None:
    """Start again with a Python that fits, if there is one; else say what is needed."""
    for minor in range(TOO_NEW[1] - 1, OLDEST[1] - 1, -1):
        if other := shutil.which(f"python3.{minor}"):
            os.execv(other, [other, *sys.argv])
    sys.exit(f"Python 3.{OLDEST[1]} to 3.{TOO_NEW[1] - 1} is needed, this is {sys.version.split()[0]}")


def locked(package: str) -> str:
    """The lines of the lock file that pin one package."""
    match = re.search(rf"^{package}==.*(?:\n[ ].*)*", LOCK.read_text(), re.MULTILINE)
    assert match is not None, f"{LOCK} does not pin {package}"
    return match.group()


if __name__ == "__main__":
    main()
