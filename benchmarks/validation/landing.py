"""How events land: thousands by a stream or a file, and the rest one by one from a second process."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.load import request, write_requests
from benchmarks.validation.plan import SINGLY, Plan
from benchmarks.validation.progress import Progress
from benchmarks.validation.stage import SOMABRAIN, Stage
from somabrain_dagster.serving.answers import NDJSON
from somabrain_dagster.serving.contracts import StreamSummary
from somabrain_dagster.store.feedback_contract import Feedback

PACE = 4_000.0
"""Of the events that land in blocks, a second at most; two cores do not take as many beside all the rest."""
CLIENTS = 8
BY_FILE = 10
"""Of so many blocks one lands by `somabrain import`, the others by the service."""
SAY_SECONDS = 5.0
_CHUNK = 256
"""Lines that are written to the stream at once."""


class Refused(RuntimeError):
    """Something was not landed that must be; the message says what."""


def digest_of(events: Sequence[Feedback]) -> str:
    """SHA-256, in hexadecimal, over the digests of what events say, in their order."""
    return hashlib.sha256(b"".join(event.digest() for event in events)).hexdigest()


@dataclass
class Landing:
    """Blocks on their way, one after the other.

    Attributes:
        operator: a key that lands for every tenant.
        repeated: events that had landed before and were sent again, after an interruption.
    """

    stage: Stage
    plan: Plan
    progress: Progress
    url: str
    operator: str
    repeated: int = field(default=0, init=False)

    @property
    def share(self) -> float:
        """How much of the blocks is acknowledged."""
        return len(self.progress.blocks) / self.plan.blocks

    def run(self, also: Callable[[], str]) -> None:
        """Land the blocks that are not acknowledged.

        Args:
            also: what a person is told besides the blocks, every few seconds.
        """
        left = [block for block in range(self.plan.blocks) if block not in self.progress.blocks]
        began = said = time.monotonic()
        landed = 0
        total = self.plan.bulk * len(self.plan.tenants)
        before = sum(len(self.plan.numbers(block)) for block in self.progress.blocks) * len(self.plan.tenants)
        with httpx.Client(timeout=300) as client:
            for block in left:
                events = self.plan.block(block)
                if block % BY_FILE == BY_FILE // 2:
                    self._by_file(events)
                else:
                    self._by_stream(client, events)
                self.progress.acknowledged(block, digest_of(events))
                landed += len(events)
                time.sleep(max(0.0, began + landed / PACE - time.monotonic()))
                now = time.monotonic()
                if now - said > SAY_SECONDS or block == left[-1]:
                    said = now
                    self.stage.look()
                    rate = landed / (now - began)
                    seconds = (total - before - landed) / rate
                    done = f"{before + landed:>9,} of {total:,} in blocks"
                    print(f"{done}, {rate:,.0f}/s, {seconds:,.0f} s left; {also()}", flush=True)

    def _by_stream(self, client: httpx.Client, events: Sequence[Feedback]) -> None:
        def lines() -> Iterator[bytes]:
            for start in range(0, len(events), _CHUNK):
                yield b"".join(msgspec.json.encode(event) + b"\n" for event in events[start : start + _CHUNK])

        headers = {"authorization": f"Bearer {self.operator}", "content-type": NDJSON.decode()}
        answer = client.post(f"{self.url}/context/feedback", headers=headers, content=lines())
        if answer.status_code != 200:
            raise Refused(f"the service refuses a stream: {answer.status_code} {answer.text[:300]}")
        summary = msgspec.json.decode(answer.content, type=StreamSummary)
        if summary.refused or summary.landed + summary.repeated != len(events):
            raise Refused(f"of {len(events):,} events of a stream: {answer.text[:300]}")
        self.repeated += summary.repeated

    def _by_file(self, events: Sequence[Feedback]) -> None:
        file = self.stage.place / "block.jsonl"
        file.write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in events))
        command = [SOMABRAIN, "import", "feedback", str(file)]
        done = subprocess.run(command, cwd=self.stage.place, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Refused(f"`somabrain import` refuses lines: {done.stdout[-300:]}{done.stderr[-300:]}")


@dataclass(frozen=True)
class Answer:
    """What the service answered to an event that was sent by itself.

    Attributes:
        place: of the event among those.
        at: the time of the answer.
        latency: in seconds, from when the event was due.
        seq: the number that the event got in its tenant's sequence.
    """

    place: int
    at: float
    latency: float
    seq: int


@dataclass(frozen=True)
class Singles:
    """The events that land one by one, from a process that writes down each answer when it has it."""

    plan: Plan
    place: Path

    @property
    def total(self) -> int:
        """How many there are."""
        return (self.plan.each - self.plan.bulk) * len(self.plan.tenants)

    @property
    def rate(self) -> float:
        """How many are due a second: as long as the blocks last at their pace."""
        return PACE * SINGLY

    def answers(self) -> dict[int, Answer]:
        """What was acknowledged, of this process and those before it."""
        found: dict[int, Answer] = {}
        for file in self._files():
            left = [place for place in range(self.total) if place not in found]
            for line in file.read_text().splitlines(keepends=True):
                if not line.endswith("\n"):
                    continue  # whoever wrote it was killed
                number, at, latency, status, body = line.split("\t", 4)
                if status == "200":
                    place = left[int(number)]
                    found[place] = Answer(place, float(at), float(latency), json.loads(body)["seq"])
        return found

    def refusals(self) -> list[str]:
        """Answers that were no acknowledgement."""
        lines = (line for file in self._files() for line in file.read_text().splitlines())
        return [line for line in lines if "\t200\t" not in line]

    def _files(self) -> list[Path]:
        return sorted(self.place.glob("answers-*.tsv"))

    @contextmanager
    def sending(
        self, stage: Stage, url: str, keys: Mapping[str, str]
    ) -> Iterator["subprocess.Popen[bytes] | None"]:
        """Send what is not acknowledged, at the rate, beside the block; None where all of it is."""
        known = self.answers()
        asked = [event for place, event in enumerate(self.plan.singles()) if place not in known]
        if not asked:
            yield None
            return
        requests = self.place / "requests.bin"
        write_requests(requests, [_request(event, keys[event.tenant_id]) for event in asked])
        host, port = url.removeprefix("http://").split(":")
        command = [sys.executable, "-m", "benchmarks.load", host, port, str(requests), "--once"]
        options = {
            "clients": CLIENTS,
            "rate": self.rate,
            "warm": 0,
            "seconds": 10 * len(asked) / self.rate + 600,
            "answers": self.place / f"answers-{len(self._files()):04}.tsv",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        with stage.program([*command, *arguments], stage.place / "load.log") as process:
            yield process

    def latencies(self) -> NDArray[np.float64]:
        """(N, 2): the time of each answer, and its latency in seconds."""
        return np.array([(one.at, one.latency) for one in self.answers().values()])


def _request(event: Feedback, key: str) -> bytes:
    headers = {
        "authorization": f"Bearer {key}",
        "content-type": "application/json",
        "idempotency-key": str(event.idempotency_key),
    }
    said = msgspec.structs.replace(event, idempotency_key=None)
    return request("POST", "/context/feedback", headers, msgspec.json.encode(said))
