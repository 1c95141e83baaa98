"""Prometheus beside the service of this home, with the rules that ship, until Ctrl-C.

    python scripts/prometheus.py [--service http://127.0.0.1:8400] [--port 9090]

What it scraped is kept in `.somabrain/prometheus`. The operator's key that it scrapes with is its own, and is
revoked when it ends.
"""

import argparse
import signal
import sys
from pathlib import Path

from somabrain_dagster.embedded.prometheus import prometheus_beside, prometheus_tools
from somabrain_dagster.operations import servers
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.audit import SYSTEM
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.keys import create_key, revoke_key

RULES = Path(__file__).parent.parent / "deploy" / "prometheus" / "rules"
ACTOR = "prometheus"
SCRAPE_SECONDS = 4.0


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--service", default="http://127.0.0.1:8400", help="what is scraped")
    parser.add_argument("--port", type=int, default=9090, help="of Prometheus' own page")
    given = parser.parse_args()
    settings = Settings()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    tools = prometheus_tools(settings.home)
    with Database(servers.start(settings).database_url) as database:
        with database.as_operator() as connection:
            key = create_key(connection, SYSTEM, "operator", ACTOR)
        try:
            with prometheus_beside(
                settings.home / "prometheus",
                tools,
                service_url=given.service,
                key=key,
                rules=sorted(RULES.glob("*.yml")),
                seconds=SCRAPE_SECONDS,
                port=given.port,
            ) as prometheus:
                print(f"Prometheus: {prometheus.url}/graph, alerts: {prometheus.url}/alerts; Ctrl-C stops it")
                signal.pause()
        except KeyboardInterrupt:
            pass
        finally:
            with database.as_operator() as connection:
                revoke_key(connection, key.split("_")[1], ACTOR)


if __name__ == "__main__":
    main()
