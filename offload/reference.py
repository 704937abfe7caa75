"""docs/configuration.md and docs/metrics.md, made from the models and the metrics themselves.

python -m offload.reference docs
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hsm.config import NodeSettings, TokenSettings
from hsm.metrics import NODE_SPECS, Spec
from offload import metrics
from offload.config import Config

_NOTE = "<!-- Made by `make docs`; do not edit. -->\n"


def configuration() -> str:
    """The reference of both configuration files, as Markdown."""
    lines = [
        "# Configuration",
        _NOTE,
        "Durations are written with a unit: `250ms`, `5s`, `1h`. Relative paths are relative to the file that names",
        "them. Unknown keys are errors. `offload check --config FILE` finds what is wrong; `offload schema` prints a",
        "JSON schema that editors complete from.",
        "",
        "## `offload serve --config FILE`",
        "",
        *_table(Config),
        "",
        "## `hsm node --config FILE`",
        "",
        "The same keys are options of `hsm node`: `allow_users` is `--allow-user`, `tls.ca` is `--tls-ca`,",
        "`emulate` is `--emulate latency=5ms,parallel=4`.",
        "",
        *_table(NodeSettings),
        "",
        "## Tokens",
        "",
        "What a node signs with. These keys stand beside `token`: in `hsm.nodes[].run` of `offload serve`, or at the",
        "top of the file of `hsm node`.",
    ]
    for kind, model in TokenSettings.token_kinds().items():
        lines += [
            "",
            f"### `token: {kind}`",
            "",
            f"{inspect.getdoc(model)}",
            "",
            *_table(model, TokenSettings),
        ]
    return "\n".join(lines) + "\n"


def _table(model: type[BaseModel], without: type[BaseModel] = BaseModel) -> Iterator[str]:
    """Of a model's keys, less those of another."""
    yield "| key | default | |"
    yield "|---|---|---|"
    for key, field in _fields(model, ""):
        if key not in without.model_fields:
            yield f"| `{key}` | {_default(field)} | {_escape(field.description or '')} |"


def _fields(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        inner = list(_models_in(field.annotation))
        key = f"{prefix}{name}"
        if not inner or field.description:
            yield key, field
        several = (
            "[]"
            if get_origin(field.annotation) is list
            else ".*"
            if get_origin(field.annotation) is dict
            else ""
        )
        for part in inner:
            yield from _fields(part, f"{key}{several}.")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or isinstance(value, BaseModel) or value in ("", [], (), {}):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{_seconds(value)}`" if _is_time(field) else f"`{value:g}`"
    return f"`{value}`"


def _is_time(field: FieldInfo) -> bool:
    return any("_validate_duration" in repr(item) for item in field.metadata)


def _seconds(value: float) -> str:
    for unit, size in (("h", 3600), ("m", 60)):
        if value >= size and value % size == 0:
            return f"{value / size:g}{unit}"
    return f"{value:g}s" if value >= 1 or value == 0 else f"{value * 1000:g}ms"


def _escape(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def metrics_page() -> str:
    """The reference of all metrics, as Markdown."""
    lines = [
        "# Metrics",
        _NOTE,
        "Times are in seconds, with buckets from 100 µs to 10 s. Where a label has a fixed set of values, they are listed.",
        "",
        "## Of `offload serve`",
        "",
        *_metric_rows((*metrics.WORKER_SPECS, *metrics.SUPERVISOR_SPECS)),
        "",
        "## Of a node",
        "",
        "On its own `--admin` address; those of nodes that `offload serve` runs are included in its",
        "`/metrics`, with a `node` label.",
        "",
        *_metric_rows(NODE_SPECS),
    ]
    return "\n".join(lines) + "\n"


def _metric_rows(specs: tuple[Spec, ...]) -> Iterator[str]:
    yield "| metric | kind | labels | |"
    yield "|---|---|---|---|"
    for spec in specs:
        text = " ".join([_escape(spec.help), *map(_values, spec.values.items())])
        yield f"| `{spec.name}` | {spec.kind} | {', '.join(spec.labels)} | {text} |"


def _values(item: tuple[str, Sequence[str]]) -> str:
    label, values = item
    return f"*{label}*: {', '.join(f'`{value}`' for value in values)}."


def write(directory: Path) -> None:
    """Write both pages."""
    (directory / "configuration.md").write_text(configuration(), encoding="utf-8")
    (directory / "metrics.md").write_text(metrics_page(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
