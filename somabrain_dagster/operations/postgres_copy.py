"""Copies of a Postgres as its own programs make them: of the whole cluster, or of a database."""

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

CHUNK = 1 << 20
START_SECONDS = 60.0


class CopyFailed(RuntimeError):
    """A program of Postgres failed; the message is what it said."""


def major_version(programs: Path) -> int:
    """The major version of the programs in a directory."""
    told = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"\d+", told.stdout)
    assert found is not None
    return int(found[0])


def run(programs: Path, name: str, *options: str | Path, url: str | None = None) -> str:
    """Run a program to its end, and return what it printed.

    Args:
        programs: the directory of Postgres's programs.
        name: the program.
        options: of the command line; `{}` stands for the URL.
        url: the database it connects to, if any; its password is not on the command line.

    Raises:
        CopyFailed: it failed.
    """
    place, environment = access(url)
    result = subprocess.run(
        [programs / name, *(place if option == "{}" else option for option in options)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if result.returncode != 0:
        raise CopyFailed(f"{name}: {result.stdout.strip()}")
    return result.stdout


def cluster(programs: Path, url: str) -> Iterator[bytes]:
    """The cluster behind a URL as one tar, with a manifest of SHA-256 in it, without write-ahead log."""
    options = ["-D", "-", "-Ft", "-X", "none", "-c", "fast", "--manifest-checksums=SHA256"]
    return _output(programs, "pg_basebackup", url, options)


def database(programs: Path, url: str, snapshot: str | None) -> Iterator[bytes]:
    """A database in the format of pg_restore, as it was in a snapshot that a session exported.

    Row security stays on: it lets the owner see every row through the operator's policy, and would refuse the
    dump if it were off.
    """
    options = ["-Fc", "--no-owner", "--enable-row-security"]
    if snapshot is not None:
        options.append(f"--snapshot={snapshot}")
    return _output(programs, "pg_dump", url, options)


@contextmanager
def received_log(programs: Path, url: str, folder: Path) -> Iterator[None]:
    """Receive the write-ahead log into a folder from now on, in segments, to the end of the block."""
    place, environment = access(url)
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(
            [programs / "pg_receivewal", "-D", folder, "--no-loop", "--no-password", "-d", place],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=told,
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not any(folder.iterdir()):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise CopyFailed(f"pg_receivewal: {_said(told.fileno())}")
                time.sleep(0.02)
            yield
        finally:
            process.terminate()
            process.wait()


def complete_log(programs: Path, url: str, folder: Path, end: str) -> None:
    """Receive what is missing in the folder up to a place in the write-ahead log.

    Raises:
        CopyFailed: the server does not have it any more.
    """
    options = ["--no-loop", "--no-password", f"--endpos={end}", "-d", "{}"]
    run(programs, "pg_receivewal", "-D", folder, *options, url=url)
    for segment in folder.glob("*.partial"):
        segment.rename(segment.with_suffix(""))


def restore_database(programs: Path, dump: Path, url: str) -> None:
    """Fill an empty database from a dump, as the role of the URL, in one transaction.

    The extensions must be there: it may take a superuser to make them.
    """
    contents = run(programs, "pg_restore", "--list", dump)
    with tempfile.NamedTemporaryFile("w", suffix=".list") as chosen:
        kept = [line for line in contents.splitlines() if not re.search(r" (COMMENT - )?EXTENSION ", line)]
        chosen.write("\n".join(kept) + "\n")
        chosen.flush()
        place, environment = access(url)
        options = ["--no-owner", "--exit-on-error", "--single-transaction", "-L", chosen.name]
        result = subprocess.run(
            [programs / "pg_restore", *options, "-d", place, dump],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    if result.returncode != 0:
        raise CopyFailed(f"pg_restore: {result.stdout.strip()}")


def _output(programs: Path, name: str, url: str, options: Sequence[str]) -> Iterator[bytes]:
    """What a program writes, as it comes; that it fails is an error at the end."""
    place, environment = access(url)
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(
            [programs / name, *options, "--no-password", "-d", place],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=told,
        )
        try:
            assert process.stdout is not None
            while chunk := process.stdout.read(CHUNK):
                yield chunk
            if process.wait() != 0:
                raise CopyFailed(f"{name}: {_said(told.fileno())}")
        finally:
            process.kill()
            process.wait()


def _said(descriptor: int) -> str:
    return os.pread(descriptor, CHUNK, 0).decode(errors="replace").strip()


def access(url: str | None) -> tuple[str, dict[str, str]]:
    """A URL for a command line, where everybody can read it, and the environment with its password."""
    kept = {name: os.environ[name] for name in ["PATH", "LD_LIBRARY_PATH", "HOME"] if name in os.environ}
    if url is None:
        return "", kept
    parts = urlsplit(url)
    if parts.password is not None:
        kept["PGPASSWORD"] = unquote(parts.password)
        parts = parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", "@", 1))
    return urlunsplit(parts), kept
