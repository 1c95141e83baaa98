"""Some panels as a picture, drawn from what Prometheus answers to their queries; it is no Grafana."""

from datetime import datetime
from pathlib import Path

from matplotlib.figure import Figure

from scripts.dashboards import BOARDS
from scripts.dashboards.views import View, asked
from somabrain_dagster.embedded.prometheus import Prometheus

SHOWN = (
    "α, what meaning counts",
    "Reward, its running mean",
    "Neuromodulators",
    "Diversity and τ",
    "Working memory",
    "Changes of weights",
    "Feedback a second",
    "Latency of feedback",
    "Recalls a second",
)
ACROSS = 3
STEP_SECONDS = 2.0


def draw(prometheus: Prometheus, start: datetime, path: Path) -> None:
    """Draw them from a time until now.

    Args:
        prometheus: which has seen it.
        start: the time.
        path: of the picture.
    """
    views = {view.title: view for board in BOARDS for view in board.views}
    down = len(SHOWN) // ACROSS
    figure = Figure(figsize=(13, 2.6 * down), layout="constrained", facecolor="white")
    for place, title in enumerate(SHOWN):
        axes = figure.add_subplot(down, ACROSS, place + 1)
        axes.set_title(title, fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        for minutes, values, legend in series(prometheus, views[title], start):
            axes.plot(minutes, values, linewidth=0.8, label=legend)
        handles, labels = axes.get_legend_handles_labels()
        if 0 < len(labels) <= 8:
            axes.legend(handles, labels, fontsize=6, frameon=False)
        if place >= len(SHOWN) - ACROSS:
            axes.set_xlabel("minutes", fontsize=7)
    figure.savefig(path, dpi=110)


def series(prometheus: Prometheus, view: View, start: datetime) -> list[tuple[list[float], list[float], str]]:
    """Of each series of a panel the minutes since the start, its values and what it is called."""
    (now,) = prometheus.query("time()")
    found = []
    for query in view.queries:
        expression = asked(query.expression)
        for labels, values in prometheus.query_range(expression, start.timestamp(), now.value, STEP_SECONDS):
            legend = query.legend
            for name, value in labels.items():
                legend = legend.replace(f"{{{{{name}}}}}", value)
            minutes = [(at - start.timestamp()) / 60 for at, _ in values]
            found.append((minutes, [value for _, value in values], legend))
    return found
