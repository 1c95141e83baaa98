"""An incident: adversarial feedback until an alert fires; the runbook finds it and brings the tenant back."""

from pathlib import Path

import pytest

from scripts.documents import run_steps
from scripts.incident import play


def test_blocks_share_a_shell_and_end_with_the_first_that_fails(tmp_path: Path) -> None:
    page = (
        '# One\n\n```sh\n# no heading\nA=there\n```\n\n## Two\n\n```sh\necho "$A"\n```\n'
        "\n## Three\n\n```sh\nfalse | cat\necho never\n```\n\n## Four\n\n```sh\necho never\n```\n"
    )
    steps = list(run_steps(page, tmp_path, {"PATH": "/usr/bin:/bin"}, {"there": "here"}))
    assert [(step.heading, step.output, step.code) for step in steps] == [
        ("One", "", 0),
        ("Two", "here\n", 0),
        ("Three", "", 1),
    ]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_runbook_ends_an_incident(reachable_path: Path) -> None:
    base = reachable_path / "incident"
    base.mkdir(mode=0o711)
    incident = play(base)
    assert [claim for claim, held in incident.holds.items() if not held] == []
