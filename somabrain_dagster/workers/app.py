"""What a worker runs: `somabrain exec celery -A somabrain_dagster.workers.app worker`.

It needs the environment of the project, `SOMABRAIN_CELERY_BROKER_URL` with it, and the same version of the
code as the daemon.
"""

from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_execute_job_task, create_resume_job_task

from somabrain_dagster.settings import Settings
from somabrain_dagster.workers.launcher import OPTIONS

_broker = Settings().celery.broker_url
if _broker is None:
    raise RuntimeError(
        "SOMABRAIN_CELERY_BROKER_URL is not set: name the broker that the daemon gives runs to"
    )

app = make_app(  # type: ignore[no-untyped-call]
    {
        "broker": _broker.get_secret_value(),
        "backend": _broker.get_secret_value(),
        "config_source": dict(OPTIONS),
    }
)
execute_job = create_execute_job_task(app)
resume_job = create_resume_job_task(app)
