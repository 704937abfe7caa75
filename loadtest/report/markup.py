"""Elements of HTML and SVG. Text from results is only ever text: ElementTree escapes it."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, tostring

_UNFIT = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 (§2.2) does not allow."""


def tag(name: str, /, *content: Element | str, **attributes: str | float) -> Element:
    """An element; a trailing underscore of an attribute's name is left out, others become hyphens."""
    element = Element(
        name, {key.rstrip("_").replace("_", "-"): _value(value) for key, value in attributes.items()}
    )
    for part in content:
        append(element, part)
    return element


def append(element: Element, part: Element | str) -> None:
    """Add an element, or text, at the end of another's content."""
    if isinstance(part, Element):
        element.append(part)
    elif len(element):
        element[-1].tail = (element[-1].tail or "") + fit(part)
    else:
        element.text = (element.text or "") + fit(part)


def fit(text: str) -> str:
    """The text, with U+FFFD for what no document can hold."""
    return _UNFIT.sub("\ufffd", text)


def _value(value: str | float) -> str:
    return fit(value) if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")


def html(root: Element) -> str:
    """A document."""
    return "<!DOCTYPE html>\n" + tostring(root, encoding="unicode", method="html") + "\n"


def svg(root: Element) -> str:
    """A drawing as a file of its own."""
    return tostring(root, encoding="unicode")
