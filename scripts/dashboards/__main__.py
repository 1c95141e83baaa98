"""Write the dashboards, and the columns of docs/METRICS.md that say where each metric is seen."""

import re
from functools import cache
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from scripts.dashboards import BOARDS

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules"
METRICS = ROOT / "docs" / "METRICS.md"

_ROW = re.compile(
    r"^(?P<row>\| `(?P<metric>somabrain_\w+)` \|[^|]*\|[^|]*\|[^|]*\|[^|]*)\|[^|]*\|[^|]*\|$", re.MULTILINE
)


@cache
def alert_expressions() -> dict[str, str]:
    """Of each alert by its name; what it takes from recorded series is spelt out."""
    rules = [
        rule
        for path in sorted(RULES.glob("*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]
    recorded = {rule["record"]: rule["expr"] for rule in rules if "record" in rule}
    return {
        rule["alert"]: " ".join(
            [rule["expr"], *(text for name, text in recorded.items() if name in rule["expr"])]
        )
        for rule in rules
        if "alert" in rule
    }


def panels_of(metric: str) -> list[str]:
    """The panels that show a metric, each after the name of its dashboard."""
    return [
        f"{board.title.removeprefix('SomaBrain: ')}: {view.title}"
        for board in BOARDS
        for view in board.views
        if any(_mentions(query.expression, metric) for query in view.queries)
    ]


def alerts_of(metric: str) -> list[str]:
    """The alerts that go by a metric."""
    return [name for name, expression in alert_expressions().items() if _mentions(expression, metric)]


def _mentions(expression: str, metric: str) -> bool:
    return re.search(rf"\b{metric}(_bucket|_count|_sum)?\b", expression) is not None


def filled(text: str) -> str:
    """docs/METRICS.md with its columns of panels and alerts as they are."""

    def row(found: re.Match[str]) -> str:
        panels, alerts = panels_of(found["metric"]), alerts_of(found["metric"])
        return f"{found['row']}| {'; '.join(panels) or '—'} | {', '.join(alerts) or '—'} |"

    return _ROW.sub(row, text)


def main() -> None:
    """Write them all."""
    for board in BOARDS:
        board.path.write_text(board.json())
        print(f"{board.path.relative_to(ROOT)}: {len(board.views)} panels")
    METRICS.write_text(filled(METRICS.read_text()))
    print(f"{METRICS.relative_to(ROOT)}: where each metric is seen")


if __name__ == "__main__":
    main()
