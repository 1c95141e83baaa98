"""Where runs go when `SOMABRAIN_CELERY_BROKER_URL` names a broker: to whichever worker is free.

A run is the unit that is spread: its steps are short, and handing one to another worker costs more than the
step. Dagster's own queue decides when a run goes to the broker, so that nothing waits there.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster_celery.config import DEFAULT_CONFIG
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG

_DEFAULT: Mapping[str, Any] = DEFAULT_CONFIG
_VISIBLE_SECONDS = 4 * 3600
_ANSWER_SECONDS = 5.0
_ASKED = 2
"""A worker that does not answer once may be slow; one that does not answer twice is gone."""

OPTIONS: Mapping[str, Any] = {
    **_DEFAULT,
    # A worker takes no run before it has room for it: another's may be free earlier.
    "task_acks_late": True,
    "worker_prefetch_multiplier": 1,
    # The broker gives out again what nobody acknowledged for so long. It must be longer than any run may take
    # (`max_runtime_seconds`): of a run that begins twice Dagster ignores the second, and Celery then says
    # that it is done. What a dead worker had is found by asking it.
    "broker_transport_options": {
        **_DEFAULT["broker_transport_options"],
        "visibility_timeout": _VISIBLE_SECONDS,
    },
    # So that it is known which worker had a run.
    "result_extended": True,
    "broker_connection_retry_on_startup": True,
}
"""What Celery is told, by the launcher and by the workers alike."""


class Launcher(CeleryRunLauncher):
    """Dagster's launcher, which also notices that a worker is gone.

    Of a worker that was killed with its machine Celery goes on saying that it is at work. This launcher asks
    the worker: a run that its worker does not name as one of its own, or whose worker does not answer, has
    failed, and by `run_retries` another worker gets it.
    """

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Mapping[str, Any]) -> "Launcher":
        """As `dagster.yaml` names it: by the broker's URL, which is all that installations differ in."""
        broker = config_value["broker"]
        return cls(inst_data=inst_data, **{**config_value, "backend": broker, "config_source": dict(OPTIONS)})

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether a run is being worked on; asked by Dagster's monitoring."""
        health = super().check_run_worker_health(run)
        if health.status is not WorkerStatus.RUNNING:
            return health
        task = self.celery.AsyncResult(run.tags[DAGSTER_CELERY_TASK_ID_TAG])
        worker = (task.info or {}).get("hostname")
        if worker is None or any(self._at_work(worker, task.id) for _ in range(_ASKED)):
            return health
        # Between the two questions it may have ended.
        again = super().check_run_worker_health(run)
        if again.status is not WorkerStatus.RUNNING:
            return again
        return CheckRunHealthResult(WorkerStatus.FAILED, f"The worker {worker} is gone, or has forgotten it.")

    def _at_work(self, worker: str, task_id: str) -> bool:
        asked = self.celery.control.inspect(destination=[worker], timeout=_ANSWER_SECONDS)
        working = (asked.active() or {}).get(worker, [])
        return any(task["id"] == task_id for task in working)
