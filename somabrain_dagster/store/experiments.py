"""Experiments as they are stored."""

from somabrain_dagster.learning.experiments import Arm
from somabrain_dagster.store.database import Connection


class UnknownExperiment(LookupError):
    """There is no such experiment."""


def read_arms(connection: Connection, experiment_id: str) -> tuple[str, list[Arm]]:
    """The salt and the arms by which an experiment assigns units.

    Raises:
        UnknownExperiment: there is no such experiment.
    """
    row = connection.execute(
        "SELECT salt, arms, shares FROM experiments WHERE experiment_id = %s", (experiment_id,)
    ).fetchone()
    if row is None:
        raise UnknownExperiment(f"there is no experiment {experiment_id!r}")
    salt, arms, shares = row
    return salt, [Arm(name, share) for name, share in zip(arms, shares, strict=True)]
