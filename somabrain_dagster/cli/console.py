"""What every command shares: the console, errors as sentences, the store opened, progress, and who asks."""

import getpass
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import NoReturn, ParamSpec, TypeVar

import click
import pydantic
from pydantic_settings import SettingsError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from somabrain_dagster.embedded import EmbeddedServerError
from somabrain_dagster.learning.configuration import InvalidConfiguration
from somabrain_dagster.memory import indexes
from somabrain_dagster.memory.embedding import EmbeddingError
from somabrain_dagster.operations import chitchat, kafka, servers
from somabrain_dagster.operations.lines import CannotImport
from somabrain_dagster.operations.summary import Progress
from somabrain_dagster.settings import Settings
from somabrain_dagster.store import canaries, experiments, keys, promoting, promotions, retention, trials
from somabrain_dagster.store.adaptation import InvalidTenant, UnknownTenant
from somabrain_dagster.store.cache import SnapshotCache
from somabrain_dagster.store.database import Database, DatabaseNotPrepared, DatabaseUnreachable
from somabrain_dagster.store.scales import UnknownScales
from somabrain_dagster.store.schema import SchemaTooNew

console = Console()
if console.width < 110:
    console.width = 110  # a row of ten weights, which a narrower terminal wraps and does not cut
P = ParamSpec("P")
R = TypeVar("R")


def fail(message: str) -> NoReturn:
    """End with an error that says what to do."""
    raise click.ClickException(message)


def explained(command: Callable[P, R]) -> Callable[P, R]:
    """Turn the errors that a person can act on into their message, without a traceback."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (
            CannotImport,
            chitchat.ChitChatMissing,
            DatabaseNotPrepared,
            EmbeddedServerError,
            EmbeddingError,
            InvalidConfiguration,
            InvalidTenant,
            indexes.LowRecall,
            indexes.NoIndex,
            SchemaTooNew,
            UnknownScales,
            UnknownTenant,
            canaries.NothingToPromote,
            canaries.UnknownCanary,
            experiments.InvalidExperiment,
            experiments.NotAnalysed,
            experiments.UnknownExperiment,
            experiments.WrongStatus,
            kafka.KafkaMissing,
            kafka.KafkaUnreachable,
            kafka.UnsafeTopics,
            promoting.PromotionRefused,
            promotions.InvalidWeights,
            promotions.NothingPromoted,
            retention.AlreadyHeld,
            retention.NotHeld,
            retention.RetentionRuns,
            trials.TrialRunning,
            keys.TooManyKeys,
            keys.UnknownKey,
        ) as error:
            fail(str(error))
        except DatabaseUnreachable as error:
            fail(f"Postgres cannot be reached: {error}\n`somabrain status` says which servers run.")
        except (pydantic.ValidationError, SettingsError) as error:
            fail(wrong_settings(error))

    return run


def wrong_settings(error: pydantic.ValidationError | SettingsError) -> str:
    """Which variables are wrong, and why."""
    if isinstance(error, SettingsError):
        field = str(error).split('"')[1]
        return f"SOMABRAIN_{field.upper()} must be JSON"
    # Knobs of one kind are a model of their own, named for the prefix of their variables.
    kind = error.title.removesuffix("Settings")
    return "\n".join(
        f"{'_'.join(filter(None, ('SOMABRAIN', kind, *map(str, detail['loc'])))).upper()}: {detail['msg']}"
        for detail in error.errors()
    )


@contextmanager
def opened(settings: Settings) -> Iterator[tuple[Database, SnapshotCache]]:
    """The store, its servers started if need be."""
    database, snapshots = servers.open_store(servers.start(settings))
    try:
        yield database, snapshots
    finally:
        snapshots.close()
        database.close()


def actor() -> str:
    """Who runs this, for the audit trail."""
    return f"cli:{getpass.getuser()}"


@contextmanager
def watched() -> Iterator[Progress]:
    """A progress bar for each thing that is done, on a terminal; nothing elsewhere."""
    with Bars(
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=total)

        yield progress
