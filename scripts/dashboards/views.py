"""What a dashboard is made of: rows of panels, each of which asks Prometheus something and says why."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models import prometheus as prometheus_models

DASHBOARDS = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards"

SOURCE = models.DataSourceRef(type_val="prometheus", uid="prometheus")
"""The one that deploy/grafana/provisioning makes."""

TENANT = 'tenant_id=~"$tenant"'
"""Those that are chosen at the top of a dashboard."""

Steps = Mapping[float | None, str]
"""Colours from a value on; the first, from None, is that below them all."""

GOOD_BAD: Steps = {None: "green", 1: "red"}
BAD_GOOD: Steps = {None: "red", 1: "green"}

WINDOW = "1m"
"""In the place of `$__rate_interval` where Grafana does not put one: four scrapes at least."""

WIDTH, HEIGHT = 24, 8
"""Of the whole in Grafana's columns, and of a panel in its rows."""

Panel = timeseries.Panel | stat.Panel | table.Panel | bargauge.Panel | heatmap.Panel


@dataclass(frozen=True)
class Query:
    """An expression of PromQL, and what a series of it is called."""

    expression: str
    legend: str = ""


@dataclass(frozen=True)
class View:
    """A panel.

    Attributes:
        title: what is seen.
        why: what it is for, and what is to be made of it.
        queries: whose series it shows.
        unit: as Grafana names it.
        kind: how it is drawn: `lines`, `numbers`, `table`, `bars` or `heat`.
        span: of 24 columns.
        steps: the colours of its values.
    """

    title: str
    why: str
    queries: Sequence[Query]
    unit: str = "short"
    kind: str = "lines"
    span: int = 8
    steps: Steps = field(default_factory=lambda: {None: "blue"})

    def build(self) -> Panel:
        """The panel as Grafana's SDK has it."""
        panel = _BUILDERS[self.kind]()
        panel.title(self.title).description(self.why).datasource(SOURCE).span(self.span).height(HEIGHT)
        if self.kind != "heat":
            panel.unit(self.unit)
        colours = [models.Threshold(value, colour) for value, colour in self.steps.items()]
        panel.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(colours))
        for place, query in enumerate(self.queries):
            target = (
                prometheus.Dataquery()
                .expr(query.expression)
                .datasource(SOURCE)
                .legend_format(query.legend or "__auto")
                .ref_id(chr(ord("A") + place))
            )
            if self.kind == "table":
                target.instant().format(prometheus_models.PromQueryFormat.TABLE)
            elif self.kind == "heat":
                target.range().format(prometheus_models.PromQueryFormat.HEATMAP)
            elif self.kind == "lines":
                target.range()
            else:
                target.instant()
            panel.with_target(target)
        return panel


def _lines() -> timeseries.Panel:
    return (
        timeseries.Panel()
        .fill_opacity(5)
        .line_width(1)
        .show_points(common_models.VisibilityMode.NEVER)
        .span_nulls(False)
        .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )


def _numbers() -> stat.Panel:
    return stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


def _table() -> table.Panel:
    hidden = {"Time": True, "instance": True, "job": True}
    return (
        table.Panel()
        .with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            models.DataTransformerConfig(id_val="organize", options={"excludeByName": hidden})
        )
    )


def _bars() -> bargauge.Panel:
    return (
        bargauge.Panel()
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def _heat() -> heatmap.Panel:
    return (
        heatmap.Panel()
        .y_axis(heatmap.YAxisConfig().unit("s"))
        .cell_values(heatmap.CellValues().unit("reqps"))
        .color(heatmap.HeatmapColorOptions().mode(heatmap_models.HeatmapColorMode.SCHEME).scheme("Blues"))
    )


_BUILDERS: Mapping[str, Callable[[], Panel]] = {
    "lines": _lines,
    "numbers": _numbers,
    "table": _table,
    "bars": _bars,
    "heat": _heat,
}


@dataclass(frozen=True)
class Board:
    """A dashboard: rows of panels under a heading each."""

    uid: str
    title: str
    about: str
    rows: Mapping[str, Sequence[View]]

    @property
    def views(self) -> list[View]:
        """Every panel."""
        return [view for views in self.rows.values() for view in views]

    @property
    def path(self) -> Path:
        """The file that Grafana reads."""
        return DASHBOARDS / f"{self.uid}.json"

    def json(self) -> str:
        """The dashboard as Grafana reads it."""
        made = (
            dashboard.Dashboard(self.title)
            .uid(self.uid)
            .description(self.about)
            .tags(["somabrain"])
            .time("now-1h", "now")
            .refresh("5s")
            .timezone("browser")
            .tooltip(models.DashboardCursorSync.CROSSHAIR)
            .link(
                dashboard.DashboardLink("SomaBrain")
                .type(models.DashboardLinkType.DASHBOARDS)
                .tags(["somabrain"])
                .as_dropdown(True)
                .include_vars(True)
                .keep_time(True)
            )
        )
        if any("$tenant" in query.expression for view in self.views for query in view.queries):
            made.with_variable(
                dashboard.QueryVariable("tenant")
                .label("tenant")
                .datasource(SOURCE)
                .query("label_values(somabrain_weights_version, tenant_id)")
                .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
                .sort(models.VariableSort.ALPHABETICAL_ASC)
                .multi(True)
                .include_all(True)
                .all_value(".*")
                .current(models.VariableOption(text="All", value="$__all", selected=True))
            )
        for heading, views in self.rows.items():
            made.with_row(dashboard.Row(heading))
            for view in views:
                made.with_panel(view.build())
        return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def asked(expression: str) -> str:
    """A panel's expression as Grafana sends it when everybody is chosen."""
    return expression.replace("$tenant", ".*").replace("$__rate_interval", WINDOW)


def each(metric: str, by: str = "tenant_id", where: str = TENANT) -> str:
    """A gauge of each tenant, whichever replica tells it."""
    return f"max by ({by}) ({metric}{{{where}}})"


def age(metric: str, by: str = "") -> str:
    """Seconds since a time; nothing where it never was."""
    return f"time() - (max by ({by}) ({metric}) > 0)"


def total(metric: str, by: str, where: str = "") -> str:
    """What a counter that is read from Postgres has come to, by a label: every replica tells the same."""
    labels = f"{{{where}}}" if where else ""
    return f"sum by ({by}) (max without (instance) ({metric}{labels}))"


def rate(metric: str, by: str, where: str = "") -> str:
    """How often something is counted a second, in all replicas."""
    labels = f"{{{where}}}" if where else ""
    return f"sum by ({by}) (rate({metric}{labels}[$__rate_interval]))"
