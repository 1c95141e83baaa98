"""What the learning chain did, told as it happens: from the store, with the runs that did it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.table import Table

from somabrain_dagster.learning.gates import Gate
from somabrain_dagster.learning.weights import WEIGHTS, Nanos, to_units
from somabrain_dagster.store.canaries import Canary, list_canaries, members_of, read_look
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.experiments import Experiment, list_experiments, read_analysis
from somabrain_dagster.store.promotions import Promotion, read_promotions
from somabrain_dagster.store.proposals import StoredProposal, read_proposals
from somabrain_dagster.ticks import Ran
from somabrain_dagster.traffic import Enacted

COLLECTING, EXPERIMENT, CANARY = "collecting", "experiment", "canary"
BETWEEN, AFTERWARDS = "between trials", "after the promotion"


@dataclass
class Outcome:
    """The sessions of one phase and arm so far."""

    rewards: list[float] = field(default_factory=list)
    recalls: int = 0


class Story:
    """The chain's steps, each told once.

    Attributes:
        ending: what the chain came to, in words; None while it goes on.
        promoted: it came to a promotion.
    """

    def __init__(self, database: Database, console: Console) -> None:
        """Know of nothing yet.

        Args:
            database: the brain's.
            console: where it is told.
        """
        self.ending: str | None = None
        self.promoted = False
        self._database, self._console = database, console
        self._outcomes: dict[tuple[str, str], Outcome] = {}
        self._told: set[str] = set()
        self._experiment: Experiment | None = None
        self._canary: Canary | None = None

    def title(self, text: str) -> None:
        """A heading."""
        self._console.print(f"\n[bold]{text}[/]", highlight=False)

    def say(self, text: str) -> None:
        """A line, or several."""
        self._console.print(text, highlight=False, markup=False)

    @property
    def phase(self) -> str:
        """What sessions are part of now."""
        if self._canary is not None and self._canary.status == "running":
            return CANARY
        running = self._experiment is not None and self._experiment.status == "running"
        return EXPERIMENT if running else BETWEEN

    @property
    def waits_for_the_clock(self) -> bool:
        """Whether time alone brings the chain on."""
        return self.phase == CANARY

    def enacted(self, phase: str, sessions: Iterable[Enacted]) -> None:
        """Count sessions of a phase, by what they saw."""
        for one in sessions:
            outcome = self._outcomes.setdefault((phase, one.arm or ""), Outcome())
            outcome.rewards.append(one.reward)
            outcome.recalls += one.recalls

    def top1(self, phase: str) -> float:
        """The mean of a phase's sessions: how often the right memory came first."""
        held = (outcome.rewards for (name, _), outcome in self._outcomes.items() if name == phase)
        return float(np.mean([reward for rewards in held for reward in rewards]))

    def tell(self, runs: Sequence[Ran]) -> None:
        """What some runs brought about."""
        if not runs:
            return
        with self._database.snapshot() as connection:
            proposals = read_proposals(connection)[::-1]
            experiments, canaries = list_experiments(connection), list_canaries(connection)
            promotions = read_promotions(connection)
        self._experiment = experiments[-1] if experiments else None
        self._canary = canaries[-1] if canaries else None
        for proposal in proposals:
            if self._new(f"proposal {proposal.proposal_id}"):
                self._tell_proposal(proposal, runs)
        for experiment in experiments:
            if self._new(f"{experiment.experiment_id} began"):
                self._tell_beginning(experiment, runs)
            if experiment.ended_at is not None and self._new(f"{experiment.experiment_id} ended"):
                self._tell_experiment(experiment, runs)
        for canary in canaries:
            if self._new(f"canary {canary.canary_id}"):
                self._tell_canary(canary, runs)
            for look in canary.looks:
                if self._new(f"canary {canary.canary_id} look {look}"):
                    self._tell_look(canary, look, runs)
        for promotion in promotions:
            if self._new(f"promotion {promotion.version}"):
                self._tell_promotion(promotion, runs)
        self.promoted = bool(promotions)
        self.ending = self.ending or self._ending(proposals, experiments, canaries)

    def _new(self, what: str) -> bool:
        """Whether it was not told before."""
        new = what not in self._told
        self._told.add(what)
        return new

    def _ending(
        self,
        proposals: Sequence[StoredProposal],
        experiments: Sequence[Experiment],
        canaries: Sequence[Canary],
    ) -> str | None:
        """What the chain came to; what it began since, as it would go on by itself, does not count."""
        if self.promoted:
            return "PROMOTED"
        for canary in canaries:
            if canary.status != "running":
                action = "HOLD" if canary.status == "held" else "ROLLBACK"
                return f"{action}: canary {canary.canary_id} is over, {canary.end_reason}"
        for experiment in experiments:
            if experiment.status == "stopped":
                return f"REFUSED: {experiment.experiment_id} was stopped, {experiment.end_reason}"
            if experiment.status == "completed":
                with self._database.snapshot() as connection:
                    analysed = read_analysis(connection, experiment.experiment_id)
                if analysed.analysis.promoted is None:
                    return f"REFUSED: {experiment.experiment_id} found no arm that is better"
        if proposals and not any(proposal.accepted for proposal in proposals):
            return f"REFUSED: proposal {proposals[-1].proposal_id} did not pass its gates"
        return None

    def _tell_proposal(self, proposal: StoredProposal, runs: Sequence[Ran]) -> None:
        verdict = "accepted" if proposal.accepted else "refused"
        self._step(f"proposal {proposal.proposal_id} is {verdict}", "parameter_proposals", runs)
        self.say(f"  {proposal.reason}; fitted to {proposal.recalls:,} labelled recalls")
        self._tell_gates(proposal.gates)
        self._tell_weights(proposal.before, proposal.weights)

    def _tell_beginning(self, experiment: Experiment, runs: Sequence[Ran]) -> None:
        self._step(f"experiment {experiment.experiment_id} begins", "experiment_results", runs)
        arms = " against ".join(arm.name for arm in experiment.plan.arms)
        self.say(f"  {arms}, {experiment.plan.size} sessions each, looked at once")

    def _tell_experiment(self, experiment: Experiment, runs: Sequence[Ran]) -> None:
        self._step(
            f"experiment {experiment.experiment_id} is {experiment.status}", "experiment_results", runs
        )
        if experiment.status == "stopped":
            self.say(f"  {experiment.end_reason}")
            return
        with self._database.snapshot() as connection:
            analysed = read_analysis(connection, experiment.experiment_id)
        table = Table("arm", box=None, pad_edge=False)
        for heading in ("sessions", "mean", "difference, 95%", "d, 95%", "p", "promotable"):
            table.add_column(heading, justify="right")
        findings = {finding.arm: finding for finding in analysed.analysis.findings}
        for arm, moments in analysed.outcomes.items():
            row = [arm, f"{moments.n}", f"{moments.mean:.4f}"]
            if arm in findings and (found := findings[arm].comparison) is not None:
                row += [
                    f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]",
                    f"{found.d:.3f} [{found.d_low:.3f}, {found.d_high:.3f}]",
                    f"{findings[arm].p:.2g}",
                    "yes" if findings[arm].promotable else "no",
                ]
            table.add_row(*row)
        self._console.print(table)
        self.say(
            f"    sizes of the arms: p {analysed.analysis.sample_ratio:.3f}; LORD++ would ask for "
            f"p < {analysed.online_level:.2g} of test {analysed.test}"
        )
        for finding in analysed.analysis.findings:
            self._tell_gates(finding.gates)

    def _tell_canary(self, canary: Canary, runs: Sequence[Ran]) -> None:
        self._step(f"canary {canary.canary_id} of {canary.arm} begins", "canary_rollout", runs)
        with self._database.snapshot() as connection:
            members, others = members_of(connection, canary.canary_id)
        self.say(f"  {len(members)} tenants see the new weights, {len(others)} do not")

    def _tell_look(self, canary: Canary, look: int, runs: Sequence[Ran]) -> None:
        with self._database.snapshot() as connection:
            looked = read_look(connection, canary, look)
        minutes = canary.rule.hours[look] * 60
        name = f"look {look + 1} at canary {canary.canary_id} after {minutes:.3g} min: {looked.action}"
        self._step(name, "canary_rollout", runs)
        self._tell_gates(looked.decision.gates)

    def _tell_promotion(self, promotion: Promotion, runs: Sequence[Ran]) -> None:
        self._step(f"promotion {promotion.version}", "promoted_weights", runs)
        self._tell_weights(promotion.before, promotion.weights)

    def _step(self, what: str, asset: str, runs: Sequence[Ran]) -> None:
        """A step, and the run that did it."""
        run = next((run for run in runs if asset in run.materialised), None)
        self.say(f"• {what}" + ("" if run is None else f"    run {run.run_id} of {run.job}"))

    def _tell_gates(self, gates: Iterable[Gate]) -> None:
        for gate in gates:
            self.say(f"    {'✓' if gate.passed else '✗'} {gate}")

    def _tell_weights(self, before: Nanos, after: Nanos) -> None:
        changed = (
            f"{weight.symbol} {weight.name} {old:.3f} → {new:.3f}"
            for weight, old, new in zip(WEIGHTS, to_units(before), to_units(after), strict=True)
            if old != new
        )
        self.say(f"    {', '.join(changed)}")

    def end(self, left: int) -> None:
        """What it all came to.

        Args:
            left: sessions that were not played.
        """
        if self.ending is None:
            self.ending = f"HOLD: the sessions are over ({self.phase}); too little came to decide"
        self.title("What it came to")
        self.say(f"{self.ending}; {left} sessions were not needed" if left else self.ending)
        table = Table("sessions", "saw", box=None, pad_edge=False)
        for heading in ("sessions", "recalls", "top-1"):
            table.add_column(heading, justify="right")
        for (phase, arm), outcome in self._outcomes.items():
            mean = float(np.mean(outcome.rewards))
            table.add_row(
                phase,
                arm or "their own weights",
                f"{len(outcome.rewards):,}",
                f"{outcome.recalls:,}",
                f"{mean:.3f}",
            )
        self._console.print(table)
