"""A Prometheus of this machine's own, on loopback: to look at the dashboards' queries, and to test rules.

The program on the PATH, or Debian's package without its installation, which takes no special rights. It
scrapes often, so that what happens is seen within seconds, and ends with the block that started it.
"""

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import msgspec

from somabrain_dagster.embedded.errors import EmbeddedServerError, explained, tail
from somabrain_dagster.embedded.process import LOOPBACK, free_port
from somabrain_dagster.embedded.state import make_home, write_private

PACKAGE = "prometheus"
FETCH_SECONDS = 300
START_SECONDS = 60.0
STOP_SECONDS = 20.0
JOB = "somabrain"
"""What the service is called in the label `job`; the rules go by it."""


class PrometheusMissing(EmbeddedServerError):
    """There is no Prometheus on this machine, and no way to get it."""


@dataclass(frozen=True)
class PrometheusTools:
    """The programs: the server, and `promtool`, which checks and tests what the server reads."""

    prometheus: Path
    promtool: Path


@dataclass(frozen=True)
class Sample:
    """A value of a series, with its labels."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Prometheus:
    """A server that runs.

    Attributes:
        url: of its page and its API.
    """

    url: str

    def query(self, expression: str, at: datetime | None = None) -> list[Sample]:
        """The samples of an expression that gives a vector or a scalar, now or at another time.

        Raises:
            httpx.HTTPStatusError: Prometheus refuses the expression.
        """
        data = self._data("query", query=expression, **({} if at is None else {"time": at.isoformat()}))
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        return [Sample(one["metric"], float(one["value"][1])) for one in data["result"]]

    def query_range(
        self, expression: str, start: float, end: float, step: float
    ) -> list[tuple[Mapping[str, str], list[tuple[float, float]]]]:
        """Of each series its labels, and (time, value) from `start` to `end`, in seconds since 1970."""
        data = self._data("query_range", query=expression, start=start, end=end, step=step)
        return [
            (one["metric"], [(float(at), float(value)) for at, value in one["values"]])
            for one in data["result"]
        ]

    def alerts(self, state: str = "firing") -> list[Mapping[str, str]]:
        """The labels of each alert in this state: `firing`, or `pending` while its `for` goes on."""
        return [one["labels"] for one in self._data("alerts")["alerts"] if one["state"] == state]

    def rules(self) -> list[dict[str, Any]]:
        """Every rule as the server evaluates it, with its `health` and `lastError`."""
        return [rule for group in self._data("rules")["groups"] for rule in group["rules"]]

    def wait_for(self, expression: str, seconds: float) -> list[Sample]:
        """The samples of an expression, as soon as there are any.

        Raises:
            TimeoutError: there are none in that time.
        """
        deadline = time.monotonic() + seconds
        while not (samples := self.query(expression)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no sample of {expression} within {seconds:g} s")
            time.sleep(0.1)
        return samples

    def _data(self, path: str, **parameters: str | float) -> Any:
        url = f"{self.url}/api/v1/{path}"
        answer = httpx.post(url, data=parameters, timeout=60) if parameters else httpx.get(url, timeout=60)
        answer.raise_for_status()
        return answer.json()["data"]


def prometheus_tools(home: Path) -> PrometheusTools:
    """Prometheus' programs: those on the PATH, else those that were got into this home, else got now.

    Args:
        home: a directory of the project's own, e.g. `.somabrain`; created if missing.

    Raises:
        PrometheusMissing: there is none, and this is no Debian or Ubuntu to get it from.
        EmbeddedServerError: the package cannot be got.
    """
    found = [shutil.which(name) for name in ("prometheus", "promtool")]
    if found[0] is not None and found[1] is not None:
        return PrometheusTools(Path(found[0]), Path(found[1]))
    with explained("get Prometheus", home):
        unpacked = make_home(home) / "prometheus-program"
        if not unpacked.exists():
            _fetch(unpacked)
        programs = unpacked / "usr" / "bin"
        return PrometheusTools(programs / "prometheus", programs / "promtool")


def _fetch(unpacked: Path) -> None:
    """Get Debian's package and unpack it, whole or not at all; apt checks its digest.

    By a list of packages of its own: the machine's may be missing or old, and is root's to renew.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise PrometheusMissing(
            "`prometheus` and `promtool` are not on the PATH: install Prometheus "
            "(https://prometheus.io/download), or run this on Debian or Ubuntu, whose package is taken."
        )
    draft = unpacked.with_name(f".{unpacked.name}-{uuid4().hex}")
    lists, cache = draft / "lists", draft / "cache"
    for each in (lists / "partial", cache / "archives" / "partial"):
        each.mkdir(parents=True)
    apt = ["apt-get", "--quiet", "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}"]
    try:
        for command in (
            [*apt, "-o", "Debug::NoLocking=1", "update"],
            [*apt, "download", PACKAGE],
            ["sh", "-c", f"dpkg-deb -x {PACKAGE}_*.deb ."],
        ):
            got = subprocess.run(
                command,
                cwd=draft,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=FETCH_SECONDS,
            )
            if got.returncode:
                raise EmbeddedServerError(
                    f"Debian's package {PACKAGE} cannot be got: install it by "
                    f"`apt-get install {PACKAGE}`, as root, or try again.\n{got.stderr.strip()}"
                )
        for package in draft.glob("*.deb"):
            package.unlink()
        for each in (lists, cache):
            shutil.rmtree(each)
        try:
            draft.rename(unpacked)
        except OSError:  # another process got it first
            if not unpacked.exists():
                raise
    except subprocess.TimeoutExpired as error:
        raise EmbeddedServerError(f"Prometheus was not got in {FETCH_SECONDS} s: try again.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def prometheus_beside(
    directory: Path,
    tools: PrometheusTools,
    *,
    service_url: str | None = None,
    key: str | None = None,
    rules: Sequence[Path] = (),
    seconds: float = 1.0,
    port: int | None = None,
) -> Iterator[Prometheus]:
    """A Prometheus until the end of the block, on loopback.

    Args:
        directory: where it keeps its samples and its log; created if missing, and left as it is.
        tools: the programs.
        service_url: of the service that it scrapes; None for samples that are there already.
        key: of an operator, for `/metrics`.
        rules: files of rules, or patterns of their names.
        seconds: between two scrapes, and between two evaluations of the rules.
        port: on which it listens; None for one that is free.

    Raises:
        EmbeddedServerError: it does not start; the message says why.
    """
    with explained("start Prometheus", directory):
        directory = directory.expanduser().resolve()
        directory.mkdir(parents=True, exist_ok=True)
        configuration = directory / "prometheus.yml"
        text = msgspec.json.encode(_configuration(service_url, key, rules, seconds))  # JSON is YAML too
        owner = directory.stat()
        write_private(configuration, text, owner.st_uid, owner.st_gid)
        port = port or free_port()
        log = directory / "prometheus.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [
                    str(tools.prometheus),
                    f"--config.file={configuration}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    "--storage.tsdb.retention.time=100y",
                    f"--web.listen-address={LOOPBACK}:{port}",
                ],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    try:
        server = Prometheus(f"http://{LOOPBACK}:{port}")
        _wait_until_ready(server, process, log)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _configuration(
    service_url: str | None, key: str | None, rules: Sequence[Path], seconds: float
) -> dict[str, Any]:
    every = f"{round(seconds * 1000)}ms"
    url = httpx.URL(service_url or "")
    scrape: dict[str, Any] = {
        "job_name": JOB,
        "scheme": url.scheme,
        "honor_labels": True,  # Dagster's jobs are under `job`, too
        "static_configs": [{"targets": [url.netloc.decode()]}],
    }
    if key is not None:
        scrape["authorization"] = {"type": "Bearer", "credentials": key}
    return {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": [str(path.resolve()) for path in rules],
        "scrape_configs": [] if service_url is None else [scrape],
    }


def _wait_until_ready(server: Prometheus, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        ended = process.poll()
        if ended is not None or time.monotonic() > deadline:
            what = f"is not ready after {START_SECONDS:.0f} s" if ended is None else f"ended ({ended})"
            raise EmbeddedServerError(f"Prometheus {what}.{tail(log)}")
        try:
            if httpx.get(f"{server.url}/-/ready", timeout=2).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
