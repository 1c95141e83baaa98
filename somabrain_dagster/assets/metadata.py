"""What assets say of themselves: who owns them, and tables and plots for a person who looks at them."""

import base64
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from io import BytesIO

import dagster as dg
from matplotlib.figure import Figure
from PIL import Image

from somabrain_dagster.store.landed import Column

OWNERS = ["team:learning-operations"]
LANDED = "landed"
LEARNING = "learning"
"""The groups of assets."""

PLOT_COLORS = 64


@contextmanager
def beta_accepted() -> Iterator[None]:
    """Around a definition by what Dagster calls beta: no warning, since its minor version is pinned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        yield


def made_every(period: timedelta) -> dg.FreshnessPolicy:
    """The freshness of what the calendar makes: a warning once a run was missed, a failure once two were.

    Only what the calendar makes goes stale by the clock. What follows feedback is fresh at any age where
    nothing landed since: `state_follows_what_landed` compares marks instead.

    Args:
        period: from one run to the next; one may be late by a twelfth of it.
    """
    late = period / 12
    return dg.FreshnessPolicy.time_window(warn_window=period + late, fail_window=2 * period + late)


def column_schema(columns: Sequence[Column]) -> dg.TableSchema:
    """Columns as the database describes them."""
    return dg.TableSchema(
        [
            dg.TableColumn(
                column.name,
                column.type,
                description=column.comment,
                constraints=dg.TableColumnConstraints(column.nullable),
            )
            for column in columns
        ]
    )


def plot(figure: Figure, title: str) -> dg.MarkdownMetadataValue:
    """A figure as a PNG inside Markdown, of few colours: each run keeps its own for good."""
    drawn, reduced = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(PLOT_COLORS).save(reduced, format="png", optimize=True)
    return dg.MetadataValue.md(
        f"![{title}](data:image/png;base64,{base64.b64encode(reduced.getvalue()).decode()})"
    )
