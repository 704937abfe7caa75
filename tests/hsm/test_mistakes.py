"""Wrong values in a configuration are told in words of the configuration, one line for each place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, PositiveInt

from hsm.config import Section, validate
from hsm.errors import ConfigurationError


class Inner(Section):
    """A section below another."""

    text: str = Field("", min_length=1, max_length=3)
    rate: float = Field(0.0, ge=0, le=1)


class Outer(Section):
    """A value of every kind."""

    count: PositiveInt | Literal["auto"] = "auto"
    inner: Inner = Field(default_factory=Inner)
    perhaps: Inner | None = None
    many: list[Inner] = Field(default_factory=list, max_length=2)
    named: dict[str, Inner] = Field(default_factory=dict)
    choice: list[Annotated[int, Field(lt=10)] | Literal["none"]] = Field(default_factory=list)
    flag: bool = False
    whole: int = 0
    word: Annotated[str, Field(pattern="^[a-z]+$")] = "a"


def mistakes(settings: dict[str, Any]) -> list[str]:
    """The lines about these settings."""
    with pytest.raises(ConfigurationError) as caught:
        validate(settings, Outer, "x", Path("/"))
    return [line.removeprefix("x: ") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"count": 0}, "count: expected a number above 0 or 'auto', not 0"),
        ({"count": "many"}, "count: expected a whole number or 'auto', not 'many'"),
        ({"count": []}, "count: expected a whole number or 'auto', not an empty list"),
        ({"inner": "x"}, "inner: expected keys with values, not text"),
        ({"inner": None}, "inner: expected keys with values, not nothing"),
        ({"perhaps": False}, "perhaps: expected keys with values, not false"),
        ({"perhaps": {"txt": "a"}}, "perhaps.txt: unknown key; did you mean 'text'?"),
        ({"many": "x"}, "many: expected a list, not text"),
        ({"many": {}}, "many: expected a list, not keys with values"),
        ({"many": [{}, {}, {}]}, "many: expected a list of at most 2, not a list of 3"),
        ({"many": [{}, {"rate": 2}]}, "many[1].rate: expected a number of at most 1, not 2"),
        ({"named": {"a": {"rate": "x"}}}, "named.a.rate: expected a number, not 'x'"),
        ({"choice": [1, "some"]}, "choice[1]: expected a whole number or 'none', not 'some'"),
        ({"choice": [10]}, "choice[0]: expected a number below 10 or 'none', not 10"),
        ({"flag": "perhaps"}, "flag: expected true or false, not 'perhaps'"),
        ({"whole": 1.5}, "whole: expected a whole number, not 1.5"),
        ({"inner": {"text": 80}}, "inner.text: expected text, not a number; put it in quotes"),
        ({"inner": {"text": ""}}, "inner.text: expected text of 1 characters or more, not ''"),
        ({"inner": {"text": "long"}}, "inner.text: expected text of at most 3 characters, not 'long'"),
        ({"word": "A B"}, "word: expected text of the form ^[a-z]+$, not 'A B'"),
        ({"word": "A" * 99}, f"word: expected text of the form ^[a-z]+$, not '{'A' * 39}…"),
    ],
)  # fmt: skip
def test_one_line_says_what_is_expected(settings: dict[str, Any], line: str) -> None:
    """Also where a value may be of several kinds."""
    assert mistakes(settings) == [line]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*Outer.model_fields, "other"]), _VALUES))
def test_any_settings_are_taken_or_explained(settings: dict[str, Any]) -> None:
    """No line speaks of the validator's own notions, and none has the name of a union's member."""
    try:
        validate(settings, Outer, "x", Path("/"))
    except ConfigurationError as error:
        text = str(error)
    else:
        return
    for word in ("Input should", "constrained", "literal[", "instance of", "valid dictionary"):
        assert word not in text
