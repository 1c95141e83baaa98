"""How fast a corpus is built, beside the plain loop: `python -m benchmarks.corpus --megabytes 200`.

The input is Chit-Chat, each conversation a record of messages, repeated until it is large enough: once word
for word, and once with each repetition's conversations put together anew from the real messages of two, so
that hardly any record is like another and every stage has all its work. Beside it stand the plain loop,
`json.loads → json.dumps` line by line, and `datasets.load_dataset("json")` where that is installed. Memory is
that of all processes together, looked at twenty times a second.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from somabrain_dagster.corpus.build import Plan
from somabrain_dagster.corpus.files import export_file
from somabrain_dagster.corpus.pseudonyms import Pseudonyms
from somabrain_dagster.operations.chitchat import Conversation, read_chitchat

PSEUDONYMS = Pseudonyms(b"a key of the benchmark, of more than thirty-two bytes")
LOOK_SECONDS = 0.05
DATASETS = """
import sys, tempfile, datasets
datasets.disable_progress_bars()
with tempfile.TemporaryDirectory() as cache:
    rows = datasets.load_dataset("json", data_files=sys.argv[1], cache_dir=cache, split="train")
    print(len(rows))
"""


@dataclass
class Measured:
    """Seconds by the clock and of all processors, and the most memory of all processes together, in MB."""

    seconds: float = 0.0
    processor: float = 0.0
    peak: float = 0.0


@contextmanager
def measured() -> Iterator[Measured]:
    result, ended = Measured(), threading.Event()
    own = psutil.Process()

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            total = 0
            for process in [own, *own.children(recursive=True)]:
                try:
                    # What is mapped from a file is shared, and given back when others need the room.
                    memory = process.memory_info()
                    total += memory.rss - memory.shared
                except psutil.Error:
                    continue
            result.peak = max(result.peak, total / 1e6)

    watcher = threading.Thread(target=look)
    watcher.start()
    started, before = time.monotonic(), os.times()
    yield result
    result.seconds = time.monotonic() - started
    result.processor = sum(os.times()[:4]) - sum(before[:4])
    ended.set()
    watcher.join()


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


def plain_loop(source: Path, target: Path) -> None:
    with source.open() as read, target.open("w") as written:
        for line in read:
            written.write(json.dumps(json.loads(line), ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tokenizer", default="none", help="gpt2 counts tokens too")
    parser.add_argument("--datasets", default=sys.executable, help="a Python that has `datasets`")
    parser.add_argument("--folder", type=Path, help="where there is room for four times as much")
    arguments = parser.parse_args()
    tokenizer = None if arguments.tokenizer == "none" else arguments.tokenizer
    plan = Plan(formats=("prompt-response",), validation=0.0, tokenizer=tokenizer)
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        for what, records in (("word for word", repeated), ("put together anew", put_together)):
            compare(folder, what, arguments.megabytes, records, plan, arguments.workers, arguments.datasets)
    finally:
        shutil.rmtree(folder)


def compare(
    folder: Path,
    what: str,
    megabytes: int,
    records: Callable[[list[Conversation], int], Iterator[dict[str, object]]],
    plan: Plan,
    workers: int,
    datasets: str,
) -> None:
    source, target = folder / "input.jsonl", folder / "output.jsonl"
    # In a process of its own, so that the data it holds are not counted as anybody's memory.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
        lines = apart.submit(write_input, source, megabytes, records).result()
    size = source.stat().st_size / 1e6
    load = os.getloadavg()[0]
    print(f"\nChit-Chat repeated {what}: {size:,.0f} MB, {lines:,} records; load {load:.1f}", flush=True)
    with measured() as loop:
        plain_loop(source, target)
    tell("plain loop, one process", loop, size, lines, loop)
    with measured() as built:
        manifest = export_file(
            source,
            target,
            folder / "run-metadata.json",
            plan,
            PSEUDONYMS,
            settings_digest="",
            consent="a benchmark's own data",
            rejects=folder / "rejects.jsonl",
            workers=workers,
        )
    tell(f"corpus, {workers} processes", built, size, lines, loop)
    stages = ", ".join(f"{stage.stage} {stage.rejected:,}" for stage in manifest.stages if stage.rejected)
    print(f"    kept {manifest.examples:,}; left out: {stages}", flush=True)
    with measured() as loaded:
        done = subprocess.run([datasets, "-c", DATASETS, source], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        tell('datasets.load_dataset("json")', loaded, size, lines, loop)
    else:
        print(f'    datasets.load_dataset("json"): {done.stderr.strip().splitlines()[-1]}', flush=True)


def tell(what: str, found: Measured, size: float, lines: int, loop: Measured) -> None:
    print(
        f"    {what:32} {found.seconds:7.1f} s  {size / found.seconds:6.1f} MB/s  "
        f"{lines / found.seconds:9,.0f} records/s  {found.peak:5.0f} MB  "
        f"{loop.seconds / found.seconds:5.2f} × the plain loop; {found.processor:.1f} s of processors",
        flush=True,
    )


if __name__ == "__main__":
    main()
