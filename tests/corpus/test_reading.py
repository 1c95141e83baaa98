"""A corpus as a stream: in parts that make the whole, from any point on."""

import json
from pathlib import Path

import numpy as np
import pytest

from somabrain_dagster.corpus import open_corpus
from somabrain_dagster.corpus.artifacts import Artifacts, NoCorpus
from somabrain_dagster.corpus.build import Plan
from somabrain_dagster.corpus.reading import Corpus, NotInCorpus
from tests.corpus.records import built, conversations, message_records
from tests.corpus.test_manifest import account

PLAN = Plan(formats=("examples", "messages", "tokenized", "nanogpt"), validation=0.1, shard_rows=50)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("reading")
    source, found = built(folder, message_records(conversations()[:200]), PLAN)
    artifacts = Artifacts(f"file://{folder / 'artifacts'}")
    return open_corpus(artifacts.publish(source, account(found, PLAN)))


def test_all_examples_come_in_order(corpus: Corpus) -> None:
    for split, entry in corpus.manifest.splits.items():
        digests = [example.digest for example in corpus.examples(split)]  # type: ignore[arg-type]
        assert digests == sorted(digests)
        assert len(digests) == entry.examples


def test_parts_make_the_whole(corpus: Corpus) -> None:
    whole = [example.digest for example in corpus.examples()]
    parts = [[example.digest for example in corpus.examples(shard=(part, 3))] for part in range(3)]
    assert [parts[place % 3][place // 3] for place in range(len(whole))] == whole


def test_a_reader_goes_on_where_it_stopped(corpus: Corpus) -> None:
    for shard in ((0, 1), (1, 3)):
        whole = [example.digest for example in corpus.examples(shard=shard)]
        rest = [example.digest for example in corpus.examples(shard=shard, start=17)]
        assert rest == whole[17:]


def test_blocks_are_the_tokens_of_train_bin(corpus: Corpus) -> None:
    blocks = np.concatenate(list(corpus.blocks(size=128)))
    written = np.fromfile(corpus.url.removeprefix("file://") + "/nanogpt/train.bin", np.uint16)
    assert len(written) - 128 < len(blocks) <= len(written)
    assert (blocks == written[: len(blocks)]).all()
    assert (
        next(corpus.blocks(size=128, shard=(1, 2), start=2)).tolist() == written[5 * 128 : 6 * 128].tolist()
    )


def test_what_cannot_be_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a shard is one of"):
        next(corpus.examples(shard=(3, 3)))
    with pytest.raises(ValueError, match="start must be 0 or more"):
        next(corpus.examples(start=-1))
    with pytest.raises(NoCorpus, match=r"there is no run-metadata\.json at .*somabrain corpus list"):
        open_corpus(str(tmp_path))
    with pytest.raises(NoCorpus, match="cannot open nowhere://"):
        Artifacts("nowhere://bucket")


def test_a_corpus_says_what_it_holds_instead(tmp_path: Path) -> None:
    plan = Plan(tokenizer=None, formats=("messages",), validation=0.0)
    folder, found = built(tmp_path, message_records(conversations()[:20]), plan)
    corpus = Corpus(str(folder), account(found, plan))
    with pytest.raises(NotInCorpus, match="has no `examples`: it holds messages"):
        next(corpus.examples())


def test_a_corpus_in_another_store(corpus: Corpus, tmp_path: Path) -> None:
    """A folder by its URL; buckets are in `test_object_stores.py`."""
    folder, found = built(tmp_path, message_records(conversations()[:60]), PLAN)
    artifacts = Artifacts((tmp_path / "elsewhere").as_uri())
    manifest = account(found, PLAN)
    url = artifacts.publish(folder, manifest)
    assert [one.corpus_id for one in artifacts.manifests()] == [manifest.corpus_id]
    assert len(list(open_corpus(url).examples())) == manifest.splits["train"].examples
    pulled = artifacts.pull(manifest.corpus_id, tmp_path / "pulled")
    assert json.loads((pulled / "run-metadata.json").read_text())["corpus_id"] == manifest.corpus_id
