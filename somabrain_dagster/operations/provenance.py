"""Where a number comes from: the commit of the code, and the machine that it was measured on."""

import os
import platform
import subprocess
from pathlib import Path


def commit() -> str | None:
    """The git commit of this code, with `+changes` where files differ from it; None outside a repository."""
    try:
        revision = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{revision}+changes" if changed else revision


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=Path(__file__).parent.parent, check=True, capture_output=True, text=True
    ).stdout.strip()


def machine() -> dict[str, str | int | None]:
    """Processor, cores, system and Python, as a report names them."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    told = Path("/proc/cpuinfo")
    if told.exists():
        for line in told.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
