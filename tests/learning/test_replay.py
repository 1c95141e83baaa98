"""Replay finds a sound log sound, and every gap and every altered row."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from somabrain_dagster.learning.replay import Log, Replaying
from somabrain_dagster.learning.shifts import LARGEST_SHIFT, UNBOUNDED, Shifts, scan_segments
from somabrain_dagster.learning.weights import Nanos

pytestmark = pytest.mark.learning

K = 3


@dataclass(frozen=True)
class Replayed:
    """What a log amounts to, and where it is wrong; rows are positions in the log."""

    weights: Nanos
    gaps: list[int]
    wrong: list[int]

    @property
    def sound(self) -> bool:
        return not self.gaps and not self.wrong


def replay(*blocks: Log) -> Replayed:
    """Replay a log that comes in these blocks."""
    replaying = Replaying(len(blocks[0].lengths), blocks[0].after.shape[1])
    gaps: list[int] = []
    wrong: list[int] = []
    begins = 0
    for block in blocks:
        found = replaying.add(block)
        gaps += (found[0] + begins).tolist()
        wrong += (found[1] + begins).tolist()
        begins += len(block.versions)
    return Replayed(replaying.weights, gaps, wrong)


def generated_log(lengths: list[int], seed: int) -> Log:
    """A log of random clipped shifts, each tenant's beginning with a constant."""
    random = np.random.default_rng(seed)
    rows = sum(lengths)
    counts = np.array(lengths)
    first = np.cumsum(counts) - counts
    low, high = np.sort(random.integers(-9, 10, (2, rows, K)), axis=0)
    high[first] = low[first]
    shifts = Shifts(random.integers(-5, 6, (rows, K)), low, high)
    after = scan_segments(shifts, counts, np.zeros((len(lengths), K), dtype=np.int64))
    versions = np.concatenate([np.arange(length) for length in lengths])
    return Log(counts, versions, shifts, after)


logs = st.builds(
    generated_log, st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(0, 2**32 - 1)
)


def test_a_log_by_hand() -> None:
    """Start 5; +3 within [0, 7] is 7; −1 is 6; rolled back to 5."""
    log = Log(
        lengths=np.array([4]),
        versions=np.arange(4),
        shifts=Shifts(*np.array([[0, 3, -1, 0], [5, 0, 0, 5], [5, 7, 7, 5]])[:, :, None]),
        after=np.array([[5], [7], [6], [5]]),
    )
    replayed = replay(log)
    assert replayed.sound
    assert replayed.weights.tolist() == [[5]]


@given(logs)
def test_a_sound_log_folds_to_its_last_weights(log: Log) -> None:
    replayed = replay(log)
    assert replayed.sound
    assert replayed.weights.tolist() == log.after[np.cumsum(log.lengths) - 1].tolist()


@given(logs, st.data())
def test_any_altered_weight_is_found_at_its_row(log: Log, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(log.after) - 1))
    weight = data.draw(st.integers(0, K - 1))
    after = log.after.copy()
    after[row, weight] += data.draw(st.sampled_from([-(10**12), -1, 1, 10**12]))
    replayed = replay(replace(log, after=after))
    assert replayed.wrong[0] == row
    assert replayed.gaps == []


@given(logs, st.data())
def test_a_missing_version_is_found_where_it_is_due(log: Log, data: st.DataObject) -> None:
    tenant = data.draw(st.integers(0, len(log.lengths) - 1))
    first = int(log.lengths[:tenant].sum())
    lost = data.draw(st.integers(0, int(log.lengths[tenant]) - 1))
    versions = log.versions.copy()
    versions[first + lost : first + log.lengths[tenant]] += 1
    replayed = replay(replace(log, versions=versions))
    assert replayed.gaps == [first + lost]


def cut(log: Log, places: list[int]) -> list[Log]:
    """The log in blocks that end at these rows and at its end."""
    owners = np.repeat(np.arange(len(log.lengths)), log.lengths)
    return [
        Log(
            np.bincount(owners[begin:end], minlength=len(log.lengths)),
            log.versions[begin:end],
            log.shifts[begin:end],
            log.after[begin:end],
        )
        for begin, end in pairwise([0, *sorted(places), len(owners)])
    ]


@given(logs, st.data())
def test_a_log_that_comes_in_blocks_is_replayed_as_the_whole(log: Log, data: st.DataObject) -> None:
    rows = st.integers(0, len(log.versions))
    row, places = data.draw(rows), data.draw(st.lists(rows, max_size=4))
    log.after[row:, 0] += data.draw(st.integers(-1, 1))
    log.versions[data.draw(rows) :] += data.draw(st.integers(0, 1))
    whole, in_blocks = replay(log), replay(*cut(log, places))
    assert (in_blocks.gaps, in_blocks.wrong) == (whole.gaps, whole.wrong)
    assert in_blocks.weights.tolist() == whole.weights.tolist()


@given(logs, st.integers(1, 40))
def test_a_log_in_blocks_has_all_its_rows_in_their_order(log: Log, rows: int) -> None:
    blocks = list(log.blocks(rows))
    assert [len(block.versions) for block in blocks[:-1]] == [rows] * (len(blocks) - 1)
    assert np.sum([block.lengths for block in blocks], axis=0).tolist() == log.lengths.tolist()
    assert np.concatenate([block.after for block in blocks]).tolist() == log.after.tolist()
    assert np.concatenate([block.shifts.low for block in blocks]).tolist() == log.shifts.low.tolist()


def test_the_first_gap_of_each_tenant_is_reported() -> None:
    log = generated_log([4, 3, 4], seed=1)
    versions = np.array([0, 1, 3, 4, 0, 1, 2, 1, 2, 3, 4])
    assert replay(replace(log, versions=versions)).gaps == [2, 7]


def test_a_version_given_twice_is_a_gap() -> None:
    log = generated_log([4], seed=1)
    assert replay(replace(log, versions=np.array([0, 1, 1, 2]))).gaps == [2]


def test_a_log_must_begin_with_a_constant() -> None:
    log = generated_log([3, 3], seed=2)
    log.shifts.shift[3] = 0
    log.shifts.high[3] += 1
    assert replay(log).wrong == [3]


def test_reversed_bounds_are_wrong() -> None:
    log = generated_log([3], seed=3)
    log.shifts.low[2], log.shifts.high[2] = 5, 4
    log.after[2] = 4  # what clamping to them would give
    assert replay(log).wrong == [2]


@pytest.mark.parametrize("bound", [UNBOUNDED + 1, -UNBOUNDED - 1])
def test_a_bound_that_no_change_can_have_is_wrong(bound: int) -> None:
    log = generated_log([1, 2], seed=4)
    log.shifts.low[0] = log.shifts.high[0] = log.after[0] = bound
    assert replay(log).wrong == [0]


@pytest.mark.parametrize("shift", [LARGEST_SHIFT + 1, -LARGEST_SHIFT - 1, 2**63 - 1, -(2**63)])
def test_a_shift_that_no_change_can_have_is_wrong(shift: int) -> None:
    log = generated_log([3], seed=4)
    log.shifts.shift[0] = shift
    assert replay(log).wrong == [0]


def test_arrays_that_do_not_fit_are_refused() -> None:
    log = generated_log([3], seed=6)
    with pytest.raises(ValueError, match="one row for each change"):
        replay(replace(log, versions=np.arange(2)))
