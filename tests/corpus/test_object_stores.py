"""Corpora in an object store: S3Proxy, a real server over a folder, where Java and Maven are."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from somabrain_dagster.corpus.artifacts import Artifacts, NoCorpus
from somabrain_dagster.corpus.build import Plan
from somabrain_dagster.corpus.exporting import artifacts_of
from somabrain_dagster.corpus.reading import open_corpus
from somabrain_dagster.settings import Settings
from somabrain_dagster.store.database import Database
from tests.corpus.test_exporting import exported, settings, tenants  # noqa: F401  (fixtures)
from tests.test_cli import environment, run  # noqa: F401  (a fixture)

POM = Path(__file__).with_name("s3proxy.pom.xml")
FETCH = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
START_SECONDS = 30.0
BUCKET = "corpora"
LOGGING = '<configuration><root level="off"/></configuration>'


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a bucket of a running server; clients of S3 find its address and keys."""
    if find_spec("s3fs") is None or not shutil.which("java") or not shutil.which("mvn"):
        pytest.skip("a server of S3 needs Java and Maven, its client the extra `s3`")
    folder = tmp_path_factory.mktemp("s3proxy")
    fetched = subprocess.run(
        [
            "mvn",
            "-q",
            "-B",
            "-f",
            POM,
            FETCH,
            "-DincludeScope=runtime",
            f"-DoutputDirectory={folder / 'libs'}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if fetched.returncode:
        pytest.skip(f"Maven cannot get S3Proxy: {fetched.stdout[-300:]}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    bucket = folder / "data" / BUCKET
    bucket.mkdir(parents=True)
    (folder / "logback.xml").write_text(LOGGING)
    (folder / "s3proxy.conf").write_text(
        f"s3proxy.endpoint={address}\n"
        "s3proxy.authorization=aws-v2-or-v4\n"
        "s3proxy.identity=who\n"
        "s3proxy.credential=secret\n"
        "s3proxy.ignore-unknown-headers=true\n"
        "jclouds.provider=filesystem-nio2\n"
        "jclouds.identity=local\n"
        "jclouds.credential=local\n"
        f"jclouds.filesystem.basedir={folder / 'data'}\n"
    )
    logging = f"-Dlogback.configurationFile={folder / 'logback.xml'}"
    server = subprocess.Popen(
        ["java", logging, "-cp", f"{folder}/libs/*", "org.gaul.s3proxy.Main", "--properties", "s3proxy.conf"],
        cwd=folder,
    )
    variables = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "who",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        try:
            _wait_for(server, address)
            yield bucket
        finally:
            server.kill()
            server.wait()


def _wait_for(server: "subprocess.Popen[bytes]", address: str) -> None:
    host, _, port = address.removeprefix("http://").partition(":")
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection((host, int(port)), 1).close()
            return
        except OSError:
            assert server.poll() is None, "S3Proxy ended"
            assert time.monotonic() < deadline, "S3Proxy does not serve"
            time.sleep(0.1)


@pytest.mark.slow
def test_a_corpus_in_a_bucket_is_published_listed_streamed_pulled_and_verified(
    store: Path,
    database: Database,
    settings: Settings,  # noqa: F811
    environment: dict[str, str],  # noqa: F811
    tenants: list[str],  # noqa: F811
    tmp_path: Path,
) -> None:
    own = settings.model_copy(update={"artifacts_url": f"s3://{BUCKET}/of/brain"})
    plan = Plan(formats=("examples", "sources", "messages", "tokenized"), validation=0.1)
    manifest = exported(database, own, plan=plan)
    url = f"s3://{BUCKET}/of/brain/{manifest.corpus_id}"
    assert [one.corpus_id for one in artifacts_of(own).manifests()] == [manifest.corpus_id]
    kept = store / "of" / "brain" / manifest.corpus_id
    written = {path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()}
    assert written == {entry.path for entry in manifest.files} | {"run-metadata.json"}

    corpus = open_corpus(url)
    assert len(list(corpus.examples())) == manifest.splits["train"].examples
    assert len(next(corpus.blocks(size=128))) == 128

    there = {**os.environ, **environment, "SOMABRAIN_ARTIFACTS_URL": f"s3://{BUCKET}/of/brain"}
    code, output = run(there, "corpus", "pull", manifest.corpus_id, str(tmp_path / "data"))
    assert code == 0, output
    code, output = run(there, "corpus", "verify", url)
    assert (code, output.count("✓")) == (0, 4), output

    messages = kept / "messages" / "train.jsonl"
    messages.write_bytes(b"[" + messages.read_bytes()[1:])
    code, output = run(there, "corpus", "verify", url)
    assert (code, "messages/train.jsonl is not what was written" in output) == (1, True)
    with pytest.raises(NoCorpus, match="somabrain corpus list"):
        open_corpus(f"s3://{BUCKET}/of/brain/nothing")


@pytest.mark.skipif(find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_a_store_whose_extra_is_missing_is_named_with_it() -> None:
    for opens in (Artifacts, open_corpus):
        with pytest.raises(NoCorpus, match=r"cannot open gs://bucket: .*\[gcs\]"):
            opens("gs://bucket")
