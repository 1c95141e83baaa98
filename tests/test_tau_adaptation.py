"""τ follows diversity: repeats raise it, variety lowers it, and so recall keeps to its target."""

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from somabrain_dagster.learning.configuration import LearningConfiguration
from somabrain_dagster.learning.diversity import diversity, repeats, tau_step
from somabrain_dagster.learning.weights import TAU, to_units

pytestmark = pytest.mark.learning

DEFAULT = LearningConfiguration()
WINDOW = DEFAULT.diversity.window


def moved(tau: int, step: int) -> int:
    return max(int(DEFAULT.low_nanos[TAU]), min(tau + step, int(DEFAULT.high_nanos[TAU])))


def taus(of: float, serotonin: float, steps: int) -> list[float]:
    """τ after each of so many steps at one diversity."""
    tau, path = int(DEFAULT.start_nanos[TAU]), []
    for _ in range(steps):
        tau = moved(tau, tau_step(DEFAULT, of, serotonin))
        path.append(float(to_units(tau)))
    return path


def test_the_same_memory_again_is_a_repeat() -> None:
    assert repeats([7, 8, 7, 7, 9], None, 0.95).tolist() == [False, False, True, True, False]
    assert repeats(["a", "b", "a"], None, 0.95).tolist() == [False, False, True]


def test_a_memory_within_the_cosine_is_a_repeat() -> None:
    """(20, −1) lies at cosine 0.9988 from (1, 0), (3, 1) at 0.9487: just outside 0.95."""
    embeddings = np.array([[1.0, 0.0], [20.0, -1.0], [3.0, 1.0], [0.0, 0.5], [0.0, -0.5]])
    assert repeats(range(5), embeddings, 0.95).tolist() == [False, True, False, False, False]


def test_a_cosine_equal_to_the_threshold_is_a_repeat() -> None:
    assert repeats([1, 2], np.array([[1.0, 0.0], [3.0, 4.0]]) * 2.0, 0.6).tolist() == [False, True]


def test_a_memory_without_an_embedding_is_itself_alone() -> None:
    embeddings = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    assert repeats([1, 2, 3], embeddings, 0.95).tolist() == [False, False, False]
    assert repeats([1, 2, 3], embeddings, 0.0).tolist() == [False, False, False]
    assert repeats([1, 1, 3], embeddings, 0.95).tolist() == [False, True, False]


@pytest.mark.parametrize("component", [np.nan, np.inf])
def test_an_embedding_must_be_finite(component: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        repeats([1, 2], np.array([[1.0, 0.0], [component, 1.0]]), 0.95)


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_neither_length_nor_order_of_components_matters(seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    embeddings = random.normal(size=(12, 3))
    shuffled = embeddings[:, random.permutation(3)]
    expected = repeats(range(12), embeddings, 0.9).tolist()
    assert repeats(range(12), shuffled, 0.9).tolist() == expected
    assert repeats(range(12), embeddings * 2.0 ** round(np.log2(scale)), 0.9).tolist() == expected


@pytest.mark.parametrize(("different", "expected"), [(50, 1.0), (1, 0.02), (25, 0.5), (5, 0.1)])
def test_diversity_is_one_less_the_share_of_repeats(different: int, expected: float) -> None:
    memories = [i % different for i in range(WINDOW)]
    assert diversity(memories, None, DEFAULT.diversity) == pytest.approx(expected)


def test_only_the_last_window_counts() -> None:
    memories = [0] * 500 + list(range(1, WINDOW + 1))
    assert diversity(memories, None, DEFAULT.diversity) == 1.0
    embeddings = np.vstack([np.ones((500, WINDOW)), np.eye(WINDOW)])
    assert diversity(range(550), embeddings, DEFAULT.diversity) == 1.0


def test_a_window_that_is_not_full_says_nothing() -> None:
    assert diversity(range(WINDOW - 1), None, DEFAULT.diversity) is None
    assert tau_step(DEFAULT, None, 0.0) == 0


def test_one_step_each_way_by_hand() -> None:
    """Diversity 0.2 is 0.3 short: τ rises 0.03. Diversity 0.9 is 0.4 over: τ falls 0.02."""
    assert tau_step(DEFAULT, 0.2, 0.0) == 30_000_000
    assert tau_step(DEFAULT, 0.9, 0.0) == -20_000_000
    assert tau_step(DEFAULT, 0.5, 0.0) == 0


@given(st.floats(0, 1), st.floats(0, 1))
def test_serotonin_halves_the_step_at_most(of: float, serotonin: float) -> None:
    whole, step, half = (abs(tau_step(DEFAULT, of, level)) for level in (0.0, serotonin, 1.0))
    assert half <= step <= whole
    assert half == pytest.approx(whole / 2, abs=1)


@pytest.mark.parametrize("serotonin", [0.0, 0.5, 1.0])
def test_repeats_raise_tau_to_its_upper_bound_and_no_further(serotonin: float) -> None:
    path = taus(0.02, serotonin, 100)
    assert path[0] > 0.7
    assert path == sorted(path)
    assert path[-1] == 1.2


@pytest.mark.parametrize("serotonin", [0.0, 0.5, 1.0])
def test_variety_lowers_tau_to_its_lower_bound_and_no_further(serotonin: float) -> None:
    path = taus(1.0, serotonin, 100)
    assert path[0] < 0.7
    assert path == sorted(path, reverse=True)
    assert path[-1] == 0.4


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=60))
def test_tau_never_leaves_its_bounds(levels: list[tuple[float, float]]) -> None:
    tau = int(DEFAULT.start_nanos[TAU])
    for of, serotonin in levels:
        tau = moved(tau, tau_step(DEFAULT, of, serotonin))
        assert 0.4 <= to_units(tau) <= 1.2


def test_a_step_is_no_longer_than_its_bounds_are_apart() -> None:
    steep = DEFAULT.overridden({"diversity": {"rise": 1e9, "fall": 1e9}})
    assert tau_step(steep, 0.0, 0.0) == 800_000_000
    assert tau_step(steep, 1.0, 0.0) == -800_000_000


def recalled_diversity(scores: list[float], start: float, *, adapts: bool, seed: int) -> tuple[float, float]:
    """The mean diversity, and τ, of the last half of 2,000 recalls drawn from softmax(scores / τ)."""
    random = np.random.default_rng(seed)
    values = np.array(scores)
    tau = round(start * 10**9)
    window: deque[int] = deque(maxlen=WINDOW)
    seen, path = [], []
    for _ in range(2000):
        window.append(int(np.argmax(values / to_units(tau) + random.gumbel(size=len(values)))))
        of = diversity(list(window), None, DEFAULT.diversity)
        if of is not None:
            seen.append(of)
            path.append(tau)
        if adapts:
            tau = moved(tau, tau_step(DEFAULT, of, serotonin=1.0))
    return float(np.mean(seen[-1000:])), float(to_units(np.mean(path[-1000:]).astype(np.int64)))


LINEAR = np.linspace(0.0, -12.0, 200).tolist()
"""Generated: 200 memories of evenly falling score, among which τ alone decides how many are recalled."""


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_in_closed_loop_sampled_recall_keeps_to_the_target(seed: int) -> None:
    held, _ = recalled_diversity(LINEAR, 0.4, adapts=False, seed=seed)
    adapted, tau = recalled_diversity(LINEAR, 0.4, adapts=True, seed=seed)
    assert held < 0.4
    assert adapted == pytest.approx(0.5, abs=0.05)
    assert 0.4 < tau < 1.2
