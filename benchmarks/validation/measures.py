"""What a few requests measure: speed of adaptation, working memory, a restart; and analysis."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import numpy as np

from benchmarks.analysis import EXPERIMENTS
from benchmarks.validation.plan import Plan
from benchmarks.validation.stage import Stage
from somabrain_dagster.client import SomaBrain
from somabrain_dagster.learning.experiments import Analysis, Arm, analyse, assign, sample_size
from somabrain_dagster.learning.experiments import Plan as Trial
from somabrain_dagster.learning.moments import Moments
from somabrain_dagster.memory.embedders import embedder_of
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.store.adaptation import create_tenants, read_state
from somabrain_dagster.store.keys import create_key
from somabrain_dagster.store.promotions import promote, undo_promotion
from somabrain_dagster.store.trends import read_session_means
from somabrain_dagster.store.working_memory import WorkingMemory
from somabrain_dagster.traffic import Cast, Traffic, staged

ACTOR = "validation"
NEWCOMER = "validate-newcomer"
EVENTS_TO_ADAPT = 20
CAST = Cast(people=1, conversations=10, messages=12, questions=3)
_RESTORED = re.compile(r"restored the states of (\d+) tenants in ([\d.]+) s")


def adaptation(stage: Stage, plan: Plan, url: str) -> dict[str, float]:
    """How far α gets in twenty real ratings that praise, by a tenant that is new."""
    praise = (said for said in chain.from_iterable(plan.people.values()) if said.utility > 0)
    with stage.database.as_operator() as connection:
        create_tenants(connection, [NEWCOMER], stage.settings.learning_configuration)
        key = create_key(connection, NEWCOMER, "tenant", ACTOR)
    with SomaBrain(url, key) as brain:
        before = brain.state().weights["alpha"]
        told = list(islice(praise, EVENTS_TO_ADAPT))
        for number, said in enumerate(told):
            brain.feedback(
                session_id=said.session_id, utility=said.utility, idempotency_key=f"newcomer-{number}"
            )
        after = brain.state().weights["alpha"]
    mean = float(np.mean([said.utility for said in told]))
    return {"events": len(told), "mean utility": round(mean, 3), "gain": round(after - before, 9)}


def working_memory(stage: Stage, plan: Plan, url: str) -> dict[str, float]:
    """How many memories enter working memory an event, in real conversations that are re-enacted."""
    data = read_chitchat(len(plan.tenants) * 3)
    person = next(tenant for tenant in data.tenants if tenant not in plan.people)
    stories = staged(replace(data, tenants=(person,)), CAST)
    settings = stage.settings
    embedder = embedder_of(settings)
    with Traffic(stage.database, embedder, settings, url, stories, CAST) as traffic:
        traffic.prepare()
        enacted = traffic.enact_all(traffic.sessions)
    with WorkingMemory(
        stage.where.redis_url, settings.working_memory_capacity, settings.working_memory_seconds
    ) as working:
        items = sum(working.sizes(person).values())
    events = sum(one.recalls for one in enacted)
    return {"sessions": len(enacted), "events": events, "items": items, "growth": round(items / events, 3)}


def steer(stage: Stage, plan: Plan, url: str, operator: str) -> list[str]:
    """What operators do to weights: a rollback, a reset, a promotion to everybody, and its undoing."""
    first, second = plan.tenants[:2]
    with SomaBrain(url, operator, tenant_id=first) as brain:
        brain.roll_back(1)
    with SomaBrain(url, operator, tenant_id=second) as brain:
        brain.reset()
    configuration = stage.settings.learning_configuration
    with stage.database.as_operator() as connection:
        promotion, _ = promote(connection, {"delta": 0.6}, configuration, ACTOR)
    with stage.database.as_operator() as connection:
        undo_promotion(connection, configuration, ACTOR)
    return [f"{first} rolled back", f"{second} reset", f"promotion {promotion.version} and its undoing"]


def restart(stage: Stage) -> dict[str, float]:
    """How long a service takes to have every tenant's state, from Postgres, when it starts."""
    began = time.perf_counter()
    with stage.served():
        ready = time.perf_counter() - began
        found = _RESTORED.search((stage.place / "serve.log").read_text())
    if found is None:
        raise RuntimeError("the service does not say how many states it restored")
    return {
        "tenants": int(found[1]),
        "restore seconds": float(found[2]),
        "from start to ready, seconds": round(ready, 2),
    }


def agreeing(stage: Stage, plan: Plan, url: str, keys: Mapping[str, str]) -> int:
    """Of how many tenants the service answers the weights that Postgres has."""
    agree = 0
    for tenant in plan.tenants:
        with stage.database.as_tenants([tenant]) as connection:
            stored = read_state(connection, tenant).weights.tolist()
        with SomaBrain(url, keys[tenant]) as brain:
            agree += brain.state().nanos == stored
    return agree


def experiments(stage: Stage, tenants: Sequence[str]) -> dict[str, Any]:
    """Analyse a thousand experiments on real sessions, each with arms by its own salt and no difference."""
    with stage.database.as_operator() as connection:
        means = read_session_means(connection, tenants)
    units = [
        (f"{tenant}/{place}", value) for tenant in tenants for place, value in enumerate(means[tenant].values)
    ]
    size = min(sample_size(0.3), len(units) // 3)
    arms = (Arm("control", 0.5), Arm("treatment", 0.5))
    trial = Trial(arms, size)
    began = time.perf_counter()
    analyses: list[Analysis] = []
    for number in range(EXPERIMENTS):
        outcomes: dict[str, list[float]] = {arm.name: [] for arm in arms}
        start = number * size % len(units)
        for unit, value in chain(units[start:], units[:start]):
            arm = outcomes[assign(f"validate-{number}", unit, arms)]
            if len(arm) < size:
                arm.append(value)
            elif all(len(one) == size for one in outcomes.values()):
                break
        analyses.append(analyse(trial, {arm: Moments.of(np.array(all_)) for arm, all_ in outcomes.items()}))
    return {
        "experiments": len(analyses),
        "sessions an arm": size,
        "seconds": round(time.perf_counter() - began, 2),
        "promoted without a difference": sum(one.promoted is not None for one in analyses),
    }
