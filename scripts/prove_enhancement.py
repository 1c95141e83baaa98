"""Prove that learned weights recall better, or that they do not: `python scripts/prove_enhancement.py`.

Re-enacts recorded conversations in a database of its own, prints how every policy ranks the same held-out
questions, and writes reports/enhancement.json and reports/enhancement.png. Exit 1 if a candidate is worse
than the starting weights by more than the tolerance.

With --baseline and --candidate it compares two such reports and measures nothing; exit 1 if a candidate of
the second is worse than in the first by more than the tolerance, 2 if the reports cannot be compared.
"""

import getpass
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from somabrain_dagster.cli.console import explained, watched
from somabrain_dagster.memory.embedders import embedder_of
from somabrain_dagster.operations import servers
from somabrain_dagster.operations.enhancement import STARTING
from somabrain_dagster.operations.enhancement_plot import draw
from somabrain_dagster.operations.enhancement_report import (
    TARGET,
    Difference,
    EnhancementReport,
    InvalidReport,
    compare,
    encode,
    read_report,
    worse,
)
from somabrain_dagster.operations.evidence import PEOPLE, evidence, offer
from somabrain_dagster.operations.reenactment import Plan, TooShort
from somabrain_dagster.operations.summary import Progress
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.audit import SYSTEM

REPORTS = Path(__file__).parent.parent / "reports"
TELL_SECONDS = 15.0
COUNT = click.IntRange(min=1)
console = Console(width=None if sys.stdout.isatty() else 120)


@click.command()
@click.option(
    "--people",
    type=click.IntRange(min=2),
    default=PEOPLE,
    show_default=True,
    help="Tenants, the heaviest first.",
)
@click.option("--memories", type=COUNT, default=Plan.memories, show_default=True, help="Of each tenant.")
@click.option("--feedback", type=COUNT, default=Plan.feedback, show_default=True, help="Events for each.")
@click.option(
    "--held-out", type=COUNT, default=Plan.held_out, show_default=True, help="Later questions of each."
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=Plan.seed, show_default=True, help="Of what is drawn."
)
@click.option("--workers", type=COUNT, default=os.cpu_count() or 1, show_default=True, help="Threads.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.01,
    show_default=True,
    help="How much worse is still no worse.",
)
@click.option("--output", type=click.Path(path_type=Path), default=REPORTS / "enhancement.json")
@click.option("--push", is_flag=True, help="Offer the winner to everybody, in the audit trail.")
@click.option("--actor", default=getpass.getuser, help="Who offers it; by default you.")
@click.option("--baseline", type=click.Path(path_type=Path), help="A report: compare, do not measure.")
@click.option("--candidate", type=click.Path(path_type=Path), help="The report that is compared with it.")
@explained
def main(
    people: int,
    memories: int,
    feedback: int,
    held_out: int,
    seed: int,
    workers: int,
    tolerance: float,
    output: Path,
    push: bool,
    actor: str,
    baseline: Path | None,
    candidate: Path | None,
) -> None:
    """Measure what learning is worth, or compare two reports of it."""
    if (baseline is None) != (candidate is None):
        raise click.UsageError("--baseline and --candidate go together: each names a report")
    if baseline is not None and candidate is not None:
        sys.exit(compared(baseline, candidate, tolerance))
    settings = Settings()
    ran_before = {server.name for server in servers.status(settings) if server.running}
    try:
        sys.exit(
            proved(
                settings,
                people,
                Plan(memories, feedback, held_out, seed),
                workers,
                tolerance,
                output,
                actor if push else None,
            )
        )
    except TooShort as error:
        raise click.UsageError(str(error)) from error
    finally:
        servers.stop(settings, leaving=ran_before)


def proved(
    settings: Settings,
    people: int,
    plan: Plan,
    workers: int,
    tolerance: float,
    output: Path,
    pushed_by: str | None,
) -> int:
    """Measure, report, and offer the winner if somebody is named who does; the exit code."""
    with told() as progress:
        report = evidence(settings, embedder_of(settings), people, plan, workers=workers, progress=progress)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(encode(report))
    picture = output.with_suffix(".png")
    draw(report).savefig(picture)
    show(report)
    console.print(f"\nwritten: {output}, {picture}", highlight=False, soft_wrap=True)

    falls = worse([one for one in report.differences if one.baseline == STARTING], tolerance)
    for one in falls:
        console.print(f"{one.candidate} is worse than the starting weights: {one.metric} {one.delta:+.4f}")
    if report.origin.findings:
        console.print(f"the log of weights does not hold: {report.origin.findings} findings")
    failed = bool(falls) or report.origin.findings > 0
    if pushed_by is not None:
        failed |= not offered(settings, report, pushed_by)
    return int(failed)


def offered(settings: Settings, report: EnhancementReport, actor: str) -> bool:
    """Offer the winner; whether there was one."""
    database, snapshots = servers.open_store(servers.start(settings))
    with database, closing(snapshots):
        version = offer(database, settings, report, actor)
    if version is None:
        console.print("nothing is proposed: no fit is surely better than the starting weights")
        return False
    console.print(f"proposed: {report.winner()}, audit event {version} of {SYSTEM}", highlight=False)
    return True


def compared(baseline: Path, candidate: Path, tolerance: float) -> int:
    """Compare two reports; the exit code."""
    try:
        before, after = read_report(baseline), read_report(candidate)
        differences = compare(before, after)
    except InvalidReport as error:
        console.print(str(error), highlight=False, soft_wrap=True)
        return 2
    table = Table("candidate", "measure", "before", "after", "difference × 100, 95% (tenants)", box=None)
    for one in differences:
        old, new = (getattr(report.policies[one.candidate], one.metric) for report in (before, after))
        table.add_row(one.candidate, one.metric, f"{old:.4f}", f"{new:.4f}", interval(one))
    console.print(table)
    old, new = (next(iter(report.policies.values())).recall_p95_ms for report in (before, after))
    console.print(f"p95 of recall: {old:.1f} ms before, {new:.1f} ms after", highlight=False)
    falls = worse(differences, tolerance)
    for one in falls:
        console.print(f"worse by more than {tolerance:g}: {one.candidate}, {one.metric} {one.delta:+.4f}")
    return int(bool(falls))


def show(report: EnhancementReport) -> None:
    """Print what came of it, losing numbers too."""
    console.print(f"\n{report.headline}\n", highlight=False, style="bold", soft_wrap=True)
    table = Table("policy", box=None, pad_edge=False)
    for column in ("top-1", "R@5", "R@10", "MRR", "margin", "p95 ms"):
        table.add_column(column, justify="right")
    for name, policy in report.policies.items():
        shares = (policy.top1, policy.r5, policy.r10, policy.mrr, policy.margin)
        table.add_row(name, *(f"{share:.3f}" for share in shares), f"{policy.recall_p95_ms:.0f}")
    console.print(table)
    for name, policy in report.policies.items():
        console.print(f"  {name}: {policy.what}", highlight=False, style="dim", soft_wrap=True)

    table = Table("points of top-1 over", box=None, pad_edge=False)
    for baseline in report.baselines():
        table.add_column(baseline, justify="right")
    table.add_column(f"+{TARGET * 100:.0f} points", justify="right")
    for candidate in report.candidates():
        found = [report.difference(candidate, baseline) for baseline in report.baselines()]
        reached = "reached" if report.on_target(candidate) else "missed"
        table.add_row(candidate, *(interval(one) for one in found), reached)
    console.print()
    console.print(table)

    origin = report.origin
    applied = sum(tenant.fit.applied for tenant in report.tenants)
    halves = Counter(
        "as it was" if tenant.half_life_seconds is None else f"{tenant.half_life_seconds:g} s"
        for tenant in report.tenants
    )
    told_halves = ", ".join(f"{half_life} for {count}" for half_life, count in halves.items())
    policy = report.policies[STARTING]
    for line in (
        f"{origin.data}: {origin.tenants} tenants, {origin.memories:,} memories, {origin.links:,} links, "
        f"{origin.feedback:,} feedback events, {origin.recalls:,} recalls.",
        f"Recall did not weigh the answer to {policy.unanswerable} of {policy.queries:,} held-out questions: "
        "misses for every policy. The p95 is of the recalls that all of them rank, embedding included.",
        f"Gates let {applied} of {origin.tenants} tenants keep a fit of their own. Half-lives that fit the "
        f"others best: {told_halves}.",
        f"The log: {origin.changes:,} changes of weights replayed and derived again, {origin.findings} "
        f"findings. All of it took {origin.seconds:.0f} s.",
    ):
        console.print(line, highlight=False, soft_wrap=True)


def interval(one: Difference) -> str:
    """A difference and its interval, in hundredths."""
    return f"{one.delta * 100:+.1f} [{one.low * 100:+.1f}, {one.high * 100:+.1f}]"


@contextmanager
def told() -> Iterator[Progress]:
    """Bars on a terminal; elsewhere a line now and then."""
    if console.is_terminal:
        with watched() as progress:
            yield progress
        return
    last: dict[str, float] = {}

    def tell(what: str, done: int, total: int | None) -> None:
        if time.monotonic() - last.get(what, -TELL_SECONDS) >= TELL_SECONDS or done == total:
            last[what] = time.monotonic()
            print(
                f"{what} {done:,} of {total:,}" if total else f"{what} {done:,}", file=sys.stderr, flush=True
            )

    yield tell


if __name__ == "__main__":
    main()
