"""The evidence, from the recorded conversations to the report."""

import hashlib
import time
from collections.abc import Sequence

import msgspec

from somabrain_dagster.learning.features import FEATURES
from somabrain_dagster.learning.gates import Gate
from somabrain_dagster.learning.half_life import HALF_LIVES
from somabrain_dagster.learning.policy import Scales
from somabrain_dagster.learning.pooled_fit import pooled_fit
from somabrain_dagster.learning.proposal import NOT_STORED
from somabrain_dagster.memory.embedding import Embedder
from somabrain_dagster.operations import provenance
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.operations.enhancement import (
    POOLED,
    POOLED_HALF_LIFE,
    STARTING,
    Prior,
    learn_for,
    policies,
    taught_by,
)
from somabrain_dagster.operations.enhancement_report import (
    EnhancementReport,
    Origin,
    encode,
    measure,
    proposal,
)
from somabrain_dagster.operations.reenactment import Plan, Reenacted, reenact, stories
from somabrain_dagster.operations.scratch import scratch_database
from somabrain_dagster.operations.summary import Progress, unwatched
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.proposed_weights import propose
from somabrain_dagster.store.scales import read_scales
from somabrain_dagster.store.verification import verify

DATA = "BYU Chit-Chat, 2018: re-enactment on recorded conversations of the people with the most of them"
PEOPLE = 24

LEARNING = "fitting"
"""What progress is told of, after the re-enactment's own."""


def evidence(
    settings: Settings,
    embedder: Embedder,
    people: int = PEOPLE,
    plan: Plan | None = None,
    *,
    workers: int = 2,
    progress: Progress = unwatched,
) -> EnhancementReport:
    """Re-enact in a database of its own, which is dropped at the end; learn, measure, and report.

    Args:
        settings: by which recall and learning work, and the server on which the database is made.
        embedder: of memories and questions; used from several threads.
        people: how many tenants, the heaviest first.
        plan: how much of each.
        workers: threads.
        progress: told what is being done and how far it is.

    Raises:
        ChitChatMissing: the data are not installed.
        TooShort: somebody has too few questions for the plan.
    """
    with scratch_database(settings, "evidence") as database:
        return evidence_in(
            database, settings, embedder, people, plan or Plan(), workers=workers, progress=progress
        )


def evidence_in(
    database: Database,
    settings: Settings,
    embedder: Embedder,
    people: int,
    plan: Plan,
    *,
    workers: int = 2,
    progress: Progress = unwatched,
) -> EnhancementReport:
    """`evidence` in a database that has nothing of these tenants yet, and keeps all of it."""
    started = time.monotonic()
    told = stories(read_chitchat(people), plan.memories)
    reenacted = reenact(database, embedder, settings, told, plan, workers=workers, progress=progress)
    origin = origin_of(database, settings, embedder, plan, reenacted)
    report = judge(reenacted, Prior.of(settings.learning_configuration), origin, progress)
    origin = msgspec.structs.replace(origin, seconds=round(time.monotonic() - started, 1))
    return msgspec.structs.replace(report, origin=origin)


def origin_of(
    database: Database, settings: Settings, embedder: Embedder, plan: Plan, reenacted: Sequence[Reenacted]
) -> Origin:
    """What figures rest on, the log of weights proven; how long it took is not known yet and 0."""
    with database.snapshot() as connection:
        verification = verify(connection)
    feedback = sum(len(one.taught.sessions) for one in reenacted)
    return Origin(
        data=DATA,
        tenants=len(reenacted),
        memories=sum(one.memories for one in reenacted),
        links=sum(one.links for one in reenacted),
        conversations=len(frozenset().union(*(one.conversations for one in reenacted))),
        feedback=feedback,
        recalls=feedback + sum(one.untaught + len(one.held_out.sessions) for one in reenacted),
        plan=plan,
        configuration=settings.digest,
        scale_version=reenacted[0].scales.version,
        embedding=embedder.name,
        commit=provenance.commit(),
        machine=provenance.machine(),
        changes=int(verification.log.log.lengths.sum()),
        findings=len(verification.findings),
        seconds=0.0,
    )


def judge(
    reenacted: Sequence[Reenacted], prior: Prior, origin: Origin, progress: Progress = unwatched
) -> EnhancementReport:
    """Let the slow loop learn from what was taught, and measure every policy on what was held out.

    Args:
        reenacted: two tenants at least: each needs others to learn from.
        prior: from where fits start, and their bounds.
        origin: what the figures rest on.
        progress: told how many tenants are done.
    """
    learned = []
    for number, one in enumerate(reenacted):
        learned.append(learn_for(one, [*reenacted[:number], *reenacted[number + 1 :]], prior))
        progress(LEARNING, number + 1, len(reenacted))
    choices, ages = taught_by([one.taught for one in reenacted])
    fitting = (choices, ages, prior.tau, prior.start, prior.low, prior.high)
    proposals = {
        POOLED: proposal(pooled_fit(*fitting), reenacted[0].scales),
        POOLED_HALF_LIFE: proposal(pooled_fit(*fitting, HALF_LIVES), reenacted[0].scales),
    }
    return measure(reenacted, learned, policies(reenacted, learned, prior), proposals, origin)


def offer(database: Database, settings: Settings, report: EnhancementReport, actor: str) -> int | None:
    """Offer the winner of a report to everybody: a proposal, audited, which changes no weight by itself.

    Args:
        database: the brain's own.
        settings: give the bounds.
        report: what speaks for it.
        actor: who offers it.

    Returns:
        The version of the audit event; None where nothing is surely better than the starting weights.

    Raises:
        NotWithinBounds: the report's weights are outside the bounds of these settings.
    """
    winner = report.winner()
    if winner is None:
        return None
    offered = report.proposals[winner]
    grounds = {
        "policy": winner,
        "half_life_seconds": offered.half_life_seconds,
        "scales": offered.scales,
        "scale_version": report.origin.scale_version,
        "report_sha256": hashlib.sha256(encode(report)).hexdigest(),
        "queries": report.policies[winner].queries,
        "top1": {one: report.policies[one].top1 for one in (*report.baselines(), winner)},
        "differences": [
            msgspec.to_builtins(report.difference(winner, baseline)) for baseline in report.baselines()
        ],
    }
    over_start = report.difference(winner, STARTING)
    gates = [Gate(f"{over_start.metric}_over_starting_lower_bound", over_start.low, ">", 0.0)]
    with database.as_operator() as connection:
        scales = read_scales(connection, report.origin.scale_version)
        if offered.half_life_seconds is not None and offered.scales is not None:
            values = tuple(offered.scales[feature.name] for feature in FEATURES)
            scales = Scales(NOT_STORED, values, offered.half_life_seconds)
        return propose(
            connection, offered.weights, scales, settings.learning_configuration, actor, gates, grounds
        )
