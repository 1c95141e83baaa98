"""Documents as programs: the fenced blocks of a page, in order, as one script.

`sh` blocks are the shell's, `python` blocks are run by Python, `sql` blocks by `somabrain psql`. A line that
begins with `make` is left out: targets take minutes, and that they exist is checked apart. A block whose
first line begins with `# not run by the tests:` is left out too, and says why to a reader.
"""

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
ADDRESS = "http://127.0.0.1:8400"
"""Where a page says that the service is."""

FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = ("sh", "sql", "python")
NOT_RUN = "# not run by the tests:"
END = "\036"
"""What the shell prints when a block is done, before its exit code."""


def pages() -> list[Path]:
    """Every document of the project."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """The language and text of each block that is to be run, in order."""
    for language, block in FENCED.findall(text):
        if language in LANGUAGES and not block.startswith(NOT_RUN):
            yield language, block


def shell_lines(text: str) -> Iterator[str]:
    """Every line for the shell in the fenced blocks of a text, run or not, without comments."""
    for language, block in FENCED.findall(text):
        if language == "sh":
            yield from re.sub(r"(^|\s)#.*", "", block.replace("\\\n", " "), flags=re.MULTILINE).splitlines()


def section(page: str, heading: str) -> str:
    """The part of a page under a heading, up to the next one of the same or a higher level."""
    found = re.search(rf"^(#+) {re.escape(heading)}$\n(.*)", page, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no heading {heading!r}"
    level, rest = len(found[1]), found[2]
    end = re.search(rf"^#{{1,{level}}} ", FENCED.sub(lambda block: "~" * len(block[0]), rest), re.MULTILINE)
    return rest if end is None else rest[: end.start()]


def with_measured(page: Path, measured: Mapping[str, str]) -> str:
    """The text of a page with what was measured in the places that are marked `<!-- measured: name -->`.

    Raises:
        SystemExit: a name has no place, or more than one.
    """
    text = page.read_text()
    for name, part in measured.items():
        mark = re.compile(rf"(<!-- measured: {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        text, count = mark.subn(lambda found, part=part: f"{found[1]}\n{part}\n{found[2]}", text)  # type: ignore[misc]
        if count != 1:
            sys.exit(f"{page} must have one place marked {name}")
    return text


def command(language: str, block: str) -> str:
    """A block as lines for the shell."""
    if language == "python":
        return f"python -c {shlex.quote(block)}"
    if language == "sql":
        return f"somabrain psql -v tenant=\"${{TENANT:-}}\" <<'SQL'\n{block}SQL"
    return "".join(line for line in block.splitlines(keepends=True) if not line.startswith("make "))


def script(text: str, replaced: Mapping[str, str] | None = None) -> str:
    """The blocks of a text as one script that ends where a command fails.

    Args:
        text: of a page, or of a part of one.
        replaced: what a page says, such as the service's address, and what is so in this place.
    """
    lines = "\n".join(["set -euo pipefail", *(command(*block) for block in blocks(text))])
    for said, so in (replaced or {}).items():
        lines = lines.replace(said, so)
    return lines


@dataclass(frozen=True)
class Step:
    """A block of a page that was run.

    Attributes:
        heading: under which it stands.
        command: as it stands there.
        output: all that it printed.
        code: with which it ended; nothing is run after one that is not 0.
        seconds: it took.
    """

    heading: str
    command: str
    output: str
    code: int
    seconds: float


def headed_blocks(text: str) -> Iterator[tuple[str, str, str]]:
    """The heading, language and text of each block that is to be run, in order."""
    parts = re.split(r"^#+ (.*)$", FENCED.sub(_hidden, text), flags=re.MULTILINE)
    for heading, part in zip(parts[1::2], parts[2::2], strict=True):
        for language, block in blocks(_shown(part)):
            yield heading, language, block


def _hidden(block: re.Match[str]) -> str:
    """A block whose comments do not read like headings."""
    return re.sub(r"^#", "\0", block[0], flags=re.MULTILINE)


def _shown(text: str) -> str:
    return text.replace("\0", "#")


def run_steps(
    text: str, folder: Path, environment: Mapping[str, str], replaced: Mapping[str, str]
) -> Iterator[Step]:
    """Run the blocks of a text one by one in one shell, as somebody would who pastes them.

    Args:
        text: of a page, or of parts of one.
        folder: that looks like the project's.
        environment: of the shell.
        replaced: as for `script`.
    """
    shell = subprocess.Popen(
        ["bash"],
        cwd=project(folder),
        env=with_programs(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
    )
    with shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        for heading, language, block in headed_blocks(text):
            lines = command(language, block)
            for said, so in replaced.items():
                lines = lines.replace(said, so)
            began = time.monotonic()
            shell.stdin.write(f"{{ set -euo pipefail\n{lines}\n}} </dev/null\nprintf '\\036%d\\n' $?\n")
            shell.stdin.flush()
            printed: list[str] = []
            while END not in (line := shell.stdout.readline()) and line:
                printed.append(line)
            before, _, code = line.partition(END)
            output = "".join([*printed, before])
            ended = int(code) if code else shell.wait()
            yield Step(heading, block, output, ended, round(time.monotonic() - began, 2))
            if ended:
                return
        shell.stdin.close()


def project(folder: Path) -> Path:
    """A folder that looks like the project's, with its scripts and its programs."""
    folder.mkdir(exist_ok=True)
    for name, target in (("scripts", ROOT / "scripts"), (".venv", Path(sys.prefix))):
        if not (folder / name).exists():
            (folder / name).symlink_to(target)
    return folder


def with_programs(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which the project's programs are found first."""
    return {**environment, "PATH": f"{Path(sys.prefix) / 'bin'}:{environment['PATH']}"}


def run(lines: str, folder: Path, environment: Mapping[str, str], seconds: float = 500) -> str:
    """Run a script in a folder that looks like the project's; what it printed.

    Raises:
        AssertionError: a command failed.
    """
    done = subprocess.run(
        ["bash", "-c", lines],
        cwd=project(folder),
        env=with_programs(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
