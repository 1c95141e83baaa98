"""Kill the service, Postgres and Valkey under load, and count what was acknowledged, found and duplicated.

    python scripts/chaos_serving.py [--kills 20]

Clients send feedback with idempotency keys and send again whatever was not acknowledged. Every kill is
SIGKILL. At the end each acknowledged event must be in Postgres, once, under its key; the log must replay and
be derived again; and Redis must have been rebuilt. Writes reports/chaos-serving.json; exit 1 if anything is
missing.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.killing import Clients, account, directory, holds, outages_of, stage_in

REPORT = Path("reports/chaos-serving.json")
CLIENTS = 16
BETWEEN_KILLS = 0.6
"""Seconds of load between a recovery and the next kill."""


async def _round(clients: Clients, kill: Callable[[], None], kills: int) -> list[float]:
    """Kill again and again under load; the seconds from each kill to the next acknowledgements."""
    loading = asyncio.create_task(clients.run())
    outages = []
    await clients.until_acknowledged(CLIENTS)
    for _ in range(kills):
        await asyncio.sleep(BETWEEN_KILLS)
        await asyncio.to_thread(kill)
        outages.append(round(await clients.until_acknowledged(CLIENTS), 2))
    clients.end()
    await loading
    return outages


def main() -> None:
    """Kill each in turn, print what became of it, and exit 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="how often each is killed")
    kills = parser.parse_args().kills
    report: dict[str, Any] = {"clients": CLIENTS}
    sound = True
    with directory() as base:
        for what in ("service", "postgres", "valkey"):
            with stage_in(base / what) as stage:
                keys = stage.add_tenants([f"tenant-{number}" for number in range(CLIENTS)])
                stage.start_service()
                clients = Clients(stage, keys, what)
                kill = stage.lose_valkey if what == "valkey" else getattr(stage, f"kill_{what}")
                outages = asyncio.run(_round(clients, kill, kills))
                told = {
                    "kills": kills,
                    **account(stage, clients.acknowledged),
                    "sent_again": clients.retried,
                    "refused_with": {
                        str(status): count for status, count in sorted(clients.refusals.items())
                    },
                    "seconds_until_acknowledged_again": outages_of(outages),
                }
            report[what] = told
            sound &= holds(told)
            print(
                f"{'✓' if holds(told) else '✗'} {what} killed {kills} times: "
                f"{told['acknowledged']:,} acknowledged, {told['found']:,} found, {told['missing']} missing, "
                f"{told['duplicated']} duplicated; acknowledging again after "
                f"{told['seconds_until_acknowledged_again']['median']} s (median)",
                flush=True,
            )
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {REPORT}")
    if not sound:
        sys.exit(1)


if __name__ == "__main__":
    main()
