"""The dataset card: what a corpus is, from whom, how it was filtered, in numbers and in one picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from somabrain_dagster.corpus.build import HISTOGRAM, Built, Plan
from somabrain_dagster.corpus.formats import FileEntry, entry_of

CARD = "README.md"
PLOT = "lengths.png"


def write_card(
    root: Path, built: Built, plan: Plan, *, title: str, source: str, tenants: int
) -> list[FileEntry]:
    """Write the card and its picture beside the formats.

    Args:
        root: the folder of the corpus.
        built: what was built.
        plan: by which it was built.
        title: of the card.
        source: from what.
        tenants: how many agreed.
    """
    unit = "tokens" if built.tokenizer else "characters"
    figure = draw_lengths(built.lengths, unit, plan.window, built.over_window)
    figure.savefig(root / PLOT, format="png", metadata={"Software": None})
    (root / CARD).write_text(_card(built, plan, title, source, tenants))
    return [entry_of(root, root / PLOT, 0), entry_of(root, root / CARD, 0)]


def draw_lengths(lengths: Sequence[int], unit: str, window: int, longer: int) -> "Figure":
    """How many examples there are of each length.

    Args:
        lengths: examples by the upper edge of `HISTOGRAM` that they stay below; the last holds the rest.
        unit: tokens or characters.
        window: of the trainer, in tokens.
        longer: examples of more tokens than that.
    """
    # It takes a second to import, which the command line and each worker would wait for.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    edges = [*(f"≤ {edge:,}" for edge in HISTOGRAM), "more"]
    axes.bar(range(len(edges)), lengths, color="#4477aa")
    axes.set_xticks(range(len(edges)), edges, rotation=45, ha="right", fontsize=8)
    axes.set_xlabel(unit)
    axes.set_ylabel("examples")
    if unit == "tokens" and window in HISTOGRAM:
        axes.axvline(HISTOGRAM.index(window) + 0.5, color="#ee6677", linewidth=1.4)
        axes.set_title(f"{longer:,} examples are longer than the window of {window:,}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _count(number: int | None) -> str:
    return "not counted" if number is None else f"{number:,}"


_FORMATS: Mapping[str, str] = {
    "examples": "everything that is known of an example; what `open_corpus` streams",
    "sources": "which pseudonyms each example was made of",
    "prompt-response": "`prompt`, `response`, and `history` before them",
    "messages": "`messages`, as TRL takes them",
    "openai": "`messages`, as OpenAI's fine-tuning takes them",
    "nanochat": "a bare array of messages a line, from the user on",
    "nanochat-parquet": "column `text`, row groups of 1,024, the last file is the validation split",
    "trl": "TRL's conversational `prompt` and `completion`",
    "dpo": "TRL's `prompt`, `chosen`, `rejected`",
    "kto": "TRL's `prompt`, `completion`, `label`",
    "nanogpt": "uint16 tokens without a header, `train.bin` and `val.bin`",
    "parquet": "messages, prompt and response as columns",
    "tokenized": "`input_ids`, and in `supervised` 1 for each token to learn",
}


def _card(built: Built, plan: Plan, title: str, source: str, tenants: int) -> str:
    tokenizer = built.tokenizer
    files = {entry.path.split("/")[0] for entry in built.files if "/" in entry.path}
    redacted = ", ".join(f"{count:,} {kind}" for kind, count in sorted(built.redacted.items())) or "nothing"
    near = (
        "only exact duplicates were left out"
        if plan.near_duplicate is None
        else f"duplicates, and near duplicates from a similarity of {plan.near_duplicate:g} on, were left out"
    )
    least = "no threshold" if plan.least_reward is None else f"a reward of at least {plan.least_reward:g}"
    stages = _table(
        ("stage", "kept", "left out"),
        [(stage, f"{kept:,}", f"{left_out:,}") for stage, kept, left_out in built.ledger.table()],
    )
    splits = _table(
        ("split", "examples", "tokens"),
        [
            (split, f"{examples:,}", _count(count))
            for split, (examples, count) in sorted(built.splits.items())
        ],
    )
    formats = _table(
        ("folder", "what"), [(f"`{name}/`", what) for name, what in _FORMATS.items() if name in files]
    )
    counted_by = "no tokenizer"
    if tokenizer:
        counted_by = f"`{tokenizer.name}` ({tokenizer.vocabulary:,} tokens, sha256 {tokenizer.sha256})"
    return f"""---
pretty_name: {title}
task_categories:
- text-generation
---

# {title}

**What.** Conversations of people, as examples to fine-tune a model on: each begins with the user and ends
with the assistant. What the tenant said is the assistant's, what others said is the user's.

**From whom.** {source}. {tenants:,} {"tenant" if tenants == 1 else "tenants"} let their data be learned from.
They, their sessions and their memories appear under pseudonyms only.

**How filtered.** Texts were normalised (NFC) and personal data replaced by their kind: {redacted}. By whole
examples, {near}. What shares 13 words with experiments, evaluations or the validation split was left out of
what is trained on. Reward: {least}. The split is by session: {plan.validation:.1%} of sessions are held out,
by hash.

{stages}

`rejects.jsonl.zst` has every example that was left out, with the stage and the reason, without its text.

**How much.**

{splits}

Tokens are those of {counted_by}.

![examples by length]({PLOT})

**Formats.**

{formats}

`run-metadata.json` has the SHA-256, rows and tokens of each file; `somabrain corpus verify` checks all of it.
"""
