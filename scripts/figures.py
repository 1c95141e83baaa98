"""The tables of docs/BENCHMARKS.md and the claims of the README, written from reports kept in docs/figures.

    .venv/bin/python -m scripts.figures take bench    keep reports/bench.json as docs/figures/bench.json
    .venv/bin/python -m scripts.figures write         write the tables and claims again

Sentences are written by hand. Between `<!-- figures: NAME -->` and `<!-- /figures -->` stands what
docs/figures/NAME.json has: its tables, what of it holds and what does not, and where it was measured. Between
`<!-- claims: NAME … -->` and `<!-- /claims -->` stands what holds and what does not, of each, none left out.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent
REPORTS = ROOT / "reports"
FIGURES = ROOT / "docs" / "figures"
PAGE = ROOT / "docs" / "BENCHMARKS.md"
README = ROOT / "README.md"
PLACE = re.compile(r"(<!-- figures: ([\w-]+) -->\n).*?(<!-- /figures -->)", re.DOTALL)
CLAIMS = re.compile(r"(<!-- claims: ([\w -]+) -->\n).*?(<!-- /claims -->)", re.DOTALL)
NOT_MEASURED = "Not measured yet."
REQUIRED = ("commit", "machine", "taken_at", "versions", "tables", "holds")


def rendered(name: str, report: Mapping[str, Any]) -> str:
    """A report in Markdown: its tables, its claims, and where, when and of which code it was measured."""
    return "\n\n".join(
        [
            *(_table(table["title"], table["columns"], table["rows"]) for table in report["tables"]),
            *(["\n".join(claims(report))] if report["holds"] else []),
            _origin(name, report),
        ]
    )


def claims(report: Mapping[str, Any]) -> Iterator[str]:
    """What of it holds and what does not, a line each, as the page has them."""
    for claim, true in report["holds"].items():
        yield f"- {'✓' if true else '✗'} {claim}"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    aligned = ["---", *["---:"] * (len(columns) - 1)]
    lines = [columns, aligned, *rows]
    return f"**{title}**\n\n" + "\n".join(
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |" for cells in lines
    )


def _origin(name: str, report: Mapping[str, Any]) -> str:
    machine = report["machine"]
    where = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}"
    )
    versions = "".join(f", {package} {version}" for package, version in report["versions"].items())
    revision, _, changed = (report["commit"] or "none").partition("+")
    commit = f"{revision[:10]}{' with changes' if changed else ''}"
    return (
        f"{report['taken_at'][:10]}, commit {commit}; {where}{versions}. "
        f"Raw: [figures/{name}.json](figures/{name}.json)."
    )


def page_of(text: str, figures: Path) -> str:
    """The page with the tables of these figures in their places.

    Raises:
        click.ClickException: figures have no place in the page.
    """
    placed = {found[2] for found in PLACE.finditer(text)}
    for name in sorted({path.stem for path in figures.glob("*.json")} - placed):
        raise click.ClickException(
            f"{PAGE.name} has no place for {name}: write `<!-- figures: {name} -->` and `<!-- /figures -->` "
            "where its tables belong"
        )

    def filled(found: re.Match[str]) -> str:
        path = figures / f"{found[2]}.json"
        tables = rendered(found[2], json.loads(path.read_text())) if path.exists() else NOT_MEASURED
        return f"{found[1]}{tables}\n{found[3]}"

    return PLACE.sub(filled, text)


def readme_of(text: str, figures: Path) -> str:
    """The README with what these figures claim in its places."""

    def filled(found: re.Match[str]) -> str:
        paths = [figures / f"{name}.json" for name in found[2].split()]
        lines = [line for path in paths if path.exists() for line in claims(json.loads(path.read_text()))]
        return "\n".join([found[1], *lines, "", found[3]])

    return CLAIMS.sub(filled, text)


@click.group()
def main() -> None:
    """The tables of docs/BENCHMARKS.md, and the claims of the README."""


@main.command()
@click.argument("names", nargs=-1, required=True)
def take(names: Sequence[str]) -> None:
    """Keep reports/NAME.json in docs/figures, and write the pages."""
    for name in names:
        source = REPORTS / f"{name}.json"
        if not source.exists():
            raise click.ClickException(f"{source} is not there: run the command that measures {name}")
        if missing := [field for field in REQUIRED if field not in json.loads(source.read_text())]:
            raise click.ClickException(f"{source} has no {', '.join(missing)}: benchmarks.report writes them")
        FIGURES.mkdir(exist_ok=True)
        shutil.copyfile(source, FIGURES / source.name)
    _write()


@main.command()
def write() -> None:
    """Write the tables and the claims from docs/figures."""
    _write()


def _write() -> None:
    PAGE.write_text(page_of(PAGE.read_text(), FIGURES))
    README.write_text(readme_of(README.read_text(), FIGURES))
    click.echo(f"written: {PAGE.relative_to(ROOT)}, {README.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
