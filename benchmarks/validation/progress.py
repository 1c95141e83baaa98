"""How far a validation is, in one file, written only after what it says is committed."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.validation.plan import Plan


class OtherPlan(RuntimeError):
    """The home holds a validation of another size; the message says what to do."""


class Progress:
    """What is done. Safe to share between threads.

    Attributes:
        blocks: of each block that was acknowledged, the digest of what was sent.
        steps: what came of each step that is done, by its name.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        """Read what is there.

        Raises:
            OtherPlan: it is of another number of events.
        """
        self._path = path
        self._lock = threading.Lock()
        self._events = plan.events
        self.blocks: dict[int, str] = {}
        self.steps: dict[str, Any] = {}
        if not path.exists():
            return
        held = msgspec.json.decode(path.read_bytes())
        if held["events"] != plan.events:
            raise OtherPlan(
                f"{path.parent} holds an unfinished validation of {held['events']:,} events: go on with "
                f"`make validate EVENTS={held['events']}`, or begin anew with `make validate FRESH=1`"
            )
        self.blocks = {int(block): digest for block, digest in held["blocks"].items()}
        self.steps = held["steps"]

    def acknowledged(self, block: int, digest: str) -> None:
        """A block was answered for, after its commit."""
        with self._lock:
            self.blocks[block] = digest
            self._write()

    def done(self, step: str, outcome: Any) -> None:
        """A step is done; the outcome is JSON."""
        with self._lock:
            self.steps[step] = outcome
            self._write()

    def once(self, step: str, work: Callable[[], Any]) -> Any:
        """What a step came to: now, or when it was done."""
        if step not in self.steps:
            self.done(step, work())
        return self.steps[step]

    def _write(self) -> None:
        """Replace the file as a whole: whoever is killed leaves the old one or the new one."""
        held = {"events": self._events, "blocks": self.blocks, "steps": self.steps}
        draft = self._path.with_suffix(".draft")
        with draft.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)  # it has the tenants' keys
            file.write(msgspec.json.encode(held))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)
