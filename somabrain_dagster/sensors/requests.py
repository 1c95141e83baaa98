"""One run for each thing that is due: asked for again only where its run was interrupted."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

INTERRUPTED = "DagsterExecutionInterruptedError"
MOST_RUNS = 3
"""Of one thing that is due: a run that was interrupted is repeated, but not for ever."""

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def unfinished_run(instance: dg.DagsterInstance, job: str) -> dg.DagsterRun | None:
    """A run of a job that has not ended, if there is one."""
    return next(iter(instance.get_runs(dg.RunsFilter(job_name=job, statuses=UNFINISHED), limit=1)), None)


def run_for(
    instance: dg.DagsterInstance,
    job: str,
    tags: Mapping[str, str],
    *,
    asset_selection: Sequence[dg.AssetKey] | None = None,
    run_config: Mapping[str, Any] | None = None,
    undone: bool = False,
) -> dg.RunRequest | dg.DagsterRun:
    """The request of a run for what is due, or the run that it had and that would end as it did again.

    Args:
        instance: knows the runs that there were.
        job: its name.
        tags: what is due, in such words that the same thing has the same tags.
        asset_selection: of the job's assets; None for all.
        run_config: of the run.
        undone: a run that succeeded does not leave the same thing due, unless what it did was undone.
    """
    earlier = instance.get_runs(dg.RunsFilter(job_name=job, tags=dict(tags)), limit=MOST_RUNS)
    final = [run for run in earlier if _ended_by_itself(instance, run)]
    if undone:
        final = [run for run in final if run.status is not dg.DagsterRunStatus.SUCCESS]
    if len(earlier) == MOST_RUNS or final:
        return earlier[0]
    return dg.RunRequest(
        run_key=" ".join((*tags.values(), *(run.run_id for run in earlier))),
        job_name=job,
        tags=dict(tags),
        asset_selection=asset_selection,
        run_config=run_config,
    )


def _ended_by_itself(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a run ended as it would end again; one that was interrupted, or lost its process, would not."""
    if run.status is not dg.DagsterRunStatus.FAILURE:
        return True
    failures = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    errors = [entry.dagster_event.step_failure_data.error for entry in failures if entry.dagster_event]
    return any(error is not None and error.cls_name != INTERRUPTED for error in errors)
