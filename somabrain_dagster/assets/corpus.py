"""Training corpora: examples, the formats of trainers, tokens and preferences, of each tenant and pooled."""

from collections.abc import Iterator, Mapping

import dagster as dg

from somabrain_dagster.assets.metadata import OWNERS, plot
from somabrain_dagster.checks.corpus import corpus_check_results, corpus_check_specs
from somabrain_dagster.corpus.artifacts import Artifacts
from somabrain_dagster.corpus.build import CannotBuild, Plan
from somabrain_dagster.corpus.card import draw_lengths
from somabrain_dagster.corpus.exporting import DEFAULT_FORMATS, StaleCorpus, derive, export, pseudonyms_of
from somabrain_dagster.corpus.manifest import Kind, Manifest
from somabrain_dagster.partitions import tenants
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.store.corpora import POOLED, NoConsent, written_corpora

CORPORA = "corpora"
"""The group of training corpora."""


class CorpusConfig(dg.Config):
    """What is kept, and how it is written; see `corpus.build.Plan`."""

    tokenizer: str = Plan().tokenizer or ""
    window: int = Plan().window
    validation: float = Plan().validation
    least_reward: float | None = Plan().least_reward
    zstd: bool = Plan().zstd
    shard_rows: int = Plan().shard_rows
    workers: int = 1

    def plan(self, kind: Kind) -> Plan:
        """The plan for a kind of corpus."""
        return Plan(
            near_duplicate=None if kind == "preference_pairs" else Plan().near_duplicate,
            validation=self.validation,
            least_reward=self.least_reward,
            tokenizer=self.tokenizer or None,
            window=self.window,
            formats=DEFAULT_FORMATS[kind],
            zstd=self.zstd,
            shard_rows=self.shard_rows,
        )


def corpus_assets() -> list[dg.AssetsDefinition]:
    """The four kinds of corpora, a partition a tenant, and once more of all tenants together."""
    return [_asset(kind, pooled) for pooled in (False, True) for kind in _MADE]


_MADE: Mapping[Kind, tuple[tuple[str, ...], str]] = {
    "training_examples": (
        ("memories", "feedback_events"),
        "Conversations {whose}, as examples: redacted, each content once, decontaminated, split by session. "
        "The same position of the log gives the same bytes, and the data version is their digest.",
    ),
    "training_corpus": (
        ("training_examples",),
        "The training examples {whose}, in the formats that trainers take.",
    ),
    "tokenized_corpus": (
        ("training_examples",),
        "The training examples {whose} as tokens, with what the assistant is to learn marked, and as nanoGPT "
        "reads them.",
    ),
    "preference_pairs": (
        ("feedback_events", "memories", "recalls"),
        "What feedback {whose} preferred to what: pairs for DPO, and single judgements for KTO.",
    ),
}
"""Of each kind what it is made of, and what it is."""

CORPUS_KINDS: tuple[Kind, ...] = tuple(_MADE)


def corpus_key(kind: str, pooled: bool) -> dg.AssetKey:
    """The asset of a kind: of one tenant, or of all together."""
    return dg.AssetKey([POOLED, kind] if pooled and kind in _MADE else kind)


def _asset(kind: Kind, pooled: bool) -> dg.AssetsDefinition:
    made_of, description = _MADE[kind]
    key = corpus_key(kind, pooled)

    @dg.asset(
        key=key,
        description=description.format(whose=f"of {'all tenants' if pooled else 'a tenant'} that agreed"),
        deps=[corpus_key(dependency, pooled) for dependency in made_of],
        partitions_def=None if pooled else tenants,
        group_name=CORPORA,
        kinds={"parquet" if kind == "tokenized_corpus" else "json"},
        owners=OWNERS,
        tags={"somabrain/layer": "corpus"},
        pool="corpora",
        check_specs=corpus_check_specs(key),
    )
    def corpus(
        context: dg.AssetExecutionContext,
        config: CorpusConfig,
        brain: dg.ResourceParam[Brain],
        artifacts: dg.ResourceParam[Artifacts],
    ) -> Iterator[dg.MaterializeResult[None]]:
        tenant = None if pooled else context.partition_key
        try:
            manifest = _made(kind, tenant, config, brain, artifacts)
        except (NoConsent, CannotBuild, StaleCorpus) as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        yield dg.MaterializeResult(
            data_version=dg.DataVersion(manifest.corpus_id),
            metadata=_metadata(manifest, artifacts),
            check_results=corpus_check_results(brain, artifacts, manifest.corpus_id, key),
        )

    return corpus


def _made(
    kind: Kind, tenant: str | None, config: CorpusConfig, brain: Brain, artifacts: Artifacts
) -> Manifest:
    plan, actor = config.plan(kind), f"dagster:{kind}"
    if "training_examples" not in _MADE[kind][0]:
        return export(
            brain.database,
            brain.settings,
            artifacts,
            plan,
            actor=actor,
            kind=kind,
            tenant=tenant,
            workers=config.workers,
        )
    scope = POOLED if tenant is None else pseudonyms_of(brain.settings).tenant(tenant)
    with brain.database.as_operator() as connection:
        sources = written_corpora(connection, "training_examples", scope)
    if not sources:
        raise StaleCorpus("there are no training examples yet: materialise `training_examples` first")
    return derive(brain.database, brain.settings, artifacts, sources[-1], kind, plan, actor=actor)


def _metadata(manifest: Manifest, artifacts: Artifacts) -> dict[str, dg.MetadataValue | str | int]:
    return {
        "dagster/row_count": manifest.examples,
        "corpus": manifest.corpus_id,
        "url": dg.MetadataValue.url(artifacts.url_of(manifest.corpus_id)),
        "position": manifest.position,
        "tokens": manifest.tokens if manifest.tokens is not None else "not counted",
        "longer than the window": manifest.over_window,
        "commit": manifest.git_commit or "unknown",
        "lengths": plot(
            draw_lengths(
                list(manifest.lengths.values()),
                "tokens" if manifest.tokenizer else "characters",
                manifest.plan.window,
                manifest.over_window,
            ),
            "examples by length",
        ),
        "stages": dg.MetadataValue.table(
            [
                dg.TableRecord({"stage": one.stage, "kept": one.kept, "left out": one.rejected})
                for one in manifest.stages
            ]
        ),
        "files": dg.MetadataValue.table(
            [
                dg.TableRecord(
                    {
                        "file": entry.path,
                        "rows": entry.rows,
                        "bytes": entry.bytes,
                        "tokens": -1 if entry.tokens is None else entry.tokens,
                        "sha256": entry.sha256,
                    }
                )
                for entry in manifest.files
            ]
        ),
    }
