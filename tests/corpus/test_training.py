"""A model learns from what was built, where torch is installed."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from somabrain_dagster.corpus.build import Plan
from somabrain_dagster.corpus.reading import Corpus
from tests.corpus.records import built, conversations, message_records
from tests.corpus.test_manifest import account

TRAINER = Path(__file__).parent.parent.parent / "scripts" / "train_small_model.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("torch") is None, reason="torch is not installed: pip install 'somabrain-dagster[torch]'"
    ),
]


def test_the_loss_of_a_small_model_falls(tmp_path: Path) -> None:
    folder, _ = built(tmp_path, message_records(conversations()), Plan(formats=("nanogpt",), validation=0.1))
    done = subprocess.run(
        [sys.executable, TRAINER, folder / "nanogpt", "--steps", "60"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    losses = json.loads(done.stdout)
    assert losses["loss, last tenth"] < losses["loss, first tenth"] - 1
    assert losses["held out after"] < losses["held out before"] - 1


def test_workers_of_a_loader_share_the_blocks(tmp_path: Path) -> None:
    from torch.utils.data import DataLoader

    plan = Plan(formats=("tokenized",), validation=0.1)
    folder, found = built(tmp_path, message_records(conversations()[:200]), plan)
    corpus = Corpus(str(folder), account(found, plan))
    whole = {tuple(block.tolist()) for block in corpus.blocks(size=64)}
    loader = DataLoader(corpus.torch("train", block=64), batch_size=None, num_workers=2)
    shared = [tuple(block.tolist()) for block in loader]
    assert set(shared) == whole
    assert len(shared) == sum(1 for _ in corpus.blocks(size=64))
