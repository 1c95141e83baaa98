"""The account of a corpus: complete, signed if somebody signs it, and true or found out."""

import json
import subprocess
from pathlib import Path

import msgspec
import pytest
import zstandard

from somabrain_dagster.corpus.artifacts import Artifacts, NoCorpus, read_manifest
from somabrain_dagster.corpus.build import Built, Plan
from somabrain_dagster.corpus.consumers import read_lines
from somabrain_dagster.corpus.formats import EXAMPLES, FORMATS, entry_of
from somabrain_dagster.corpus.manifest import (
    METADATA,
    SIGNATURE,
    InvalidManifest,
    Manifest,
    check_signature,
    encode,
    manifest_of,
)
from somabrain_dagster.corpus.verification import CLAIMS, DIGESTS, PERSONAL, SPLIT, TOMBSTONES, verify
from tests.corpus.records import PSEUDONYMS, built, conversations, everything_in, memory_records

WHOLE = Plan(formats=tuple(FORMATS), validation=0.1)


def account(found: Built, plan: Plan, **extra: object) -> Manifest:
    rejects = found.rejects
    return manifest_of(
        found,
        kind="corpus",
        scope="pooled",
        plan=plan,
        settings_digest="0" * 64,
        position="a file",
        consent="none is needed in a test",
        extra=[entry_of(rejects.parent, rejects, 0)],
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifacts, Manifest]:
    """A corpus of real conversations in every format, where artifacts are kept."""
    folder = tmp_path_factory.mktemp("published")
    records = [{**record, "reward": 0.5} for record in memory_records(conversations()[:300])]
    source, found = built(folder, records, WHOLE)
    artifacts = Artifacts(f"file://{folder / 'artifacts'}")
    manifest = account(found, WHOLE)
    artifacts.publish(source, manifest)
    return artifacts, manifest


@pytest.fixture
def pulled(published: tuple[Artifacts, Manifest], tmp_path: Path) -> Path:
    artifacts, manifest = published
    return artifacts.pull(manifest.corpus_id, tmp_path)


def test_a_corpus_is_what_its_account_says(pulled: Path) -> None:
    assert verify(pulled) == []


def test_every_format_is_there(pulled: Path) -> None:
    """All but pairs, of which real conversations without recalls have none."""
    folders = {path.name for path in pulled.iterdir() if path.is_dir()}
    assert folders == set(FORMATS) - {"dpo"}


def test_one_flipped_bit_of_any_file_names_the_file(pulled: Path) -> None:
    for entry in read_manifest(str(pulled)).files:
        path = pulled / entry.path
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        (finding,) = verify(pulled)
        assert finding.claim == DIGESTS
        assert finding.message.startswith(f"{entry.path} is not what was written")
        path.write_bytes(whole)


def test_a_missing_file_and_one_too_many_are_named(pulled: Path) -> None:
    (pulled / "nanogpt" / "val.bin").rename(pulled / "extra.bin")
    assert [str(finding) for finding in verify(pulled)] == [
        "nanogpt/val.bin is missing",
        "extra.bin is not in the account",
    ]


def test_the_account_counts_what_is_there(published: tuple[Artifacts, Manifest]) -> None:
    _, manifest = published
    assert manifest.stages[0].kept == manifest.stages[-1].kept + sum(
        stage.rejected for stage in manifest.stages[1:]
    )
    assert manifest.examples == manifest.stages[-1].kept == sum(manifest.lengths.values())
    assert sum(tenant.examples for tenant in manifest.tenants.values()) == manifest.examples
    assert manifest.tokens == sum(
        entry.tokens or 0 for entry in manifest.files if entry.path.startswith("nanogpt/")
    )
    rows = {entry.path: entry.rows for entry in manifest.files}
    assert rows["messages/train.jsonl"] == rows["parquet/train.parquet"] == manifest.splits["train"].examples


def test_equal_files_have_equal_names(published: tuple[Artifacts, Manifest], tmp_path: Path) -> None:
    _, manifest = published
    records = [{**record, "reward": 0.5} for record in memory_records(conversations()[:300])]
    _, found = built(tmp_path, records, WHOLE)
    assert account(found, WHOLE).corpus_id == manifest.corpus_id


def test_a_corpus_without_an_account_is_not_there(
    published: tuple[Artifacts, Manifest], pulled: Path
) -> None:
    artifacts, manifest = published
    assert [one.corpus_id for one in artifacts.manifests()] == [manifest.corpus_id]
    (pulled / METADATA).unlink()
    with pytest.raises(NoCorpus, match=r"there is no run-metadata\.json at"):
        verify(pulled)
    with pytest.raises(FileExistsError, match="remove it, or pull elsewhere"):
        artifacts.pull(manifest.corpus_id, pulled.parent)


def test_an_account_that_cannot_be_read_is_said_to_be_so(pulled: Path) -> None:
    (pulled / METADATA).write_text('{"corpus_id": 3}')
    with pytest.raises(InvalidManifest, match="is no account of a corpus"):
        verify(pulled)


def test_what_is_planted_in_copies_of_real_rows_is_found(pulled: Path) -> None:
    """A leak and an address, and digests put right: whoever plants them has the account too."""
    manifest = read_manifest(str(pulled))
    train, held_out = (f"{EXAMPLES}/{split}.jsonl.zst" for split in ("train", "validation"))
    leaked, first = next(read_lines(pulled / held_out)), json.loads(next(read_lines(pulled / train)))
    first["messages"][-1]["content"] += " write to ada@example.org"
    rows = [json.dumps(first).encode(), leaked]
    (pulled / train).write_bytes(zstandard.compress(b"".join(row + b"\n" for row in rows)))
    files = [
        entry_of(pulled, pulled / train, len(rows)) if entry.path == train else entry
        for entry in manifest.files
    ]
    (pulled / METADATA).write_bytes(encode(msgspec.structs.replace(manifest, files=files)))
    messages = {claim: [str(one) for one in verify(pulled) if one.claim == claim] for claim in CLAIMS}
    assert messages[DIGESTS] == messages[TOMBSTONES] == []
    assert any("is of a session that is held out" in message for message in messages[SPLIT])
    assert any("is in the validation split too" in message for message in messages[SPLIT])
    (personal,) = messages[PERSONAL]
    assert personal.startswith("train example ")


def test_what_was_deleted_since_is_named(pulled: Path) -> None:
    tenant = conversations()[0].messages[conversations()[0].replies()[0][0]].speaker
    gone = [PSEUDONYMS.tenant(tenant)]
    findings = verify(pulled, gone)
    assert findings
    assert {finding.claim for finding in findings} == {TOMBSTONES}
    assert all("of a tenant that was deleted" in str(finding) for finding in findings)
    assert verify(pulled, [PSEUDONYMS.tenant("nobody")]) == []


def test_no_name_of_a_tenant_or_session_is_anywhere_in_it(pulled: Path) -> None:
    names = {one.conversation_id for one in conversations()[:300]}
    names |= {speaker for one in conversations()[:300] for speaker in one.speakers}
    for path, content in everything_in(pulled).items():
        assert not any(name.encode() in content for name in names), path


def test_a_signature_says_who_wrote_it(published: tuple[Artifacts, Manifest], tmp_path: Path) -> None:
    artifacts, manifest = published
    for name in ("own", "other"):
        subprocess.run(
            ["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / f"{name}.pem"], check=True
        )
        subprocess.run(
            ["openssl", "pkey", "-in", tmp_path / f"{name}.pem", "-pubout", "-out", tmp_path / f"{name}.pub"],
            check=True,
        )
    source = artifacts.pull(manifest.corpus_id, tmp_path)
    signed = Artifacts(f"file://{tmp_path / 'signed'}")
    signed.publish(source, manifest, tmp_path / "own.pem")
    folder = signed.pull(manifest.corpus_id, tmp_path / "signed" / "pulled")
    content, signature = ((folder / name).read_bytes() for name in (METADATA, SIGNATURE))
    check_signature(content, signature, tmp_path / "own.pub")
    with pytest.raises(InvalidManifest, match="was not signed with"):
        check_signature(content, signature, tmp_path / "other.pub")
    with pytest.raises(InvalidManifest, match="was not signed with"):
        check_signature(content.replace(b"pooled", b"fooled"), signature, tmp_path / "own.pub")
    assert verify(folder) == []
