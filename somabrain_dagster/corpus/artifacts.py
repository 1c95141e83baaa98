"""Where corpora are kept: any place that an fsspec URL names."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from somabrain_dagster.corpus.manifest import (
    METADATA,
    SIGNATURE,
    Manifest,
    decode,
    encode,
    sign,
)
from somabrain_dagster.operations.places import NoPlace, opened, write_whole


class NoCorpus(LookupError):
    """There is no such corpus; the message says what to do."""


class Artifacts:
    """A folder, a bucket or a prefix in one, that holds corpora by their names."""

    def __init__(self, url: str) -> None:
        """Open nothing yet.

        Args:
            url: `file:///…`, `s3://…`, `gs://…`, or a path.

        Raises:
            NoCorpus: the protocol is unknown, or its extra is not installed.
        """
        self.url = url.rstrip("/")
        try:
            self._files, self._root = opened(self.url)
        except NoPlace as error:
            raise NoCorpus(str(error)) from error

    def url_of(self, corpus_id: str) -> str:
        """Where a corpus is."""
        return f"{self.url}/{corpus_id}"

    def publish(self, folder: Path, manifest: Manifest, key: Path | None = None) -> str:
        """Put a corpus where it belongs, its account last.

        Args:
            folder: with all its files.
            manifest: its account.
            key: to sign the account with.

        Returns:
            Its URL.
        """
        content = encode(manifest)
        root = f"{self._root}/{manifest.corpus_id}"
        for entry in manifest.files:
            self._put(folder / entry.path, f"{root}/{entry.path}")
        if key is not None:
            self._files.pipe_file(f"{root}/{SIGNATURE}", sign(content, key))
        write_whole(self._files, f"{root}/{METADATA}", content)
        return self.url_of(manifest.corpus_id)

    def _put(self, source: Path, target: str) -> None:
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(source), target)

    def manifests(self) -> Iterator[Manifest]:
        """The corpora that are there whole, the newest last."""
        found = [
            decode(self._files.cat_file(path), path)
            for path in self._files.glob(f"{self._root}/*/{METADATA}")
        ]
        yield from sorted(found, key=lambda manifest: (manifest.created_at, manifest.corpus_id))

    def pull(self, corpus_id: str, into: Path, *, folders: Sequence[str] | None = None) -> Path:
        """Copy a corpus into a folder of its name; a copy that was interrupted is not there.

        Args:
            corpus_id: which one.
            into: where the folder is made.
            folders: the formats that are copied; None for the whole corpus.

        Returns:
            The folder.

        Raises:
            NoCorpus: there is none of that name.
            FileExistsError: the folder is there already.
        """
        manifest = read_manifest(self.url_of(corpus_id))
        folder = into / corpus_id
        if folder.exists():
            raise FileExistsError(f"{folder} is there already: remove it, or pull elsewhere")
        beside = into / f".{corpus_id}.pulling"
        shutil.rmtree(beside, ignore_errors=True)
        try:
            paths = [
                entry.path
                for entry in manifest.files
                if folders is None or entry.path.partition("/")[0] in folders
            ]
            for name in [*paths, SIGNATURE, METADATA]:
                source = f"{self._root}/{corpus_id}/{name}"
                if name == SIGNATURE and not self._files.exists(source):
                    continue
                (beside / name).parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(source, str(beside / name))
            beside.rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return folder


def read_file(url: str, name: str) -> bytes:
    """A small file of a corpus.

    Raises:
        NoCorpus: there is none.
    """
    try:
        files, root = opened(url)
        content: bytes = files.cat_file(f"{root}/{name}")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoCorpus(
            f"there is no {name} at {url}: `somabrain corpus list` names those that there are"
        ) from error
    except NoPlace as error:
        raise NoCorpus(str(error)) from error
    return content


def read_manifest(url: str) -> Manifest:
    """The account of the corpus at a URL or path.

    Raises:
        NoCorpus: there is none.
        InvalidManifest: it is none that can be read.
    """
    return decode(read_file(url, METADATA), f"{url}/{METADATA}")
