"""Results as files: what is written is read back, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm.errors import ConfigurationError
from loadtest import documents
from loadtest.capacity import Capacity, Objective, Trial, Use
from loadtest.documents import SCHEMA_VERSION, Document, Origin, parse
from loadtest.generate.records import summarise
from loadtest.run import Server

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def document() -> Document:
    """A search with one trial."""
    server = Server("tls.example:443", "tls.example", 443)
    origin = Origin("steady", server, "2026-01-02T03:04:05Z", "offload-load capacity", "CPU", "Python")
    trial = Trial(100.0, summarise([], 0, 5), Use(0.1, False, 0.2), met=False)
    return Document(origin, Capacity(Objective(0.05, 0.001), (0.0,), (trial,)))


def changed(**changes: Any) -> bytes:
    """The file of that document, some of its values changed."""
    return json.dumps({**document().to_json(), **changes}).encode()


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """With what follows from it, for other readers."""
    path = tmp_path / "result.json"
    document().write(path)
    assert documents.read(path) == document()
    written = json.loads(path.read_text())
    assert (written["kind"], written["result"]["rate"]) == ("capacity", 0.0)


def test_asking_whether_a_file_can_be_written_changes_nothing(tmp_path: Path) -> None:
    """Neither where there is none yet, nor where there is one, nor behind a link to either."""
    kept, new, link = tmp_path / "kept.json", tmp_path / "new.json", tmp_path / "latest.json"
    kept.write_text("{}")
    link.symlink_to(new.name)
    for path in (kept, new, link):
        documents.check_writable("--json", path)
    assert kept.read_text() == "{}"
    assert link.is_symlink()
    assert not new.exists()


@pytest.mark.parametrize(
    ("data", "mistake"),
    [
        (b"{", "not valid JSON: "),
        (b"\xff\xfe\xfd", "not valid JSON: "),
        (b"[" * 100_000, "not valid JSON: "),
        (b'{"tool": "offload-load", "a": NaN}', "not valid JSON: NaN is no number"),
        (b'{"tool": "offload-load", "a": 1e999}', "not valid JSON: 1e999 is too large a number"),
        (b'{"a": 1' + b"0" * 400 + b"}", "not valid JSON: 1000+ is too large a number"),
        (b"[]", "no result of offload-load; make one with"),
        (b'{"tool": "wrk"}', "no result of offload-load; make one with"),
        (b'{"tool": "offload-load"}', "schema_version is None, of another"),
        (
            changed(schema_version=SCHEMA_VERSION + 1),
            "schema_version is 2, of a newer offload-load; this one reads 1",
        ),
        (changed(kind="guess"), "kind is 'guess'; known are run, capacity, compare, bench, plan"),
        (changed(kind=["run"]), "kind is \\['run'\\]; known are"),
        (changed(origin=3), "origin: Input should be a dictionary or an instance of Origin"),
        (changed(result={"rates": [1], "trials": [{}]}), "result.objective: Field required"),
    ],
)
def test_files_that_are_none_of_ours(data: bytes, mistake: str) -> None:
    """One line: which file, what is wrong with it, and what would be right."""
    with pytest.raises(ConfigurationError, match=f"^x.json: {mistake}") as raised:
        parse(data, "x.json")
    assert "\n" not in str(raised.value)


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "BYTES_MOST", 1024**2)
    path = tmp_path / "large.json"
    path.write_bytes(b" " * (1024**2 + 1))
    with pytest.raises(ConfigurationError, match="larger than 1 MB"):
        documents.read(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.json: cannot read it: No such file"):
        documents.read(tmp_path / "none.json")


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes(data: bytes) -> None:
    """Nothing but ConfigurationError comes of them."""
    with pytest.raises(ConfigurationError):
        parse(data, "x.json")


@given(st.sampled_from(["origin", "result"]), JSON)
def test_any_values_in_a_result(part: str, value: Any) -> None:
    """Nothing but ConfigurationError comes of them."""
    with pytest.raises(ConfigurationError):
        parse(changed(**{part: value}), "x.json")
