"""Recall with one weight changed, on real conversations: what docs/LEARNING_TUNING.md shows.

The memories are what one person of the Chit-Chat data sent and received, the questions are later messages.
For each weight the first question is taken whose answer the change alters: the first hit for a weight of
recall, the context for a weight of utility. Each recall is a real one, in a database of its own; the change
is an overlay, as an arm of an experiment is.

Prints the tables, and with --write puts them into the document, between its marks. Usage: scripts/tuning.py
"""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import msgspec
import numpy as np

from scripts.documents import with_measured
from somabrain_dagster.cli.console import explained
from somabrain_dagster.learning.features import FEATURES
from somabrain_dagster.learning.utility import Room
from somabrain_dagster.learning.weights import NAMES, NANO, POSITION, WEIGHTS, Weight
from somabrain_dagster.memory.context import Context, assemble_context
from somabrain_dagster.memory.embedders import embedder_of
from somabrain_dagster.memory.memories import Memories
from somabrain_dagster.memory.query import Query
from somabrain_dagster.memory.recall import Hit, Recall
from somabrain_dagster.operations import servers
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.operations.reenactment import Story, keep, question, stories
from somabrain_dagster.operations.scratch import scratch_database
from somabrain_dagster.operations.tokens import MiniLMTokens
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.memories import Memory
from somabrain_dagster.store.trials import Overlay

PAGE = Path(__file__).parent.parent / "docs" / "LEARNING_TUNING.md"
PERSON = 3
"""Which of the people with the most conversations."""
MEMORIES = 600
ASKED = 150
"""The last so many questions of the story are tried."""
SHOWN = 3
WIDTH = 76
ROOM = Room(budget=120, capacity=8)
DRAWS = 200
SYMBOLS = {feature.name: feature.symbol for feature in FEATURES}
CHANGED = {"alpha": 3.0, "beta": 1.0, "gamma": 1.0, "delta": 2.0, "epsilon": 2.0, "zeta": 2.0}
"""What each weight of a feature is set to."""
UTILITY = {"lambda": 0.2, "mu": 0.3, "nu": 0.3}
"""What each weight of utility is set to."""
TEMPERATURES = (0.4, 0.7, 1.2)


@dataclass(frozen=True)
class Stage:
    """A person's memories, and what is asked of them."""

    database: Database
    memories: Memories
    asked: Sequence[Query]

    def recall(self, query: Query, **weights: float) -> Recall:
        """A recall with these weights in place of the tenant's."""
        return self.memories.recall(query, overlay(weights))

    def context(self, query: Query, **weights: float) -> Context:
        """A context with these weights in place of the tenant's."""
        return assemble_context(
            self.database, self.memories, MiniLMTokens(), query, ROOM, overlay=overlay(weights)
        )


def overlay(weights: dict[str, float]) -> Overlay:
    """Weights in place of the starting ones, as the shift of an arm."""
    shift = np.zeros(len(NAMES), dtype=np.int64)
    for name, value in weights.items():
        shift[POSITION[name]] = round((value - WEIGHTS[POSITION[name]].start) * NANO)
    return Overlay("tuning", shift)


def entities(text: str) -> list[str]:
    """The words with a capital inside of a sentence: what an agent would give as names."""
    return sorted(set(re.findall(r"(?<=[a-z,] )[A-Z][a-z]{3,}", text)))


def named(memory: Memory) -> Memory:
    """A memory with the names in it as its payload's entities."""
    return msgspec.structs.replace(memory, payload={"entities": entities(memory.text)})


def staged(settings: Settings, database: Database) -> Stage:
    """Remember the person's story; ask of what came later."""
    told = stories(read_chitchat(PERSON), MEMORIES)[-1]
    told = replace(told, memories=tuple(named(memory) for memory in told.memories))
    with database.as_operator() as connection:
        create_tenants(connection, [told.tenant_id], settings.learning_configuration)
    memories = Memories(database, embedder_of(settings), settings, generator=np.random.default_rng(2018))
    keep(memories, told)
    return Stage(database, memories, questions(told))


def questions(told: Story) -> list[Query]:
    """The last questions of a story that have words enough to be about something."""
    chosen = [told.memories[turn.question] for turn in told.turns[-ASKED:]]
    return [question(memory) for memory in chosen if 4 <= len(memory.text.split()) <= 25]


def first_where(stage: Stage, differs: Callable[[Query], bool]) -> Query:
    """The first question of which something is so."""
    found = next((query for query in stage.asked if differs(query)), None)
    if found is None:
        sys.exit("no question shows the difference: ask more of them")
    return found


def short(text: str) -> str:
    """A text that fits into a cell of a table."""
    flat = re.sub(r"[|`<>*_\[\]]", "", " ".join(text.split()))
    return flat if len(flat) <= WIDTH else f"{flat[: WIDTH - 1].rstrip()}…"


def age(recall: Recall, hit: Hit) -> str:
    """How long ago something was said, in one unit."""
    seconds = (recall.as_of - hit.occurred_at).total_seconds()
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def parts(hit: Hit) -> str:
    """What a score consists of, without what adds nothing."""
    shown = [
        f"{SYMBOLS[name]} {value:.2f}" for name, value in hit.contributions.items() if abs(value) >= 0.005
    ]
    return (" + ".join(shown) or "0").replace("-", "−")


def hits_of(query: Query, recall: Recall) -> str:
    """The first hits as a table."""
    lines = ["| | what came to mind | said by, before | score | p |", "|---|---|---|---|---|"]
    for place, hit in enumerate(recall.hits[:SHOWN], 1):
        who = "the asker" if hit.speaker == query.asker else "somebody else"
        lines.append(
            f"| {place} | {short(hit.text)} | {who}, {age(recall, hit)} | {hit.score:.2f} = {parts(hit)} "
            f"| {hit.probability:.2f} |"
        )
    return "\n".join(lines)


def asked(query: Query) -> str:
    """The question as a line."""
    return f"Asked: *{short(query.text)}*"


def of_feature(stage: Stage, weight: Weight) -> str:
    """What a weight of recall does: the first hits before and after."""
    value = CHANGED[weight.name]

    def differs(query: Query) -> bool:
        before, after = stage.recall(query), stage.recall(query, **{weight.name: value})
        return before.hits[0].memory_id != after.hits[0].memory_id

    query = first_where(stage, differs)
    return "\n\n".join(
        (
            asked(query),
            f"With {weight.symbol} = {weight.start:g}, its start:",
            hits_of(query, stage.recall(query)),
            f"With {weight.symbol} = {value:g}:",
            hits_of(query, stage.recall(query, **{weight.name: value})),
        )
    )


def of_temperature(stage: Stage) -> str:
    """What τ does: how likely the first hit is, and how many different ones come first in sampled recalls."""
    query = stage.asked[0]
    lines = [
        asked(query),
        "",
        f"| τ | p of the best | effective candidates | different first hits in {DRAWS} sampled recalls |",
        "|---|---|---|---|",
    ]
    sampled = msgspec.structs.replace(query, mode="sample", k=1)
    for tau in TEMPERATURES:
        recall = stage.recall(msgspec.structs.replace(query, k=100), tau=tau)
        p = np.array([hit.probability for hit in recall.hits])
        effective = float(np.exp(-(p * np.log(p)).sum()))
        firsts = {stage.recall(sampled, tau=tau).hits[0].memory_id for _ in range(DRAWS)}
        lines.append(f"| {tau:g} | {p.max():.2f} | {effective:.1f} of {recall.candidates} | {len(firsts)} |")
    return "\n".join(lines)


def of_utility(stage: Stage) -> str:
    """What λ, μ and ν do: the context of one question, and its terms."""
    changes: list[dict[str, float]] = [{}, *({name: value} for name, value in UTILITY.items())]

    def differs(query: Query) -> bool:
        return len({len(stage.context(query, **weights).memories) for weights in changes}) > 2

    query = first_where(stage, differs)
    lines = [
        asked(query),
        "",
        "| | memories | tokens | gain | length penalty | memory penalty | U |",
        "|---|---|---|---|---|---|---|",
    ]
    for weights in changes:
        context = stage.context(query, **weights)
        said = ", ".join(f"{WEIGHTS[POSITION[name]].symbol} = {value:g}" for name, value in weights.items())
        held = context.terms
        lines.append(
            f"| {said or 'the start'} | {len(context.memories)} | {context.tokens} | {held.context_gain:.2f} "
            f"| {held.length_penalty:.2f} | {held.memory_penalty:.2f} | {context.utility:.2f} |"
        )
    return "\n".join(lines)


def shown(stage: Stage) -> dict[str, str]:
    """Every part of the document that is measured, by its mark."""
    return {
        **{weight.name: of_feature(stage, weight) for weight in WEIGHTS if weight.name in CHANGED},
        "tau": of_temperature(stage),
        "utility": of_utility(stage),
    }


def measure(settings: Settings) -> dict[str, str]:
    """Every measured part, from recalls in a database of its own."""
    with scratch_database(settings, "tuning") as database:
        return shown(staged(settings, database))


@click.command()
@click.option("--write", is_flag=True, help="Put the tables into the document.")
@explained
def main(write: bool) -> None:
    """Show what each weight does to real recalls."""
    settings = Settings(tau_adaptation=False)
    ran_before = {server.name for server in servers.status(settings) if server.running}
    try:
        measured = measure(settings)
    finally:
        servers.stop(settings, leaving=ran_before)
    for name, part in measured.items():
        print(f"## {name}\n\n{part}\n")
    if write:
        PAGE.write_text(with_measured(PAGE, measured))
        print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
