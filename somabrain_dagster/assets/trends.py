"""Whether what tenants say of their recalls gets better or worse."""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite

import dagster as dg
import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from numpy.typing import NDArray

from somabrain_dagster.assets.landed import FEEDBACK_EVENTS
from somabrain_dagster.assets.metadata import LEARNING, OWNERS, column_schema, plot
from somabrain_dagster.learning.features import Floats
from somabrain_dagster.learning.trends import LEAST_BINS, Series, coarsened, trend_line
from somabrain_dagster.resources.brain import Brain
from somabrain_dagster.store.landed import read_columns_of
from somabrain_dagster.store.positions import position
from somabrain_dagster.store.trends import (
    TenantTrend,
    analyse,
    read_session_means,
    read_trends,
    write_trends,
)

NO_TREND_IS_TOO_SURE = "no_trend_is_surer_than_its_series_allows"
LISTED_TRENDS = 200
DRAWN_TRENDS = 3
"""Of those that fall, and of those that rise."""
ROUNDING = 1e-9
"""By what share a p-value may fall short of another by rounding."""


@dg.asset(
    description="Each tenant's trend: whether the mean utility of its sessions rises or falls, by Kendall's "
    "test and the Theil–Sen line, both corrected for the autocorrelation of neighbouring sessions, and "
    "judged among all tenants by Benjamini & Hochberg. Tenants with new feedback get a row; the others' is "
    f"told what it is worth now. A tenant with fewer than {LEAST_BINS} rated sessions, or all at one time, "
    "has none. A trend that falls, and is sure and large enough to be acted upon, asks for better weights.",
    deps=[FEEDBACK_EVENTS, "adaptation_state"],
    group_name=LEARNING,
    kinds={"postgres", "scipy"},
    owners=OWNERS,
    tags={"somabrain/layer": "analysis"},
    metadata={"dagster/table_name": "performance_trends"},
    pool="performance_trends",
    check_specs=[
        dg.AssetCheckSpec(
            NO_TREND_IS_TOO_SURE,
            asset="performance_trends",
            description="Of the newest trend of every tenant p is not below Kendall's own, q is not below p, "
            "the slope lies in its interval, and no number is NaN.",
            blocking=True,
        )
    ],
)
def performance_trends(
    context: dg.AssetExecutionContext, brain: dg.ResourceParam[Brain]
) -> Iterator[dg.MaterializeResult[None]]:
    """Analyse what is new, judge it with the rest, and keep it."""
    rule = brain.settings.trend_rule
    with brain.database.snapshot() as connection:
        found = analyse(connection, rule)
        drawn = strongest(found.judged)
        means = read_session_means(connection, [one.tenant_id for one in drawn])
        bins = {tenant_id: coarsened(series) for tenant_id, series in means.items()}
        columns = read_columns_of(connection, "performance_trends")
    with brain.database.as_operator() as connection:
        written = write_trends(connection, found)
        kept = read_trends(connection)
    context.log.info(
        "%d tenants with new feedback, %d trends, %d rows written; %d tenants have fewer than %d rated "
        "sessions, or all at one time",
        len(found.analysed),
        len(found.judged),
        written,
        found.silent,
        LEAST_BINS,
    )
    listed = sorted(kept, key=lambda one: one.trend.p)[:LISTED_TRENDS]
    yield dg.MaterializeResult(
        data_version=dg.DataVersion(position(found.heads)),
        metadata={
            "dagster/row_count": len(kept),
            "dagster/column_schema": column_schema(columns),
            "position": position(found.heads),
            "tenants with new feedback": len(found.analysed),
            "tenants without a trend": found.silent,
            "rows written": written,
            "falling": sum(one.direction < 0 for one in kept),
            "rising": sum(one.direction > 0 for one in kept),
            "rule": f"q < {rule.false_discovery_rate:g} and |effect| ≥ {rule.effect:g}",
            f"trends (the {LISTED_TRENDS} surest)" if len(kept) > LISTED_TRENDS else "trends": trends_table(
                listed
            ),
            **(
                {"the surest falls and rises": plot(draw_trends(drawn, bins), "mean utility of sessions")}
                if drawn
                else {}
            ),
        },
        check_results=[check_result(kept)],
    )


def strongest(trends: Sequence[TenantTrend]) -> list[TenantTrend]:
    """The surest of those that fall, then of those that rise."""
    surest = sorted(trends, key=lambda one: one.trend.p)
    return [
        *[one for one in surest if one.trend.slope < 0][:DRAWN_TRENDS],
        *[one for one in surest if one.trend.slope > 0][:DRAWN_TRENDS],
    ]


def check_result(trends: Sequence[TenantTrend]) -> dg.AssetCheckResult:
    """Whether what is stored of trends can be so."""
    impossible = [one.tenant_id for one in trends if not is_possible(one)]
    return dg.AssetCheckResult(
        check_name=NO_TREND_IS_TOO_SURE,
        passed=not impossible,
        description=f"{len(impossible)} of {len(trends)} trends cannot be so, the first of {impossible[0]}"
        if impossible
        else None,
        metadata={"impossible trends": len(impossible)},
    )


def is_possible(found: TenantTrend) -> bool:
    """Whether these numbers are in the order that they must have; NaN is in none."""
    of = found.trend
    return (
        of.uncorrected_p * (1 - ROUNDING) <= of.p <= found.q * (1 + ROUNDING)
        and of.low <= of.slope <= of.high
        and 0 <= of.autocorrelation < 1
        and abs(of.tau) <= 1
        and found.direction * of.effect >= 0
    )


def trends_table(trends: Sequence[TenantTrend]) -> dg.TableMetadataValue:
    """These trends, one a row."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "tenant": one.tenant_id,
                    "direction": ("falling", "—", "rising")[one.direction + 1],
                    "bins": one.trend.n,
                    "slope": _rounded(one.trend.slope),
                    "low": _rounded(one.trend.low),
                    "high": _rounded(one.trend.high),
                    "p": _rounded(one.trend.p),
                    "q": _rounded(one.q),
                    # JSON knows no infinity, which is the effect of an exact line.
                    "effect": _rounded(one.trend.effect) if isfinite(one.trend.effect) else None,
                    "autocorrelation": _rounded(one.trend.autocorrelation),
                }
            )
            for one in trends
        ],
        schema=dg.TableSchema(
            [
                dg.TableColumn("tenant", "string"),
                dg.TableColumn("direction", "string", description="— where it is not to be acted upon"),
                dg.TableColumn("bins", "int", description="sessions, or runs of neighbouring ones"),
                dg.TableColumn("slope", "float", description="of utility, a day"),
                dg.TableColumn("low", "float", description="of the slope's 95% interval"),
                dg.TableColumn("high", "float", description="likewise"),
                dg.TableColumn("p", "float", description="of no trend, corrected for autocorrelation"),
                dg.TableColumn("q", "float", description="the same among all tenants"),
                dg.TableColumn(
                    "effect",
                    "float",
                    description="what utility rose or fell by, in standard deviations of the residuals; "
                    "empty for an exact line",
                ),
                dg.TableColumn("autocorrelation", "float", description="of neighbouring residuals"),
            ]
        ),
    )


def _rounded(number: float) -> float:
    """To four significant digits."""
    return float(f"{number:.4g}")


def draw_trends(trends: Sequence[TenantTrend], bins: Mapping[str, Series]) -> Figure:
    """Each tenant's bins, the line through them, and where the line may lie."""
    columns = min(3, len(trends))
    rows = -(-len(trends) // columns)
    figure = Figure(figsize=(9, 0.4 + 2.4 * rows), dpi=100, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, one in zip(panels, trends, strict=False):
        _draw(axes, one, bins[one.tenant_id])
    for axes in panels[len(trends) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel("utility")
    return figure


def _draw(axes: Axes, found: TenantTrend, series: Series) -> None:
    ends = np.array([series.times[0], series.times[-1]])
    color = _COLORS[found.direction]
    axes.plot(_dates(series.times), series.values, ".", color="#bbbbbb", markersize=3)
    axes.plot(_dates(ends), trend_line(series, found.trend.slope, ends), color=color, linewidth=1.6)
    axes.fill_between(
        _dates(ends),
        trend_line(series, found.trend.low, ends),
        trend_line(series, found.trend.high, ends),
        color=color,
        alpha=0.2,
    )
    axes.set_title(f"{found.tenant_id}, q = {found.q:.2g}", fontsize=9)
    axes.set_ylim(-1.05, 1.05)
    locator = AutoDateLocator(minticks=2, maxticks=4)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.spines[["top", "right"]].set_visible(False)


def _dates(days: Floats) -> NDArray[np.datetime64]:
    """Days since 1970 as times, to the second."""
    return np.rint(days * 86_400).astype("datetime64[s]")


_COLORS = {-1: "#ee6677", 0: "#777777", 1: "#228833"}
"""Of what falls, what is not to be acted upon, and what rises."""
