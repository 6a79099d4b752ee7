"""What a reader gets: tables as Markdown and LaTeX, figures as PNG, and one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ece.errors import requiring
from ece.files import new_file
from ece.studies.figures import save
from ece.studies.published import Published, published
from ece.studies.results import found as results_of
from ece.studies.results import join
from ece.studies.setup import UNEDITED, Setup
from ece.studies.store import Store
from ece.studies.study import Found, Study
from ece.studies.tables import Table, Value


@dataclass(frozen=True)
class Chapter:
    """A study with what was made of its results."""

    study: Study
    tables: list[Table]
    pictures: list[tuple[str, Path]]
    """Title and file."""

    comparisons: list[Table]
    """With what papers report."""

    missing: int
    """Cells that are not finished."""

    seconds: float
    """Measuring, and editing, of the cells."""


def report(studies: Sequence[Study], setup: Setup, store: Store, failed: dict[str, str] | None = None) -> Path:
    """Write everything that can be made of the results that are there.

    Returns:
        The HTML file.

    Raises:
        UserError: matplotlib or jinja2 is not installed.
    """
    join(setup, store)
    chapters = [chapter(study, setup, store) for study in studies]
    for made in chapters:
        tables = [*made.tables, *made.comparisons]
        for ending, text in (
            ("md", "\n".join([f"# {made.study.title}\n", *(table.markdown() for table in tables)])),
            ("tex", "\n".join(table.latex() for table in tables)),
        ):
            with new_file(store.folder / f"{made.study.name}.{ending}") as temporary:
                temporary.write_text(text, encoding="utf-8")
    page = store.folder / "report.html"
    with new_file(page) as temporary:
        temporary.write_text(_html(chapters, setup, store, failed or {}), encoding="utf-8")
    return page


def chapter(study: Study, setup: Setup, store: Store) -> Chapter:
    """Tables and figures of a study, as far as its cells are finished."""
    rows = study.all_rows(setup)
    found = results_of(rows, setup, store)
    pictures = []
    for picture in study.figures(found) if found else []:
        name = "-".join([study.name, *picture.name.replace(",", " ").split()])
        pictures.append((picture.title, save(picture, store.folder / f"{name}.png")))
    tables = study.tables(found) if found else []
    comparisons = [compared(table, found, setup) for table in published(study.name)]
    missing = len({row.cell.key for row in rows}) - len({each.row.cell.key for each in found})
    results = {each.result.cell.key: each.result for each in found}.values()
    longest: dict[str, float] = {}
    for result in results:
        spent = sum(result.edits.get("seconds", []))
        longest[result.cell.run.key] = max(longest.get(result.cell.run.key, 0.0), spent)
    seconds = sum(result.seconds for result in results) + sum(longest.values())
    return Chapter(study, tables, pictures, comparisons, missing, seconds)


def compared(table: Published, found: Sequence[Found], setup: Setup) -> Table:
    """Reported numbers, each followed by ours where the method is here."""
    ours = {
        each.row.cell.run.method or each.label: each
        for each in found
        if each.row.cell.of.get("data") == table.data and set(table.metrics) <= set(each.means)
        and len(each.row.cell.of) == 3
    }  # fmt: skip
    rows: list[list[Value]] = [_own(ours[UNEDITED], table, setup)] if UNEDITED in ours else []
    shown: set[str] = {UNEDITED}
    for row in table.rows:
        values = [row.values.get(name) for name in table.metrics]
        rows.append(
            [row.method, table.model, table.edits, *(None if v is None else f"{v:g}" for v in values), row.source]
        )
        if row.here in ours:
            shown.add(row.here)
            rows.append(_own(ours[row.here], table, setup))
    rows += [_own(each, table, setup) for name, each in ours.items() if name not in shown]
    return Table(
        table.title,
        ["", "model", "edits", *(name.replace("_", " ") for name in table.metrics), "source"],
        rows,
        table.note,
    )


def _own(each: Found, table: Published, setup: Setup) -> list[Value]:
    means = [each.means[name] for name in table.metrics]
    return [f"{each.label} (ours)", Path(setup.model.name).name, each.row.cell.edits, *means, "this study"]


def _html(chapters: Sequence[Chapter], setup: Setup, store: Store, failed: dict[str, str]) -> str:
    with requiring("a report", "studies"):
        from jinja2 import Environment
    template = (resources.files("ece") / "studies" / "report.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    page.globals.update(picture=_data_uri)
    return page.render(chapters=chapters, failed=failed, model=setup.model.name, facts=_facts(setup, store))


def _facts(setup: Setup, store: Store) -> dict[str, Any]:
    """What must be known to repeat the results."""
    settings = setup.settings
    data = {f"SHA-256 of {name}": digest for name, digest in settings.pop("data").items()}
    options = settings.pop("options")
    facts = {"model's parameters (SHA-256)": settings.pop("model"), **data, **settings}
    facts["options"] = ", ".join(f"{key}={value}" for key, value in options.items()) or "the methods' own"
    for name in ("seed", "machine", "versions"):
        values = {_line(result.provenance.get(name)) for result in store.results()}
        facts[name] = "; ".join(sorted(values))
    return {name: value if value is not None else "none" for name, value in facts.items()}


def _line(value: Any) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


def _data_uri(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
