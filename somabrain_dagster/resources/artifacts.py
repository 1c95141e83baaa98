"""The artifact store: where corpora are kept."""

import dagster as dg

from somabrain_dagster.corpus.artifacts import Artifacts
from somabrain_dagster.corpus.exporting import artifacts_of
from somabrain_dagster.settings import Settings


def artifacts_resource(settings: Settings) -> dg.ResourceDefinition:
    """The place that the settings name, opened when a run needs it."""

    @dg.resource(description="Where corpora are kept: an fsspec URL, by default a folder at home.")
    def artifacts(_context: dg.InitResourceContext) -> Artifacts:
        return artifacts_of(settings)

    return artifacts
