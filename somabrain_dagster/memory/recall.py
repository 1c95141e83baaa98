"""Recall: the memories of a tenant that a question brings to mind, each with why it came."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from somabrain_dagster.learning import policy
from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.features import FEATURES, Candidates, Floats
from somabrain_dagster.learning.neuromodulators import effective_alpha, effective_temperature
from somabrain_dagster.learning.policy import Positions, Scales
from somabrain_dagster.learning.weights import POSITION, RETRIEVAL, TAU, Nanos, to_nanos, to_units
from somabrain_dagster.memory.mentions import Mentions
from somabrain_dagster.memory.query import Mode, Query
from somabrain_dagster.store.adaptation import Levels
from somabrain_dagster.store.recalls import BY_LINK, BY_RECENCY, BY_SIMILARITY, BY_WORDS, Backend, Sighting
from somabrain_dagster.store.trials import Overlay

SOURCES = {BY_SIMILARITY: "similarity", BY_WORDS: "full_text", BY_RECENCY: "recency", BY_LINK: "links"}
"""What brings a candidate in, by its bit in the log."""

NAMES = tuple(feature.name for feature in FEATURES)


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A memory that was recalled, and why.

    Attributes:
        memory_id: names it within its tenant.
        score: Σ_k w_k z_k.
        probability: that the policy puts it first.
        features: z, each feature's value over its scale, by name.
        contributions: w_k z_k by name; their sum is the score.
        sources: what brought it in: similarity, full_text, recency, links.
        governed_margin: the best score minus the second best, of the whole recall.
        cleanup_backend: which index served similarity.
    """

    memory_id: int
    text: str
    speaker: str | None
    occurred_at: datetime
    namespace: str
    conversation_id: str | None
    payload: Mapping[str, Any]
    score: float
    probability: float
    features: Mapping[str, float]
    contributions: Mapping[str, float]
    sources: tuple[str, ...]
    governed_margin: float
    cleanup_backend: Backend


@dataclass(frozen=True, kw_only=True)
class Recall:
    """A recall as it was made and logged.

    Attributes:
        recall_id: by which feedback speaks of it.
        as_of: it saw what is strictly earlier.
        hits: at most k, in order.
        candidates: how many memories were weighed.
        weights: in force, by name, arm and neuromodulators included; τ among them.
        weights_version: of the tenant's weights from which they came.
        steered_to: the version of the tenant's weights after this recall, where τ stepped.
    """

    recall_id: int
    tenant_id: str
    as_of: datetime
    mode: Mode
    arm: str | None
    hits: tuple[Hit, ...]
    candidates: int
    governed_margin: float
    cleanup_backend: Backend
    weights: Mapping[str, float]
    weights_version: int
    scale_version: int
    steered_to: int | None = field(default=None)


@dataclass(frozen=True, eq=False)
class Considered:
    """The candidates of a recall, weighed; n candidates by ascending id, F features.

    Attributes:
        memory_ids: (n,).
        sources: (n,) sums of bits of `SOURCES`.
        features: (n, F) scaled.
        scores: (n,).
        probabilities: (n,) of the first position.
        expected: (F,) what the policy expected of each feature.
        order: (n,) positions, the first hit first.
    """

    memory_ids: NDArray[np.int64]
    sources: NDArray[np.int16]
    features: Floats
    scores: Floats
    probabilities: Floats
    expected: Floats
    order: Positions

    @property
    def margin(self) -> float:
        """The best score minus the second best."""
        return policy.governed_margin(self.scores)


def weights_in_force(
    weights: Nanos,
    configuration: LearningConfiguration,
    overlay: Overlay | None,
    levels: Levels | None,
    own: Scales,
    scales: Scales,
) -> Nanos:
    """The weights (K,) that a recall uses, nano-units.

    Args:
        weights: the tenant's.
        configuration: the tenant's; gives the bounds within which an arm may shift.
        overlay: the session's arm.
        levels: the neuromodulators that act on recall: τ·(1 − noradrenaline), α·(1 + acetylcholine).
        own: the scales in which the tenant's weights are meant.
        scales: those that the recall divides by: the arm's, or the tenant's own.
    """
    if overlay is not None:
        low, high = configuration.low_nanos, configuration.high_nanos
        if scales.version != own.version:
            weights = np.clip(policy.rescaled(weights, own, scales), low, high)
        weights = np.clip(weights + overlay.shift, low, high)
    if levels is not None:
        weights = weights.copy()
        alpha, tau = to_units(weights)[[POSITION["alpha"], TAU]].tolist()
        weights[POSITION["alpha"]] = to_nanos(effective_alpha(alpha, levels.acetylcholine))
        weights[TAU] = to_nanos(effective_temperature(tau, levels.noradrenaline))
    return weights


def feature_values(question: str, asker: str | None, seen: Sighting, half_life_seconds: float) -> Floats:
    """The value of each feature for each memory that was seen, (n, F), before scaling."""
    mentions = Mentions(question)
    candidates = Candidates(
        similarity=seen.similarity,
        activation=_activation(seen),
        age_seconds=seen.age_seconds,
        half_life_seconds=half_life_seconds,
        lexical_rank=seen.lexical_rank,
        mentioned=np.array(
            [
                mentions.any([speaker, *entities])
                for speaker, entities in zip(seen.speakers, seen.entities, strict=True)
            ],
            dtype=np.bool_,
        ),
        other_speaker=np.array(
            [None not in (asker, speaker) and speaker != asker for speaker in seen.speakers], dtype=np.bool_
        ),
    )
    return np.column_stack([feature.value(candidates) for feature in FEATURES])


def _activation(seen: Sighting) -> Floats:
    if not seen.seeds.any():
        return np.zeros(len(seen.memory_ids))
    # Only the seeds that the store named may be seeds, whatever else came near by way of words or links.
    similarity = np.where(seen.seeds, seen.similarity, -np.inf)
    return policy.activation(similarity, seen.link_sources, seen.link_targets, seen.link_weights)


def admitted(seen: Sighting, activation: Floats, additions: int, generator: np.random.Generator) -> Positions:
    """The positions of the candidates: all that were found, and at most `additions` that only links reach.

    Those are drawn without replacement in proportion to their activation.
    """
    only_linked = seen.sources == BY_LINK
    drawn = policy.draw_without_replacement(np.where(only_linked, activation, 0.0), additions, generator)
    chosen = ~only_linked
    chosen[drawn] = True
    return np.flatnonzero(chosen)


def consider(
    query: Query,
    seen: Sighting,
    scales: Scales,
    weights: Nanos,
    additions: int,
    generator: np.random.Generator,
) -> Considered:
    """Choose the candidates among what was seen, weigh them, and put them in order.

    Args:
        query: the question.
        seen: what was found, and what links from the seeds reach.
        scales: in force.
        weights: (K,) in force, nano-units.
        additions: how many memories links alone may bring in.
        generator: draws them and, in mode `sample`, the order.
    """
    values = feature_values(query.text, query.asker, seen, scales.half_life_seconds)
    graph = values[:, NAMES.index("graph")]
    chosen = admitted(seen, graph, additions, generator)
    features = policy.scaled(values[chosen], np.array(scales.values))
    units = to_units(weights)
    scores = policy.scores(features, units[RETRIEVAL])
    tau = float(units[TAU])
    probabilities = policy.softmax(scores, tau)
    memory_ids = seen.memory_ids[chosen]
    return Considered(
        memory_ids=memory_ids,
        sources=seen.sources[chosen],
        features=features,
        scores=scores,
        probabilities=probabilities,
        expected=policy.expected_features(probabilities, features),
        order=(
            policy.rank(scores, memory_ids) if query.mode == "rank" else policy.sample(scores, tau, generator)
        ),
    )


def hit(
    considered: Considered, position: int, weights: Nanos, body: tuple[Any, ...], backend: Backend
) -> Hit:
    """One candidate as a person or a program sees it; `body` is as `read_bodies` gives it."""
    text, speaker, occurred_at, namespace, conversation_id, payload = body
    z = considered.features[position]
    sources = int(considered.sources[position])
    return Hit(
        memory_id=int(considered.memory_ids[position]),
        text=text,
        speaker=speaker,
        occurred_at=occurred_at,
        namespace=namespace,
        conversation_id=conversation_id,
        payload=payload,
        score=float(considered.scores[position]),
        probability=float(considered.probabilities[position]),
        features=dict(zip(NAMES, z.tolist(), strict=True)),
        contributions=dict(zip(NAMES, (to_units(weights)[RETRIEVAL] * z).tolist(), strict=True)),
        sources=tuple(name for bit, name in SOURCES.items() if sources & bit),
        governed_margin=considered.margin,
        cleanup_backend=backend,
    )
