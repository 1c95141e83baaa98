"""How fast a corpus is built, beside the plain loop: `python -m benchmarks.corpus --megabytes 200`.

The input is Chit-Chat, each conversation a record of messages, repeated until it is large enough: once word
for word, and once with each repetition's conversations put together anew from the real messages of two, so
that hardly any record is like another and every stage has all its work. `scripts/export_learning_corpus.py`
makes a corpus of it, without tokens and with GPT-2's. Beside it stand the plain loop, `json.loads →
json.dumps` line by line, and `datasets.load_dataset("json")` where that is installed.

Each is a program of its own, its start included. Memory is that of all its processes together, ten times a
second: their proportional set size, in which what several share is counted once. Writes
reports/bench-corpus.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.report import Figures, write_report
from somabrain_dagster.operations.chitchat import Conversation, read_chitchat

EXPORT = Path(__file__).parent.parent / "scripts" / "export_learning_corpus.py"
LOOK_SECONDS = 0.1
LOOP, UNCOUNTED, COUNTED, READ = "plain loop", "tokens not counted", "GPT-2's tokens", "datasets"
SAID = {
    LOOP: "plain loop, one process",
    UNCOUNTED: "corpus, tokens not counted",
    COUNTED: "corpus, GPT-2's tokens",
    READ: '`datasets.load_dataset("json")`',
}
REPORT = Path("reports/bench-corpus.json")
PLAIN_LOOP = """
import json, sys
with open(sys.argv[1]) as read, open(sys.argv[2], "w") as written:
    for line in read:
        written.write(json.dumps(json.loads(line), ensure_ascii=False) + "\\n")
"""
DATASETS = """
import sys, tempfile, datasets
datasets.disable_progress_bars()
with tempfile.TemporaryDirectory() as cache:
    rows = datasets.load_dataset("json", data_files=sys.argv[1], cache_dir=cache, split="train")
    print(len(rows))
"""


@dataclass
class Measured:
    """Seconds by the clock and of all processors, the most memory in MB, and what was printed."""

    seconds: float
    processor: float
    peak: float
    code: int
    printed: str


def measured(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> Measured:
    peak, started, before = 0, time.monotonic(), os.times()
    with tempfile.TemporaryFile("w+") as printed:
        process = psutil.Popen(command, stdout=printed, stderr=subprocess.STDOUT, env=environment)
        while process.poll() is None:
            peak = max(peak, held(process))
            time.sleep(LOOK_SECONDS)
        seconds, after = time.monotonic() - started, os.times()
        printed.seek(0)
        said = printed.read()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return Measured(seconds, processor, peak / 1e6, process.returncode, said)


def held(process: psutil.Process) -> int:
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:
            continue  # it has ended
    return total


def turns_of(one: Conversation) -> list[dict[str, str]]:
    tenant = one.messages[one.replies()[0][0]].speaker
    return [
        {"role": "assistant" if message.speaker == tenant else "user", "content": message.text}
        for message in one.messages
    ]


def repeated(held: list[Conversation], turn: int) -> Iterator[dict[str, object]]:
    for one in held:
        yield {"conversation_id": one.conversation_id, "messages": turns_of(one)}


def put_together(held: list[Conversation], turn: int) -> Iterator[dict[str, object]]:
    """The even exchanges of one conversation and the odd ones of another, which one by the repetition."""
    for place, one in enumerate(held):
        other = held[(place + 37 * turn + 1) % len(held)]
        first, second = turns_of(one), turns_of(other)
        yield {
            "conversation_id": f"{one.conversation_id}-{turn}",
            "messages": [
                message
                for start in range(0, max(len(first), len(second)), 4)
                for message in (*first[start : start + 2], *second[start + 2 : start + 4])
            ],
        }


def write_input(
    path: Path, megabytes: int, records: Callable[[list[Conversation], int], Iterator[dict[str, object]]]
) -> int:
    held = [one for one in read_chitchat(1).conversations if len(one.speakers) == 2 and one.replies()]
    lines = turn = 0
    with path.open("w") as file:
        while file.tell() < megabytes * 1_000_000:
            for record in records(held, turn):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                lines += 1
            turn += 1
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--datasets", default=sys.executable, help="a Python that has `datasets`")
    parser.add_argument("--folder", type=Path, help="where there is room for four times as much")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    load = os.getloadavg()[0]
    try:
        found = {
            what: compare(folder, what, arguments.megabytes, records, arguments.workers, arguments.datasets)
            for what, records in (("word for word", repeated), ("put together anew", put_together))
        }
    finally:
        shutil.rmtree(folder)
    write_report(
        REPORT,
        [table(what, arguments.megabytes, ways) for what, ways in found.items()],
        {},
        packages=("rensa", "zstandard"),
        load_before=load,
        workers=arguments.workers,
        measured={what: {way: asdict(one) for way, one in ways.items()} for what, ways in found.items()},
    )


def table(what: str, megabytes: int, ways: Mapping[str, Measured]) -> Figures:
    """What each way took, beside the plain loop."""
    loop = ways[LOOP]
    return Figures(
        f"{megabytes:,} MB of conversations, {what}",
        ("", "seconds", "MB/s", "processor seconds", "memory MB", "× the plain loop"),
        [
            (
                SAID[way],
                f"{one.seconds:.1f}",
                f"{megabytes / one.seconds:.0f}",
                f"{one.processor:.1f}",
                f"{one.peak:,.0f}",
                f"{one.seconds / loop.seconds:.2f}",
            )
            for way, one in ways.items()
        ],
    )


def compare(
    folder: Path,
    what: str,
    megabytes: int,
    records: Callable[[list[Conversation], int], Iterator[dict[str, object]]],
    workers: int,
    datasets: str | Path,
) -> dict[str, Measured]:
    """Measure each way once, print what it took, and return those that could be run, by name."""
    source, target = folder / "input.jsonl", folder / "output.jsonl"
    lines = write_input(source, megabytes, records)
    size = source.stat().st_size / 1e6
    load = os.getloadavg()[0]
    print(f"\nChit-Chat repeated {what}: {size:,.0f} MB, {lines:,} records; load {load:.1f}", flush=True)
    loop = measured([sys.executable, "-c", PLAIN_LOOP, source, target])
    found = {LOOP: loop}
    tell("plain loop, one process", loop, size, lines, loop)
    bare = {name: value for name, value in os.environ.items() if not name.startswith("SOMABRAIN_")}
    environment = bare | {"SOMABRAIN_HOME": str(folder / "home"), "SOMABRAIN_LEARNING_LOOP_ENABLED": "1"}
    for tokenizer, counted in (("none", UNCOUNTED), ("gpt2", COUNTED)):
        options = ["--metadata-out", str(folder / "run-metadata.json"), "--tokenizer", tokenizer]
        options += ["--workers", str(workers)]
        built = measured([sys.executable, EXPORT, source, target, *options], environment)
        found[counted] = built
        tell(f"corpus, {workers} workers, {counted}", built, size, lines, loop)
    account = json.loads((folder / "run-metadata.json").read_text())
    stages = ", ".join(f"{one['stage']} {one['rejected']:,}" for one in account["stages"] if one["rejected"])
    print(f"    kept {account['splits']['train']['examples']:,}; left out: {stages}", flush=True)
    found[READ] = measured([datasets, "-c", DATASETS, source])
    tell('datasets.load_dataset("json")', found[READ], size, lines, loop)
    return {name: one for name, one in found.items() if one.code == 0}


def tell(what: str, found: Measured, size: float, lines: int, loop: Measured) -> None:
    if found.code:
        print(f"    {what}: {found.printed.strip().splitlines()[-1]}", flush=True)
        return
    print(
        f"    {what:38} {found.seconds:7.1f} s  {size / found.seconds:6.1f} MB/s  "
        f"{lines / found.seconds:9,.0f} records/s  {found.peak:5.0f} MB  "
        f"{found.seconds / loop.seconds:5.2f} × the plain loop; {found.processor:.1f} s of processors",
        flush=True,
    )


if __name__ == "__main__":
    main()
