"""Places that files are put at: a folder, a bucket or a prefix in one, named by an fsspec URL."""

import fsspec
from fsspec.core import url_to_fs


class NoPlace(LookupError):
    """The URL names no place that can be opened; the message says what to do."""


def opened(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL, and the path in it, without a slash at its end.

    Raises:
        NoPlace: the protocol is unknown, or its extra is not installed.
    """
    try:
        files, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise NoPlace(
            f"cannot open {url}: {error}. file:// works as it is; s3:// and gs:// need the extras "
            "somabrain-dagster[s3] and [gcs]"
        ) from error
    assert isinstance(files, fsspec.AbstractFileSystem)
    return files, root.rstrip("/")


def write_whole(files: fsspec.AbstractFileSystem, path: str, content: bytes) -> None:
    """Write a small file so that nobody sees half of it."""
    folder, _, name = path.rpartition("/")
    # A name of its own first: on a disk, a file that is written in place can be seen half written.
    files.pipe_file(f"{folder}/.{name}", content)
    files.mv(f"{folder}/.{name}", path)
