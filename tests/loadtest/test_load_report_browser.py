"""Reports in a real browser: what a reader sees, and that a result can do nothing there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtest.report.page import contents_of, render
from loadtest.targets.lab import require
from tests.loadtest.conftest import real_components
from tests.loadtest.report_results import KINDS, hostile, recorded
from tests.support.chromium import Chromium

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
SHOWN = "[...document.querySelectorAll('svg')].filter(one => one.getBoundingClientRect().width > 0)"
CUT_OFF = f"""
{SHOWN}.flatMap(drawing => [...drawing.querySelectorAll('text')].filter(text => {{
    const box = text.getBBox(), all = drawing.viewBox.baseVal;
    return box.x < -1 || box.y < -1 || box.x + box.width > all.width + 1 || box.y + box.height > all.height + 1;
}}).map(text => text.textContent))
"""
"""Texts of plots of which a part lies outside the drawing."""
SCRIPTS = """
document.scripts.length + [...document.querySelectorAll('*')].filter(
    one => [...one.attributes].some(attribute => attribute.name.startsWith('on'))
).length
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A browser for all tests here."""
    with real_components():
        program = require("chromium", "apt-get install chromium")
    with Chromium(program, tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report of all kinds of results."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render([contents_of(recorded(kind)) for kind in KINDS]), encoding="utf-8")
    return path.as_uri()


def complaints(browser: Chromium) -> list[dict[str, Any]]:
    """What the console, and a policy that was broken, said."""
    kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    return [entry for kind in kinds for entry in browser.of(kind)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "size"), [(1440, "wide"), (390, "narrow")])
def test_a_report_on_a_laptop_and_on_a_phone(
    browser: Chromium, page: str, width: int, size: str, scheme: str
) -> None:
    """Nothing is wider than the screen, no text of a plot is cut off, and each plot is there once."""
    browser.show(width, scheme)
    browser.open(page)
    assert browser.evaluate(OVERFLOW) == 0
    assert browser.evaluate(CUT_OFF) == []
    panels = browser.evaluate("document.querySelectorAll('figure').length")
    assert browser.evaluate(f"{SHOWN}.map(one => one.classList[1])") == [size] * panels
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") is (scheme == "light")


def test_a_report_asks_for_nothing(browser: Chromium, page: str) -> None:
    """Not an image, not a font, not an icon: and nothing stands in the console."""
    browser.open(page)
    assert [request["request"]["url"] for request in browser.of("Network.requestWillBeSent")] == [page]
    assert complaints(browser) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_result_runs_nothing(browser: Chromium, tmp_path: Path, kind: str) -> None:
    """Whatever its texts hold, they are texts: no element, no script, no request comes of them."""
    path = tmp_path / "report.html"
    path.write_text(render([contents_of(hostile(kind))]), encoding="utf-8")
    browser.show(390, "light")
    browser.open(path.as_uri())
    assert browser.evaluate(SCRIPTS) == 0
    assert browser.evaluate("document.images.length") == 0
    assert browser.evaluate("document.title").count("<script>") == 1
    assert browser.evaluate(OVERFLOW) == 0
    assert len(browser.of("Network.requestWillBeSent")) == 1
    assert complaints(browser) == []
