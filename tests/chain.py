"""What the tests of the Dagster project share: a real instance, the project's definitions, runs and ticks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.instance.ref import InstanceRef
from pydantic import SecretStr

from somabrain_dagster.definitions import build_definitions
from somabrain_dagster.embedded import PostgresServer, ValkeyServer
from somabrain_dagster.jobs import LEARNING_CHAIN
from somabrain_dagster.operations.dagster_home import dagster_home, prepare, storage_url
from somabrain_dagster.operations.servers import Servers
from somabrain_dagster.resources.brain import brain_resource
from somabrain_dagster.sensors.feedback import FIRST_DAY_TAG, LAST_DAY_TAG
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.daily import read_unseen_days
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.positions import Lag, position, read_heads, read_lag
from tests.conftest import new_database

QUIETLY = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@contextmanager
def opened_instance(settings: Settings, servers: Servers) -> Iterator[dg.DagsterInstance]:
    """Dagster's instance as `dagster.yaml` describes it, on the real Postgres of these servers."""
    prepare(settings, servers)
    storage = {"storage": {"postgres": {"postgres_url": storage_url(servers.dagster_database_url)}}}
    reference = InstanceRef.from_dir(str(dagster_home(settings)), overrides=storage)
    with dg.DagsterInstance.from_ref(reference) as instance:
        yield instance


@contextmanager
def new_instance(
    postgres: PostgresServer, valkey: ValkeyServer, template: str, home: Path
) -> Iterator[dg.DagsterInstance]:
    """An instance with a database of its own."""
    with new_database(postgres, template) as name:
        servers = Servers(postgres.url("postgres"), postgres.url(name), valkey.url)
        with opened_instance(Settings(home=home), servers) as instance:
            yield instance


@dataclass(frozen=True)
class Chain:
    """The project on a brain of its own, run and ticked as Dagster does it."""

    instance: dg.DagsterInstance
    settings: Settings
    database: Database

    @cached_property
    def definitions(self) -> dg.Definitions:
        return build_definitions(self.settings)

    @property
    def brain(self) -> dg.ResourceDefinition:
        return brain_resource(self.settings)

    def run(
        self,
        tags: dict[str, str],
        selection: Any = None,
        job: str = LEARNING_CHAIN,
        config: dict[str, Any] | None = None,
    ) -> dg.ExecuteInProcessResult:
        return self.definitions.resolve_job_def(job).execute_in_process(
            run_config={**(config or {}), **QUIETLY},
            instance=self.instance,
            tags=tags,
            asset_selection=selection,
            raise_on_error=False,
        )

    def run_days(self, first: str, last: str) -> dg.ExecuteInProcessResult:
        return self.run({FIRST_DAY_TAG: first, LAST_DAY_TAG: last})

    def tick(self, sensor: str = "feedback_landed") -> "Tick":
        """One look of a sensor."""
        with dg.build_sensor_context(
            instance=self.instance,
            definitions=self.definitions,
            resources={"brain": self.brain},
        ) as context:
            seen = self.definitions.resolve_sensor_def(sensor).evaluate_tick(context)
        return Tick(list(seen.run_requests or []), seen.skip_message or "", seen.cursor)

    def follow(self, tick: "Tick") -> dg.ExecuteInProcessResult:
        """The run that a tick asked for."""
        (request,) = tick.requests
        return self.run(
            dict(request.tags),
            request.asset_selection,
            request.job_name or LEARNING_CHAIN,
            dict(request.run_config),
        )

    def tell_of(self, failed: dg.ExecuteInProcessResult) -> None:
        """What the sensor `run_failure` does when it sees a run that failed."""
        sensor = self.definitions.resolve_sensor_def("run_failure")
        run = self.instance.get_run_by_id(failed.run_id)
        assert run is not None
        with dg.build_run_status_sensor_context(
            sensor_name=sensor.name,
            dagster_event=failed.get_run_failure_event(),
            dagster_instance=self.instance,
            dagster_run=run,
            resources={"brain": self.brain},
        ) as context:
            sensor(context.for_run_failure())

    def materialise(self, asset: str) -> dg.ExecuteInProcessResult:
        """An asset alone, as a person does it in the UI."""
        return self.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            run_config=QUIETLY,
            instance=self.instance,
            asset_selection=[dg.AssetKey(asset)],
            raise_on_error=False,
        )

    @property
    def position(self) -> str:
        with self.database.snapshot() as connection:
            return position(read_heads(connection))

    def lag(self, consumer: str) -> Lag:
        with self.database.snapshot() as connection:
            return read_lag(connection, consumer, read_heads(connection))

    def unseen_days(self) -> tuple[date | None, date | None]:
        with self.database.snapshot() as connection:
            unseen = read_unseen_days(connection, read_heads(connection), date.min, date(9999, 12, 30))
        return unseen.first, unseen.last

    def rows(self, query: str, *arguments: object) -> list[tuple[Any, ...]]:
        """As the owner of the tables, who can do what nobody should."""
        with self.database.as_owner() as connection:
            cursor = connection.execute(query.encode(), arguments)
            return cursor.fetchall() if cursor.description else []


@dataclass(frozen=True)
class Tick:
    """What a look of the sensor came to."""

    requests: list[dg.RunRequest]
    skipped: str
    cursor: str | None


def settings_for(database_url: str, valkey: ValkeyServer, **knobs: Any) -> Settings:
    """Settings that name the test's servers, so that nothing is started."""
    return Settings(
        database_url=SecretStr(database_url),
        redis_url=SecretStr(valkey.url),
        dagster_database_url=SecretStr(database_url),
        **knobs,
    )


def checks_of(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    """What each check came to, by name."""
    return {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}


def failed_checks(result: dg.ExecuteInProcessResult) -> set[str]:
    return {name for name, evaluation in checks_of(result).items() if not evaluation.passed}


def wait_until(holds: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.1)


@contextmanager
def daemon(environment: Mapping[str, str], workspace: Path, log: Path) -> Iterator[None]:
    """Dagster's daemon, as it runs in production."""
    program = str(Path(sys.executable).parent / "dagster-daemon")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "run", "-w", str(workspace)],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield
    except AssertionError as error:
        error.add_note(log.read_text()[-5000:])
        raise
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
