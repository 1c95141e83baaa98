"""Weights that the slow loop makes: for everybody as a proposal, for a tenant as a change of its own."""

from collections.abc import Iterator, Sequence
from math import isnan

import dagster as dg
import numpy as np
from matplotlib.figure import Figure

from somabrain_dagster.assets.changing import Change
from somabrain_dagster.assets.landed import FEEDBACK_EVENTS
from somabrain_dagster.assets.metadata import LEARNING, OWNERS, column_schema, plot
from somabrain_dagster.learning.gates import Gate
from somabrain_dagster.learning.weights import NAMES, RETRIEVAL, TAU, WEIGHTS, to_units
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.store.landed import read_columns_of
from somabrain_dagster.store.proposals import (
    NotDue,
    StoredProposal,
    count_proposals,
    proposal_problems,
    propose,
    read_proposals,
)
from somabrain_dagster.store.tenant_fits import (
    Share,
    TenantFit,
    apply_fits,
    count_fits,
    fit_tenants,
    read_newest_fits,
)

LISTED = 200
DRAWN_TENANTS = 40
INTERVAL = 1.96
"""Standard errors on each side of a weight's 95% interval."""

GATES_HOLD = "accepted_proposals_pass_their_gates"


@dg.asset(
    description="Weights for everybody, proposed or refused: when enough new feedback says which memory was "
    "right, or a falling trend asks for it, and nothing is on trial, the pooled conditional logit is fitted "
    "to all tenants' recalls and judged on later ones. A proposal changes no weight: it is what an "
    "experiment tries. What is refused is kept too, with the gate that failed and by how much.",
    deps=["performance_trends", "recalls", FEEDBACK_EVENTS],
    group_name=LEARNING,
    kinds={"postgres", "numpy"},
    owners=OWNERS,
    tags={"somabrain/layer": "proposal"},
    metadata={"dagster/table_name": "parameter_proposals"},
    pool="parameter_proposals",
    check_specs=[
        dg.AssetCheckSpec(
            GATES_HOLD,
            asset="parameter_proposals",
            description="Every accepted proposal passes every gate when the stored numbers are held against "
            "the stored limits again, and its weights are within the bounds of the configuration that it "
            "names. No experiment is made from one that does not.",
            blocking=True,
        )
    ],
)
def parameter_proposals(
    context: dg.AssetExecutionContext, brain: dg.ResourceParam[Brain]
) -> Iterator[dg.MaterializeResult[None]]:
    """Make a proposal if one is due, and show the newest one."""
    settings = brain.settings
    made = propose(
        brain.database,
        settings.learning_configuration,
        events=settings.proposal_events,
        most=settings.fit_recalls,
    )
    with brain.database.snapshot() as connection:
        proposals = read_proposals(connection)
        counted = count_proposals(connection)
        problems = proposal_problems(connection)
        columns = read_columns_of(connection, "parameter_proposals")
    if isinstance(made, NotDue):
        context.log.info("no proposal is made: %s", made.reason)
    else:
        verdict = "accepted" if made.accepted else "refused: " + "; ".join(made.refusals)
        context.log.info("proposal %d, because of %s: %s", made.proposal_id, made.reason, verdict)
    newest = proposals[0] if proposals else None
    yield dg.MaterializeResult(
        data_version=dg.DataVersion(str(newest.proposal_id if newest else 0)),
        metadata={
            "dagster/row_count": counted,
            "dagster/column_schema": column_schema(columns),
            "made in this run": "none: " + made.reason if isinstance(made, NotDue) else made.proposal_id,
            **({} if newest is None else proposal_metadata(newest)),
            "newest proposals": proposals_table(proposals),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name=GATES_HOLD,
                passed=not problems,
                description="; ".join(problems[:3]) or None,
                metadata={"proposals": counted, "problems": len(problems)},
            )
        ],
    )


def proposal_metadata(proposal: StoredProposal) -> dict[str, dg.MetadataValue | str | int | float | bool]:
    """One proposal for a person."""
    return {
        "proposal": proposal.proposal_id,
        "accepted": proposal.accepted,
        "reason": proposal.reason,
        "label": proposal.label,
        "recalls": f"{proposal.recalls:,}, {proposal.first_recall_id} to {proposal.last_recall_id}",
        "compared with promotion": proposal.promotion_version,
        "scales": proposal.to_scales
        if proposal.to_scales == proposal.from_scales
        else f"{proposal.to_scales}, made for it; {proposal.from_scales} are in force",
        "gates": gates_table(proposal.gates),
        "fit": dg.MetadataValue.json(proposal.fit),
        "weights before and after": plot(draw_weights(proposal), "weights before and after"),
    }


def gates_table(gates: Sequence[Gate]) -> dg.TableMetadataValue:
    """Each gate with its number, its limit, and by how much it failed."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "gate": gate.name,
                    "value": "not measured" if gate.missing else f"{gate.value:.6g}",
                    "limit": f"{gate.relation} {gate.limit:.6g}",
                    "passed": gate.passed,
                    "by how much": f"{abs(gate.value - gate.limit):.6g}",
                }
            )
            for gate in gates
        ],
        schema=dg.TableSchema(
            [
                dg.TableColumn("gate", "string"),
                dg.TableColumn("value", "string"),
                dg.TableColumn("limit", "string"),
                dg.TableColumn("passed", "bool"),
                dg.TableColumn("by how much", "string", description="from the limit, on whichever side"),
            ]
        ),
    )


def proposals_table(proposals: Sequence[StoredProposal]) -> dg.TableMetadataValue:
    """Proposals, one a row."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "proposal": proposal.proposal_id,
                    "created": proposal.created_at.isoformat(timespec="seconds"),
                    "label": proposal.label,
                    "recalls": proposal.recalls,
                    "accepted": proposal.accepted,
                    "why not": "; ".join(proposal.refusals),
                    "reason": proposal.reason,
                    **dict(zip(NAMES, to_units(proposal.weights).tolist(), strict=True)),
                }
            )
            for proposal in proposals
        ],
        schema=dg.TableSchema(
            [
                dg.TableColumn("proposal", "int"),
                dg.TableColumn("created", "string"),
                dg.TableColumn("label", "string"),
                dg.TableColumn("recalls", "int"),
                dg.TableColumn("accepted", "bool"),
                dg.TableColumn("why not", "string"),
                dg.TableColumn("reason", "string"),
                *(dg.TableColumn(weight.name, "float", description=weight.symbol) for weight in WEIGHTS),
            ]
        ),
    )


def draw_weights(proposal: StoredProposal) -> Figure:
    """The weights of recall and τ, before and after, with the intervals of the fitted ones."""
    drawn = slice(0, TAU + 1)
    places = np.arange(TAU + 1)
    errors = [float(proposal.fit["standard_errors"].get(name) or 0.0) for name in NAMES[RETRIEVAL]]
    figure = Figure(figsize=(7, 3.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="#bbbbbb", linewidth=1)
    axes.plot(places - 0.12, to_units(proposal.before)[drawn], "s", color="#4477aa", label="before")
    axes.errorbar(
        places + 0.12,
        to_units(proposal.weights)[drawn],
        yerr=[INTERVAL * error for error in (*errors, 0.0)],
        fmt="o",
        color="#228833" if proposal.accepted else "#ee6677",
        capsize=3,
        label="accepted, with its 95% interval" if proposal.accepted else "refused, with its 95% interval",
    )
    axes.set_xticks(places, [f"{weight.symbol} {weight.name}" for weight in WEIGHTS[drawn]])
    axes.set_ylabel("weight")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


class Fitting(Change):
    """Whose weights are fitted: one share of the tenants, of so many; all of them by default."""

    share: int = 0
    shares: int = 1


@dg.asset(
    description="Each tenant's own weights for recall. Where enough of its feedback is new, they are fitted "
    "to it, from the promoted weights as a strong prior that gives way as feedback grows. A fit is carried "
    "out, as one change in the tenant's log, only where five-fold cross-validation on the tenant's own "
    "feedback has a one-sided 95% bound on the gain in reciprocal rank above 0. Every fit is kept, refused "
    "ones too.",
    deps=["adaptation_state", "recalls", "parameter_proposals"],
    group_name=LEARNING,
    kinds={"postgres", "numpy"},
    owners=OWNERS,
    tags={"somabrain/layer": "state"},
    metadata={"dagster/table_name": "tenant_fits"},
    pool="tenant_weights",
)
def tenant_weights(
    context: dg.AssetExecutionContext, config: Fitting, brain: dg.ResourceParam[Brain]
) -> dg.MaterializeResult[None]:
    """Fit tenants of whom enough is new, and carry out what was accepted."""
    settings = brain.settings
    configuration = settings.learning_configuration
    share = Share(config.share, config.shares)
    fitted = 0
    for one in fit_tenants(
        brain.database,
        configuration,
        events=settings.tenant_fit_events,
        most=settings.fit_recalls,
        share=share,
    ):
        if isinstance(one, TenantFit):
            fitted += 1
            verdict = "accepted" if one.accepted else "refused: " + "; ".join(one.refusals)
            context.log.info("%s, %d recalls: %s", one.tenant_id, one.recalls, verdict)
        else:
            context.log.warning("%s cannot be fitted: %s", *one)
    changed = []
    if config.change:
        with brain.database.snapshot() as connection:
            waiting = [fit for fit in read_newest_fits(connection) if fit.tenant_id in share]
        changed = apply_fits(brain.database, configuration, waiting)
        brain.snapshots.publish(changed)
    with brain.database.snapshot() as connection:
        newest = read_newest_fits(connection)
        counted = count_fits(connection)
        columns = read_columns_of(connection, "tenant_fits")
    fits = sorted(newest, key=lambda fit: fit.created_at, reverse=True)[:LISTED]
    return dg.MaterializeResult(
        data_version=dg.DataVersion(f"{counted}-{sum(fit.applied_version is not None for fit in newest)}"),
        metadata={
            "dagster/row_count": counted,
            "dagster/column_schema": column_schema(columns),
            "fitted in this run": fitted,
            "carried out in this run": len(changed),
            "accepted and not carried out": sum(
                fit.accepted and fit.applied_version is None for fit in newest
            ),
            f"newest fits (of {LISTED} tenants)" if len(newest) > LISTED else "newest fits": fits_table(fits),
            **({"gain by tenant": plot(draw_gains(fits[:DRAWN_TENANTS]), "gain by tenant")} if fits else {}),
        },
    )


def fits_table(fits: Sequence[TenantFit]) -> dg.TableMetadataValue:
    """Fits, one a row."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "tenant": fit.tenant_id,
                    "recalls": fit.recalls,
                    "up to event": fit.last_seq,
                    "accepted": fit.accepted,
                    "why not": "; ".join(fit.refusals),
                    "version": "" if fit.applied_version is None else str(fit.applied_version),
                    **dict(zip(NAMES[RETRIEVAL], to_units(fit.weights)[RETRIEVAL].tolist(), strict=True)),
                }
            )
            for fit in fits
        ],
        schema=dg.TableSchema(
            [
                dg.TableColumn("tenant", "string"),
                dg.TableColumn("recalls", "int"),
                dg.TableColumn("up to event", "int"),
                dg.TableColumn("accepted", "bool"),
                dg.TableColumn("why not", "string"),
                dg.TableColumn("version", "string", description="of the weights that carried it out"),
                *(
                    dg.TableColumn(weight.name, "float", description=weight.symbol)
                    for weight in WEIGHTS[RETRIEVAL]
                ),
            ]
        ),
    )


def draw_gains(fits: Sequence[TenantFit]) -> Figure:
    """The gain in reciprocal rank of each tenant's fit, cross-validated, down to its one-sided bound."""
    measured = sorted((fit for fit in fits if not isnan(fit.lower)), key=lambda fit: fit.lower)
    figure = Figure(figsize=(7, 0.9 + 0.22 * max(len(measured), 1)), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="#bbbbbb", linewidth=1)
    for place, fit in enumerate(measured):
        color = "#228833" if fit.accepted else "#ee6677"
        axes.plot([fit.lower, fit.gain], [place, place], color=color, linewidth=1.4)
        axes.plot(fit.gain, place, "o", color=color, markersize=4)
        axes.plot(fit.lower, place, "|", color=color, markersize=7)
    axes.set_yticks(range(len(measured)), [fit.tenant_id for fit in measured], fontsize=7)
    axes.set_xlabel("gain in reciprocal rank over the prior, and its one-sided 95% bound")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
