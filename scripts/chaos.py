"""Kill Postgres, Valkey and the service under load, in random order, round after round, and lose nothing.

    python scripts/chaos.py [--rounds 50] [--seed N]

In each round each of the three is killed once, by SIGKILL, in a random order and after random pauses, so that
the second often dies while the first still recovers. All the while clients send feedback with idempotency
keys, and people of the Chit-Chat data remember what they said and were told, ask what they answered, and say
whether it was right. A client sends again whatever was not acknowledged.

At the end every feedback, memory and recall that was acknowledged must be in Postgres, each feedback once;
the log must replay to the live weights and be derived again; the hash chains of weights and audit trail
must be intact; and Redis must say what Postgres says. Writes reports/chaos.json; exit 1 if any of it does
not hold.
"""

import argparse
import asyncio
import json
import random
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec

from scripts.killing import Clients, Event, Stage, account, directory, holds, outages_of, stage_in
from somabrain_dagster.client import Refused, SomaBrain
from somabrain_dagster.operations.chitchat import read_chitchat
from somabrain_dagster.operations.reenactment import Story, judged, question, story
from somabrain_dagster.store.database import Database

REPORT = Path("reports/chaos.json")
CLIENTS = 12
PEOPLE = 4
TARGETS = ("postgres", "valkey", "service")
LONGEST_PAUSE = 1.5
"""Seconds before a kill, at most; a recovery takes longer."""

Answer = TypeVar("Answer")


class Person:
    """Somebody whose conversations are re-enacted on the service until the end.

    Attributes:
        events: the event that each idempotency key got.
        memories: the text of each memory that was acknowledged.
        recalls: those that were acknowledged.
    """

    def __init__(self, told: Story, stage: Stage, key: str) -> None:
        self.tenant_id = told.tenant_id
        self.events: dict[str, Event] = {}
        self.memories: dict[int, str] = {}
        self.recalls: set[int] = set()
        self.retried = 0
        self.failures: list[str] = []
        self._told, self._stage, self._key = told, stage, key
        self._ending = False

    def end(self) -> None:
        """Finish what is being said."""
        self._ending = True

    def run(self) -> None:
        """Remember message after message, and ask at the beginning of each turn."""
        answers = {turn.question: turn.answer for turn in self._told.turns}
        kept: list[int] = []
        with SomaBrain(self._stage.url, self._key, attempts=1) as brain:
            for position, memory in enumerate(self._told.memories):
                if self._ending:
                    return
                said = msgspec.to_builtins(memory)
                remembered = self._insist(partial(brain.remember, **said))
                kept.append(remembered["memory_id"])
                self.memories[kept[-1]] = memory.text
                if position in answers:
                    self._ask(brain, position, kept[answers[position]])

    def _ask(self, brain: SomaBrain, position: int, right: int) -> None:
        asked = self._told.memories[position]
        query = msgspec.to_builtins(question(asked))
        recalled = self._insist(lambda: brain.recall(**query))
        self.recalls.add(recalled["recall_id"])
        hits = [hit["memory_id"] for hit in recalled["hits"]]
        said = judged(asked, recalled["recall_id"], right if right in hits else None, hits[:1] == [right])
        name = f"{self.tenant_id}-{position}"
        landed = self._insist(lambda: brain.feedback(idempotency_key=name, **msgspec.to_builtins(said)))
        self.events[name] = (self.tenant_id, landed.seq)

    def _insist(self, ask: Callable[[], Answer]) -> Answer:
        """Ask until there is an answer."""
        while True:
            try:
                return ask()
            except httpx.TransportError:
                pass
            except Refused as refused:
                if refused.problem.status < 500:
                    raise
            self.retried += 1
            time.sleep(0.1)


async def _rounds(
    stage: Stage, clients: Clients, people: Sequence[Person], rounds: int, drawn: random.Random
) -> list[float]:
    """The seconds from the last kill of each round to the next acknowledgements."""
    outages = []
    with ThreadPoolExecutor(len(people)) as pool:
        speaking = [asyncio.get_running_loop().run_in_executor(pool, person.run) for person in people]
        loading = asyncio.create_task(clients.run())
        try:
            await clients.until_acknowledged(CLIENTS)
            for number in range(1, rounds + 1):
                order = drawn.sample(TARGETS, len(TARGETS))
                for target in order:
                    await asyncio.sleep(drawn.uniform(0, LONGEST_PAUSE))
                    await asyncio.to_thread(getattr(stage, f"kill_{target}"))
                outages.append(round(await clients.until_acknowledged(CLIENTS), 2))
                print(
                    f"round {number} of {rounds}: {', '.join(order)}; acknowledging again after "
                    f"{outages[-1]} s, {len(clients.acknowledged):,} events so far",
                    flush=True,
                )
        finally:
            clients.end()
            for person in people:
                person.end()
        await asyncio.gather(loading, *speaking)
    return outages


def _lost(stage: Stage, people: Sequence[Person]) -> dict[str, int]:
    """Memories and recalls that were acknowledged and are not there as they were."""
    with Database(stage.postgres.url("brain")) as database, database.snapshot() as connection:
        texts = {
            (tenant, memory): text
            for tenant, memory, text in connection.execute("SELECT tenant_id, memory_id, text FROM memories")
        }
        logged = set(connection.execute("SELECT tenant_id, recall_id FROM recalls").fetchall())
    return {
        "memories": sum(
            texts.get((person.tenant_id, memory)) != text
            for person in people
            for memory, text in person.memories.items()
        ),
        "recalls": sum(
            (person.tenant_id, recall) not in logged for person in people for recall in person.recalls
        ),
    }


def _told(stage: Stage, clients: Clients, people: Sequence[Person], outages: list[float]) -> dict[str, Any]:
    events = {
        **clients.acknowledged,
        **{key: event for person in people for key, event in person.events.items()},
    }
    return {
        **account(stage, events),
        "acknowledged_memories": sum(len(person.memories) for person in people),
        "acknowledged_recalls": sum(len(person.recalls) for person in people),
        "missing_of_these": _lost(stage, people),
        "sent_again": clients.retried + sum(person.retried for person in people),
        "refused_with": {str(status): count for status, count in sorted(clients.refusals.items())},
        "service_ended_by_itself": stage.ended_by_itself,
        "seconds_until_acknowledged_again": outages_of(outages),
    }


def main() -> None:
    """Kill round after round, print what became of it, and exit 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50, help="in each of which all three are killed")
    parser.add_argument("--seed", type=int, default=None, help="of the order and the pauses")
    arguments = parser.parse_args()
    seed = secrets.randbelow(2**32) if arguments.seed is None else arguments.seed
    print(f"{arguments.rounds} rounds, seed {seed}", flush=True)
    data = read_chitchat(PEOPLE)
    stories = [story(tenant, held) for tenant, held in data.held.items()]
    with directory() as base, stage_in(base / "chaos") as stage:
        keys = stage.add_tenants([f"tenant-{number}" for number in range(CLIENTS)])
        own = stage.add_tenants([told.tenant_id for told in stories])
        stage.start_service()
        clients = Clients(stage, keys, "chaos")
        people = [Person(told, stage, own[told.tenant_id]) for told in stories]
        outages = asyncio.run(_rounds(stage, clients, people, arguments.rounds, random.Random(seed)))
        told = _told(stage, clients, people, outages)
    sound = holds(told) and not any(told["missing_of_these"].values())
    REPORT.parent.mkdir(exist_ok=True)
    report = {"rounds": arguments.rounds, "seed": seed, "holds": sound, **told}
    REPORT.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    print(
        f"{'✓' if sound else '✗'} {arguments.rounds} rounds: {told['acknowledged']:,} events, "
        f"{told['acknowledged_memories']:,} memories and {told['acknowledged_recalls']:,} recalls "
        "acknowledged; "
        f"missing {told['missing']} events, {told['missing_of_these']['memories']} memories, "
        f"{told['missing_of_these']['recalls']} recalls; {told['duplicated']} duplicated, "
        f"{len(told['findings'])} findings, {len(told['broken_audit_chains'])} broken chains; "
        f"written to {REPORT}"
    )
    if not sound:
        sys.exit(1)


if __name__ == "__main__":
    main()
