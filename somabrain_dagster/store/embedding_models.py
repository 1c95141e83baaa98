"""Embedding models: whose vectors a tenant's memories have. One model a tenant, so that no two mix."""

from collections.abc import Sequence
from dataclasses import dataclass

from somabrain_dagster.store.database import Connection


@dataclass(frozen=True)
class EmbeddingModel:
    """What vectors were made by.

    Attributes:
        name: for a person.
        dimension: the length of its vectors.
        digest: equal for two models only if their vectors may be compared.
    """

    name: str
    dimension: int
    digest: str


class ModelMismatch(ValueError):
    """Vectors of one model were offered to a tenant whose memories have those of another."""

    def __init__(self, tenant_id: str, has: str, offered: str) -> None:
        super().__init__(
            f"the memories of tenant {tenant_id!r} are embedded by {has}, not by {offered}, and vectors of "
            f"two models cannot be compared: use {has} for this tenant, or remember anew in another tenant"
        )
        self.tenant_id = tenant_id


def adopt_model(connection: Connection, tenants: Sequence[str], model: EmbeddingModel) -> int:
    """Make a model the one of these tenants, unless they have it already.

    Args:
        connection: a transaction for these tenants.
        tenants: the tenants.
        model: whose vectors they are about to get.

    Returns:
        The model's id.

    Raises:
        ModelMismatch: a tenant has vectors of another model.
    """
    model_id = _model_id(connection, model)
    names = list(tenants)
    # In the order of their names, as landing locks them, so that two that adopt wait and do not deadlock.
    connection.execute(
        """
        WITH unset AS (
            SELECT tenant_id FROM tenants WHERE tenant_id = ANY (%s) AND model_id IS NULL
            ORDER BY tenant_id FOR UPDATE
        )
        UPDATE tenants t SET model_id = %s FROM unset u WHERE t.tenant_id = u.tenant_id
        """,
        (names, model_id),
    )
    other = connection.execute(
        """
        SELECT t.tenant_id, m.name, m.dimension, m.digest
        FROM tenants t JOIN embedding_models m USING (model_id)
        WHERE t.tenant_id = ANY (%s) AND t.model_id <> %s ORDER BY t.tenant_id LIMIT 1
        """,
        (names, model_id),
    ).fetchone()
    if other is not None:
        tenant_id, *its = other
        raise ModelMismatch(tenant_id, described(EmbeddingModel(*its)), described(model))
    return model_id


def model_of(connection: Connection, tenant_id: str) -> EmbeddingModel | None:
    """The model of a tenant's embeddings; None while it has none."""
    row = connection.execute(
        """
        SELECT m.name, m.dimension, m.digest FROM tenants t JOIN embedding_models m USING (model_id)
        WHERE t.tenant_id = %s
        """,
        (tenant_id,),
    ).fetchone()
    return None if row is None else EmbeddingModel(*row)


def described(model: EmbeddingModel) -> str:
    """A model for a person: two of one name differ in the digest."""
    return f"{model.name} ({model.digest[:12]})"


def _model_id(connection: Connection, model: EmbeddingModel) -> int:
    find = "SELECT model_id FROM embedding_models WHERE digest = %s"
    row = connection.execute(find, (model.digest,)).fetchone()
    if row is None:
        connection.execute(
            """
            INSERT INTO embedding_models (name, dimension, digest) VALUES (%s, %s, %s)
            ON CONFLICT DO NOTHING
            """,
            (model.name, model.dimension, model.digest),
        )
        row = connection.execute(find, (model.digest,)).fetchone()
    assert row is not None
    return int(row[0])
