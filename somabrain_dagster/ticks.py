"""Dagster's sensors looked at, and the runs that they ask for made, in this process and one after the other.

What the daemon does by the clock is done here when it is asked for: by the same sensors, on the same
instance, with cursors and run keys kept as it keeps them. Sensors that watch runs are left to it: a run that
fails here raises its error.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import dagster as dg

from somabrain_dagster.resources.brain import Brain

QUIETLY = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}


@dataclass(frozen=True)
class Ran:
    """A run that a sensor asked for."""

    sensor: str
    job: str
    result: dg.ExecuteInProcessResult

    @property
    def run_id(self) -> str:
        """Of Dagster."""
        return self.result.run_id

    @property
    def observed(self) -> list[str]:
        """The assets that were observed."""
        return _assets(self.result.get_asset_observation_events())

    @property
    def materialised(self) -> list[str]:
        """The assets that were materialised."""
        return _assets(self.result.get_asset_materialization_events())

    @property
    def checks(self) -> list[dg.AssetCheckEvaluation]:
        """What was checked."""
        return list(self.result.get_asset_check_evaluations())


def _assets(events: Iterable[dg.DagsterEvent]) -> list[str]:
    return sorted({event.asset_key.to_user_string() for event in events if event.asset_key})


@dataclass(frozen=True)
class Look:
    """What a look at a sensor came to: the runs that it asked for, or why there were none."""

    sensor: str
    runs: tuple[Ran, ...]
    skipped: str


class Ticks:
    """The sensors of a project, on an instance."""

    def __init__(self, definitions: dg.Definitions, instance: dg.DagsterInstance, brain: Brain) -> None:
        """Look at nothing yet.

        Args:
            definitions: of the project.
            instance: where its runs are kept.
            brain: for the sensors.
        """
        self._definitions, self._instance, self._brain = definitions, instance, brain
        self._cursors: dict[str, str | None] = {}
        self._run_keys: set[tuple[str, str]] = set()

    @property
    def sensors(self) -> list[str]:
        """The names of those that can be looked at, in the order of the project."""
        return [
            sensor.name
            for sensor in self._definitions.get_repository_def().sensor_defs
            if not isinstance(sensor, dg.RunStatusSensorDefinition)
        ]

    def settle(self) -> Iterator[Look]:
        """Look at one after the other, again and again, until none of them asks for a run."""
        asked = True
        while asked:
            asked = False
            for name in self.sensors:
                look = self.look(name)
                asked = asked or bool(look.runs)
                yield look

    def look(self, name: str) -> Look:
        """Look at a sensor once, and make the runs that it asks for.

        Raises:
            dagster.DagsterExecutionStepExecutionError: a step of a run failed.
        """
        sensor = self._definitions.get_repository_def().get_sensor_def(name)
        with dg.build_sensor_context(
            instance=self._instance,
            cursor=self._cursors.get(name),
            definitions=self._definitions,
            resources={"brain": self._brain},
        ) as context:
            context.log.setLevel(logging.WARNING)
            seen = sensor.evaluate_tick(context)
        self._cursors[name] = seen.cursor
        for request in seen.dynamic_partitions_requests or []:
            assert isinstance(request, dg.AddDynamicPartitionsRequest)
            self._instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        runs = [
            self._run(name, request.job_name or sensor.job_name, request)
            for request in seen.run_requests or []
            if self._new(name, request.run_key)
        ]
        return Look(name, tuple(runs), seen.skip_message or "")

    def _new(self, sensor: str, run_key: str | None) -> bool:
        """Whether a run was not asked for before: a key stands for one run for ever."""
        if run_key is None:
            return True
        new = (sensor, run_key) not in self._run_keys
        self._run_keys.add((sensor, run_key))
        return new

    def _run(self, sensor: str, job: str | None, request: dg.RunRequest) -> Ran:
        assert job is not None, f"the sensor {sensor} asks for a run of no job"
        result = self._definitions.resolve_job_def(job).execute_in_process(
            instance=self._instance,
            run_config={**request.run_config, **QUIETLY},
            tags=dict(request.tags),
            partition_key=request.partition_key,
            asset_selection=request.asset_selection,
        )
        return Ran(sensor, job, result)


@contextmanager
def instance_in(environment: Mapping[str, str]) -> Iterator[dg.DagsterInstance]:
    """Dagster's instance in an environment that steps which run here see too, until the end of the block."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with dg.DagsterInstance.get() as instance:
            yield instance
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
