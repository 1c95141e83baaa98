"""Names of people leave a corpus, by the extra `names` and the model of spaCy that comes with it."""

import copy
import sys
from pathlib import Path

import pytest

from somabrain_dagster.corpus.build import Plan
from somabrain_dagster.corpus.formats import EXAMPLES
from somabrain_dagster.corpus.names import NamesMissing, namer
from tests.corpus.records import built, conversations, everything_in, examples_in, message_records

PLANTED = "My name is Ada Lovelace, and yesterday I met Charles Babbage in London."


def test_planted_names_leave_real_conversations(tmp_path: Path) -> None:
    records = copy.deepcopy(message_records(conversations()[:12]))
    for record in records:
        record["messages"] += [
            {"role": "user", "content": PLANTED},
            {"role": "assistant", "content": "I see."},
        ]
    plan = Plan(tokenizer=None, names=True, near_duplicate=None, formats=(EXAMPLES,), validation=0.0)
    folder, found = built(tmp_path, records, plan)
    texts = [example.text for example in examples_in(folder)]
    assert texts
    assert not [text for text in texts if "Lovelace" in text or "Babbage" in text]
    assert all("My name is [NAME], and yesterday I met [NAME] in London." in text for text in texts)
    assert found.redacted["NAME"] >= 2 * len(texts)

    again, _ = built(tmp_path, records, plan, workers=2, piece=8_000, bucket=8_000)
    assert everything_in(again) == everything_in(folder)


def test_without_the_extra_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where None stands for a module, Python says that it cannot be imported."""
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    namer.cache_clear()
    with pytest.raises(NamesMissing, match=r"pip install 'somabrain-dagster\[names\]'"):
        namer()
    namer.cache_clear()
