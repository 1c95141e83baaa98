"""How well weights rank what was chosen: the measures of retrieval, on choices whose right answer is known.

Every recall counts once, whatever its ω. Between equal scores the chosen candidate is ranked last, so that a
policy which cannot tell candidates apart earns nothing by it.
"""

import numpy as np

from somabrain_dagster.learning.choices import Choices, Integers
from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.policy import scores


def rank_of_chosen(choices: Choices, weights: Floats) -> Integers:
    """How many candidates score at least as high as the chosen one, itself included; ≥ 1, shape (N,)."""
    score = scores(choices.features, weights)
    at_least = score >= choices.spread(score[choices.chosen_rows])
    return np.asarray(np.add.reduceat(at_least, choices.starts, dtype=np.int64))


def recall_at(k: int, choices: Choices, weights: Floats) -> float:
    """The share of recalls whose chosen candidate is among the first k."""
    return float((rank_of_chosen(choices, weights) <= k).mean())


def top1(choices: Choices, weights: Floats) -> float:
    """The share of recalls whose chosen candidate is the first."""
    return recall_at(1, choices, weights)


def mrr(choices: Choices, weights: Floats) -> float:
    """The mean of 1 / rank of the chosen candidate."""
    return float((1.0 / rank_of_chosen(choices, weights)).mean())
