"""From a canary to a promotion: one transaction that reads every gate again, and enforces it.

Checks in the asset graph stop only the runs that contain them. So nothing here trusts what somebody
concluded: the experiment is analysed again from its sessions, the canary's last look decided again from its
numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.store.adaptation import AdaptationState
from somabrain_dagster.store.canaries import (
    Canary,
    ForgedLook,
    NothingToPromote,
    decision_json,
    end_canary,
    read_canary,
    read_look,
    winner_of,
)
from somabrain_dagster.store.database import Connection
from somabrain_dagster.store.experiments import (
    Experiment,
    Forged,
    NotAnalysed,
    analysis_json,
    read_analysis,
    read_experiment,
)
from somabrain_dagster.store.promotions import (
    Promotion,
    append_promotion,
    in_scales,
    lock_promotions,
    promoted,
    promoted_scales,
)
from somabrain_dagster.store.proposals import read_proposal
from somabrain_dagster.store.trials import lock_trials


class PromotionRefused(RuntimeError):
    """A gate that does not hold; the message names each, and by how much it failed."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """What a canary would promote, and whether it may.

    Attributes:
        refusals: in words, every condition that is not met; none where it may be promoted.
        grounds: what speaks for it, as JSON: every gate with its number.
    """

    canary: Canary
    experiment: Experiment
    refusals: tuple[str, ...]
    grounds: Mapping[str, Any]


def read_candidate(connection: Connection, canary_id: int, configuration: LearningConfiguration) -> Candidate:
    """Judge anew whether what a canary tries may be promoted now.

    Raises:
        UnknownCanary: there is no such canary.
    """
    canary = read_canary(connection, canary_id)
    experiment = read_experiment(connection, canary.experiment_id)
    refusals: list[str] = []
    grounds: dict[str, Any] = {}

    if canary.status != "running":
        refusals.append(f"the canary does not run: it is {canary.status}")
    in_force = promoted(connection, configuration).version
    if in_force != experiment.promotion_version:
        refusals.append(
            f"the experiment compared with promotion {experiment.promotion_version}, and promotion "
            f"{in_force} is in force"
        )
    try:
        analysed = read_analysis(connection, experiment.experiment_id)
        arm = winner_of(analysed)
    except (NotAnalysed, NothingToPromote, Forged) as refusal:
        refusals.append(str(refusal))
    else:
        grounds["experiment"] = {
            "rule": vars(experiment.plan.rule),
            **analysis_json(analysed.outcomes, analysed.analysis),
        }
        tried = (
            arm == canary.arm
            and np.array_equal(experiment.shift_of(canary.arm), canary.shift)
            and experiment.scale_version == canary.scale_version
        )
        if not tried:
            refusals.append(f"the canary did not try the arm {arm!r} that the experiment found better")

    if not canary.looks:
        refusals.append("the canary was not looked at yet")
    else:
        try:
            looked = read_look(connection, canary, canary.looks[-1])
        except ForgedLook as refusal:
            refusals.append(str(refusal))
        else:
            grounds["canary"] = {
                "look": looked.look,
                "rule": vars(canary.rule),
                **decision_json(looked.decision),
            }
            if looked.action != "PROMOTE":
                refusals.append(
                    f"look {looked.look} at the canary says {looked.action}: "
                    + "; ".join(looked.decision.reasons)
                )
    refusals += _proposal_refusals(connection, experiment)
    return Candidate(canary, experiment, tuple(refusals), grounds)


def _proposal_refusals(connection: Connection, experiment: Experiment) -> list[str]:
    if experiment.proposal_id is None:
        return []
    proposal = read_proposal(connection, experiment.proposal_id)
    refused = list(proposal.refusals)
    if not proposal.accepted and not refused:
        refused.append("it was not accepted")
    tried = (experiment.shifts[1:] == proposal.shift).all(axis=1).any()
    if experiment.scale_version != proposal.to_scales or not tried:
        refused.append("the experiment did not try its weights")
    return [f"proposal {experiment.proposal_id}: {reason}" for reason in refused]


def promote_canary(
    connection: Connection, canary_id: int, configuration: LearningConfiguration, actor: str
) -> tuple[Promotion, list[AdaptationState]]:
    """Promote what a canary tried: every gate, every tenant's shift, the pointer and the audit, or nothing.

    Args:
        connection: an operator's transaction; all is done in it.
        canary_id: that runs, and whose last look says PROMOTE.
        configuration: the global learning configuration.
        actor: who asks, for the audit trail.

    Returns:
        The promotion and the new states: publish them when the transaction is committed.

    Raises:
        UnknownCanary: there is no such canary.
        PromotionRefused: a gate does not hold. Nothing was changed.
    """
    lock_trials(connection)
    lock_promotions(connection)
    candidate = read_candidate(connection, canary_id, configuration)
    if candidate.refusals:
        raise PromotionRefused(f"canary {canary_id} cannot be promoted: " + "; ".join(candidate.refusals))
    canary = candidate.canary
    last = promoted(connection, configuration)
    scales_now = promoted_scales(connection)
    scales = scales_now if canary.scale_version is None else canary.scale_version
    before = in_scales(connection, configuration, last, scales)
    after = np.clip(before + canary.shift, configuration.low_nanos, configuration.high_nanos)
    promotion, states = append_promotion(
        connection,
        before,
        after,
        configuration,
        actor,
        candidate.grounds,
        experiment_id=canary.experiment_id,
        canary_id=canary_id,
        scale_version=None if scales == scales_now else scales,
    )
    end_canary(connection, canary, "promoted", actor, f"promotion {promotion.version}")
    return promotion, states
