"""The page about corpora does what it says: every block of it, in order, with people of the demo."""

import json
import re
from pathlib import Path

import pytest

from scripts.documents import FENCED, ROOT, run, script
from somabrain_dagster.operations.chitchat import import_chitchat
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.feedback_contract import parse_feedback
from somabrain_dagster.store.landing import Refused, land
from tests.brain import CONFIGURATION
from tests.corpus.records import conversations, memory_records, write
from tests.corpus.test_exporting import recalled
from tests.test_cli import environment  # noqa: F401  (a fixture)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PAGE = ROOT / "docs" / "CORPORA.md"


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


def test_every_block_of_the_page_runs_in_order(
    environment: dict[str, str],  # noqa: F811
    preferred: str,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    write(
        folder / "input.jsonl",
        [{**one, "tenant_id": preferred} for one in memory_records(conversations()[:40])],
    )
    printed = run(script(PAGE.read_text()), folder, environment)
    assert json.loads((folder / "run-metadata.json").read_text())["splits"]["train"]["examples"] > 0
    for said in (
        "dpo/train.jsonl",
        "nanogpt/train.bin",
        "? what was deleted since is not known here",
        "✓ it was signed with the key",
        " → ",
        "Delete these corpora, here and wherever they were pulled to",
    ):
        assert said in printed
    assert re.search(r"person-31267496: [1-9][\d,]* memories erased", printed)
    assert re.search(r"corpus-pooled-\w+ .* [1-9][\d,]*\s*$", printed)  # of the list at the end
    assert "not so" not in printed


def test_the_page_has_no_command_outside_of_its_blocks() -> None:
    page = FENCED.sub("", PAGE.read_text())
    assert not re.findall(r"^ {4}\S.*", page, re.MULTILINE)
