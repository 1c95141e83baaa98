"""Back up under load, wipe everything, restore, and compare; then try to restore what is damaged.

    python scripts/drill.py [--people 12] [--seconds 10]

Real conversations are imported; feedback of theirs goes on landing, and more are imported, while the backup
is taken. Every server is then killed and all of their data are removed. What is restored must stand at the
backup's position exactly: everything acknowledged before the backup began is there, nothing beyond its
position, and no gap; every row of every table is the same as at that place in the source. Then the restored
brain is backed up at rest and restored once more, and every row must be the same. A truncated, a bit-flipped
and a foreign backup must be refused. Writes reports/drill.json; exit 1 if anything is lost or accepted that
must not be.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from somabrain_dagster.embedded import discard_servers, postgres_status, start_postgres, valkey_status
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.operations import provenance, servers
from somabrain_dagster.operations.backup_manifest import CLUSTER, Backup, InvalidBackup
from somabrain_dagster.operations.backups import back_up
from somabrain_dagster.operations.chitchat import import_chitchat, read_chitchat
from somabrain_dagster.operations.restoring import drill, replace_home, restore_into
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import Feedback
from somabrain_dagster.store.landing import Landed, land
from somabrain_dagster.store.positions import position, read_heads
from somabrain_dagster.store.row_digests import digests_at

REPORT = Path("reports/drill.json")
CONFIGURATION = LearningConfiguration()
WRITTEN_SINCE = {"backups", "brain", "audit_events", "restore_drills"}
"""A backup is written down once it is whole, a restore writes its epoch and its audit event; all other tables
must be the same."""


@dataclass
class Load:
    """Feedback that lands one by one until it is told to end."""

    url: str
    people: int
    acknowledged: list[tuple[Feedback, int]] = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Land real ratings again and again, each time as new events."""
        said, number = read_chitchat(self.people).feedback, 0
        with Database(self.url) as database:
            while not self.ending.is_set():
                event = msgspec.structs.replace(said[number % len(said)], idempotency_key=f"drill-{number}")
                (outcome,) = land(database, [event], CONFIGURATION)
                if isinstance(outcome, Landed):
                    self.acknowledged.append((event, outcome.seq))
                number += 1

    def import_more(self) -> None:
        """Import as many people again: memories, links and token usage, which no lock of the backup holds."""
        with Database(self.url) as database:
            import_chitchat(database, CONFIGURATION, 2 * self.people)


def under_load(settings: Settings, people: int, seconds: float) -> tuple[Backup, Load, int]:
    """Back up while feedback lands; the events that were acknowledged when it began are the third."""
    started = servers.start(settings)
    with Database(started.database_url) as database:
        import_chitchat(database, CONFIGURATION, people)
    load = Load(started.database_url, people)
    threads = [threading.Thread(target=each) for each in (load.run, load.import_more)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(seconds / 2)
        before = len(load.acknowledged)
        backup = back_up(settings).backup
        time.sleep(seconds / 2)
    finally:
        load.ending.set()
        for thread in threads:
            thread.join()
    return backup, load, before


def wipe(settings: Settings) -> None:
    """Kill the servers and remove all that the home has."""
    for server in (postgres_status(settings.home), valkey_status(settings.home)):
        assert server is not None
        os.kill(server.pid, signal.SIGKILL)
    discard_servers(settings.home)
    shutil.rmtree(settings.home)


def compared(settings: Settings, backup: Backup, load: Load, before: int) -> dict[str, Any]:
    """What the restored brain has against what was acknowledged."""
    with Database(servers.start(settings).database_url) as database, database.snapshot() as connection:
        now = position(read_heads(connection))
        found = {
            (tenant, key): seq
            for tenant, key, seq in connection.execute("SELECT tenant_id, key, seq FROM idempotency_keys")
        }
        events = set(connection.execute("SELECT tenant_id, seq FROM feedback_events").fetchall())
    kept = [
        found.get((event.tenant_id, str(event.idempotency_key))) == seq and (event.tenant_id, seq) in events
        for event, seq in load.acknowledged
    ]
    return {
        "acknowledged": len(kept),
        "acknowledged_before_the_backup_began": before,
        "in_the_backup": sum(kept),
        "lost_from_before_the_backup": kept[:before].count(False),
        "gaps": 0 if kept == sorted(kept, reverse=True) else 1,
        "position": backup.position,
        "restored_position": now,
    }


def at_rest(settings: Settings, elsewhere: Path) -> dict[str, Any]:
    """Back up while nothing lands, restore elsewhere, and compare every row of every table."""
    backup = back_up(settings).backup
    restore_into(settings, backup.backup_id, elsewhere, actor="drill")
    there, here = (
        digests_at(start_postgres(home).admin_url(servers.BRAIN)) for home in (elsewhere, settings.home)
    )
    different = sorted({each.table for each in {*here} ^ {*there}})
    return {
        "tables": len(here),
        "rows": sum(each.rows for each in here),
        "different_tables": [table for table in different if table not in WRITTEN_SINCE],
        "digest": hashlib.sha256(msgspec.json.encode(here)).hexdigest(),
    }


def refusals(settings: Settings, backup: Backup, base: Path) -> dict[str, str | None]:
    """Why each damaged or foreign backup was refused; None for one that was not."""
    backups = Path(str(settings.backup_url).removeprefix("file://"))
    told: dict[str, str | None] = {}
    before = position_of(settings)
    for damage in ("truncated", "bit-flipped"):
        copy = base / damage
        shutil.copytree(backups / backup.backup_id, copy / backup.backup_id)
        file = copy / backup.backup_id / CLUSTER
        if damage == "truncated":
            os.truncate(file, file.stat().st_size // 2)
        else:
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        damaged = settings.model_copy(update={"backup_url": f"file://{copy}"})
        told[damage] = _refusal(damaged, backup.backup_id)
    other = settings.model_copy(update={"home": base / "other"})
    try:
        foreign = back_up(other).backup
    finally:
        discard_servers(other.home)
    told["foreign"] = _refusal(settings, foreign.backup_id)
    told["what was there"] = "untouched" if position_of(settings) == before else None
    return told


def position_of(settings: Settings) -> str:
    """Where the brain of a home is."""
    with Database(servers.start(settings).database_url) as database, database.snapshot() as connection:
        return position(read_heads(connection))


def _refusal(settings: Settings, backup_id: str) -> str | None:
    try:
        replace_home(settings, backup_id, actor="drill")
    except InvalidBackup as error:
        return str(error)
    return None


def main() -> None:
    """Do all of it, print what came of it, and exit 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=12, help="whose conversations are imported")
    parser.add_argument("--seconds", type=float, default=10.0, help="of load besides the backup")
    arguments = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="somabrain-drill-", dir="/var/tmp"))
    base.chmod(0o711)
    settings = Settings(home=base / "home", backup_url=f"file://{base / 'backups'}")
    try:
        backup, load, before = under_load(settings, arguments.people, arguments.seconds)
        print(f"✓ backed up {backup.bytes:,} bytes in {backup.seconds:.1f} s, under load", flush=True)
        wipe(settings)
        restored = replace_home(settings, None, actor="drill")
        loss = compared(settings, backup, load, before)
        rest = at_rest(settings, base / "elsewhere")
        with Database(servers.start(settings).database_url) as database:
            proof, steps = drill(settings, database)
        refused = refusals(settings, backup, base)
    finally:
        for home in (settings.home, base / "elsewhere"):
            discard_servers(home)
        shutil.rmtree(base, ignore_errors=True)
    held = {
        f"restored at {loss['restored_position']}, the backup's position": loss["restored_position"]
        == backup.position,
        f"{before:,} events acknowledged before the backup began, "
        f"{loss['lost_from_before_the_backup']} of them lost": loss["lost_from_before_the_backup"] == 0,
        f"{loss['in_the_backup']:,} of {loss['acknowledged']:,} events are in it, without a gap": loss["gaps"]
        == 0,
        f"{rest['rows']:,} rows of {rest['tables']} tables the same after a backup at rest": not rest[
            "different_tables"
        ],
        f"a drill proves it in {proof.seconds:.1f} s": not proof.findings,
        **{f"{what}: {reason}": reason is not None for what, reason in refused.items()},
    }
    for sentence, holds in held.items():
        print(f"{'✓' if holds else '✗'} {sentence}")
    report = {
        "commit": provenance.commit(),
        "machine": provenance.machine(),
        "backup": {"bytes": backup.bytes, "seconds": round(backup.seconds, 2), "tenants": backup.tenants},
        "restore_seconds": restored.seconds,
        "under_load": loss,
        "at_rest": rest,
        "drill": {"seconds": proof.seconds, "steps": steps, "findings": list(proof.findings)},
        "refused": refused,
        "holds": all(held.values()),
    }
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {REPORT}")
    if not all(held.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
