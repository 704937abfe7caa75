"""Results as one HTML file: it needs nothing else, runs no script, and asks nobody for anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from loadtest.capacity import Capacity
from loadtest.compare import Comparison
from loadtest.documents import TOOL, Document
from loadtest.figures import Findings
from loadtest.plan.result import PlanResult
from loadtest.report import of_capacity, of_comparison, of_findings, of_plan, of_run
from loadtest.report.canvas import NARROW, WIDE
from loadtest.report.contents import Contents, Headline, Panel, Table
from loadtest.report.markup import append, html, tag
from loadtest.run import RunResult

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""Content security policy: nothing is fetched, and no script runs, whatever a result holds."""
_HERE = Path(__file__).parent
PAGE_STYLE, PLOT_STYLE = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "plot.css"))
_ROWS_SHOWN = 24
"""A longer table is folded up."""
_WORDS = 16
"""A headline of more characters is written smaller."""
_CODE = "Command"


def contents_of(document: Document) -> Contents:
    """What the report of a result consists of."""
    match document.result:
        case RunResult() as result:
            return of_run.contents(result, document.origin)
        case Capacity() as result:
            return of_capacity.contents(result, document.origin)
        case Comparison() as result:
            return of_comparison.contents(result, document.origin)
        case Findings() as result:
            return of_findings.contents(result, document.origin)
        case PlanResult() as result:
            return of_plan.contents(result, document.origin)


def render(found: Sequence[Contents]) -> str:
    """The page: one result after another."""
    title = found[0].title if len(found) == 1 else f"{len(found)} load tests"
    body = tag("body")
    if len(found) == 1:
        body.extend(_result(found[0], "h1", "h2", "p1"))
    else:
        append(body, tag("header", tag("h1", title), _overview(found)))
        for number, contents in enumerate(found, 1):
            article = tag("article", id=f"r{number}")
            article.extend(_result(contents, "h2", "h3", f"r{number}-p"))
            append(body, article)
    append(body, tag("footer", f"Made by {TOOL} report."))
    return html(tag("html", _head(title), body, lang="en"))


def _head(title: str) -> Element:
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", PAGE_STYLE + PLOT_STYLE),
    )


def _overview(found: Sequence[Contents]) -> Element:
    entries = tag("ol")
    for number, contents in enumerate(found, 1):
        entry = tag("li", tag("a", contents.title, href=f"#r{number}"))
        for headline in contents.headlines[:1]:
            append(entry, f" – {headline.label}: {headline.value}")
        append(entries, entry)
    return tag("nav", entries, aria_label="Results")


def _result(contents: Contents, level: str, below: str, name: str) -> Iterator[Element]:
    yield tag("header", tag(level, contents.title), _facts(contents))
    if contents.warnings:
        lines = [tag("li", tag("strong", "Warning: "), line) for line in contents.warnings]
        yield tag("ul", *lines, class_="warnings", aria_label="Warnings")
    yield tag("dl", *map(_headline, contents.headlines), class_="headlines")
    for number, panel in enumerate(contents.panels):
        yield _panel(panel, below, f"{name}{number}")
    for label, text in contents.details:
        yield tag("section", tag(below, label), tag("pre", text))


def _headline(headline: Headline) -> Element:
    style = "figure words" if len(headline.value) > _WORDS else "figure"
    group = tag("div", tag("dt", headline.label), tag("dd", headline.value, class_=style))
    if headline.note:
        append(group, tag("dd", headline.note, class_="note"))
    return group


def _panel(panel: Panel, level: str, name: str) -> Element:
    section = tag("section", tag(level, panel.title), tag("p", panel.text, class_="under"))
    if panel.drawing is not None:
        drawings = [panel.drawing.draw(size, f"{name}-{size.name}") for size in (WIDE, NARROW)]
        append(section, tag("figure", *drawings))
    append(section, _table(panel.table, panel.title))
    return section


def _table(table: Table, title: str) -> Element:
    head = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in table.head)))
    rows = [tag("tr", *(tag("td", text) for text in row)) for row in table.rows]
    whole = tag(
        "div", tag("table", head, tag("tbody", *rows)), class_="scroll", tabindex="0", role="region",
        aria_label=f"{title}: table",
    )  # fmt: skip
    if len(rows) <= _ROWS_SHOWN:
        return whole
    return tag("details", tag("summary", f"Table, {len(rows)} rows"), whole)


def _facts(contents: Contents) -> Element:
    facts = tag("dl", class_="facts")
    for label, value in contents.facts:
        append(facts, tag("dt", label))
        append(facts, tag("dd", tag("code", value)) if label == _CODE else tag("dd", value))
    return facts
