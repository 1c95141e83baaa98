"""What every example goes through, and the account of it.

A stage judges a batch: for each example it gives the example, perhaps changed, or the reason why it is left
out. `STAGES` is their order. The first ones look at each example alone; from the duplicates on the examples
come in canonical order, by the digest of their content.
"""

import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import BinaryIO, Protocol

import msgspec

from somabrain_dagster.corpus.examples import Example, Turn
from somabrain_dagster.corpus.redaction import Namer, redact, redact_names, suspects

READ = "read"
EXACT = "exact duplicates"
NEAR = "near duplicates"

STAGES = (READ, "normalise", "redact", EXACT, NEAR, "decontaminate", "reward", "length")
"""By name, in order."""


class Stage(Protocol):
    """Something that examples go through.

    Attributes:
        name: one of `STAGES`.
    """

    name: str

    def judge(self, examples: Sequence[Example]) -> list[Example | str]:
        """For each example what becomes of it: an example, or why it is left out."""
        ...


class Refusal(msgspec.Struct, frozen=True, omit_defaults=True):
    """An example that was left out, without its text: what is not wanted is not kept either.

    Attributes:
        line: of its record, or of the first one of its conversation.
        stage: that left it out.
        reason: why.
        tenant, session: pseudonyms.
    """

    line: int
    stage: str
    reason: str
    tenant: str = ""
    session: str = ""


@dataclass
class Ledger:
    """How many examples came, how many were left out, by whom, and which.

    Attributes:
        came: examples that came to the first stage, by tenant.
        refused: by tenant and stage.
        refusals: where each refusal is written as a line of JSON; None keeps none.
    """

    came: Counter[str] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    refusals: BinaryIO | None = None

    def refuse(self, line: int, stage: str, reason: str, tenant: str = "", session: str = "") -> None:
        """Note what is left out."""
        self.refused[tenant, stage] += 1
        if self.refusals is not None:
            self.refusals.write(_encode(Refusal(line, stage, reason, tenant, session)) + b"\n")

    def add(self, other: "Ledger") -> None:
        """Add the counts of another."""
        self.came += other.came
        self.refused += other.refused

    def table(self) -> list[tuple[str, int, int]]:
        """Each stage with how many examples it kept and how many it left out."""
        left = sum(self.came.values())
        by_stage = Counter[str]()
        for (_, stage), count in self.refused.items():
            by_stage[stage] += count
        rows = []
        for stage in STAGES:
            left -= by_stage[stage]
            rows.append((stage, left, by_stage[stage]))
        return rows


_encode = msgspec.json.Encoder().encode


def sieve(
    stages: Sequence[Stage], examples: Sequence[Example], ledger: Ledger
) -> list[Example | tuple[str, str]]:
    """Let a batch go through stages.

    Returns:
        For each example what is left of it, or the stage that left it out and why.
    """
    outcomes: list[Example | tuple[str, str]] = list(examples)
    places = list(range(len(examples)))
    batch = list(examples)
    for stage in stages:
        kept_places, kept = [], []
        for place, before, judged in zip(places, batch, stage.judge(batch), strict=True):
            if isinstance(judged, str):
                outcomes[place] = (stage.name, judged)
                ledger.refuse(before.line, stage.name, judged, before.tenant, before.session)
            else:
                kept_places.append(place)
                kept.append(judged)
        places, batch = kept_places, kept
    for place, example in zip(places, batch, strict=True):
        outcomes[place] = example
    return outcomes


_REPLACED = {code: None for code in range(32) if chr(code) not in "\t\n"}
_REPLACED |= dict.fromkeys((0x7F, 0xAD, 0x200B, 0x200C, 0x200E, 0x200F, 0x2060, 0xFEFF))


def normal(text: str) -> str:
    """A text in one form: NFC, line breaks of one kind, no control or invisible characters, no blank ends."""
    if not (text.isascii() and text.isprintable()):
        text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
        text = text.translate(_REPLACED)
        if "\n" in text:
            text = "\n".join(line.rstrip() for line in text.split("\n"))
            while "\n\n\n" in text:
                text = text.replace("\n\n\n", "\n\n")
    return text.strip()


class Normalise:
    """One form of text; blank turns away; turns of one role joined; from the user on, to the assistant."""

    name = "normalise"

    def judge(self, examples: Sequence[Example]) -> list[Example | str]:
        """Leave out what has no answered question."""
        return [self._judged(example) for example in examples]

    def _judged(self, example: Example) -> Example | str:
        turns: list[Turn] = []
        system: list[Turn] = []
        rejected: list[Turn] = []
        joined = "".join([turn.content for turn in example.turns])
        plain = joined.isascii() and joined.isprintable()
        for turn in example.turns:
            content = turn.content.strip() if plain else normal(turn.content)
            if not content:
                continue
            if turn.role == "system":
                system.append(Turn("system", content))
            elif turn.role == "rejected":
                rejected.append(Turn("rejected", content))
            elif turns and turns[-1].role == turn.role:
                turns[-1] = Turn(turn.role, f"{turns[-1].content}\n{content}")
            elif turns or turn.role == "user":
                turns.append(turn if content is turn.content else Turn(turn.role, content))
        if turns and turns[-1].role == "user":
            turns.pop()
        if not turns:
            return "no turn of the user that the assistant answers"
        if any(turn.role == "rejected" for turn in example.turns) and not rejected:
            return "a preference without what was rejected"
        if rejected and rejected[0].content == turns[-1].content:
            return "what was chosen is what was rejected"
        return msgspec.structs.replace(example, turns=(*system[:1], *turns, *rejected[:1]))


class Redact:
    """Personal data and secrets replaced by their kind."""

    name = "redact"

    def __init__(self, namer: Namer | None = None) -> None:
        """Look for patterns; for names too, if somebody finds them."""
        self._namer = namer

    def judge(self, examples: Sequence[Example]) -> list[Example | str]:
        """Change, and leave nothing out."""
        namer = self._namer
        contents = [turn.content for example in examples for turn in example.turns]
        changed = {place: redact(contents[place]) for place in suspects(contents)}
        if namer is not None:
            changed = {
                place: redact_names(changed.get(place, content), namer)
                for place, content in enumerate(contents)
            }
        judged: list[Example | str] = list(examples)
        begins = list(accumulate((len(example.turns) for example in examples), initial=0))
        for place, own in groupby(changed, lambda place: bisect_right(begins, place) - 1):
            turns = list(examples[place].turns)
            for turn in own:
                number = turn - begins[place]
                turns[number] = Turn(turns[number].role, changed[turn])
            judged[place] = msgspec.structs.replace(examples[place], turns=tuple(turns))
        return judged


class Rewarded:
    """At least so much reward, where anything was said of the session."""

    name = "reward"

    def __init__(self, least: float | None) -> None:
        """Judge by the least reward; None keeps everything."""
        self._least = least

    def judge(self, examples: Sequence[Example]) -> list[Example | str]:
        """Leave out what was worth less; what nobody judged stays, and so do preferences."""
        least = self._least
        if least is None:
            return list(examples)
        return [
            f"its reward {example.reward:.3g} is below {least:g}"
            if example.reward is not None and example.reward < least and example.turns[-1].role != "rejected"
            else example
            for example in examples
        ]
