"""Where backups are kept: a folder each, at any place that an fsspec URL names."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import zstandard

from somabrain_dagster.operations.backup_manifest import (
    MANIFEST,
    Backup,
    BackupFile,
    InvalidBackup,
    decode,
    encode,
)
from somabrain_dagster.operations.places import opened, write_whole

CHUNK = 1 << 20
PROVEN = "proven.json"
"""Beside the account, once a drill restored the backup: it is wanted most when the database is gone."""


class NoBackup(LookupError):
    """There is no such backup; the message says what to do."""


class BackupStore:
    """A place with backups by their names."""

    def __init__(self, url: str) -> None:
        """Open nothing yet.

        Raises:
            NoPlace: the URL cannot be opened.
        """
        self.url = url.rstrip("/")
        self._files, self._root = opened(self.url)

    def write(self, backup_id: str, path: str, chunks: Iterable[bytes], *, pack: bool = True) -> BackupFile:
        """Store a file as it comes, without a copy of it anywhere else.

        Args:
            backup_id: of which backup.
            path: its name there.
            chunks: its content.
            pack: compress it with zstd.
        """
        target = f"{self._root}/{backup_id}/{path}"
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        digest, size = hashlib.sha256(), 0
        with self._files.open(target, "wb") as file:
            for chunk in _packed(chunks) if pack else chunks:
                digest.update(chunk)
                size += len(chunk)
                file.write(chunk)
        return BackupFile(path, size, digest.hexdigest())

    def publish(self, backup: Backup) -> None:
        """Write a backup's account, last: without it there is no backup."""
        write_whole(self._files, f"{self._root}/{backup.backup_id}/{MANIFEST}", encode(backup))

    def backups(self, brain_id: str | None = None) -> list[Backup]:
        """The backups that are there whole, of one brain or of all, the oldest first.

        Those whose account is damaged are left out: `damaged` tells them.
        """
        found = []
        for path in self._files.glob(f"{self._root}/*/{MANIFEST}"):
            try:
                found.append(decode(self._files.cat_file(path), path))
            except InvalidBackup:
                continue
        return sorted(
            (backup for backup in found if brain_id in (None, backup.brain_id)),
            key=lambda backup: (backup.created_at, backup.backup_id),
        )

    def damaged(self) -> Iterator[str]:
        """What is wrong with each account that cannot be read."""
        for path in sorted(self._files.glob(f"{self._root}/*/{MANIFEST}")):
            try:
                decode(self._files.cat_file(path), path)
            except InvalidBackup as error:
                yield str(error)

    def read(self, backup_id: str | None, brain_id: str | None = None) -> Backup:
        """A backup by its name; where None the newest, of one brain or of any.

        Raises:
            NoBackup: there is none.
            InvalidBackup: its account is damaged.
        """
        if backup_id is None:
            found = self.backups(brain_id)
            if not found:
                whose = "" if brain_id is None else f" of brain {brain_id}"
                raise NoBackup(f"there is no backup{whose} at {self.url}: `somabrain backup run` makes one")
            return found[-1]
        path = f"{self._root}/{backup_id}/{MANIFEST}"
        try:
            content: bytes = self._files.cat_file(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NoBackup(
                f"there is no backup {backup_id} at {self.url}: `somabrain backup list` names those there are"
            ) from error
        return decode(content, path)

    def check(self, backup: Backup, told: Callable[[int], None] = lambda _: None) -> list[str]:
        """Read every file back, and say which are not as they were written.

        Args:
            backup: whose files.
            told: of the bytes read so far.
        """
        findings, done = [], 0
        for file in backup.files:
            try:
                for chunk in self._checked(backup.backup_id, file):
                    done += len(chunk)
                    told(done)
            except InvalidBackup as error:
                findings.append(str(error))
        return findings

    def fetch(self, backup: Backup, folder: Path) -> None:
        """Copy all files into a folder, each checked on the way.

        Raises:
            InvalidBackup: a file is missing, or is not as it was written.
        """
        for file in backup.files:
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            with (folder / file.path).open("wb") as copy:
                for chunk in self._checked(backup.backup_id, file):
                    copy.write(chunk)

    def _checked(self, backup_id: str, file: BackupFile) -> Iterator[bytes]:
        """The content of a file; its end is an error unless the whole is as it was written."""
        path = f"{self._root}/{backup_id}/{file.path}"
        digest, size = hashlib.sha256(), 0
        try:
            with self._files.open(path, "rb") as source:
                while chunk := source.read(CHUNK):
                    digest.update(chunk)
                    size += len(chunk)
                    yield chunk
        except FileNotFoundError as error:
            raise InvalidBackup(f"{backup_id}: {file.path} is missing") from error
        if size != file.bytes:
            raise InvalidBackup(
                f"{backup_id}: {file.path} has {size:,} bytes, and had {file.bytes:,} when it was written"
            )
        if digest.hexdigest() != file.sha256:
            raise InvalidBackup(f"{backup_id}: {file.path} was changed since it was written")

    def set_proven(self, backup_id: str, content: bytes) -> None:
        """Note beside a backup that a drill restored it."""
        write_whole(self._files, f"{self._root}/{backup_id}/{PROVEN}", content)

    def is_proven(self, backup_id: str) -> bool:
        """Whether a drill restored the backup."""
        return bool(self._files.exists(f"{self._root}/{backup_id}/{PROVEN}"))

    def remove(self, backup_id: str) -> None:
        """Remove a backup, its account first: what is half removed is no backup."""
        account = f"{self._root}/{backup_id}/{MANIFEST}"
        if self._files.exists(account):
            self._files.rm_file(account)
        if self._files.exists(f"{self._root}/{backup_id}"):
            self._files.rm(f"{self._root}/{backup_id}", recursive=True)

    def leftovers(self, suffix: str) -> list[str]:
        """Backups that were begun and never finished, whose names end so."""
        if not self._files.exists(self._root):
            return []
        names = [path.rstrip("/").rpartition("/")[2] for path in self._files.ls(self._root, detail=False)]
        return [
            name
            for name in names
            if name.endswith(suffix) and not self._files.exists(f"{self._root}/{name}/{MANIFEST}")
        ]


def _packed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True).compressobj()
    for chunk in chunks:
        yield compressor.compress(chunk)
    yield compressor.flush()
