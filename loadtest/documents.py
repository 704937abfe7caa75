"""Results as files: JSON that says what it is, written and read here alone.

A file holds an `Origin`, what came of it, and the version of its form. A command whose results are
kept adds its kind to `KINDS`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError

from hsm.bounded_file import read_bounded
from hsm.errors import ConfigurationError
from loadtest.capacity import Capacity
from loadtest.compare import Comparison
from loadtest.figures import Findings, machine_facts
from loadtest.plan.result import PlanResult
from loadtest.run import RunResult, Server

TOOL = "offload-load"
SCHEMA_VERSION = 1
"""Goes up when a reader of the older form would misread the newer one, or miss something in it."""
BYTES_MOST = 64 * 1024 * 1024
LARGEST = 10**15
"""Of a number in a file, below 0 too: there is room to reckon with it."""

_SHOWN_MOST = 40
"""Characters of a value that a message repeats."""

T = TypeVar("T")
Result = RunResult | Capacity | Comparison | Findings | PlanResult
KINDS: Mapping[str, type[Result]] = {
    "run": RunResult, "capacity": Capacity, "compare": Comparison, "bench": Findings, "plan": PlanResult,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a result comes from. `server` is None when the command started several of its own."""

    scenario: str
    server: Server | None
    started: str
    command: str
    machine: str
    versions: str

    @classmethod
    def now(cls, scenario: str, server: Server | None) -> Origin:
        """This process and machine, at this moment."""
        facts = machine_facts()
        return cls(
            scenario=scenario,
            server=server,
            started=f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%SZ}",
            command=shlex.join([TOOL, *sys.argv[1:]]),
            machine=facts["machine"],
            versions=facts["versions"],
        )

    @property
    def target(self) -> str:
        """What was loaded, for people."""
        return "several servers" if self.server is None else self.server.name

    @property
    def one_machine(self) -> bool:
        """Whether the load client took CPU from the server."""
        host = "127.0.0.1" if self.server is None else self.server.host
        return host in {"localhost", "::1"} or host.startswith("127.")


@dataclass(frozen=True, slots=True)
class Document:
    """A result, and where it comes from."""

    origin: Origin
    result: Result

    @property
    def kind(self) -> str:
        """The command that made it."""
        return next(kind for kind, found in KINDS.items() if isinstance(self.result, found))

    def to_json(self) -> dict[str, Any]:
        """As JSON types; `parse` reads it back."""
        return {
            "tool": TOOL,
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind,
            "origin": asdict(self.origin),
            "result": self.result.to_json(),
        }

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(self.to_json(), indent=1), encoding="utf-8")


@contextlib.contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """For writing what an option names. Raises ConfigurationError that says so if that is not possible."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{option}: cannot write {path}: {error.strerror}") from error


def check_writable(option: str, path: Path) -> None:
    """For telling before a long run, not after it. Raises ConfigurationError."""
    with writing(option, path):
        is_new = not path.exists()
        path.open("a").close()
        if is_new:
            path.resolve().unlink()  # a link to what is not there yet stays


def read(path: Path) -> Document:
    """Read what `write` wrote. Raises ConfigurationError, in one line, for anything else."""
    too_large = f"larger than {BYTES_MOST // 1024**2} MB: no result of {TOOL}"
    return parse(read_bounded(path, BYTES_MOST, "it", too_large), str(path))


def parse(data: bytes, source: str) -> Document:
    """A document in the bytes of a file; `source` names it in errors. Raises ConfigurationError."""
    try:
        found = json.loads(data, parse_constant=_refuse, parse_float=_real, parse_int=_whole)
    except (ValueError, RecursionError) as error:  # also of bytes that are no UTF-8
        raise ConfigurationError(f"{source}: not valid JSON: {error}") from error
    if not isinstance(found, dict) or found.get("tool") != TOOL:
        raise ConfigurationError(f"{source}: no result of {TOOL}; make one with {TOOL} run … --json FILE")
    version = found.get("schema_version")
    if version != SCHEMA_VERSION:
        whose = "a newer" if isinstance(version, int) and version > SCHEMA_VERSION else "another"
        raise ConfigurationError(
            f"{source}: schema_version is {_shown(version)}, of {whose} {TOOL}; this one reads {SCHEMA_VERSION}"
        )
    kind = found.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigurationError(f"{source}: kind is {_shown(kind)}; known are {', '.join(KINDS)}")
    return Document(
        _validate(Origin, found.get("origin"), f"{source}: origin"),
        _validate(KINDS[kind], found.get("result"), f"{source}: result"),
    )


def _shown(value: object) -> str:
    return repr(value)[:_SHOWN_MOST]


def _validate(model: type[T], value: Any, place: str) -> T:
    try:
        return TypeAdapter(model).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        raise ConfigurationError(f"{place}{where}: {first['msg']}") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _real(text: str) -> float:
    if abs(number := float(text)) > LARGEST:
        raise ValueError(f"{text[:_SHOWN_MOST]} is too large a number")
    return number


def _whole(text: str) -> int:
    if len(text) > len(f"-{LARGEST}") or abs(number := int(text)) > LARGEST:
        raise ValueError(f"{text[:_SHOWN_MOST]} is too large a number")
    return number
