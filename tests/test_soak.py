"""What the soak computes of what it saw: the growth of working memory, slopes, and courses of weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.learning_soak import SESSION, Course, Growth, slope_per_thousand
from somabrain_dagster.learning.weights import POSITION, WEIGHTS, to_nanos


def grown(capacity: int, *sessions: list[int]) -> Growth:
    growth = Growth(capacity)
    for sizes in sessions:
        for place, size in enumerate(sizes):
            growth.add(place, size)
    return growth


def test_growth_is_counted_until_working_memory_is_full_and_anew_in_each_session() -> None:
    growth = grown(3, [1, 1, 2, 3, 3, 3], [1, 2])
    assert (growth.items, growth.events) == (3 + 2, 4 + 2)
    assert growth.sums[:4].tolist() == [2, 3, 2, 3]
    assert growth.least[:2].tolist() == [1, 1]
    assert growth.most[:2].tolist() == [1, 2]
    assert growth.sessions[:7].tolist() == [2, 2, 1, 1, 1, 1, 0]


@given(steps=st.lists(st.integers(0, 1), min_size=1, max_size=SESSION))
def test_a_session_that_is_never_full_grows_by_what_it_holds_in_the_end(steps: list[int]) -> None:
    assert grown(SESSION + 1, np.cumsum(steps).tolist()).rate == pytest.approx(np.mean(steps))


@pytest.mark.parametrize("readings", [20, 5000])
def test_the_slope_is_that_of_a_line_whatever_a_few_readings_say(readings: int) -> None:
    """Generated: 3 MiB a thousand turns, and every tenth reading 50 MiB too many."""
    turns = np.linspace(10, 10 * readings, readings)
    values = 300 + 0.003 * turns
    values[::10] += 50
    assert slope_per_thousand(turns, values) == pytest.approx(3.0, rel=0.05)
    assert slope_per_thousand(turns, np.full(readings, 322.0)) == 0


def course(path: list[float], events: list[int]) -> Course:
    """An agent of whose weights only α moves."""
    after = np.tile(to_nanos([weight.start for weight in WEIGHTS]), (len(path), 1))
    after[:, POSITION["alpha"]] = to_nanos(path)
    return Course(np.array(events), after)


def test_a_course_is_read_by_events_though_other_changes_lie_between() -> None:
    of = course([1.0, 1.1, 1.1, 1.25, 1.25, 1.4], [0, 1, 1, 2, 2, 3])
    assert of.risen("alpha", 2) == pytest.approx(0.25)
    assert of.reached("alpha", 1.1) == 1
    assert of.reached("alpha", 1.4) == 3
    assert of.reached("alpha", 1.5) is None


def test_a_fall_of_one_nano_unit_is_a_fall() -> None:
    assert course([1.0, 1.1, 1.1], [0, 1, 2]).never_falls("alpha")
    assert not course([1.0, 1.1, 1.099999999], [0, 1, 2]).never_falls("alpha")
