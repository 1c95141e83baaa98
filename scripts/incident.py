"""An incident, from its first event to its end: `python scripts/incident.py`.

A tenant of the Chit-Chat data learns from honest feedback on its real recalls. Then somebody with a key of
its own says the opposite of what is so, until an alert fires. The runbook's steps, taken from its blocks and
run as they are written, find the source, shut it out and roll the tenant back; honest feedback goes on, and
the alert clears. The service, Postgres, Valkey and Prometheus with the rules that ship are real ones in a
home of their own, and no time is shortened: the rules' own durations pass.

Writes reports/incident.json and docs/ops/INCIDENT.md. Exit 1 if any part of it did not go so.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from scripts.documents import ADDRESS, ROOT, Step, run_steps, section
from scripts.killing import directory
from somabrain_dagster.client import Refused, SomaBrain
from somabrain_dagster.embedded.prometheus import Prometheus, prometheus_beside, prometheus_tools
from somabrain_dagster.learning.weights import NAMES, TAU, WEIGHTS
from somabrain_dagster.memory.embedders import embedder_of
from somabrain_dagster.memory.memories import Memories
from somabrain_dagster.operations import provenance, servers
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.operations.reenactment import Kept, Story, Turn, judged, keep, question, stories
from somabrain_dagster.serving.contracts import StateAnswer
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.audit import SYSTEM
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import Helpful
from somabrain_dagster.store.keys import create_key
from somabrain_dagster.traffic import service_beside

ALERT = "WeightsPinnedWhileRewardFalls"
RULES = ROOT / "deploy" / "prometheus" / "rules"
RUNBOOK = ROOT / "docs" / "ops" / "LEARNING_RUNBOOK.md"
PAGE = ROOT / "docs" / "ops" / "INCIDENT.md"
REPORT = ROOT / "reports" / "incident.json"

HONEST, ADVERSARY = "assistant", "agent-7"
MEMORIES = 700
HONEST_EVENTS = 60
MOST_ADVERSARIAL = 35
"""With the honest ones fewer than the 120 that the guard needs: nobody but a person is going to act."""
MOST_AFTERWARDS = 24
BETWEEN_HONEST, BETWEEN_LIES = 2.5, 0.5
"""Seconds. The alert holds rewards against their mean of the last day, so there must be some past first."""
FIRES_SECONDS = 420.0
CLEARS_SECONDS = 420.0


INTRODUCTION = """\
`make incident` plays it again and writes this page; a test plays it too. A tenant of the Chit-Chat data
learns from honest feedback on its real recalls. Then somebody with a key of its own rates every recall −1
and blames the memory that was the right one. The service, Postgres, Valkey and Prometheus with the rules
that ship are real; no duration of a rule was changed; Prometheus looks every second, in place of every
four. What is run are the blocks of [the runbook](LEARNING_RUNBOOK.md) as they stand there, with the
tenant of the alert in place of `acme` and the address of this service. The tenant has fewer than the 120
rewards that the guard needs before it rolls back by itself.
"""


@dataclass(frozen=True)
class Moment:
    """Something that happened.

    Attributes:
        seconds: since the first event.
        what: in words.
    """

    seconds: float
    what: str


@dataclass(frozen=True)
class Incident:
    """All of it.

    Attributes:
        tenant_id: whose it was.
        moments: in order.
        weights: by name, at the moments that are named.
        steps: of the runbook, as they were run.
        holds: what had to be so, and whether it was.
    """

    tenant_id: str
    moments: list[Moment]
    weights: dict[str, dict[str, float]]
    steps: list[Step]
    holds: dict[str, bool]


class Agent:
    """Somebody with a key who asks and rates."""

    def __init__(self, brain: SomaBrain, told: Story, kept: Kept, turns: Iterator[Turn]) -> None:
        """Ask the questions of a story.

        Args:
            brain: the service, by the agent's own key.
            told: the story.
            kept: its memories, as they are in the tenant's memory.
            turns: what is asked next; shared with other agents.
        """
        self._brain, self._told, self._kept, self._turns = brain, told, kept, turns

    def rate(self, *, honest: bool) -> None:
        """Ask one question and rate what came, by what was really answered or by its opposite."""
        for turn in self._turns:
            asked, right = self._told.memories[turn.question], self._kept.ids[turn.answer]
            recalled = self._brain.recall(**msgspec.to_builtins(question(asked)))
            hits = recalled["hits"]
            first = bool(hits) and hits[0]["memory_id"] == right
            said = msgspec.structs.replace(judged(asked, recalled["recall_id"], right, first), source=HONEST)
            if not honest:
                said = msgspec.structs.replace(
                    said, utility=-1.0, helpful=(Helpful(right, -1.0),), source=ADVERSARY
                )
            try:
                self._brain.feedback(**msgspec.to_builtins(said))
            except Refused as refused:
                if not refused.problem.type.endswith("unknown_candidate"):
                    raise
            else:  # the answer was no candidate: nothing can be named, so the next question
                return
        raise AssertionError("the story has no question left")

    def state(self) -> StateAnswer:
        """The tenant's state."""
        return self._brain.state()


def fires(prometheus: Prometheus, tenant_id: str) -> bool:
    """Whether the alert fires for the tenant."""
    return any(
        alert["alertname"] == ALERT and alert.get("tenant_id") == tenant_id for alert in prometheus.alerts()
    )


def play(base: Path, tell: Callable[[str], None] = print) -> Incident:
    """Play it in a directory that servers can reach.

    Args:
        base: of its own.
        tell: is told of each moment.
    """
    settings = Settings(home=base / "home")
    running = servers.start(settings)
    try:
        with Database(running.database_url) as database:
            told = stories(read_chitchat(1), MEMORIES)[0]
            with database.as_operator() as connection:
                create_tenants(connection, [told.tenant_id], settings.learning_configuration)
                honest_key, adversary_key = (
                    create_key(connection, told.tenant_id, "tenant", "incident") for _ in range(2)
                )
                operator_key = create_key(connection, SYSTEM, "operator", "incident")
            kept = keep(Memories(database, embedder_of(settings), settings), told)
        with (
            service_beside(settings, running) as url,
            SomaBrain(url, honest_key) as ours,
            SomaBrain(url, adversary_key) as theirs,
            prometheus_beside(
                base / "prometheus",
                prometheus_tools(settings.home),
                service_url=url,
                key=operator_key,
                rules=sorted(RULES.glob("*.yml")),
            ) as prometheus,
        ):
            turns = iter(told.turns)
            return _acts(
                prometheus,
                Agent(ours, told, kept, turns),
                Agent(theirs, told, kept, turns),
                told.tenant_id,
                url,
                settings,
                tell,
            )
    finally:
        servers.stop(settings)


def _acts(
    prometheus: Prometheus,
    assistant: Agent,
    adversary: Agent,
    tenant_id: str,
    url: str,
    settings: Settings,
    tell: Callable[[str], None],
) -> Incident:
    began = time.monotonic()
    moments: list[Moment] = []
    weights: dict[str, dict[str, float]] = {}

    def note(what: str) -> None:
        moments.append(Moment(round(time.monotonic() - began, 1), what))
        tell(f"{moments[-1].seconds:7.1f} s  {what}")

    def weigh(when: str) -> StateAnswer:
        state = assistant.state()
        weights[when] = state.weights
        return state

    weigh("at the start")
    note("honest feedback begins")
    for _ in range(HONEST_EVENTS):
        assistant.rate(honest=True)
        time.sleep(BETWEEN_HONEST)
    honest = weigh("after honest feedback")
    quiet = not fires(prometheus, tenant_id)
    note(f"{HONEST_EVENTS} honest events have landed, version {honest.version}; no alert fires")

    deadline = time.monotonic() + FIRES_SECONDS
    lies = 0
    while not (fired := fires(prometheus, tenant_id)) and time.monotonic() < deadline:
        if lies < MOST_ADVERSARIAL:
            adversary.rate(honest=False)
            lies += 1
            if lies == 1:
                note(f"`{ADVERSARY}` begins to say the opposite")
            if lies == MOST_ADVERSARIAL:
                note(f"{lies} adversarial events have landed")
        time.sleep(BETWEEN_LIES)
    misled = weigh("when the alert fired")
    note(f"{ALERT} fires for {tenant_id}, version {misled.version}" if fired else "no alert fired in time")

    steps = list(run_steps(*_runbook(tenant_id, url, settings)))
    for step in steps:
        tell(f"           runbook: {step.heading}, {step.seconds:.1f} s")
    restored = weigh("after the runbook")
    note(f"the runbook's {len(steps)} blocks were run: version {restored.version}")

    try:
        adversary.rate(honest=False)
        shut_out = False
    except Refused as refused:
        shut_out = refused.problem.status == 401
    note("the adversary is refused with 401" if shut_out else "the adversary still gets in")

    deadline = time.monotonic() + CLEARS_SECONDS
    afterwards = 0
    while (firing := fires(prometheus, tenant_id)) and time.monotonic() < deadline:
        if afterwards < MOST_AFTERWARDS:
            assistant.rate(honest=True)
            afterwards += 1
        time.sleep(BETWEEN_HONEST)
    note(f"the alert has cleared after {afterwards} honest events" if not firing else "it did not clear")
    weigh("at the end")

    outputs = "\n".join(step.output for step in steps)
    but_tau = [place for place in range(len(NAMES)) if place != TAU]
    return Incident(
        tenant_id,
        moments,
        weights,
        steps,
        {
            "no alert fired while feedback was honest": quiet,
            "the alert fired": fired,
            "every step of the runbook went through": all(step.code == 0 for step in steps),
            "it named the adversary": f"the source is {ADVERSARY}" in outputs,
            "it has the weights of before again, to the nano-unit (τ apart, which recalls steer)": all(
                restored.nanos[place] == honest.nanos[place] for place in but_tau
            ),
            "they had been other ones": any(misled.nanos[place] != honest.nanos[place] for place in but_tau),
            "the log replays": "✓ replay equals live" in outputs and "not so" not in outputs,
            "the adversary is shut out": shut_out,
            "the alert cleared": not firing,
        },
    )


def _runbook(
    tenant_id: str, url: str, settings: Settings
) -> tuple[str, Path, dict[str, str], dict[str, str]]:
    """The parts of the runbook that the alert leads to, where to run them, as whom, and what is so here."""
    page = RUNBOOK.read_text()
    parts = (
        f"{'#' * 3} {heading}\n{section(page, heading)}"
        for heading in ("Before anything", "A tenant's weights are wrong")
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SOMABRAIN_")}
    return (
        "\n".join(parts),
        settings.home.parent / "project",
        {**kept, "SOMABRAIN_HOME": str(settings.home)},
        {ADDRESS: url, "TENANT=acme": f"TENANT={tenant_id}"},
    )


def transcript(incident: Incident) -> str:
    """The document."""
    names = list(incident.weights)
    table = [
        f"| | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
        *(
            f"| {weight.symbol} | "
            + " | ".join(f"{incident.weights[when][weight.name]:.4f}" for when in names)
            + " |"
            for weight in WEIGHTS
        ),
    ]
    steps = [
        f"### {step.heading}\n\n{fenced('console', step.command)}\n\n{fenced('text', shortened(step.output))}"
        for step in incident.steps
    ]
    return "\n".join(
        [
            "# An incident, played",
            "",
            INTRODUCTION,
            f"Played {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, with the tenant `{incident.tenant_id}`.",
            "",
            "| after | |",
            "|---|---|",
            *(f"| {moment.seconds:.0f} s | {moment.what} |" for moment in incident.moments),
            "",
            "## The weights",
            "",
            *table,
            "",
            "## What had to hold",
            "",
            *(f"- {'✓' if held else '✗'} {claim}" for claim, held in incident.holds.items()),
            "",
            "## The runbook's steps, as they were run",
            "",
            "\n\n".join(steps),
            "",
        ]
    )


def fenced(language: str, text: str) -> str:
    """A block of a document."""
    return f"```{language}\n{text.rstrip()}\n```"


def shortened(output: str, lines: int = 30, width: int = 160) -> str:
    """What was printed, without what is too long to read."""
    kept = [line.rstrip() for line in output.strip().splitlines()]
    more = [f"… {len(kept) - lines} more lines"] if len(kept) > lines else []
    return "\n".join(line if len(line) <= width else f"{line[: width - 1]}…" for line in kept[:lines] + more)


def main() -> None:
    """Play it, print what had to hold, write both accounts, and exit 1 if anything did not."""
    with directory() as base:
        incident = play(base, lambda line: print(line, flush=True))
    for claim, held in incident.holds.items():
        print(f"{'✓' if held else '✗'} {claim}")
    REPORT.parent.mkdir(exist_ok=True)
    report = {"commit": provenance.commit(), "machine": provenance.machine(), **asdict(incident)}
    REPORT.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    PAGE.write_text(transcript(incident))
    print(f"written to {REPORT} and {PAGE}")
    if not all(incident.holds.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
