"""The plots of reports as PNG files, in light colours. Needs resvg-py: `pip install 'offload[report]'`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from hsm.errors import ConfigurationError
from loadtest.report.canvas import WIDE, text
from loadtest.report.contents import Contents
from loadtest.report.markup import append, svg, tag
from loadtest.report.page import PAGE_STYLE, PLOT_STYLE

MARGIN = 20.0
"""Pixels around a drawing."""
SCALE = 2.0
"""Pixels of an image for each of a drawing: sharp on screens of today, and on paper."""
_NO_RENDERER = "--png needs a package that is not installed: pip install 'offload[report]'"
_NO_FONTS = "--png: no font to write with: apt-get install fonts-dejavu-core"
_COLOUR = re.compile(r"--(\w+): (#[0-9a-f]{6});")
_DARK = "@media"

Render = Callable[..., bytes]


def write(results: Sequence[Contents], directory: Path) -> list[Path]:
    """Write the plots of all results, numbered in the order of the page, into a directory; make it if needed.

    Raises ConfigurationError when the renderer or fonts are missing, or when files can't be written.
    """
    render = renderer()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return [_write(directory / name, image) for name, image in _images(results, render)]
    except OSError as error:
        raise ConfigurationError(f"--png: cannot write {error.filename}: {error.strerror}") from error


def _write(path: Path, image: bytes) -> Path:
    path.write_bytes(image)
    return path


def renderer(**options: Any) -> Render:
    """What makes PNG of SVG. Raises ConfigurationError when it, or every font, is missing."""
    try:
        rasterise: Render = import_module("resvg_py").svg_to_bytes
    except ImportError as error:
        raise ConfigurationError(_NO_RENDERER) from error
    style, background = light(PLOT_STYLE), light("var(--ground)")

    def render(drawing: str) -> bytes:
        return rasterise(svg_string=drawing, style_sheet=style, background=background, zoom=SCALE, **options)

    if render(_sample("A")) == render(_sample("")):
        raise ConfigurationError(_NO_FONTS)
    return render


def _sample(letter: str) -> str:
    return svg(
        tag(
            "svg",
            text(2, 20, letter, "title"),
            xmlns="http://www.w3.org/2000/svg",
            class_="plot",
            viewBox="0 0 24 24",
        )
    )


def light(style: str) -> str:
    """A style sheet with the page's light colours in the place of their names: the renderer knows no names."""
    colours = dict(_COLOUR.findall(PAGE_STYLE.split(_DARK, 1)[0]))
    return re.sub(r"var\(--(\w+)\)", lambda name: colours[name[1]], style)


def _images(results: Sequence[Contents], render: Render) -> Iterator[tuple[str, bytes]]:
    drawn = [panel for contents in results for panel in contents.panels if panel.drawing is not None]
    for number, panel in enumerate(drawn, 1):
        assert panel.drawing is not None
        words = "-".join(re.findall(r"[a-z0-9]+", panel.title.lower()))
        yield f"{number:02}-{words}.png", render(svg(framed(panel.drawing.draw(WIDE, "plot"), panel.title)))


def framed(drawing: Element, title: str) -> Element:
    """A drawing with a margin, and its title in words that are seen."""
    _, _, width, height = map(float, drawing.attrib["viewBox"].split())
    box = (-MARGIN, -2 * MARGIN, width + 2 * MARGIN, height + 3 * MARGIN)
    drawing.set("viewBox", " ".join(f"{edge:g}" for edge in box))
    append(drawing, text(0, -0.7 * MARGIN, title, "title"))
    return drawing
