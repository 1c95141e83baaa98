"""The page of benchmarks shows what the kept reports have, and the README claims nothing else."""

import json
import re
from pathlib import Path

import click
import pytest

from scripts.figures import FIGURES, NOT_MEASURED, PAGE, README, REQUIRED, page_of, readme_of

KEPT = sorted(FIGURES.glob("*.json"))
PLACE = "<!-- figures: new -->\n<!-- /figures -->\n"


def test_the_pages_are_what_the_script_would_write() -> None:
    assert PAGE.read_text() == page_of(PAGE.read_text(), FIGURES)
    assert README.read_text() == readme_of(README.read_text(), FIGURES)


@pytest.mark.parametrize("path", KEPT, ids=lambda path: str(path.stem))
def test_a_kept_report_says_where_and_of_what_it_was_taken(path: Path) -> None:
    report = json.loads(path.read_text())
    assert set(REQUIRED) <= set(report)
    assert re.fullmatch(r"[0-9a-f]{40}", report["commit"].removesuffix("+changes"))


def test_every_claim_of_the_readme_is_a_line_of_the_page() -> None:
    said = re.findall(r"^- [✓✗] .*$", README.read_text(), re.MULTILINE)
    assert said
    assert set(said) <= set(PAGE.read_text().splitlines())


def test_figures_without_a_place_are_refused(tmp_path: Path) -> None:
    (tmp_path / "new.json").write_text("{}")
    with pytest.raises(click.ClickException, match="no place for new"):
        page_of("# A page\n", tmp_path)


def test_a_place_without_figures_says_so_until_there_are_some(tmp_path: Path) -> None:
    assert page_of(PLACE, tmp_path) == PLACE.replace("\n", f"\n{NOT_MEASURED}\n", 1)
    (kept,) = (path for path in KEPT if path.stem == "replay")
    (tmp_path / "new.json").write_text(kept.read_text())
    page = page_of(PLACE, tmp_path)
    assert NOT_MEASURED not in page
    assert "| reading alone |" in page
    assert page_of(page, tmp_path) == page
