"""How many machines so many events need: arithmetic that can be done again by hand."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.capacity import (
    ASSUMED,
    COSTS,
    EVENTS_A_DAY,
    FIGURES,
    PAGE,
    Assumptions,
    UnitCosts,
    figure,
    measured,
    needed,
    tables,
)
from scripts.documents import with_measured

ONE = UnitCosts(**{one.name: 1.0 for one in fields(UnitCosts)})
NOTHING = UnitCosts(**{one.name: 0.0 for one in fields(UnitCosts)})
PLAIN = Assumptions(
    peak=1,
    use=1,
    cores=1,
    recalls=1,
    memories=0,
    retention_days=1,
    copies=1,
    kafka_copies=1,
    kafka_days=1,
    fits=0,
)


def test_by_hand() -> None:
    """86,400 million events a day are a million a second: of a microsecond each, one core."""
    one = needed(86_400e6, ONE, PLAIN)
    assert one.events_s == pytest.approx(1e6)
    assert (one.service_cores, one.postgres_cores, one.relay_cores) == pytest.approx((1, 1, 2))
    assert one.recall_cores == pytest.approx(1000)  # milliseconds
    assert one.machines == 1002
    assert one.dagster_cores == pytest.approx(2)  # aggregated, and proven
    assert one.disk_tb == pytest.approx(86_400e6 * 3 / 1e12)  # an event, a key, a recall
    assert one.log_tb_a_year == pytest.approx(86_400e6 * 365 / 1e12)
    assert one.kafka_tb == pytest.approx(2 * 86_400e6 / 1e12)
    assert one.whole_proof_hours == pytest.approx(86_400 * 365 / 3600)


def test_fits_are_of_tenants_and_not_of_events() -> None:
    fitting = replace(PLAIN, fits=2, events_a_tenant=100)
    # 864 tenants, twice a day, 50 ms each: 86.4 s of a day's 86,400.
    assert needed(86_400, replace(NOTHING, fit_ms=50), fitting).dagster_cores == pytest.approx(0.001)


def test_a_partition_is_given_no_more_than_it_may() -> None:
    busy = replace(PLAIN, partition_bytes_s=1000)
    assert needed(86_400 * 7, replace(NOTHING, record_bytes=1000), busy).partitions == 7
    assert needed(86_400, replace(NOTHING, record_bytes=1000), busy).partitions == 6  # at least


@given(events=st.floats(1e3, 1e9), times=st.floats(1, 100))
def test_so_many_times_the_events_need_so_many_times_of_what_can_be_divided(
    events: float, times: float
) -> None:
    once, often = (needed(many, ONE, Assumptions()) for many in (events, events * times))
    for name in ("service_cores", "recall_cores", "postgres_cores", "dagster_cores", "disk_tb", "kafka_tb"):
        assert getattr(often, name) == pytest.approx(times * getattr(once, name))
    assert often.machines <= times * (once.machines + 1)


def test_what_was_not_measured_is_told_so() -> None:
    assert needed(1e6, replace(ONE, relay_us=None), Assumptions()).relay_cores is None
    assert "| not measured |" in tables(replace(ONE, relay_us=None))["costs"]


@pytest.mark.parametrize(
    ("value", "said"), [(0.0123, "0.012"), (1.26, "1.3"), (12.6, "13"), (126.4, "126"), (12345, "12,345")]
)
def test_a_number_has_as_many_digits_as_are_known(value: float, said: str) -> None:
    assert figure(value) == said


def test_every_cost_and_assumption_is_named() -> None:
    assert COSTS.keys() == {one.name for one in fields(UnitCosts)}
    assert ASSUMED.keys() == {one.name for one in fields(Assumptions)}


def test_the_page_has_the_tables_of_the_figures() -> None:
    page = PAGE.read_text()
    assert with_measured(PAGE, tables(measured(FIGURES))) == page
    assert f"{EVENTS_A_DAY[-1]:,}" in page
