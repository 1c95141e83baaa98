"""Clipped shifts are a monoid, and every way to fold them gives the same integers."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from somabrain_dagster.learning.shifts import (
    LARGEST_SHIFT,
    LARGEST_WEIGHT,
    SHORT,
    Shifts,
    apply,
    compose,
    constant,
    fold,
    identity,
    reduce_segments,
    scan_segments,
)

pytestmark = pytest.mark.learning

Change = tuple[int, int, int]
"""(a, l, u) as Python's integers, which never overflow."""

HALFWAY: Change = (LARGEST_WEIGHT, -LARGEST_WEIGHT, LARGEST_WEIGHT)
"""Two of them go from the least weight to the largest: as far as any change can."""

small = st.integers(-9, 9)
weights = small | st.integers(-LARGEST_WEIGHT, LARGEST_WEIGHT)


@st.composite
def changes(draw: st.DrawFn, numbers: st.SearchStrategy[int] = weights) -> Change:
    """Any clipped shift on the weights: narrow or wide, constant, unmoving, as large as may be."""
    low, high = sorted((draw(numbers), draw(numbers)))
    reach = st.integers(-LARGEST_SHIFT, LARGEST_SHIFT) if numbers is weights else numbers
    return draw(st.just(0) | numbers | reach), low, draw(st.just(low) | st.just(high))


def stacked(*given_changes: Change) -> Shifts:
    """The changes as rows of one column."""
    shift, low, high = np.array(given_changes, dtype=np.int64).reshape(-1, 3).T[:, :, None]
    return Shifts(shift, low, high)


def truth(change: Change, weight: int) -> int:
    shift, low, high = change
    return max(low, min(weight + shift, high))


def at(shifts: Shifts, weight: int) -> int:
    return int(apply(shifts, np.array([[weight]], dtype=np.int64)).item())


def same(one: Shifts, other: Shifts) -> bool:
    return all(np.array_equal(getattr(one, part), getattr(other, part)) for part in ("shift", "low", "high"))


@given(changes(), weights)
def test_a_clipped_shift_adds_and_then_clamps(change: Change, weight: int) -> None:
    assert at(stacked(change), weight) == truth(change, weight)


@given(changes(), changes(), weights)
@example(first=HALFWAY, then=HALFWAY, weight=-LARGEST_WEIGHT)
def test_a_composition_does_one_and_then_the_other(first: Change, then: Change, weight: int) -> None:
    assert at(compose(stacked(first), stacked(then)), weight) == truth(then, truth(first, weight))


@given(changes(), changes(), changes())
def test_composition_is_associative(f: Change, g: Change, h: Change) -> None:
    f_, g_, h_ = stacked(f), stacked(g), stacked(h)
    assert same(compose(compose(f_, g_), h_), compose(f_, compose(g_, h_)))


@given(changes())
def test_the_identity_changes_nothing_on_either_side(change: Change) -> None:
    shifts = stacked(change)
    assert same(compose(identity((1, 1)), shifts), shifts)
    assert same(compose(shifts, identity((1, 1))), shifts)


@given(weights)
def test_the_identity_keeps_every_weight(weight: int) -> None:
    assert at(identity((1, 1)), weight) == weight


@given(changes(), weights, weights)
def test_a_constant_forgets_what_came_before(change: Change, value: int, weight: int) -> None:
    assert at(compose(stacked(change), constant([[value]])), weight) == value


@given(changes(), weights, weights)
def test_after_a_constant_all_is_constant(change: Change, value: int, weight: int) -> None:
    composed = compose(constant([[value]]), stacked(change))
    assert composed.low == composed.high
    assert at(composed, weight) == truth(change, value)


def test_a_constant_owns_its_values() -> None:
    values = np.array([1, 2])
    fixed = constant(values)
    values[0] = 9
    assert apply(fixed, np.array([0, 0])).tolist() == [1, 2]


def test_bounds_that_do_not_meet_are_not_intersected() -> None:
    """(0, 0, 1) then (0, 5, 6) is the constant 5; the tempting max/min form would say [5, 1]."""
    composed = compose(stacked((0, 0, 1)), stacked((0, 5, 6)))
    assert (composed.low.item(), composed.high.item()) == (5, 5)
    assert [at(composed, weight) for weight in (-3, 0, 1, 9)] == [5, 5, 5, 5]


@given(weights, weights, st.integers(-LARGEST_WEIGHT, LARGEST_WEIGHT), st.data())
def test_a_shift_clipped_to_its_range_loses_nothing_inside_its_bounds(
    one: int, other: int, shift: int, data: st.DataObject
) -> None:
    low, high = sorted((one, other))
    weight = data.draw(st.integers(low, high))
    clipped = max(low - high, min(shift, high - low))
    assert at(stacked((clipped, low, high)), weight) == truth((shift, low, high), weight)


def test_a_composition_may_not_be_clipped_to_its_range() -> None:
    """Its bounds are narrower than where its weights come from: (5, 0, 10) then (0, 3, 4) takes 0 to 4."""
    composed = compose(stacked((5, 0, 10)), stacked((0, 3, 4)))
    assert at(composed, 0) == 4
    assert at(stacked((1, 3, 4)), 0) == 3


@pytest.mark.parametrize("sign", [-1, 1])
def test_no_number_of_changes_overflows(sign: int) -> None:
    change = stacked((sign * LARGEST_SHIFT, -LARGEST_WEIGHT, LARGEST_WEIGHT))
    composed = identity((1, 1))
    for _ in range(20):
        composed = compose(composed, change)
        assert at(composed, -sign * LARGEST_WEIGHT) == sign * LARGEST_WEIGHT


short_segments = st.lists(changes(), max_size=SHORT)
long_segments = st.lists(changes(), min_size=SHORT + 1, max_size=SHORT + 5)
segments_of_changes = st.lists(short_segments, max_size=6) | st.lists(
    short_segments | long_segments, max_size=4
)
"""Of short ones alone each is scanned step by step, beside a long one by the tree."""


@given(segments_of_changes, st.data())
def test_every_fold_equals_the_plain_one(segments: list[list[Change]], data: st.DataObject) -> None:
    rows = stacked(*(change for segment in segments for change in segment))
    lengths = [len(segment) for segment in segments]
    starts = [data.draw(weights) for _ in segments]
    start = np.array(starts, dtype=np.int64).reshape(-1, 1)

    expected: list[list[int]] = []
    for segment, weight in zip(segments, starts, strict=True):
        after = [weight]
        for change in segment:
            after.append(truth(change, after[-1]))
        expected.append(after)

    scanned = scan_segments(rows, lengths, start)
    assert scanned.ravel().tolist() == [weight for after in expected for weight in after[1:]]
    assert apply(reduce_segments(rows, lengths), start).ravel().tolist() == [a[-1] for a in expected]
    ends = np.cumsum([0, *lengths]).tolist()
    for (begin, end), first, after in zip(pairwise(ends), start, expected, strict=True):
        assert fold(rows[begin:end], first).tolist() == [after[-1]]


@given(st.lists(changes() | changes(small), max_size=40), st.data())
def test_any_grouping_reduces_to_the_same_change(sequence: list[Change], data: st.DataObject) -> None:
    rows = stacked(*sequence)
    cut = data.draw(st.integers(0, len(sequence)))
    whole = reduce_segments(rows, [len(sequence)])
    parts = reduce_segments(rows, [cut, len(sequence) - cut])
    assert same(compose(parts[:1], parts[1:]), whole)


@pytest.mark.parametrize(
    "lengths", [[20_000], [0, 19_997, 0, 3], [1] * 20_000, [1] * 10_000 + [10_000], [7] * 2_857 + [1]]
)
def test_long_and_unequal_segments_of_ten_weights(lengths: list[int]) -> None:
    random = np.random.default_rng(11)
    bounds = np.sort(random.integers(-(10**10), 10**10, (2, 20_000, 10)), axis=0)
    rows = Shifts(random.integers(-(10**9), 10**9, (20_000, 10)), *bounds)
    start = random.integers(-(10**10), 10**10, (len(lengths), 10))

    after = scan_segments(rows, lengths, start)

    ends = np.cumsum(lengths)
    before = np.roll(after, 1, axis=0)
    nonempty = np.flatnonzero(lengths)
    before[ends[nonempty] - np.array(lengths)[nonempty]] = start[nonempty]
    assert np.array_equal(after, apply(rows, before))
    reduced = apply(reduce_segments(rows, lengths), start)
    assert np.array_equal(reduced[nonempty], after[ends[nonempty] - 1])


def test_a_segment_of_no_changes_reduces_to_the_identity() -> None:
    assert same(reduce_segments(stacked(), [0, 0]), identity((2, 1)))


def test_no_segments_at_all_is_no_rows() -> None:
    assert scan_segments(stacked(), [], np.zeros((0, 1), dtype=np.int64)).shape == (0, 1)


@pytest.mark.parametrize("lengths", [[1], [3], [-1, 3], []])
def test_lengths_that_do_not_fit_are_refused(lengths: list[int]) -> None:
    rows = stacked((1, 0, 9), (1, 0, 9))
    with pytest.raises(ValueError, match="sum to the 2 rows"):
        reduce_segments(rows, lengths)
    with pytest.raises(ValueError, match="sum to the 2 rows"):
        scan_segments(rows, lengths, np.zeros((len(lengths), 1), dtype=np.int64))


@given(changes(), changes())
def test_shifts_of_many_weights_compose_one_weight_at_a_time(one: Change, other: Change) -> None:
    columns = np.array([one, other], dtype=np.int64).T
    both = Shifts(*columns)
    composed = compose(both, both)
    for column, change in enumerate((one, other)):
        alone = compose(stacked(change), stacked(change))
        assert composed.shift[column] == alone.shift.item()
        assert composed.low[column] == alone.low.item()
        assert composed.high[column] == alone.high.item()
