"""Feedback that is sent one by one by another process, which is killed in its midst and started again."""

import time
from pathlib import Path

from benchmarks.validation.landing import Singles
from benchmarks.validation.plan import FEWEST, plan_of
from benchmarks.validation.stage import Stage
from somabrain_dagster.operations.servers import Servers
from somabrain_dagster.settings import Settings
from tests.serving.running import Running, until


def test_who_is_killed_goes_on_and_nothing_lands_twice(service: Running, tmp_path: Path) -> None:
    plan = plan_of(FEWEST)
    keys = service.add_tenants(plan.tenants)
    where = Servers(service.database.url, service.database.url, service.redis_url)
    stage = Stage(Settings(home=tmp_path), where, service.database, tmp_path, None)
    singles = Singles(plan, tmp_path)

    with singles.sending(stage, service.url, keys) as process:
        assert process is not None
        until(lambda: len(singles.answers()) >= singles.total // 4)
        process.kill()
        process.wait()
    first = singles.answers()
    assert len(first) < singles.total

    with singles.sending(stage, service.url, keys) as process:
        assert process is not None
        assert process.wait(60) == 0
    told = singles.answers()
    assert sorted(told) == list(range(singles.total))
    assert all(told[place] == answer for place, answer in first.items())
    assert all(answer.latency > 0 and answer.at <= time.time() for answer in told.values())
    with service.database.as_operator() as connection:
        landed = connection.execute(
            "SELECT tenant_id, seq FROM feedback_events WHERE tenant_id = ANY (%s)", (list(plan.tenants),)
        ).fetchall()
    assert sorted(landed) == sorted(
        (plan.tenants[place % len(plan.tenants)], a.seq) for place, a in told.items()
    )

    with singles.sending(stage, service.url, keys) as process:
        assert process is None, "all of it is acknowledged"
