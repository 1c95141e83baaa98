"""The embedder that the settings name."""

from somabrain_dagster.memory.embedding import Embedder, EmbeddingError, HttpEmbedder, MiniLM
from somabrain_dagster.settings import Settings


def embedder_of(settings: Settings, *, threads: int = 1) -> Embedder:
    """The service by URL, or else the bundled model with so many threads.

    Raises:
        EmbeddingError: the URL is set, but not the model's name and dimension, or the bundled model is
            missing.
    """
    if settings.embedding_url is None:
        return MiniLM(threads=threads)
    if settings.embedding_model is None or settings.embedding_dimension is None:
        raise EmbeddingError(
            "SOMABRAIN_EMBEDDING_URL is set: set SOMABRAIN_EMBEDDING_MODEL and "
            "SOMABRAIN_EMBEDDING_DIMENSION too"
        )
    key = settings.embedding_api_key
    return HttpEmbedder(
        settings.embedding_url,
        settings.embedding_model,
        settings.embedding_dimension,
        api_key=None if key is None else key.get_secret_value(),
    )
