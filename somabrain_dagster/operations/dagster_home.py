"""The directory and the variables by which Dagster's own programs find their instance and the project."""

import os
import threading
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx
import yaml  # type: ignore[import-untyped]

from somabrain_dagster.operations.servers import Servers
from somabrain_dagster.settings import Settings

INSTANCE = Path(__file__).parent / "dagster.yaml"
WORKSPACE = Path(__file__).parent / "workspace.yaml"

BROKER = "SOMABRAIN_CELERY_BROKER_URL"

EVENT_BATCH = 1000
"""A run over many partitions writes so many of their events at once, in place of one connection for each."""


def dagster_home(settings: Settings) -> Path:
    """Where Dagster's files are."""
    return settings.home / "dagster"


def prepare(settings: Settings, servers: Servers) -> dict[str, str]:
    """Make Dagster's directory, and return what a program needs in its environment to work in it.

    The directory gets `dagster.yaml` and `workspace.yaml` as this version of the project has them; what
    somebody changed in these copies is replaced.

    Args:
        settings: whose home the directory is in.
        servers: reachable.

    Returns:
        Variables to add to the environment of `dagster`, `dg`, the web server, the daemon or a script. The
        workspace is `workspace(settings)`.
    """
    home = dagster_home(settings)
    home.mkdir(parents=True, exist_ok=True)
    for file, content in ((INSTANCE, instance(settings)), (WORKSPACE, WORKSPACE.read_text())):
        # Programs that start together share the directory: none may read half a file.
        draft = home / f".{file.name}.{os.getpid()}"
        draft.write_text(content)
        draft.replace(home / file.name)
    broker = settings.celery.broker_url
    return {
        **servers.environment(),
        "SOMABRAIN_HOME": str(settings.home),
        "SOMABRAIN_DAGSTER_STORAGE_URL": storage_url(servers.dagster_database_url),
        "DAGSTER_HOME": str(home),
        "DAGSTER_EVENT_BATCH_SIZE": str(EVENT_BATCH),
        **({} if broker is None else {BROKER: broker.get_secret_value()}),
    }


def instance(settings: Settings) -> str:
    """The content of `dagster.yaml`: with a broker, runs go to Celery's workers, as many as these take."""
    described = INSTANCE.read_text()
    if settings.celery.broker_url is None:
        return described
    configured = yaml.safe_load(described)
    configured["run_launcher"] = {
        "module": "somabrain_dagster.workers.launcher",
        "class": "Launcher",
        "config": {"broker": {"env": BROKER}},
    }
    configured["concurrency"]["runs"]["max_concurrent_runs"] = settings.celery.slots
    joined: str = yaml.safe_dump(configured, sort_keys=False)
    return joined


def workspace(settings: Settings) -> Path:
    """The workspace file that `prepare` puts into the home, for the option `-w` of Dagster's programs."""
    return dagster_home(settings) / WORKSPACE.name


def wait_until_healthy(url: str, stopping: threading.Event) -> bool:
    """Wait until Dagster's web server at the URL answers and its daemon reports to be healthy.

    The web server alone would answer with a broken daemon too, and no sensor would ever look.

    Returns:
        False if `stopping` was set first.
    """
    query = {"query": "{ instance { daemonHealth { allDaemonStatuses { required healthy } } } }"}
    while not stopping.wait(0.5):
        try:
            answer = httpx.post(f"{url}/graphql", json=query, timeout=5).json()
        except (httpx.HTTPError, ValueError):
            continue
        daemons = answer["data"]["instance"]["daemonHealth"]["allDaemonStatuses"]
        if all(daemon["healthy"] for daemon in daemons if daemon["required"]):
            return True
    return False


def storage_url(url: str) -> str:
    """A Postgres URL as Dagster's storage needs it: for psycopg 2, whatever SQLAlchemy's default is."""
    return urlunsplit(urlsplit(url)._replace(scheme="postgresql+psycopg2"))
