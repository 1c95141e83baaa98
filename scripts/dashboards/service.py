"""The dashboard of the service."""

from scripts.dashboards.views import BAD_GOOD, TENANT, Board, Query, View, rate

LANDED = f'{TENANT}, outcome="landed"'


def latency(quantile: float, by: str = "") -> str:
    """A quantile of the latency of feedback."""
    labels = f"le, {by}" if by else "le"
    buckets = (
        f"sum by ({labels}) (rate(somabrain_feedback_latency_seconds_bucket{{{TENANT}}}[$__rate_interval]))"
    )
    return f"histogram_quantile({quantile}, {buckets})"


SERVICE = Board(
    uid="somabrain-service",
    title="SomaBrain: service",
    about="What the service is asked, how quickly it answers, and what it leans on.",
    rows={
        "At a glance": [
            View(
                "Replicas that answer",
                "The scrape of their metrics.",
                [Query('sum(up{job="somabrain"})', "up")],
                kind="numbers",
                span=3,
                steps=BAD_GOOD,
            ),
            View(
                "Postgres",
                "1 where it answers every replica.",
                [Query("min(somabrain_postgres_up)", "up")],
                kind="numbers",
                span=3,
                steps=BAD_GOOD,
            ),
            View(
                "Hears commits, has Redis whole",
                "1 where every process hears of every commit, and where Redis has every snapshot.",
                [Query("min(somabrain_listening)", "hears"), Query("min(somabrain_redis_whole)", "whole")],
                kind="numbers",
                span=6,
                steps=BAD_GOOD,
            ),
            View(
                "Tenants", "There are.", [Query("max(somabrain_tenants)", "tenants")], kind="numbers", span=3
            ),
            View(
                "Feedback that waits",
                "To be committed, in all processes.",
                [Query("sum(somabrain_queue_events)", "events")],
                kind="numbers",
                span=3,
            ),
            View(
                "Slow feedback",
                "The share of the last hour that took longer than 300 ms, where 1% may.",
                [Query("somabrain:feedback_slow:ratio_rate1h", "slow")],
                unit="percentunit",
                kind="numbers",
                span=6,
                steps={None: "green", 0.01: "orange", 0.144: "red"},
            ),
        ],
        "Feedback": [
            View(
                "Feedback a second",
                "By what became of it: `landed`, `repeated`, else the reason of a refusal.",
                [Query(rate("somabrain_feedback_total", "outcome", TENANT), "{{outcome}}")],
                unit="reqps",
            ),
            View(
                "Latency of feedback",
                "From the receipt of a request to its answer, its commit included.",
                [Query(latency(quantile), f"p{quantile * 100:g}") for quantile in (0.5, 0.95, 0.99)],
                unit="s",
                steps={None: "green", 0.3: "red"},
            ),
            View(
                "Latency of feedback, all of it",
                "Requests a second, by how long they took.",
                [Query(rate("somabrain_feedback_latency_seconds_bucket", "le", TENANT), "{{le}}")],
                kind="heat",
            ),
            View(
                "The busiest tenants",
                "Ten of them, by the feedback that landed a second.",
                [
                    Query(
                        f"topk(10, {rate('somabrain_feedback_total', 'tenant_id', LANDED)})",
                        "{{tenant_id}}",
                    )
                ],
                unit="reqps",
            ),
            View(
                "The slowest tenants",
                "Ten of them, by the 95th percentile.",
                [Query(f"topk(10, {latency(0.95, 'tenant_id')})", "{{tenant_id}}")],
                unit="s",
            ),
            View(
                "How fast the budget burns",
                "1 uses it up in 30 days; from 14.4 over an hour somebody is called.",
                [
                    Query(f"100 * somabrain:feedback_slow:ratio_rate{window}", window)
                    for window in ("5m", "1h", "6h", "3d")
                ],
                unit="none",
                steps={None: "green", 1: "orange", 14.4: "red"},
            ),
        ],
        "Requests": [
            View(
                "Requests a second",
                "By route and status.",
                [
                    Query(
                        rate("somabrain_http_requests_total", "method, route, status"),
                        "{{method}} {{route}} {{status}}",
                    )
                ],
                unit="reqps",
                span=6,
            ),
            View(
                "Recalls a second",
                "By the index that served them: exact for small tenants, HNSW for large ones.",
                [Query(rate("somabrain_ann_backend_total", "backend", TENANT), "{{backend}}")],
                unit="reqps",
                span=6,
            ),
            View(
                "Indexes that were rebuilt",
                "By what became of them, since each process started.",
                [Query("sum by (outcome) (somabrain_ann_rebuild_total)", "{{outcome}}")],
                kind="bars",
                span=6,
            ),
            View(
                "What a scrape takes",
                "Of which Postgres answers for so long.",
                [
                    Query('max(scrape_duration_seconds{job="somabrain"})', "the scrape"),
                    Query("max(somabrain_postgres_scrape_seconds)", "Postgres"),
                ],
                unit="s",
                span=6,
            ),
        ],
    },
)
