"""The peers that the service is measured beside, each in a virtual environment of its own under .somabrain/.

Each is set up as its documentation says (default), and again with what makes it fast (tuned). MLflow, Feast
and Phoenix keep what they are told in the same Postgres that the service writes to, so that an answer means
the same: it is committed. Two are measured though their answer means less: Feast on Redis, which has the
latest value of each entity, synced each second, and Phoenix where it answers before it writes.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from benchmarks.load import request

HOME = Path(".somabrain/peers").absolute()
JSON = {"content-type": "application/json"}
PACKAGES = {
    "mlflow": "mlflow",
    "feast": "feast",
    "phoenix": "arize-phoenix",
    "mem0": "mem0ai",
    "datasets": "datasets",
}
"""By the name of its environment, the package whose version says what was measured."""
START_SECONDS = 120
INSTALL_SECONDS = 900


def versions() -> dict[str, str]:
    """Of the peers that are installed."""
    found = {}
    for name, package in PACKAGES.items():
        python = HOME / name / "bin" / "python"
        if python.exists():
            asked = [
                str(python),
                "-c",
                f"from importlib.metadata import version; print(version({package!r}))",
            ]
            found[package] = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return found


@dataclass(frozen=True)
class Requests:
    """What a peer is asked: to keep a feedback, and for what it knows of someone; none if it has no such."""

    landing: list[bytes]
    state: list[bytes]


class PeerMissing(RuntimeError):
    """A peer cannot be installed or started here; the message says why."""


def installed(name: str, packages: Sequence[str]) -> Path:
    """The bin directory of a peer's environment, made if need be."""
    environment = HOME / name
    marker = environment / ".installed"
    wanted = " ".join(packages)
    if not (marker.exists() and marker.read_text() == wanted):
        shutil.rmtree(environment, ignore_errors=True)
        commands: list[list[str | Path]] = [
            [sys.executable, "-m", "venv", environment],
            [environment / "bin" / "pip", "install", "-q", *packages],
        ]
        for command in commands:
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
                )
            except subprocess.TimeoutExpired as error:
                raise PeerMissing(f"{name} was not installed in {INSTALL_SECONDS} s") from error
            if done.returncode:
                raise PeerMissing(f"{name} cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
        marker.write_text(wanted)
    return environment / "bin"


@contextmanager
def started(
    command: Sequence[str | Path], url: str, directory: Path, variables: Mapping[str, str]
) -> Iterator[None]:
    """A server until the end of the block, once its URL answers."""
    log = directory / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=directory,
            env=os.environ | dict(variables),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(url, timeout=2):
                    break
            except OSError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    said = log.read_text(errors="replace").strip().splitlines()[-3:]
                    raise PeerMissing(f"{Path(str(command[0])).name} did not start: {said}") from error
                time.sleep(0.3)
        yield
    finally:
        # Its own session: the workers that it started end with it.
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _ask(url: str, body: object) -> dict[str, object]:
    asked = urllib.request.Request(url, json.dumps(body).encode(), JSON, method="POST")
    with urllib.request.urlopen(asked, timeout=30) as answer:
        said: dict[str, object] = json.load(answer)
        return said


def _asked_until_answered(url: str, body: object) -> dict[str, object]:
    """A server of several workers answers on one of them before the others have made its tables."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return _ask(url, body)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _new_database(admin_url: str, name: str) -> str:
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    parts = urlsplit(admin_url)
    return parts._replace(path=f"/{name}").geturl()


@contextmanager
def mlflow(admin_url: str, port: int, *, tuned: bool) -> Iterator[Requests]:
    """MLflow's tracking server on Postgres, and requests that log a metric each."""
    bin_ = installed("mlflow", ["mlflow", "psycopg2-binary", "uvloop", "httptools"])
    variant = _variant(tuned)
    directory = HOME / f"mlflow-{variant}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    database = _new_database(admin_url, f"peer_mlflow_{variant}")
    options = ["--workers", "2", "--uvicorn-opts", "--loop uvloop --http httptools --log-level warning"]
    command: list[str | Path] = [
        bin_ / "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--backend-store-uri",
        database.replace("postgresql://", "postgresql+psycopg2://"),
        "--artifacts-destination",
        directory / "artifacts",
        *(options if tuned else []),
    ]
    variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} if tuned else {}
    variables["PATH"] = f"{bin_}:{os.environ['PATH']}"
    url = f"http://127.0.0.1:{port}"
    with started(command, f"{url}/health", directory, variables):
        runs = []
        for _ in range(20):
            made = _asked_until_answered(f"{url}/api/2.0/mlflow/runs/create", {"experiment_id": "0"})
            runs.append(made["run"]["info"]["run_id"])  # type: ignore[index]
        yield Requests(
            [
                request(
                    "POST",
                    "/api/2.0/mlflow/runs/log-metric",
                    JSON,
                    json.dumps(
                        {
                            "run_id": runs[number % len(runs)],
                            "key": "utility",
                            "value": (number % 201 - 100) / 100,
                            "timestamp": 1_600_000_000_000 + number,
                            "step": number,
                        }
                    ).encode(),
                )
                for number in range(20_000)
            ],
            [request("GET", f"/api/2.0/mlflow/runs/get?run_id={run}", JSON) for run in runs],
        )


def _variant(tuned: bool) -> str:
    return "tuned" if tuned else "default"


_FEAST_STORE = """
project: peer
registry:
  registry_type: file
  path: registry.db
  cache_ttl_seconds: {ttl}
provider: local
online_store:
{store}entity_key_serialization_version: 3
"""

_FEAST_POSTGRES = """  type: postgres
  host: {host}
  port: {port}
  database: {database}
  db_schema: public
  user: {user}
  password: "{password}"
  sslmode: disable
"""

_FEAST_REDIS = """  type: redis
  connection_string: "{host}:{port},password={password}"
"""

_FEAST_DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureView, Field, FileSource, PushSource
from feast.types import Float64

tenant = Entity(name="tenant", join_keys=["tenant_id"])
source = FileSource(name="file", path="feedback.parquet", timestamp_field="event_timestamp")
push = PushSource(name="feedback", batch_source=source)
view = FeatureView(
    name="utility", entities=[tenant], ttl=timedelta(days=1),
    schema=[Field(name="utility", dtype=Float64)], online=True, source=push,
)
"""


@contextmanager
def feast(admin_url: str, port: int, *, tuned: bool) -> Iterator[Requests]:
    """Feast's feature server on Postgres, and requests that push a row each."""
    parts = urlsplit(_new_database(admin_url, f"peer_feast_{_variant(tuned)}"))
    store = _FEAST_POSTGRES.format(
        host=parts.hostname,
        port=parts.port,
        database=parts.path.removeprefix("/"),
        user=parts.username,
        password=parts.password,
    )
    pool = "  conn_type: pool\n  min_conn: 2\n  max_conn: 16\n" if tuned else ""
    with _feast(f"feast-{_variant(tuned)}", port, store + pool, tuned=tuned) as requests:
        yield requests


@contextmanager
def feast_on_redis(redis_url: str, port: int, *, tuned: bool) -> Iterator[Requests]:
    """Feast's feature server on a Redis-protocol server, and requests that push a row each."""
    parts = urlsplit(redis_url)
    store = _FEAST_REDIS.format(host=parts.hostname, port=parts.port, password=parts.password)
    with _feast(f"feast-redis-{_variant(tuned)}", port, store, tuned=tuned) as requests:
        yield requests


@contextmanager
def _feast(name: str, port: int, store: str, *, tuned: bool) -> Iterator[Requests]:
    bin_ = installed("feast", ["feast[postgres,redis]"])
    directory = HOME / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / "feature_store.yaml").write_text(_FEAST_STORE.format(ttl=3600 if tuned else 60, store=store))
    (directory / "definitions.py").write_text(_FEAST_DEFINITIONS)
    parquet = (
        "import pandas as pd; pd.DataFrame({'tenant_id': ['t0'], 'utility': [0.0], "
        "'event_timestamp': [pd.Timestamp.now('UTC')]}).to_parquet('feedback.parquet')"
    )
    quiet = {"FEAST_USAGE": "False", "IS_TEST": "True", "PATH": f"{bin_}:{os.environ['PATH']}"}
    setting_up: list[list[str | Path]] = [[bin_ / "python", "-c", parquet], [bin_ / "feast", "apply"]]
    for command in setting_up:
        done = subprocess.run(
            command,
            cwd=directory,
            env=os.environ | quiet,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            raise PeerMissing(f"feast cannot be set up: {done.stderr.strip().splitlines()[-2:]}")
    options = ["--workers", "2", "--max-requests", "0", "--registry_ttl_sec", "3600", "--no-access-log"]
    serve: list[str | Path] = [
        bin_ / "feast",
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        *(options if tuned else []),
    ]
    with started(serve, f"http://127.0.0.1:{port}/health", directory, quiet):
        yield Requests(
            [
                request(
                    "POST",
                    "/push",
                    JSON,
                    json.dumps(
                        {
                            "push_source_name": "feedback",
                            "to": "online",
                            "df": {
                                "tenant_id": [f"t{number % 100}"],
                                "utility": [(number % 201 - 100) / 100],
                                "event_timestamp": ["2026-01-01T00:00:00Z"],
                            },
                        }
                    ).encode(),
                )
                for number in range(5_000)
            ],
            [
                request(
                    "POST",
                    "/get-online-features",
                    JSON,
                    json.dumps(
                        {"features": ["utility:utility"], "entities": {"tenant_id": [f"t{number}"]}}
                    ).encode(),
                )
                for number in range(100)
            ],
        )


@contextmanager
def phoenix(admin_url: str, port: int, *, waits: bool) -> Iterator[Requests]:
    """Arize Phoenix on Postgres, and requests that annotate a span each.

    Args:
        admin_url: the server on which it gets a database.
        port: where it listens; the one after it is for its gRPC.
        waits: whether it answers after its commit; by default it answers before it writes.
    """
    bin_ = installed("phoenix", ["arize-phoenix[pg]"])
    variant = "waiting" if waits else "default"
    directory = HOME / f"phoenix-{variant}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    variables = {
        "PHOENIX_SQL_DATABASE_URL": _new_database(admin_url, f"peer_phoenix_{variant}"),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(port + 1),
        "PHOENIX_WORKING_DIR": str(directory),
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
    }
    spans = [f"{number + 1:016x}" for number in range(100)]
    url = f"http://127.0.0.1:{port}"
    with started([bin_ / "phoenix", "serve"], f"{url}/healthz", directory, variables):
        time_ = "2026-01-01T00:00:00+00:00"
        _asked_until_answered(
            f"{url}/v1/projects/default/spans",
            {
                "data": [
                    {
                        "name": "recall",
                        "context": {"trace_id": span.zfill(32), "span_id": span},
                        "span_kind": "RETRIEVER",
                        "start_time": time_,
                        "end_time": time_,
                        "status_code": "OK",
                    }
                    for span in spans
                ]
            },
        )
        landing = [_annotation(spans[number % len(spans)], number, waits) for number in range(20_000)]
        _asked_until_answered(f"{url}/v1/span_annotations?sync=true", _annotated(spans[-1], -1))
        yield Requests(
            landing,
            [
                request("GET", f"/v1/projects/default/span_annotations?span_ids={span}&limit=1", JSON)
                for span in spans
            ],
        )


def _annotation(span: str, number: int, waits: bool) -> bytes:
    path = "/v1/span_annotations" + ("?sync=true" if waits else "")
    return request("POST", path, JSON, json.dumps(_annotated(span, number)).encode())


def _annotated(span: str, number: int) -> dict[str, object]:
    return {
        "data": [
            {
                "span_id": span,
                "name": "utility",
                "annotator_kind": "HUMAN",
                "result": {"score": (number % 201 - 100) / 100},
                "identifier": str(number),
            }
        ]
    }
