"""Mistakes in a configuration, told in plain words: the key's place, what is expected there, what stands there."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

_EXPECTED = {
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "keys with values",
    "model_type": "keys with values",
    "model_attributes_type": "keys with values",
    "mapping_type": "keys with values",
    "string_type": "text",
    "string_sub_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "string_too_short": "text of {min_length} characters or more",
    "string_too_long": "text of at most {max_length} characters",
    "string_pattern_mismatch": "text of the form {pattern}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}
"""Types of pydantic's errors (pydantic docs, "Validation Errors") to what would have been right."""

_NOT_TEXT = (
    "list_type",
    "tuple_type",
    "set_type",
    "dict_type",
    "mapping_type",
    "model_type",
    "model_attributes_type",
)
_KEY = "[key]"
_SHOWN_MOST = 40
"""Characters of a value that a message repeats."""


def explain(model: type[BaseModel], error: ValidationError, spell: Callable[[str], str] = str) -> list[str]:
    """One line for each place, as `spell` writes it, where something is wrong; the whole is no place."""
    places: dict[str, list[Any]] = {}
    for problem in error.errors():
        places.setdefault(_place(model, problem["loc"]), []).append(problem)
    return [
        f"{spell(place)}: {_tell(model, problems)}" if place else _tell(model, problems)
        for place, problems in places.items()
    ]


def misplaced(faults: Iterable[tuple[tuple[int | str, ...], str]]) -> ValidationError:
    """For a validator of a whole section to raise: what is wrong, each with the keys that lead there from it."""
    details = [
        InitErrorDetails(
            type=PydanticCustomError("misplaced", "{text}", {"text": text}), loc=place, input=None
        )
        for place, text in faults
    ]
    return ValidationError.from_exception_data("section", details)


def _tell(model: type[BaseModel], problems: list[Any]) -> str:
    """What is wrong at one place; where the value may be of several kinds, there is a problem for each."""
    expected = [_expected(problem) for problem in problems if problem["type"] in _EXPECTED]
    if expected:
        return f"expected {' or '.join(dict.fromkeys(expected))}, not {_shown(problems[0])}"
    problem = problems[0]
    location = problem["loc"]
    if problem["type"] == "missing":
        return "required, but missing"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        if location[-1] in known:
            return "not for this kind of token; leave it out, or choose the other kind"
        return f"unknown key{nearest(str(location[-1]), known) or '; remove it'}"
    return str(problem["msg"]).removeprefix("Value error, ")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, if one of those known is like it; else nothing."""
    import difflib  # who makes no mistake has no need of it

    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _expected(problem: Mapping[str, Any]) -> str:
    return _EXPECTED[problem["type"]].format(**problem.get("ctx", {}))


def _shown(problem: Mapping[str, Any]) -> str:
    """The value, where it can't be a secret that was put into the wrong place; else what it is."""
    value = problem["input"]
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, dict):
        return "keys with values"
    if problem["type"] == "string_type" and isinstance(value, int | float):
        return "a number; put it in quotes"
    if isinstance(value, str) and problem["type"] in _NOT_TEXT:
        return "text"
    text = repr(value)
    return text if len(text) <= _SHOWN_MOST else f"{text[:_SHOWN_MOST]}…"


def _place(model: type[BaseModel], location: Iterable[int | str]) -> str:
    """The keys that lead to a value, as they are written: `nodes[1].keys`.

    pydantic's location also names the members of unions, each of which has a problem of its own, and ends
    with `[key]` where a key is wrong and not its value.
    """
    path, current = "", model
    for part in location:
        if _is_union(current) or part == _KEY:
            break
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
        current = _below(current, part)
    return path


def _below(annotation: Any, part: int | str) -> Any:
    """The type of what an index or a key leads to; None if that is unknown."""
    if _is_model(annotation):
        fields = (kind.model_fields.get(str(part)) for kind in variants(annotation))
        types_of_kinds = [_plain(field.annotation) for field in fields if field is not None]
        # Where kinds differ, what has parts of its own is what a longer location leads into.
        return max(types_of_kinds, key=_has_parts, default=None)
    arguments = get_args(annotation)
    return _plain(arguments[-1]) if arguments and arguments[-1] is not ... else None


def _plain(annotation: Any) -> Any:
    """A type without its annotations, and without the None that it may be instead."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if _is_union(annotation):
        members = [member for member in get_args(annotation) if member is not types.NoneType]
        members = [member for member in members if _is_model(member)] or members  # only a model has parts
        return _plain(members[0]) if len(members) == 1 else Union[tuple(members)]  # noqa: UP007  # made at run time
    return annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _has_parts(annotation: Any) -> bool:
    return _is_model(annotation) or bool(get_args(annotation))


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _known_keys(model: type[BaseModel], location: Iterable[int | str]) -> list[str]:
    current: Any = model
    for part in location:
        current = _below(current, part)
    if not _is_model(current):
        return []
    return list(dict.fromkeys(name for kind in variants(current) for name in kind.model_fields))


def variants(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that data for `model` may become: those of its `token_kinds`, if it has any."""
    kinds: Mapping[str, type[BaseModel]] = getattr(model, "token_kinds", dict)()
    return list(kinds.values()) or [model]
