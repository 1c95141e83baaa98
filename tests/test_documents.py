"""What the documents say is so: commands parse, targets exist, SQL runs, links lead somewhere, pages run."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import sql

from scripts.documents import ADDRESS, ROOT, blocks, pages, run, script, shell_lines
from somabrain_dagster.client import SomaBrain
from somabrain_dagster.operations import servers
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.adaptation import create_tenants
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.keys import create_key
from somabrain_dagster.traffic import service_beside
from tests.brain import CONFIGURATION
from tests.corpus.records import conversations, write
from tests.test_rooms import ASIDE, LAYERS

PAGES = pages()
TARGETS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
VARIABLE = re.compile(r":'(\w+)'")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parts(language: str) -> list[object]:
    """Every block of a language in every page, as a parameter."""
    return [
        pytest.param(block, id=f"{name(page)}-{number}")
        for page in PAGES
        for number, (said, block) in enumerate(blocks(page.read_text()))
        if said == language
    ]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_commands_of_a_page_are_the_shells(page: Path) -> None:
    lines = "\n".join(block for language, block in blocks(page.read_text()) if language == "sh")
    assert (
        subprocess.run(["bash", "-n"], input=lines, text=True, capture_output=True, check=False).stderr == ""
    )


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_target_that_is_named_exists(page: Path) -> None:
    text = page.read_text()
    named = {target for line in shell_lines(text) for target in re.findall(r"^make ([a-z -]+)", line)}
    named |= set(re.findall(r"`make ([a-z-]+)", text))
    assert {target for said in named for target in said.split()} <= TARGETS


@pytest.mark.parametrize("block", parts("sql"))
def test_a_query_runs_on_an_empty_brain(shared_database: Database, block: str) -> None:
    query = VARIABLE.sub(lambda variable: str(sql.Literal(variable[1]).as_string()), block)
    with shared_database.snapshot() as connection:
        connection.execute(query.encode())


@pytest.mark.parametrize("block", parts("python"))
def test_a_program_is_one(block: str) -> None:
    compile(block, "document", "exec")


def test_the_mathematics_is_as_its_programs_say(tmp_path: Path) -> None:
    run(script((ROOT / "docs" / "MATH.md").read_text()), tmp_path, os.environ)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_link_leads_to_a_file_and_to_a_heading_of_it(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if re.match("https?:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), target
        if anchor:
            assert anchor in headings(path), target


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them of its headings."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


def test_every_alert_leads_to_a_section_of_the_runbook() -> None:
    rules = "".join(file.read_text() for file in (ROOT / "deploy" / "prometheus" / "rules").glob("*.yml"))
    named, led = re.findall(r"- alert: (\w+)", rules), re.findall(r"runbook_url: (\S+)", rules)
    assert sorted(led) == sorted(f"docs/ops/LEARNING_RUNBOOK.md#{alert.lower()}" for alert in named)
    assert {alert.lower() for alert in named} <= headings(ROOT / "docs" / "ops" / "LEARNING_RUNBOOK.md")
    assert named


def test_every_document_can_be_found_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for target in LINK.findall(page.read_text()):
            path = (page.parent / target.partition("#")[0]).resolve()
            if path.suffix == ".md" and path.exists() and path not in reached:
                waiting.append(path)
    assert set(PAGES) <= reached


def test_the_picture_has_every_room() -> None:
    picture = (ROOT / "docs" / "images" / "architecture.svg").read_text()
    shown = set(re.findall(r"\w+", " ".join(re.findall(r">([^<]*)<", picture))))
    assert set().union(*LAYERS, ASIDE) <= shown


def spoken(tenant: str) -> list[dict[str, str | None]]:
    """Real messages as lines of an import."""
    return [
        {
            "tenant_id": tenant,
            "text": message.text,
            "speaker": message.speaker,
            "conversation_id": conversation.conversation_id,
            "occurred_at": message.occurred_at.isoformat(),
        }
        for conversation in conversations()[:20]
        for message in conversation.messages
        if message.text.strip()
    ]


@pytest.fixture(scope="module")
def stack(reachable_path: Path) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Embedded servers and the service, with a tenant who said something: an environment, and its address."""
    settings = Settings(home=reachable_path / "documents")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SOMABRAIN_")}
    running = servers.start(settings)
    try:
        with Database(running.database_url) as database, database.as_operator() as connection:
            create_tenants(connection, ["acme"], CONFIGURATION)
            key = create_key(connection, "acme", "tenant", "tests")
        with service_beside(settings, running) as url:
            with SomaBrain(url, key) as brain:
                for utility in (0.5, 0.8, -0.2):
                    brain.feedback(session_id="first", utility=utility)
            yield {**kept, "SOMABRAIN_HOME": str(settings.home)}, {ADDRESS: url}
    finally:
        servers.stop(settings)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/AUDIT.md",
        "docs/IMPORT.md",
        "docs/DATA_MODEL.md",
        "docs/LEARNING_CHAIN.md",
        "docs/LEARNING_TUNING.md",
        "docs/RETENTION.md",
        "docs/ops/LEARNING_RUNBOOK.md",
    ],
)
def test_a_page_runs_from_its_top_to_its_end(
    stack: tuple[dict[str, str], dict[str, str]], tmp_path: Path, page: str
) -> None:
    environment, address = stack
    folder = tmp_path / "project"
    folder.mkdir()
    write(folder / "memories.jsonl", spoken("acme"))
    write(folder / "feedback.jsonl", [{"tenant_id": "acme", "session_id": "c1", "utility": 0.8}])
    printed = run(script((ROOT / page).read_text(), {**address, " TENANT": " acme"}), folder, environment)
    assert "not so" not in printed
