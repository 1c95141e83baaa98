"""What a person runs to build, pull and check corpora: exit codes, and what is said."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from somabrain_dagster.corpus.examples import Example
from somabrain_dagster.corpus.pseudonyms import Pseudonyms
from somabrain_dagster.corpus.reading import open_corpus
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.memories import remember_all
from somabrain_dagster.store.memory_bodies import erase_memory
from tests.brain import CONFIGURATION
from tests.corpus.records import conversations, message_records, write
from tests.test_cli import environment, run  # noqa: F401  (a fixture)

pytestmark = pytest.mark.slow

EXPORT = Path(__file__).parent.parent.parent / "scripts" / "export_learning_corpus.py"
KEY = "5a" * 32


@pytest.fixture
def learning(environment: dict[str, str]) -> dict[str, str]:  # noqa: F811
    """Where corpora may be built."""
    return environment | {"SOMABRAIN_LEARNING_LOOP_ENABLED": "1", "SOMABRAIN_PSEUDONYM_KEY": KEY}


@pytest.fixture
def tenants(database: Database) -> list[str]:
    """Two people with their real conversations; nobody has agreed yet."""
    held = conversations()[:200]
    answering = [one.messages[one.replies()[0][0]].speaker for one in held]
    names = sorted(set(answering), key=lambda name: (-answering.count(name), name))[:2]
    with database.as_operator() as connection:
        create_tenants(connection, names, CONFIGURATION)
        for name in names:
            own = [one for one, speaker in zip(held, answering, strict=True) if speaker == name]
            remember_all(connection, [memory for one in own for memory in one.memories(name)])
    return names


def export(environment: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:  # noqa: F811
    """`python scripts/export_learning_corpus.py input.jsonl output.jsonl …` in a folder."""
    return subprocess.run(
        [sys.executable, EXPORT, "input.jsonl", "output.jsonl", "--workers", "1", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_corpus_is_built_listed_shown_pulled_and_verified(
    learning: dict[str, str], database: Database, tenants: list[str], tmp_path: Path
) -> None:
    flag = "SOMABRAIN_LEARNING_LOOP_ENABLED"
    code, output = run({**learning, flag: "0"}, "corpus", "build")
    assert (code, flag in output) == (1, True)
    code, output = run(learning, "corpus", "build", "--tokenizer", "none", "--format", "examples")
    assert code == 1
    assert "no tenant lets its data be learned from" in output
    assert run(learning, "tenant", "learning-loop", tenants[0], "on") == (
        0,
        f"{tenants[0]}: learning loop on\n",
    )

    build = ("corpus", "build", "--workers", "1", "--tokenizer", "none")
    code, output = run(learning, *build, "--format", "examples", "--format", "sources")
    assert code == 0, output
    name = output.split()[-1].rpartition("/")[2]
    code, output = run(learning, "corpus", "list")
    assert (code, name in output) == (0, True)
    code, output = run(learning, "corpus", "show", name)
    assert (code, "examples/train.jsonl.zst" in output) == (0, True)
    code, output = run(learning, "corpus", "pull", name, str(tmp_path / "data"))
    pulled = tmp_path / "data" / name
    assert (code, output.strip()) == (0, str(pulled))
    code, output = run(learning, "corpus", "verify", name)
    assert (code, output.count("✓"), "✗" in output) == (0, 5, False)

    victim = next(open_corpus(str(pulled)).examples())
    erase(database, tenants[0], victim)
    code, output = run(learning, "corpus", "tombstones")
    assert (code, output.strip() in victim.memories) == (0, True)
    (tmp_path / "tombstones.txt").write_text(output)
    code, output = run(
        learning, "corpus", "verify", str(pulled), "--tombstones", str(tmp_path / "tombstones.txt")
    )
    assert (code, victim.digest.hex()[:16] in output) == (1, True)
    code, output = run(learning, "corpus", "list")
    assert (code, bool(re.search(rf"{name}\s.*\s1\s*$", output, re.MULTILINE))) == (0, True)
    code, output = run(learning, "corpus", "pull", name, str(tmp_path / "again"))
    assert (code, "was not pulled" in output, "build a new corpus" in output) == (1, True, True)
    assert not (tmp_path / "again" / name).exists()

    rows = pulled / "examples" / "train.jsonl.zst"
    whole = rows.read_bytes()
    rows.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    code, output = run(learning, "corpus", "verify", str(pulled))
    assert (code, "examples/train.jsonl.zst is not what was written" in output) == (1, True)


def erase(database: Database, tenant: str, victim: Example) -> None:
    own = Pseudonyms(bytes.fromhex(KEY))
    with database.as_operator() as connection:
        ids = connection.execute("SELECT memory_id FROM memories WHERE tenant_id = %s", (tenant,))
        memory_id = next(number for (number,) in ids if own.memory(tenant, number) in victim.memories)
        assert erase_memory(connection, tenant, memory_id, "ada")


def test_what_is_not_there_is_said_so(learning: dict[str, str], tmp_path: Path) -> None:
    for command in ("show", "verify", "pull"):
        code, output = run(learning, "corpus", command, "corpus-of-nothing")
        assert (code, "corpus-of-nothing" in output, "Traceback" in output) == (1, True, False), output
        assert "somabrain corpus list" in output
    for path in (tmp_path / "nowhere", Path("data/nowhere")):
        code, output = run(learning, "corpus", "verify", str(path))
        assert (code, f"at {path}: " in output) == (1, True), output


def without_database(environment: dict[str, str]) -> dict[str, str]:  # noqa: F811
    urls = ("SOMABRAIN_DATABASE_URL", "SOMABRAIN_DAGSTER_DATABASE_URL", "SOMABRAIN_REDIS_URL")
    return {name: value for name, value in environment.items() if name not in urls}


def test_a_file_becomes_a_corpus_without_any_database(learning: dict[str, str], tmp_path: Path) -> None:
    own = without_database(learning)
    write(tmp_path / "input.jsonl", message_records(conversations()[:40]))
    refused = export(
        {**own, "SOMABRAIN_LEARNING_LOOP_ENABLED": "0"}, tmp_path, "--metadata-out", "run-metadata.json"
    )
    assert (refused.returncode, "SOMABRAIN_LEARNING_LOOP_ENABLED" in refused.stderr) == (1, True)
    assert not (tmp_path / "output.jsonl").exists()

    done = export(own, tmp_path, "--metadata-out", "run-metadata.json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed == json.loads((tmp_path / "run-metadata.json").read_text())
    assert {"created_at", "git_commit", "config_digest"} <= printed.keys()
    assert "no database says which tenants agreed" in printed["consent"]
    rows = rows_of(tmp_path)
    assert len(rows) == printed["splits"]["train"]["examples"] > 0
    assert all({"prompt", "response"} <= row.keys() for row in rows)


def test_a_line_that_cannot_be_read_is_named_and_the_others_are_kept(
    learning: dict[str, str], tmp_path: Path
) -> None:
    path = write(tmp_path / "input.jsonl", message_records(conversations()[:3]))
    path.write_text(path.read_text() + "{\n")
    done = export(without_database(learning), tmp_path, "--tokenizer", "none")
    assert (done.returncode, "line 4: not a record" in done.stderr) == (1, True)
    assert rows_of(tmp_path)


def test_with_a_database_only_those_who_agreed_are_learned_from(
    learning: dict[str, str], tenants: list[str], tmp_path: Path
) -> None:
    of_both = [record for record in message_records(conversations()[:200]) if record["tenant_id"] in tenants]
    write(tmp_path / "input.jsonl", of_both)
    nobody = export(learning, tmp_path, "--tokenizer", "none")
    assert nobody.returncode == 1
    assert not (tmp_path / "output.jsonl").exists()

    assert run(learning, "tenant", "learning-loop", tenants[0], "on")[0] == 0
    done = export(learning, tmp_path, "--tokenizer", "none")
    assert (done.returncode, "does not let its data be learned from" in done.stderr) == (1, True)
    printed = json.loads(done.stdout)
    learned_from = {name for name, tenant in printed["tenants"].items() if tenant["examples"]}
    assert learned_from == {Pseudonyms(bytes.fromhex(KEY)).tenant(tenants[0])}
    assert "each tenant's learning_loop_enabled" in printed["consent"]
    own = {
        m["content"] for record in of_both if record["tenant_id"] == tenants[0] for m in record["messages"]
    }
    assert all(any(part in own for part in row["response"].split("\n")) for row in rows_of(tmp_path))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "output.jsonl").read_text().splitlines()]
