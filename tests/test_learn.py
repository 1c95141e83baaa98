"""The show of the learning chain, end to end with a few people: too little for a trial, and it says so."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from somabrain_dagster.learn import Performance, run, shortened
from somabrain_dagster.operations import servers
from somabrain_dagster.operations.summary import unwatched
from somabrain_dagster.settings import CanarySettings, Settings
from somabrain_dagster.traffic import Cast


@pytest.mark.slow
def test_with_too_little_data_the_chain_holds_and_what_it_leaves_is_proven(reachable_path: Path) -> None:
    settings = Settings(home=reachable_path / "show")
    told = StringIO()
    performance = Performance(
        Cast(people=3, conversations=4, messages=10, questions=2), batch=4, afterwards=1
    )
    verification = run(settings, performance, Console(file=told, width=110), unwatched)
    story = told.getvalue()
    assert "sessions over HTTP" in story
    assert "HOLD" in story
    assert verification.findings == []
    assert len(verification.log.tenants) == 3
    assert not any(one.running for one in servers.status(Settings(home=settings.home / "learn")))


def test_a_canary_is_looked_at_as_often_in_less_time() -> None:
    canary = shortened(CanarySettings(hours=(6, 12, 24, 48)), Performance(canary_minutes=4), seconds=0)
    assert [hour * 60 for hour in canary.hours] == pytest.approx([0.5, 1, 2, 4])


@pytest.mark.parametrize(("seconds", "minutes"), [(0, 2), (121, 3), (300, 5)])
def test_unless_it_is_said_a_canary_lasts_as_long_as_what_is_left(seconds: float, minutes: float) -> None:
    canary = shortened(CanarySettings(), Performance(), seconds)
    assert canary.hours[-1] * 60 == pytest.approx(minutes)
