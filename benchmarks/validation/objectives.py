"""The objectives of the roadmap, and what was measured of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.report import Figures
from benchmarks.validation.proofs import EXPLAINED, Proof
from somabrain_dagster.store.verification import CLAIMS


@dataclass(frozen=True)
class Objective:
    """Something that is asked.

    Attributes:
        asked: in the roadmap's words, or nearly so.
        measured: what came out.
        holds: whether that is enough.
    """

    asked: str
    measured: str
    holds: bool


@dataclass(frozen=True)
class Elsewhere:
    """Something that is asked and takes a measurement of its own.

    Attributes:
        figure: as the document has it, word for word.
        document: in docs.
        command: that measures it again.
    """

    asked: str
    figure: str
    document: str
    command: str


ELSEWHERE = (
    Elsewhere(
        "top-1 at least 5% better after 100 events",
        "100 events raise top-1 by 19 points by the fast rule alone",
        "EVIDENCE.md",
        "make evidence",
    ),
    Elsewhere(
        "every adaptation signal has its metric",
        "82 of 82 checks hold",
        "OBSERVABILITY.md",
        "make observability",
    ),
    Elsewhere("panels within 5 s of an event", "0.70 to 2.10 s", "OBSERVABILITY.md", "make observability"),
    Elsewhere(
        "less than one false alarm a day",
        "0 times, by `WeightsPinnedWhileRewardFalls` and by `RollbackRepeats`",
        "OBSERVABILITY.md",
        "make false-alarms",
    ),
    Elsewhere(
        "one broker of three may fail",
        "none was lost, none was there twice",
        "AUDIT.md",
        "make kafka-failover",
    ),
)


def objectives(found: dict[str, Any], proof: Proof) -> list[Objective]:
    """What is asked, beside what was found.

    Args:
        found: the measurements, by name, as the report has them.
        proof: what holds of the log.
    """
    latency, account, isolation = found["latency"], found["account"], found["isolation"]
    pruned, restored, restart = found["pruned"], found["restored"], found["restart"]
    adaptation, working, analysed = found["adaptation"], found["working memory"], found["analysed"]
    findings = [str(one) for one in proof.verification.findings]
    slowest = max(found["retrievals"], key=lambda one: float(one["p95_ms"]))
    changes = sum(proof.causes.values())
    tenants = found["tenants"]
    kept = [
        Objective(
            "feedback p95 below 300 ms, the Postgres commit included",
            f"{latency['p95_ms']:,.0f} ms of {latency['requests']:,} requests at {latency['rate']:g}/s; p50 "
            f"{latency['p50_ms']:,.0f} ms, p99 {latency['p99_ms']:,.0f} ms",
            latency["p95_ms"] < 300,
        ),
        Objective(
            f"state of {tenants} tenants restored in less than 2 s at start",
            f"{restart['restore seconds']:.2f} s; {restart['from start to ready, seconds']} s from start to "
            "ready",
            restart["restore seconds"] < 2 and restart["tenants"] >= tenants,
        ),
        Objective(
            "feedback retrieved in less than 10 ms at p95",
            f"{slowest['p95_ms']} ms, {slowest['what']}, by {slowest['index']}",
            all(one["index"] and one["p95_ms"] < 10 for one in found["retrievals"]),
        ),
        Objective(
            "1,000 experiment results analysed in less than 10 s",
            f"{analysed['experiments']:,} experiments of {2 * analysed['sessions an arm']} real sessions in "
            f"{analysed['seconds']} s",
            analysed["seconds"] < 10,
        ),
        Objective(
            "α at least 0.3 higher within 20 events",
            f"{adaptation['gain']:+.3f} in {adaptation['events']} real ratings that praise, by "
            f"{adaptation['mean utility']} at the mean",
            adaptation["gain"] >= 0.3,
        ),
        Objective(
            "working memory grows by at least 0.5 an event",
            f"{working['growth']}, {working['events']} questions of {working['sessions']} real conversations",
            working["growth"] >= 0.5,
        ),
        Objective(
            "weights stay within their bounds",
            f"{changes:,} changes, {len(proof.verification.of(CLAIMS[4]))} live weights outside",
            not proof.verification.of(CLAIMS[4]),
        ),
        Objective(
            f"{tenants} tenants at once, each independent",
            "each log is the fold of its own feedback, to the nano-unit: "
            + (
                f"{tenants - len(isolation['differing'])} of {tenants}"
                if isolation["folded"]
                else "not shown"
            ),
            isolation["folded"] and not isolation["differing"],
        ),
        Objective(
            "no tenant sees another",
            f"{isolation['rows']} rows of others seen in {tenants} roles, {isolation['refused']} of "
            f"{tenants} requests for others refused",
            isolation["rows"] == 0 and isolation["refused"] == tenants,
        ),
        Objective(
            "zero loss: counts and hashes",
            f"{account['acknowledged']:,} acknowledged, {account['lost']} lost, {account['twice']} twice, "
            f"{account['different']} different",
            account["acknowledged"] == found["events"]
            and not (account["lost"] or account["twice"] or account["different"]),
        ),
        Objective(
            "complete audit: every change explained",
            f"{changes:,} changes of {len(proof.causes)} causes, {len(proof.unexplained)} unexplained; "
            f"{len(proof.broken)} audit chains broken",
            not (proof.unexplained or proof.broken or findings),
        ),
        Objective(
            "replay equals live, every shift derived again, chains intact",
            f"{len(findings)} findings, {proof.seconds:,.0f} s; {proof.verification.sealed_events:,} sealed",
            not findings,
        ),
        Objective(
            "old feedback pruned, for real",
            f"{pruned['rows']:,} events in {pruned['seconds']} s, beside the load",
            pruned["rows"] > 0 and not pruned["refused"],
        ),
        Objective(
            "backup under load, restored elsewhere",
            f"{found['backed up']['bytes']:,} bytes in {found['backed up']['seconds']} s; proven there in "
            f"{restored['seconds']} s",
            not restored["findings"],
        ),
        Objective(
            "the learning chain runs over what lands",
            f"{found['runs']['ended well']} runs, {found['runs']['failed']} failed; every tenant is verified "
            "up to its last change",
            found["runs"]["failed"] == 0 and found["runs"]["ended well"] > 0,
        ),
        Objective(
            "the service answers what Postgres has",
            f"the weights of {isolation['agreeing']} of {tenants} tenants, to the nano-unit",
            isolation["agreeing"] == tenants,
        ),
    ]
    if account["in_kafka"] is not None:
        kept.append(
            Objective(
                "the audit trail is in Kafka",
                f"{account['in_kafka']:,} events, {account['changes_in_kafka']:,} changes, each by its hash",
                account["in_kafka"] == account["acknowledged"]
                and account["changes_in_kafka"] == account["changes"],
            )
        )
    return kept


def tables(found: dict[str, Any], proof: Proof, kept: Sequence[Objective]) -> list[Figures]:
    """The tables for a person."""
    account = found["account"]
    asked = [(one.asked, one.measured, "✓" if one.holds else "✗") for one in kept]
    asked += [(one.asked, f"“{one.figure}”: docs/{one.document}", one.command) for one in ELSEWHERE]
    where = [
        ("acknowledged", f"{account['acknowledged']:,}"),
        ("in Postgres, as they were sent", f"{account['kept']:,}"),
        ("pruned, within seals that the log gives", f"{account['pruned']:,}"),
    ]
    if account["in_kafka"] is not None:
        where.append(
            ("in Kafka, as they were sent and as their change names them", f"{account['in_kafka']:,}")
        )
        where.append(("records of feedback in Kafka, repeated ones included", f"{account['delivered']:,}"))
    return [
        Figures(
            f"{found['events']:,} events of {found['tenants']} tenants: real ratings, again with fresh ids",
            ("asked", "measured", ""),
            asked,
        ),
        Figures("Events, and where they are", ("", "events"), where),
        Figures(
            "Why weights changed",
            ("cause", "changes", "explained by"),
            [(cause, f"{count:,}", EXPLAINED.get(cause, "nothing")) for cause, count in proof.causes.items()],
        ),
        Figures(
            "Seconds", ("", "seconds"), [(what, f"{took:,.0f}") for what, took in found["seconds"].items()]
        ),
        Figures(
            "Most memory at once, MB",
            ("", "MB"),
            [(kind, f"{size / 1e6:,.0f}") for kind, size in found["memory"].items()],
        ),
    ]
