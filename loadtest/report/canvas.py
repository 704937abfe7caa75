"""What all plots have in common: sizes, text, and a drawing that says in words what it shows."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree.ElementTree import Element

from loadtest.report.markup import tag

CHARACTER, BOLD_CHARACTER = 7.7, 8.6
"""Pixels that a character of a plot's text takes in the widest of the fonts that are asked for."""
LINE = 15.0
"""Pixels from one line of text to the next."""


@dataclass(frozen=True, slots=True)
class Size:
    """A drawing in pixels; its style `name` decides on which screens it is shown.

    Beside the plot there are at least `left` and `right` pixels, so that plots above each other
    agree on where a time is; and at most `label_most` characters of a name.
    """

    name: str
    width: float
    height: float
    left: float
    right: float
    label_most: int


WIDE = Size("wide", 940, 310, 60, 110, 26)
NARROW = Size("narrow", 360, 270, 0, 0, 12)


def drawing(size: Size, height: float, title: str, description: str, name: str) -> Element:
    """An empty drawing; `name` is one that nothing else in the document has."""
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", description, id=f"{name}-description"),
        xmlns="http://www.w3.org/2000/svg",
        class_=f"plot {size.name}",
        viewBox=f"0 0 {size.width:g} {height:g}",
        role="img",
        aria_labelledby=f"{name}-title {name}-description",
    )


def text(x: float, y: float, content: str, style: str, anchor: str = "start") -> Element:
    """A line of text; `y` is its base line's."""
    return tag("text", content, x=x, y=y, class_=style, text_anchor=anchor)


def width_of(content: str, *, bold: bool = False) -> float:
    """About how many pixels a line of text takes, at most."""
    return len(content) * (BOLD_CHARACTER if bold else CHARACTER)


def shortened(content: str, most: int) -> str:
    """At most so many characters: the middle is left out, as both ends tell names apart."""
    if len(content) <= most:
        return content
    kept = most - 1
    return f"{content[: kept - kept // 2]}…{content[len(content) - kept // 2 :]}"
