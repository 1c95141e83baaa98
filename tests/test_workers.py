"""Runs on workers of Celery: what a worker needs to start, and the proof that it changes nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_a_worker_without_a_broker_says_which_variable_to_set(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SOMABRAIN_")}
    celery = str(Path(sys.executable).with_name("celery"))
    ended = subprocess.run(
        [celery, "-A", "somabrain_dagster.workers.app", "worker"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert "SOMABRAIN_CELERY_BROKER_URL is not set" in ended.stdout + ended.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_worker_that_is_killed_loses_nothing_and_all_is_as_in_one_process(tmp_path: Path) -> None:
    report = tmp_path / "celery.json"
    sizes = ["--people", "5", "--memories", "300", "--feedback", "40", "--only-killed"]
    ran = subprocess.run(
        [sys.executable, "-m", "scripts.beyond_one_machine", *sizes, "--report", str(report)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    told = json.loads(report.read_text())
    assert told["holds"]
    assert all(told["holds"].values())
    assert 0 < told["lost_seconds"]["given up"] < told["lost_seconds"]["done again"] < 180
