"""The page for people, in a real browser: what it shows is what the service says, and nothing of it runs."""

import base64
import hashlib
import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import psycopg
import pytest
from psycopg import sql

from scripts.browser import NoBrowser, Page, opened_browser, program
from somabrain_dagster.embedded import PostgresServer
from somabrain_dagster.learning.weights import NAMES
from somabrain_dagster.store.database import Database
from tests.serving.conftest import OnItsOwn
from tests.serving.running import Running
from tests.serving.test_trials import experiment

Tenant = tuple[str, str]

SOON = 10.0
"""Seconds within which a page that refreshes itself every three of them has done so."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    try:
        program()
    except NoBrowser as none:
        pytest.skip(str(none))
    with opened_browser() as page:
        page.resize(1500, 1000)
        yield page


@pytest.fixture
def opened(service: Running, browser: Page) -> Page:
    """The page as a stranger meets it."""
    browser.go(service.url)
    browser.evaluate("sessionStorage.clear()")
    browser.go(service.url)
    browser.wait("!at('door').hidden")
    return browser


def enter(page: Page, key: str) -> None:
    page.evaluate("at('key').focus()")
    page.type(key)
    page.click("open")


def text_of(page: Page, place: str) -> str:
    text: str = page.evaluate(f"at('{place}').innerText")
    return text


def wait_for_text(page: Page, place: str, text: str, seconds: float = SOON) -> None:
    page.wait(f"at('{place}').innerText.includes({json.dumps(text)})", seconds)


def say(service: Running, key: str, utility: float, session_id: str = "session-1") -> None:
    with service.client(key) as client:
        answer = client.post("/context/feedback", json={"session_id": session_id, "utility": utility})
        assert answer.status_code == 200, answer.text


# Without a browser


def test_the_page_is_the_same_for_everybody_and_may_run_its_own_script_alone(service: Running) -> None:
    answer = httpx.get(service.url)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(
        directive.split(" ", 1) for directive in answer.headers["content-security-policy"].split("; ")
    )
    for directive, tag in (("script-src", "script"), ("style-src", "style")):
        (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert re.findall(r"https?://(?!www\.w3\.org)", answer.text) == [], "nothing is from elsewhere"


# In a browser


def test_a_wrong_key_is_named_and_forgotten(opened: Page) -> None:
    enter(opened, f"sb_{'0' * 16}_{'A' * 43}")
    wait_for_text(opened, "notice", "This key is not valid: it is mistyped or revoked.")
    assert opened.evaluate("at('room').hidden && !at('door').hidden && sessionStorage.length === 0")
    enter(opened, "two words")
    wait_for_text(opened, "notice", "This is no key")


def test_the_picture_is_drawn_from_the_tenants_log(service: Running, opened: Page, tenant: Tenant) -> None:
    name, key = tenant
    for utility in (0.8, -0.4, 1.0, 0.1):
        say(service, key, utility)
    enter(opened, key)
    wait_for_text(opened, "name", name)

    with service.client(key) as client:
        changes = client.get("/context/adaptation/history").json()["changes"][::-1]
    assert len(changes) == 5
    frame = opened.evaluate("PANEL")
    for weight in NAMES:
        path, shown = opened.evaluate(
            f"""(() => {{
                const figure = document.querySelector('figure[data-weight="{weight}"]');
                return [figure.querySelector('.path').getAttribute('d'),
                    figure.querySelector('.value').textContent];
            }})()"""
        )
        values = [change["after"][weight] for change in changes]
        assert float(shown.replace(",", "")) == values[-1]
        low, high = min(values), max(values)
        drawn = [float(y) for y in re.findall(r"[V,]([\d.]+)", path)]
        if low < high:
            down = frame["height"] - frame["top"] - frame["bottom"]
            read = [high - (y - frame["top"]) / down * (high - low) for y in drawn]
            assert read == pytest.approx(values, abs=1e-9)
        else:
            assert len(set(drawn)) == 1
    assert "Every version" in text_of(opened, "caption")


def test_feedback_that_lands_is_seen_without_a_reload(service: Running, opened: Page, tenant: Tenant) -> None:
    name, key = tenant
    enter(opened, key)
    wait_for_text(opened, "name", name)
    wait_for_text(opened, "feedback", "Nothing was said yet")
    opened.evaluate("window.before = at('promoted').firstChild")
    say(service, key, 0.75, "a session of now")
    wait_for_text(opened, "feedback", "a session of now")
    wait_for_text(opened, "summary", "1 feedback event ")
    assert "to 1.0375 at version 1" in opened.evaluate(
        "document.querySelector('figure[data-weight=alpha] svg').getAttribute('aria-label')"
    )
    assert opened.evaluate("window.before === at('promoted').firstChild"), "what is the same is left alone"


def test_what_users_send_stays_text(service: Running, opened: Page, tenant: Tenant) -> None:
    _, key = tenant
    sent = "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"
    say(service, key, 0.5, sent)
    enter(opened, key)
    wait_for_text(opened, "feedback", sent)
    assert opened.evaluate("at('feedback').querySelector('script, img') === null && window.ran === undefined")


def test_an_operator_sees_all_and_a_tenant_its_own(service: Running, opened: Page) -> None:
    first, second = (f"{name}-{uuid4().hex[:8]}" for name in ("shown", "shown"))
    keys = service.add_tenants([first, second])
    with experiment(service) as running_now:
        enter(opened, service.operator)
        wait_for_text(opened, "experiments", running_now)
        opened.evaluate("at('prefix').value = 'shown-'; at('prefix').dispatchEvent(new Event('input'))")
        opened.wait("at('names').children.length === 2", SOON)
        assert {first, second} <= set(text_of(opened, "names").split())
        opened.click(second)
        wait_for_text(opened, "name", second)
        opened.click("forget the key")
        opened.wait("!at('door').hidden && at('names').children.length === 0")
        enter(opened, keys[first])
        wait_for_text(opened, "names", first)
        assert second not in opened.evaluate("document.body.textContent")
        wait_for_text(opened, "experiments", "an operator's key shows them")


def test_a_tenant_that_is_not_the_keys_is_refused_in_words(
    service: Running, opened: Page, tenant: Tenant
) -> None:
    name, key = tenant
    enter(opened, key)
    wait_for_text(opened, "name", name)
    opened.evaluate("location.hash = 'somebody-else'")
    wait_for_text(opened, "notice", "the key is not of tenant 'somebody-else'")
    wait_for_text(opened, "name", name)


@contextmanager
def closed_to_everybody(postgres: PostgresServer, database: Database) -> Iterator[None]:
    """A database that ends every connection and takes no other until the end of the block."""
    name = urlsplit(database.url).path.removeprefix("/")
    quoted = sql.Identifier(name)
    with psycopg.connect(postgres.admin_url(), autocommit=True) as admin:
        admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(quoted))
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        try:
            yield
        finally:
            admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(quoted))


@pytest.fixture
def empty(on_its_own: OnItsOwn) -> Iterator[Running]:
    """A service of the test's own, without tenants."""
    with on_its_own(6) as service:
        yield service


def test_it_says_what_is_missing(empty: Running, browser: Page, postgres: PostgresServer) -> None:
    browser.go(empty.url)
    browser.wait("!at('door').hidden")
    wait_for_text(browser, "health", "service ready")
    enter(browser, empty.operator)
    wait_for_text(browser, "names", "There are no tenants yet.")

    with closed_to_everybody(postgres, empty.database):
        wait_for_text(browser, "health", "service not ready", seconds=30)
        assert "postgres cannot be reached" in text_of(browser, "health")
        wait_for_text(browser, "notice", "Postgres cannot be reached", seconds=30)
    browser.wait("at('notice').hidden && at('health').innerText.includes('service ready')", 30)

    empty.process.send_signal(signal.SIGTERM)
    wait_for_text(browser, "notice", "The service does not answer.", seconds=30)
    assert "does not answer" in text_of(browser, "health")
