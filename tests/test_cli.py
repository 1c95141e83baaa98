"""What a person runs: exit codes, and messages that say what to do."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from somabrain_dagster.embedded import ValkeyServer
from somabrain_dagster.memory.embedding import MiniLM
from somabrain_dagster.store.database import Database
from tests.brain import landed, new_tenants, said
from tests.forgery import forge_change, nudge_live_alpha
from tests.remembering import link, messages, remember, room

SOMABRAIN = Path(sys.executable).parent / "somabrain"


@pytest.fixture
def environment(owner_url: str, valkey: ValkeyServer, tmp_path: Path) -> dict[str, str]:
    """Of a person whose servers are named by URL."""
    return {
        **os.environ,
        "SOMABRAIN_HOME": str(tmp_path),
        "SOMABRAIN_DATABASE_URL": owner_url,
        "SOMABRAIN_DAGSTER_DATABASE_URL": owner_url,
        "SOMABRAIN_REDIS_URL": valkey.url,
    }


def run(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
    """The exit code of `somabrain …` and all that it printed."""
    result = subprocess.run(
        [SOMABRAIN, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return result.returncode, result.stdout


@pytest.fixture
def tenants(database: Database) -> list[str]:
    """Two tenants who learned something."""
    names = new_tenants(database, 2)
    landed(database, [said(name, utility) for utility in (0.5, 0.2, -0.3) for name in names])
    return names


def test_replay_says_what_it_replayed(environment: dict[str, str], tenants: list[str]) -> None:
    code, output = run(environment, "replay")
    assert code == 0
    assert f"{len(tenants)} tenants, 8 changes of weights" in output
    assert "replay equals live" in output
    assert "not so" not in output


@pytest.mark.parametrize("options", [[], ["--fold"]])
def test_replay_names_the_tenant_and_the_weight_that_a_nano_unit_was_added_to(
    environment: dict[str, str], database: Database, tenants: list[str], options: list[str]
) -> None:
    nudge_live_alpha(database, tenants[1])
    code, output = run(environment, "replay", *options)
    assert code == 1
    assert "not so: replay equals live" in output
    assert re.search(rf"{tenants[1]}, live state: alpha is \d+ nano-units, .*\(\+1\)", output)
    assert tenants[0] not in output


def test_a_fold_says_what_it_compared_and_nothing_else(
    environment: dict[str, str], tenants: list[str]
) -> None:
    code, output = run(environment, "replay", "--fold")
    assert (code, output) == (0, "✓ replay equals live\n✓ versions have no gap\n")


def test_replay_names_a_change_that_was_forged_with_its_whole_hash_chain(
    environment: dict[str, str], database: Database, tenants: list[str]
) -> None:
    forge_change(database, tenants[0], version=2, nanos=5_000_000)
    code, output = run(environment, "replay")
    assert code == 1
    assert "✓ replay equals live" in output
    assert "✓ the hash chain is intact" in output
    assert "not so: every shift is rederived from its event" in output
    assert f"{tenants[0]}, version 2: the shift of alpha is" in output


def test_tenants_are_created_once_and_listed(environment: dict[str, str]) -> None:
    code, output = run(environment, "tenant", "create", "acme", "globex")
    assert (code, output.split("\n")[:2]) == (0, ["acme: created", "globex: created"])
    code, output = run(environment, "tenant", "create", "acme")
    assert (code, output.strip()) == (0, "acme: exists already")
    code, output = run(environment, "tenant", "list")
    assert code == 0
    assert re.search(r"acme\s+0\s+1\.0000\s+0\.2000\s+0\.1000", output)


def test_memories_are_exported_a_line_each_to_a_file_or_to_the_output(
    environment: dict[str, str], database: Database, minilm: MiniLM, tmp_path: Path
) -> None:
    one, other = new_tenants(database, 2)
    memories = room(database, minilm)
    said_by_one, said_by_other = messages(60)[:59], messages(60)[59:]
    first, second, *rest = remember(memories, one, said_by_one)
    remember(memories, other, said_by_other)
    memories.link_all([link(one, first, second, said_by_one[1].occurred_at, 0.5)])
    code, output = run(environment, "export", "memories", one)
    lines = [json.loads(line) for line in output.splitlines()]
    assert code == 0
    assert [line["memory_id"] for line in lines] == [first, second, *rest]
    assert [line["text"] for line in lines] == [message.text for message in said_by_one]
    assert [(to["target_id"], to["weight"]) for to in lines[0]["links"]] == [(second, 0.5)]
    assert run(environment, "export", "memories", one, "--to", str(tmp_path / "one.jsonl")) == (0, "")
    assert (tmp_path / "one.jsonl").read_text() == output


def test_an_export_of_nobody_is_refused_and_leaves_no_file(
    environment: dict[str, str], tmp_path: Path
) -> None:
    code, output = run(environment, "export", "memories", "no,body", "--to", str(tmp_path / "none.jsonl"))
    assert code == 1
    assert "there is no tenant 'no,body'" in output
    assert list(tmp_path.glob("none*")) == []


def test_status_starts_nothing_and_tells_what_does_not_run(tmp_path: Path) -> None:
    home = tmp_path / "home"
    bare = {name: value for name, value in os.environ.items() if not name.startswith("SOMABRAIN_")}
    code, output = run({**bare, "SOMABRAIN_HOME": str(home)}, "status")
    assert code == 1
    assert output.count("not running") == 2
    assert not home.exists()


def test_servers_by_url_are_used_and_none_is_started(environment: dict[str, str], tmp_path: Path) -> None:
    code, output = run(environment, "up")
    assert code == 0
    assert output.count("running") == 2
    assert not (tmp_path / "postgres").exists()
    assert not list(tmp_path.glob("**/postgres.json"))


def test_a_server_that_cannot_be_reached_is_said_to_be_so(environment: dict[str, str]) -> None:
    code, output = run(
        {**environment, "SOMABRAIN_DATABASE_URL": "postgresql://nobody:secret@127.0.0.1:1/none"}, "replay"
    )
    assert code == 1
    assert "Postgres cannot be reached" in output
    assert "secret" not in output
    assert "Traceback" not in output


def test_a_wrong_setting_is_named(environment: dict[str, str]) -> None:
    code, output = run({**environment, "SOMABRAIN_LEARNING": '{"high": {"alpha": 0.1}}'}, "replay")
    assert code == 1
    assert "alpha must have low ≤ start ≤ high" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_ui_has_a_healthy_daemon_and_leaves_nothing_behind(
    reachable_path: Path, ending: signal.Signals
) -> None:
    home = reachable_path / f"ui-{ending.name}"
    bare = {name: value for name, value in os.environ.items() if not name.startswith("SOMABRAIN_")}
    log = reachable_path / f"ui-{ending.name}.log"
    with log.open("w") as output:
        ui = subprocess.Popen(
            [SOMABRAIN, "ui"],
            env={**bare, "SOMABRAIN_HOME": str(home)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + 240
    while "Dagster's UI: http://127.0.0.1:" not in log.read_text():
        assert ui.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    started = [process for process in psutil.process_iter() if str(home) in environment_of(process)]
    assert len(started) >= 4  # the web server, the daemon, and the code server of each
    code, said = run({**bare, "SOMABRAIN_HOME": str(home)}, "ui")
    assert code == 1
    assert f"It is open already: Dagster's UI at {ui_url(log)}, the service at port" in said
    assert f"`kill {ui.pid}`" in said
    assert all(is_at_work(process) for process in started)

    ui.send_signal(ending)
    assert ui.wait(60) == 0, log.read_text()
    assert [process for process in started if is_at_work(process)] == []
    assert run({**bare, "SOMABRAIN_HOME": str(home)}, "status")[0] == 1


def ui_url(log: Path) -> str:
    """Where the UI is, as its log says."""
    (url,) = re.findall(r"Dagster's UI: (http://127\.0\.0\.1:\d+)", log.read_text())
    return str(url)


def is_at_work(process: psutil.Process) -> bool:
    """Neither ended nor waiting for whoever adopted it to notice that it has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def environment_of(process: psutil.Process) -> str:
    """Where the process has its home; empty if it has ended."""
    try:
        return process.environ().get("SOMABRAIN_HOME", "")
    except psutil.Error:
        return ""


def test_scales_are_shown_and_changed(
    environment: dict[str, str], database: Database, tenants: list[str]
) -> None:
    code, output = run(environment, "scales", "list")
    assert code == 0
    assert "0.0858" in output
    assert "1,520 recalls" in output
    assert run(environment, "scales", "use", "1", tenants[0]) == (0, "tenants changed to scales 1: 1\n")
    assert run(environment, "scales", "use", "1", "--all") == (0, "tenants changed to scales 1: 1\n")
    assert run(environment, "replay")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("1",), "name the tenants, or say --all"),
        (("1", "somebody", "--all"), "name the tenants, or say --all"),
        (("99", "--all"), "no scales of version 99"),
        (("2", "somebody"), "there is no tenant 'somebody'"),
    ],
)
def test_scales_that_cannot_be_changed_say_why(
    environment: dict[str, str], tenants: list[str], arguments: tuple[str, ...], message: str
) -> None:
    code, output = run(environment, "scales", "use", *arguments)
    assert code == 1
    assert message in output
    assert run(environment, "replay")[0] == 0


def test_psql_sees_every_tenant_and_changes_nothing(environment: dict[str, str], tenants: list[str]) -> None:
    code, output = run(environment, "psql", "-At", "-c", "SELECT tenant_id FROM weights ORDER BY tenant_id")
    assert (code, output.split()) == (0, tenants)
    code, output = run(environment, "psql", "-c", "DELETE FROM memories")
    assert code == 1
    assert "read-only transaction" in output
    assert run(environment, "psql", "-At", "-c", "SELECT current_user")[1] == "somabrain_operator\n"
