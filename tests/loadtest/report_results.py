"""Results that were recorded, and what can be made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadtest import documents
from loadtest.documents import Document

KINDS = tuple(documents.KINDS)
FILES = Path(__file__).parent / "results"
NAMED = frozenset({"failures", "outstanding", "cores", "cpu_seconds"})
"""Mappings whose keys come from a target."""
HOSTILE = "\"'></style></svg></title><script>alert(1)</script><img src=x onerror=alert(1)>]]>&lt;\0\x1b"
"""What would leave an attribute, a style sheet, a drawing or a title, run, and break a parser."""


def recorded(kind: str) -> Document:
    """A small result of a kind."""
    return documents.read(FILES / f"{kind}.json")


def changed(kind: str, change: Callable[[Any], Any]) -> Document:
    """The same with every text and number of it changed; what was asked for stays, as it is checked."""

    def walk(value: Any, *, named: bool = False) -> Any:
        if isinstance(value, dict):
            return {
                change(key) if named else key: inner
                if _is_question(key, inner)
                else walk(inner, named=key in NAMED)
                for key, inner in value.items()
            }
        if isinstance(value, list):
            return [walk(one) for one in value]
        return change(value)

    data = json.loads((FILES / f"{kind}.json").read_text())
    data["origin"], data["result"] = walk(data["origin"]), walk(data["result"])
    return documents.parse(json.dumps(data).encode(), kind)


def _is_question(key: str, value: Any) -> bool:
    return key in {"scenario", "question", "hsm"} and isinstance(value, dict)


def hostile(kind: str) -> Document:
    """The same, with a text that means harm in the place of every text that a target could choose."""
    return changed(kind, lambda value: HOSTILE if isinstance(value, str) else value)
