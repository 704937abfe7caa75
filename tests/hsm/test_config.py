"""How a configuration is read, and how its mistakes are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from hsm import config
from hsm.config import (
    SOCKET_PATH_MAX,
    Address,
    Duration,
    Emulation,
    FilePath,
    NodeSettings,
    Section,
    StreamAddress,
    TcpAddress,
    parse_duration,
    parse_host_port,
    parse_socket_path,
)
from hsm.errors import ConfigurationError


class Holder(Section):
    """What holds keys, in the configuration of these tests."""

    kind: Literal["software"] = "software"
    keys: FilePath
    emulate: Emulation = Field(default_factory=Emulation)
    emulate_file: FilePath | None = None


class Nested(Section):
    """Sections inside sections, for the names of keys."""

    nodes: list[Holder] = Field(default_factory=list)
    token: Holder | None = None
    wait: Duration = 1.0
    stream: StreamAddress | None = None
    tcp: TcpAddress | None = None


def load(directory: Path, text: str) -> Nested:
    """Read `text` as a configuration file of `directory`."""
    path = directory / "c.yaml"
    path.write_text(text)
    return config.load(path, Nested)


def mistakes(directory: Path, text: str) -> list[str]:
    """The lines that an operator sees, without the file's name."""
    with pytest.raises(ConfigurationError) as caught:
        load(directory, text)
    lines = str(caught.value).splitlines()
    prefix = f"{directory / 'c.yaml'}"
    assert all(line.startswith(prefix) for line in lines), lines
    return [line.removeprefix(prefix).removeprefix(": ") for line in lines]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25), ("5s", 5.0), ("1.5s", 1.5), ("0s", 0.0), ("50us", 50e-6), ("2m", 120.0),
        ("1h", 3600.0), ("2d", 172800.0), (0, 0), ("0", 0),
    ],
)  # fmt: skip
def test_durations_have_units(text: Any, seconds: float) -> None:
    """A number with a unit becomes seconds."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "5 s",
        "s",
        "-5s",
        "5S",
        "5sec",
        "1h30m",
        "1e3s",
        ".5s",
        "5s\n",
        "٥x",
        "٥s",
        "5.0",
        5,
        5.0,
        True,
        None,
        [],
        "nan",
    ],
)
def test_what_is_no_duration_is_refused(text: Any) -> None:
    """The message shows what was written and what a duration looks like."""
    with pytest.raises(ValueError, match="is not a duration; write one like 250ms, 5s, 10m, 1h, 1d or 1y"):
        parse_duration(text)


def test_a_duration_survives_the_way_to_another_process() -> None:
    """As JSON it has its unit; in code it is seconds. A file's bare number is refused, with a fraction too."""
    sent = Nested(wait=0.25).model_dump(mode="json")
    assert sent["wait"] == "0.250000s"
    assert Nested.model_validate(sent).wait == 0.25
    assert config.validate(sent, Nested, "x", Path("/")).wait == 0.25
    with pytest.raises(ConfigurationError, match=r"wait: 0\.25 is not a duration"):
        config.validate({"wait": 0.25}, Nested, "x", Path("/"))


@given(st.integers(0, 366), st.sampled_from(["us", "ms", "s", "m", "h", "d"]))
def test_every_unit_is_a_multiple_of_seconds(count: int, unit: str) -> None:
    """Durations are proportional to their number, whatever the unit."""
    assert parse_duration(f"{count}{unit}") == pytest.approx(count * parse_duration(f"1{unit}"))


@pytest.mark.parametrize("text", ["367d", "100000h", "1" + "0" * 400 + "s"])
def test_a_duration_has_a_highest_value(tmp_path: Path, text: str) -> None:
    """More than a year is a mistake of the unit."""
    (line,) = mistakes(tmp_path, f"wait: {text}")
    assert line.startswith("wait: ")
    assert line.endswith(" is longer than 366 days; check its unit")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8443", "127.0.0.1", 8443),
        ("example.org:443", "example.org", 443),
        ("[::1]:8443", "::1", 8443),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ("localhost:65535", "localhost", 65535),
        ("0.0.0.0:0", "0.0.0.0", 0),
    ],
)
def test_addresses_are_host_and_port(text: str, host: str, port: int) -> None:
    """IPv4, names and bracketed IPv6; the text comes back when an address is printed."""
    assert parse_host_port(text) == Address(host, port)
    assert str(parse_host_port(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "localhost", ":80", "localhost:", "localhost:x", "localhost:\uff180", "::1:80",
        "[::1]", "[::1", "::1", "[]:80", "a b:80", "http://x:80", "x:80/", "x:-1", "[::1]80", "x:80\n",
    ],
)  # fmt: skip
def test_bad_addresses_are_refused(text: str) -> None:
    """The message shows what was written and what an address looks like."""
    with pytest.raises(ValueError, match=r"is not an address; write host:port, or \[v6\]:port"):
        parse_host_port(text)


@pytest.mark.parametrize("port", ["65536", "99999", "065535", "9" * 5000])
def test_ports_that_are_none(port: str) -> None:
    """What is wrong with it is told."""
    with pytest.raises(ValueError, match=r"'\[::1\]:[0-9]+': ports end at 65535"):
        parse_host_port(f"[::1]:{port}")


def test_socket_paths_are_relative_to_a_directory() -> None:
    """A relative socket path starts at the given directory, an absolute one at the root."""
    assert parse_socket_path("unix:a.sock", "/run/x") == Address(path="/run/x/a.sock")
    assert parse_socket_path("unix:/b.sock", "/run/x") == Address(path="/b.sock")
    assert str(Address(path="/b.sock")) == "unix:/b.sock"


def test_socket_paths_fit_the_kernel() -> None:
    """107 bytes is the longest path of a unix socket; none is no path."""
    assert parse_socket_path("unix:/" + "x" * (SOCKET_PATH_MAX - 1)).path.endswith("x")
    for bad in ("unix:", "unix:/" + "x" * SOCKET_PATH_MAX, "unix:/" + "é" * (SOCKET_PATH_MAX // 2 + 1)):
        with pytest.raises(ValueError, match="use a shorter one"):
            parse_socket_path(bad)


def test_a_nodes_address_is_unix_or_tls() -> None:
    """Plain TCP is not offered to nodes."""
    for listen in ("127.0.0.1:2407", "tcp://127.0.0.1:2407", "tls:127.0.0.1:2407", "/run/a.sock", 2407):
        with pytest.raises(ConfigurationError, match="write unix:/path or tls://host:port"):
            config.validate({"listen": listen, "keys": "k"}, NodeSettings, "x", Path("/"))


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    """A path in a file starts at the file's directory, whatever the working directory is."""
    found = load(tmp_path, "token: {keys: ./keys, emulate_file: /etc/e.yaml}\nstream: unix:a.sock\n")
    assert found.token is not None
    assert found.token.keys == tmp_path / "keys"
    assert found.token.emulate_file == Path("/etc/e.yaml")
    assert found.stream == Address(path=str(tmp_path / "a.sock"))


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` means the user's home, not a directory of that name."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = load(tmp_path, "token: {keys: ~/keys}\n")
    assert found.token is not None
    assert found.token.keys == tmp_path / "home" / "keys"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("nods: []", "nods: unknown key; did you mean 'nodes'?"),
        ("token: {keys: k, emulate: {latencies: 5ms}}",
         "token.emulate.latencies: unknown key; did you mean 'latency'?"),
        ("nodes: [{keys: k}, {kays: k}]", "nodes[1].keys: required, but missing"),
        ("nodes: [{keys: k}, {keys: k, emulat: {}}]", "nodes[1].emulat: unknown key; did you mean 'emulate'?"),
        ("zzz: 1", "zzz: unknown key; remove it"),
        ("wait: 5", "wait: 5 is not a duration; write one like 250ms, 5s, 10m, 1h, 1d or 1y"),
        ("tcp: unix:/a", "tcp: 'unix:/a' is not an address; write host:port, or [v6]:port"),
        ("tcp: 80", "tcp: 80 is not an address; write host:port, or [v6]:port"),
        ("token: {keys: ''}", "token.keys: not a path"),
        ("token: {kind: abacus, keys: k}", "token.kind: expected 'software', not 'abacus'"),
        ("token: {keys: k, emulate: {error_rate: 1.1}}",
         "token.emulate.error_rate: expected a number of at most 1, not 1.1"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_key_and_the_remedy(tmp_path: Path, text: str, line: str) -> None:
    """Each mistake is a line that holds the file, the key's place and what to write."""
    assert line in mistakes(tmp_path, text)


def test_several_mistakes_are_several_lines(tmp_path: Path) -> None:
    """All mistakes are told at once, a line each."""
    lines = mistakes(tmp_path, "wait: soon\nnods: []\ntoken: {keys: k, emulate: {parallel: -1}}\n")
    assert sorted(line.partition(":")[0] for line in lines) == ["nods", "token.emulate.parallel", "wait"]


def test_tls_belongs_to_tls_addresses() -> None:
    """Certificates without tls://, and tls:// without certificates, are mistakes."""
    tls = {"ca": "a", "certificate": "b", "key": "c"}
    for settings, complaint in (
        ({"listen": "unix:/a.sock", "tls": tls}, "a unix socket checks its peer's user instead"),
        ({"listen": "tls://127.0.0.1:1"}, "tls: a tls:// address needs it: ca, certificate and key"),
        ({"listen": "tls://127.0.0.1:1", "tls": {"ca": "a"}}, r"tls\.key: required, but missing"),
    ):
        with pytest.raises(ConfigurationError, match=complaint):
            config.validate({"keys": "k", **settings}, NodeSettings, "x", Path("/"))


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("wait: 5s\ntoken: [", ":2: not valid YAML: "),
        ("wait: 5s\n\ntoken: {keys: k\nnodes: []\n", ":4: not valid YAML: "),
        ("wait: !!python/object:os.system x", ":1: not valid YAML: "),
        ("wait: *nobody", ":1: not valid YAML: "),
        ("wait: \0", ": not valid YAML: "),
    ],
)
def test_a_syntax_error_names_its_line(tmp_path: Path, text: str, start: str) -> None:
    """What YAML cannot read is told with file and line, in one line."""
    (line,) = mistakes(tmp_path, text)
    assert line.startswith(start.removeprefix(": "))


@pytest.mark.parametrize("text", ["- a\n", "text", "5"])
def test_a_file_holds_keys_and_values(tmp_path: Path, text: str) -> None:
    """A list or a word is no configuration."""
    assert mistakes(tmp_path, text) == ["expected keys and values at the top level"]


@pytest.mark.parametrize(
    ("text", "line"), [("", "is empty"), ("# nothing\n", "is empty"), ("a:\n\tb: 1\n", None)]
)
def test_a_file_that_says_nothing_or_has_tabs(tmp_path: Path, text: str, line: str | None) -> None:
    """What everybody does once is told in plain words."""
    (told,) = mistakes(tmp_path, text)
    assert told == line or told.endswith("; indent with spaces")


@pytest.mark.parametrize(
    "text",
    [
        "wait: 2026-13-01",
        "[" * 1200,
        "1: 2",
        "{null: 3}",
        "wait: &a [*a]",
        "? [a]\n: b",
        "\t",
        "%YAML 9\n---",
    ],
)
def test_strange_yaml_is_still_a_line(tmp_path: Path, text: str) -> None:
    """Impossible dates, endless nesting, odd keys: a line for the operator, never a traceback."""
    assert mistakes(tmp_path, text)


@given(st.text(max_size=40) | st.binary(max_size=40))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: str | bytes) -> None:
    """No content of a file raises anything but ConfigurationError."""
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        config.load(path, Emulation)
    except ConfigurationError as error:
        told = str(error)
    else:
        return
    assert told.startswith(str(path))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    """A file that is not there, a directory, and bytes that are no text: each is one line."""
    (tmp_path / "latin.yaml").write_bytes(b"wait: \xe9\n")
    for name, why in (
        ("none.yaml", "No such file"),
        ("latin.yaml", "not UTF-8 text"),
        ("", "Is a directory"),
    ):
        with pytest.raises(ConfigurationError, match=why) as caught:
            config.load(tmp_path / name, Nested)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    """A configuration is frozen data."""
    with pytest.raises(ValueError, match="frozen"):
        load(tmp_path, "wait: 5s").wait = 6.0  # type: ignore[misc]  # that is the point
