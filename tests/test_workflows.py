"""The workflows of GitHub Actions: they run what `.ci/run` runs, by targets that exist, and may only read."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parent.parent
WORKFLOWS: dict[str, dict[Any, Any]] = {
    path.stem: yaml.safe_load(path.read_text())
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))
}
ACTION: dict[str, Any] = yaml.safe_load(
    (ROOT / ".github" / "actions" / "installed" / "action.yml").read_text()
)
MAKEFILE = (ROOT / "Makefile").read_text()
RECIPES = dict(re.findall(r"^([a-z-]+):.*##.*\n((?:\t.*\n)*)", MAKEFILE, re.MULTILINE))
JOBS = [(name, job) for name, flow in WORKFLOWS.items() for job in flow["jobs"].values()]
ON = True
"""The key `on`, as YAML 1.1 reads it."""


def commands(job: dict[str, Any]) -> list[str]:
    """What a job runs, once for each member of its matrix."""
    matrix: dict[str, list[str]] = job.get("strategy", {}).get("matrix", {})
    runs = [step["run"] for step in job["steps"] if "run" in step]
    found = []
    for values in product(*matrix.values()):
        for run in runs:
            for name, value in zip(matrix, values, strict=True):
                run = run.replace(f"${{{{ matrix.{name} }}}}", value)
            found.append(run)
    return found


def made(lines: list[str]) -> set[str]:
    """Each target with what it is given; a line may name several targets."""
    found = set()
    for line in lines:
        words = line.removeprefix("make ").split()
        given = [word for word in words if "=" in word]
        found |= {" ".join([word, *given]) for word in words if "=" not in word}
    return found


def test_on_every_change_all_of_ci_run_runs() -> None:
    asked = re.findall(r"^make .*$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    run = [command for job in WORKFLOWS["ci"]["jobs"].values() for command in commands(job)]
    assert asked
    assert made(asked) <= made(run)
    assert set(WORKFLOWS["ci"][ON]) == {"push", "pull_request"}


def test_whatever_a_workflow_makes_is_a_target() -> None:
    run = [command for _, job in JOBS for command in commands(job)]
    run += [step["run"] for step in ACTION["runs"]["steps"] if "run" in step]
    assert all(command.startswith("make ") for command in run)
    assert {one.split()[0] for one in made(run)} <= RECIPES.keys()


def test_learning_has_a_job_of_its_own_which_says_what_it_tests() -> None:
    assert commands(WORKFLOWS["ci"]["jobs"]["learning"]) == ["make test-learning"]
    assert re.search(r"pytest .*-m learning -vv", RECIPES["test-learning"])


def test_the_tests_run_on_every_python_from_the_oldest_on() -> None:
    pythons = WORKFLOWS["ci"]["jobs"]["test"]["strategy"]["matrix"]["python"]
    oldest = re.search(r'requires-python = ">=(3\.\d+)', (ROOT / "pyproject.toml").read_text())
    assert oldest is not None
    assert pythons == [oldest[1], "3.12", "3.13"]


def test_the_soak_runs_nightly_and_keeps_its_report_and_picture_whatever_came_of_it() -> None:
    assert WORKFLOWS["soak"][ON]["schedule"]
    (job,) = WORKFLOWS["soak"]["jobs"].values()
    assert commands(job) == ["make soak MINUTES=60"]
    (upload,) = (step for step in job["steps"] if step.get("uses", "").startswith("actions/upload-artifact"))
    assert upload["if"] == "always()"
    assert upload["with"]["path"] == "reports/soak.*"


@pytest.mark.parametrize(("name", "job"), JOBS)
def test_a_job_may_only_read_and_ends_some_time(name: str, job: dict[str, Any]) -> None:
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    assert WORKFLOWS[name]["concurrency"]["group"]
    assert "permissions" not in job
    assert 0 < job["timeout-minutes"] <= 90


def test_every_action_from_elsewhere_is_pinned_by_its_version() -> None:
    used = [step["uses"] for _, job in JOBS for step in job["steps"] if "uses" in step]
    used += [step["uses"] for step in ACTION["runs"]["steps"] if "uses" in step]
    elsewhere = {action for action in used if not action.startswith("./")}
    assert elsewhere
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", action) for action in elsewhere)
