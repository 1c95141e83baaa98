"""Experiments, canaries and promotions at a terminal: what each command says and does, and what it refuses.

The worth of sessions is generated here, with a known effect; everything else is real.
"""

import pytest
from click.testing import CliRunner

from somabrain_dagster.cli import main
from somabrain_dagster.embedded import ValkeyServer
from somabrain_dagster.memory.embedding import Embedder
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.experiments import complete_experiment, read_experiment
from tests.brain import state_of
from tests.trials import ACTOR, Life, new_life

pytestmark = pytest.mark.learning


@pytest.fixture
def life(database: Database, minilm: Embedder) -> Life:
    return new_life(database, minilm, tenants=4)


@pytest.fixture
def terminal(database: Database, valkey: ValkeyServer) -> "Terminal":
    return Terminal(
        {
            "SOMABRAIN_DATABASE_URL": database.url,
            "SOMABRAIN_DAGSTER_DATABASE_URL": database.url,
            "SOMABRAIN_REDIS_URL": valkey.url,
            "SOMABRAIN_CANARY_SHARE": "0.5",
            "SOMABRAIN_CANARY_STRATA": "1",
            "SOMABRAIN_CANARY_HOURS": "[0.000000001]",
            "SOMABRAIN_CANARY_SESSIONS": "2",
        }
    )


class Terminal:
    """Runs `somabrain …` in this process, with the variables of a person."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    def says(self, *arguments: str) -> str:
        """What a command prints that succeeds."""
        result = CliRunner().invoke(main, arguments, env=self._environment, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    def refuses(self, *arguments: str) -> str:
        """What a command prints that exits 1."""
        result = CliRunner().invoke(main, arguments, env=self._environment, catch_exceptions=False)
        assert result.exit_code == 1, result.output
        return result.output


def test_the_built_in_experiment_is_drawn_up_started_shown_and_stopped(
    terminal: Terminal, life: Life
) -> None:
    name = "exp_retrieval_alpha_vs_tau"
    assert "3 arms of 176 sessions each" in terminal.says("experiment", "create", name)
    assert "is taken" in terminal.refuses("experiment", "create", name)
    assert "runs until each of 3 arms has 176 sessions" in terminal.says("experiment", "start", name)
    life.session(life.tenants[0], 0.5)
    shown = terminal.says("experiment", "status")
    assert "running" in shown
    assert "control, alpha, tau" in shown
    assert "of 176" in shown
    assert "does not run" not in terminal.says("experiment", "stop", name, "--reason", "enough seen")
    assert "enough seen" in terminal.says("experiment", "status", name)
    assert "runs once" in terminal.refuses("experiment", "start", name)


def test_an_arm_that_cannot_be_read_says_how_to_write_one(terminal: Terminal) -> None:
    assert "name the arms" in terminal.refuses("experiment", "create", "mine")
    assert "write NAME:WEIGHT=SHIFT" in terminal.refuses("experiment", "create", "mine", "--arm", "warm")
    assert "there is no weight 'omega'" in terminal.refuses(
        "experiment", "create", "mine", "--arm", "warm:omega=1"
    )
    assert "there is no experiment 'mine'" in terminal.refuses("experiment", "status", "mine")


def test_from_an_experiment_to_a_promotion_and_back(terminal: Terminal, life: Life) -> None:
    terminal.says("experiment", "create", "warmer", "--arm", "warm:alpha=+0.5", "--size", "6")
    terminal.says("experiment", "start", "warmer")
    spread = [0.02 * place for place in range(6)]
    with life.database.as_operator() as connection:
        experiment = read_experiment(connection, "warmer")
    life.fill(experiment, {"control": [-0.4 + x for x in spread], "warm": [0.4 + x for x in spread]})
    with life.database.as_operator() as connection:
        complete_experiment(connection, "warmer", ACTOR, online_bound=False)
    shown = terminal.says("experiment", "status", "warmer")
    assert "warm is better" in shown
    assert "✓ d > 0.3" in shown

    assert "canary 1 runs" in terminal.says("canary", "start")
    assert "'warmer' was tried" not in terminal.says("canary", "status")
    assert "cannot be promoted: the canary was not looked at yet" in terminal.refuses("weights", "promote")
    assert "canary 1: held" in terminal.says("canary", "stop")
    assert "no canary runs" in terminal.refuses("canary", "stop")

    before = state_of(life.database, life.tenants[0]).weights.tolist()
    assert "promotion 1 shifted 4 tenants" in terminal.says("weights", "promote", "alpha=1.25", "tau=0.6")
    assert "must be from" in terminal.refuses("weights", "promote", "alpha=99")
    assert "write alpha=1.2" in terminal.refuses("weights", "promote", "alpha")
    history = terminal.says("weights", "history")
    assert "α 1.0000 → 1.2500" in history
    assert "an operator's choice" in history
    assert "promotion 1 is undone" in terminal.says("weights", "rollback")
    assert state_of(life.database, life.tenants[0]).weights.tolist() == before
    assert "nothing is promoted" in terminal.refuses("weights", "rollback")
    assert "undoes 1" in terminal.says("weights", "history")
