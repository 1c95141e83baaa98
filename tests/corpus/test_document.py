"""The page about corpora does what it says: every block of it, in order, with people of the demo."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from somabrain_dagster.operations.chitchat import import_chitchat
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import parse_feedback
from somabrain_dagster.store.landing import Refused, land
from tests.brain import CONFIGURATION
from tests.corpus.records import conversations, memory_records, write
from tests.corpus.test_exporting import recalled
from tests.test_cli import environment  # noqa: F401  (a fixture)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "CORPORA.md"
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def preferred(database: Database) -> str:
    """A person of the demo whose feedback named a memory; nobody has agreed yet."""
    import_chitchat(database, CONFIGURATION, 2)
    tenant = "person-549cc1d1"
    recall_id, ids = recalled(database, tenant, "asked", "Where did we stop?", None)
    said = {"tenant_id": tenant, "session_id": "asked", "utility": 1.0, "recall_id": recall_id}
    named = parse_feedback({**said, "label": "full", "helpful": [{"memory": ids[1]}]})
    (landed,) = land(database, [named], CONFIGURATION)
    assert not isinstance(landed, Refused), landed
    return tenant


def script() -> str:
    """The blocks of the page as one script that ends where a command fails."""
    lines = ["set -euo pipefail"]
    for kind, block in BLOCK.findall(PAGE.read_text()):
        lines.append(block if kind == "sh" else f"python -c {shlex.quote(block)}")
    return "\n".join(lines)


def test_every_block_of_the_page_runs_in_order(
    environment: dict[str, str],  # noqa: F811
    preferred: str,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "scripts").symlink_to(ROOT / "scripts")
    (folder / ".venv").symlink_to(sys.prefix)
    write(
        folder / "input.jsonl",
        [{**one, "tenant_id": preferred} for one in memory_records(conversations()[:40])],
    )
    done = subprocess.run(
        ["bash", "-c", script()],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((folder / "run-metadata.json").read_text())["splits"]["train"]["examples"] > 0
    for said in (
        "dpo/train.jsonl",
        "nanogpt/train.bin",
        "? what was deleted since is not known here",
        "✓ it was signed with the key",
        " → ",
        "Delete these corpora wherever they were pulled to",
    ):
        assert said in done.stdout
    assert re.search(r"person-31267496: [1-9][\d,]* memories erased", done.stdout)
    assert re.search(r"corpus-pooled-\w+ .* [1-9][\d,]*\s*$", done.stdout)  # of the list at the end
    assert "not so" not in done.stdout


def test_the_page_has_no_command_outside_of_its_blocks() -> None:
    page = BLOCK.sub("", PAGE.read_text())
    assert not re.findall(r"^ {4}\S.*", page, re.MULTILINE)
