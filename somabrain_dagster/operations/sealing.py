"""Seals made, and put where who owns the tables need not be able to write."""

import msgspec
from fsspec.core import url_to_fs

from somabrain_dagster.store.audit import SYSTEM
from somabrain_dagster.store.database import Database
from somabrain_dagster.store.seals import Seal, read_seals, seal
from somabrain_dagster.store.tampering import Tampering

FOLDER = "seals"
"""Of the artifact store: a file a seal, named by its number."""


def seal_history(database: Database, artifacts_url: str | None, actor: str) -> Seal | None:
    """Seal the heads of all chains; publish what is not published to the artifact store, if there is one.

    Kafka gets a seal by the relay, with the audit event that tells of it.

    Returns:
        The seal; None where nothing happened since the last one.
    """
    with database.as_operator() as connection:
        made = seal(connection, actor)
        seals = read_seals(connection)
    if artifacts_url is not None:
        files, root = url_to_fs(artifacts_url)
        folder = f"{root.rstrip('/')}/{FOLDER}"
        files.makedirs(folder, exist_ok=True)
        known = {path.rpartition("/")[2] for path in files.ls(folder, detail=False)}
        for each in seals:
            # Never over one that is there: it is the copy that nobody changes.
            if (name := f"{each.number:09}.json") not in known:
                files.pipe_file(f"{folder}/{name}", msgspec.json.encode(each))
    return made


def published_seals(artifacts_url: str) -> list[Seal]:
    """The seals that the artifact store has, in their order."""
    files, root = url_to_fs(artifacts_url)
    paths = sorted(files.glob(f"{root.rstrip('/')}/{FOLDER}/*.json"))
    return [msgspec.json.decode(files.cat_file(path), type=Seal) for path in paths]


def compare_seals(here: list[Seal], elsewhere: list[Seal], where: str) -> list[Tampering]:
    """The seals that are not here as they were published."""
    known = {each.number: each for each in here}
    found = []
    for each in elsewhere:
        mine = known.get(each.number)
        if mine is None or mine.root != each.root:
            has = "the row is gone" if mine is None else f"its root is {mine.root}"
            found.append(Tampering("audit_seals", SYSTEM, each.number, f"{has}, {where} has {each.root}"))
    return found
