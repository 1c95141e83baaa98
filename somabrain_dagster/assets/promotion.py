"""What is promoted, and what is served."""

from collections.abc import Iterator, Sequence

import dagster as dg
import numpy as np
from matplotlib.figure import Figure

from somabrain_dagster.assets.changing import Change
from somabrain_dagster.assets.metadata import LEARNING, OWNERS, column_schema, plot
from somabrain_dagster.learning.weights import NAMES, WEIGHTS, to_units
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.store.adaptation import read_states
from somabrain_dagster.store.canaries import running_canary
from somabrain_dagster.store.landed import read_columns_of
from somabrain_dagster.store.promoting import PromotionRefused, promote_canary
from somabrain_dagster.store.promotions import Promotion, promoted, read_promotions

LISTED = 20


@dg.asset(
    description="The weights that are promoted to all tenants, and every promotion there was. What a canary "
    "allows is promoted by one transaction that reads and enforces every gate itself, shifts each tenant in "
    "its own log, moves the pointer and writes the audit. Materialised alone it promotes nothing that the "
    "gates refuse.",
    deps=["canary_rollout"],
    group_name=LEARNING,
    kinds={"postgres"},
    owners=OWNERS,
    tags={"somabrain/layer": "promotion"},
    metadata={"dagster/table_name": "promotions"},
    pool="promoted_weights",
)
def promoted_weights(
    context: dg.AssetExecutionContext, config: Change, brain: dg.ResourceParam[Brain]
) -> dg.MaterializeResult[None]:
    """Promote what may be promoted, and show what is."""
    said = promote_if_allowed(brain, f"dagster run {context.run.run_id}", change=config.change)
    context.log.info("%s", said)
    with brain.database.snapshot() as connection:
        promotions = read_promotions(connection)
        now = promoted(connection, brain.settings.learning_configuration)
        columns = read_columns_of(connection, "promotions")
    return dg.MaterializeResult(
        data_version=dg.DataVersion(str(now.version)),
        metadata={
            "dagster/row_count": len(promotions),
            "dagster/column_schema": column_schema(columns),
            "what happened": said,
            "version": now.version,
            "promotions": promotions_table(promotions[-LISTED:]),
            **({"before and after": plot(draw_promotion(now), "before and after")} if promotions else {}),
        },
    )


def promote_if_allowed(brain: Brain, actor: str, *, change: bool) -> str:
    """Promote what the running canary's last look allows; in words, what was done.

    Raises:
        dagster.Failure: the look allows it, and a gate refuses it.
    """
    configuration = brain.settings.learning_configuration
    with brain.database.snapshot() as connection:
        canary = running_canary(connection)
    if canary is None:
        return "no canary runs: nothing is to be promoted"
    if not canary.allowed:
        return f"canary {canary.canary_id} has not come to its end: nothing is promoted before it has"
    if not change:
        return f"canary {canary.canary_id} may be promoted: a person decides"
    try:
        with brain.database.as_operator() as connection:
            promotion, states = promote_canary(connection, canary.canary_id, configuration, actor)
    except PromotionRefused as refused:
        raise dg.Failure(str(refused), allow_retries=False) from refused
    brain.snapshots.publish(states)
    return f"promotion {promotion.version} shifted {len(states)} tenants"


def promotions_table(promotions: Sequence[Promotion]) -> dg.TableMetadataValue:
    """Each promotion, the newest first, with the weights that it changed."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "version": one.version,
                    "at": "" if one.created_at is None else one.created_at.isoformat(timespec="seconds"),
                    "by": one.actor or "",
                    "from": one.origin,
                    "scales": "" if one.scale_version is None else str(one.scale_version),
                    "changed": one.changed,
                }
            )
            for one in reversed(promotions)
        ],
        schema=dg.TableSchema(
            [
                dg.TableColumn("version", "int"),
                dg.TableColumn("at", "string"),
                dg.TableColumn("by", "string"),
                dg.TableColumn("from", "string"),
                dg.TableColumn("scales", "string", description="that came with it"),
                dg.TableColumn("changed", "string"),
            ]
        ),
    )


def draw_promotion(promotion: Promotion) -> Figure:
    """The weights before and after."""
    figure = Figure(figsize=(7, 3), dpi=100, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(NAMES))
    for offset, weights, label, color in (
        (-0.2, promotion.before, "before", "#bbbbbb"),
        (0.2, promotion.weights, "after", "#4477aa"),
    ):
        axes.bar(places + offset, to_units(weights), 0.4, label=label, color=color)
    axes.set_xticks(places, [weight.symbol for weight in WEIGHTS])
    axes.legend(frameon=False)
    axes.set_title(f"promotion {promotion.version}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


SERVED = "served_states_are_the_live_ones"


@dg.asset(
    description="Each tenant's state as it is served: published to Redis, from which the service answers "
    "when it has not seen a state itself. The service hears of each change from Postgres within a second; "
    "this makes good whatever a lost Redis forgot.",
    deps=["promoted_weights", "tenant_weights", "adaptation_state"],
    group_name=LEARNING,
    kinds={"redis"},
    owners=OWNERS,
    tags={"somabrain/layer": "served"},
    pool="served_weights",
    check_specs=[
        dg.AssetCheckSpec(
            SERVED,
            asset="served_weights",
            description="What is read back from Redis is no older than what was published, for every tenant.",
        )
    ],
)
def served_weights(
    context: dg.AssetExecutionContext, brain: dg.ResourceParam[Brain]
) -> Iterator[dg.MaterializeResult[None]]:
    """Publish all states, and read them back."""
    with brain.database.snapshot() as connection:
        states = read_states(connection)
        version = promoted(connection, brain.settings.learning_configuration).version
    brain.snapshots.publish(states)
    served = brain.snapshots.versions([state.tenant_id for state in states])
    old = [
        state.tenant_id
        for state, held in zip(states, served, strict=True)
        if held is None or held < state.version
    ]
    yield dg.MaterializeResult(
        metadata={"dagster/row_count": len(states), "promotion": version},
        check_results=[
            dg.AssetCheckResult(
                check_name=SERVED,
                passed=not old,
                description=f"older or missing: {', '.join(old[:20])}" if old else None,
                metadata={"tenants": len(states), "older or missing": len(old)},
            )
        ],
    )
