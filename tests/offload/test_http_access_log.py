"""Lines of the access log: both forms, which requests get one, and what can't get into one."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.config_http import AccessLogSettings
from offload.http.access_log import TARGET_MOST, TEXT_MOST, AccessLog, Caller, Entry, shown_line, shown_url

NOW = 1_750_000_000.25
CALLER = Caller(
    listener="web", address="2001:db8::7", port=50123, tls_version="TLSv1.3", cipher="TLS_AES_128_GCM_SHA256",
    server_name="www.example.org", node="a", signature_ms=4.217,
)  # fmt: skip
ENTRY = Entry(
    method=b"GET", target=b"/a?token=secret", minor=1, host=b"www.example.org",
    referer=b"https://user:password@other.example/b?token=secret", user_agent=b'curl/8 "x"', forwarded_for=b"",
    request_id=b"4f2a", route="api", status=200, reason="", bytes_up=120, bytes_down=4321, seconds=0.0123456,
    server="127.0.0.1:8080", server_seconds=0.01,
)  # fmt: skip
COMBINED = re.compile(
    r'(\S+) - - \[(.*?)\] "((?:[^"\\]|\\.)*)" (\d+) (\d+) "((?:[^"\\]|\\.)*)" "((?:[^"\\]|\\.)*)"((?: [a-z_]+=\S+)*)'
)


def line(entry: Entry, caller: Caller = CALLER, **settings: Any) -> str:
    """What is written for a request."""
    written: list[str] = []
    log = AccessLog(AccessLogSettings.model_validate(settings), written.append, "worker-0")
    log.write(log.form(caller), replace(entry), NOW)
    return written[0]


def test_combined() -> None:
    """As nginx and Apache write it, and behind it what they have no place for."""
    assert line(ENTRY) == (
        '2001:db8::7 - - [15/Jun/2025:15:06:40 +0000] "GET /a HTTP/1.1" 200 4321 "https://other.example/b" '
        '"curl/8 \\x22x\\x22" request_id=4f2a listener=web route=api bytes_up=120 ms=12.346 host=www.example.org '
        "server=127.0.0.1:8080 server_ms=10.0 tls=TLSv1.3 cipher=TLS_AES_128_GCM_SHA256 sni=www.example.org "
        "resumed=False node=a signature_ms=4.217"
    )


def test_json() -> None:
    """The same as fields, with those that all lines of the log have."""
    assert json.loads(line(ENTRY, format="json")) == {
        "event": "request", "level": "info", "process": "worker-0", "timestamp": "2025-06-15T15:06:40.250000Z",
        "peer": "2001:db8::7", "port": 50123, "method": "GET", "target": "/a", "version": "1.1", "status": 200,
        "bytes_up": 120, "bytes_down": 4321, "referer": "https://other.example/b", "user_agent": 'curl/8 "x"',
        "host": "www.example.org", "request_id": "4f2a", "listener": "web", "route": "api", "ms": 12.346,
        "server": "127.0.0.1:8080", "server_ms": 10.0, "tls": "TLSv1.3", "cipher": "TLS_AES_128_GCM_SHA256",
        "sni": "www.example.org", "resumed": False, "node": "a", "signature_ms": 4.217,
    }  # fmt: skip


def test_a_failure_without_tls() -> None:
    """What did not happen is left out; the reason and the proxy before us are told."""
    entry = replace(
        ENTRY,
        status=503,
        reason="upstream_failed",
        server="",
        server_seconds=0.0,
        forwarded_for=b"192.0.2.1",
    )
    fields = json.loads(line(entry, Caller("web", "127.0.0.1", 1), format="json"))
    assert (fields["reason"], fields["forwarded_for"]) == ("upstream_failed", "192.0.2.1")
    assert not fields.keys() & {
        "tls",
        "cipher",
        "sni",
        "resumed",
        "node",
        "signature_ms",
        "server",
        "server_ms",
    }


def test_queries_are_told_if_asked_for() -> None:
    """Passwords in front of a host never are."""
    fields = json.loads(line(ENTRY, format="json", query=True))
    assert fields["target"] == "/a?token=secret"
    assert fields["referer"] == "https://other.example/b?token=secret"


@given(st.text("/@:?#ab", max_size=30), st.booleans())
def test_no_password_of_a_url_is_shown(rest: str, with_query: bool) -> None:
    """Whatever else is in it, and wherever it stands in a line that could not be read."""
    url = b"https://u:secret@" + rest.encode()
    assert b"secret" not in shown_url(url, with_query)
    assert b"secret" not in shown_line(b"GET  " + url + b" HTTP/1.1", with_query)


def test_what_could_not_be_read_is_told_as_it_came() -> None:
    """In the place of the first line: its query cut off, what is not visible ASCII escaped, and bounded."""
    entry = replace(
        ENTRY, method=b"-", target=b"-", line=b'get /\xe4 "b"\0?token=secret HTTP/1.1', status=400
    )
    assert ' "get /\\xe4 \\x22b\\x22\\x00" 400 ' in line(entry)
    fields = json.loads(line(replace(entry, line=b"GET /" + b"a" * 5000), format="json"))
    assert (fields["method"], fields["target"]) == ("-", "-")
    assert fields["request_line"] == "GET /" + "a" * (TARGET_MOST - 5)
    assert "request_line" not in json.loads(line(ENTRY, format="json"))


@pytest.mark.parametrize(
    "received",
    [b"user=bob&password=hunter2", b'{"password": "hunter2"}', b"hunter2", b"\x16\x03\x01hunter2", b"a=/ /"],
)
def test_what_does_not_look_like_a_request_is_counted_only(received: bytes) -> None:
    """It may be the body of a request that told no length."""
    entry = replace(ENTRY, method=b"-", target=b"-", line=received, status=400)
    assert json.loads(line(entry, format="json"))["request_line"] == f"({len(received)} bytes)"
    assert f' "({len(received)} bytes)" 400 ' in line(entry)
    assert "hunter2" not in line(entry) + line(entry, format="json", query=True)


@pytest.mark.parametrize(
    "received", [b"GET /", b"GET  https://a/b HTTP/1.1", b"OPTIONS * HTTP/9.9", b"get /a b\0"]
)
def test_what_looks_like_a_request_is_shown(received: bytes) -> None:
    """In whatever way it is malformed further on."""
    assert shown_line(received, with_query=False) == received


@given(
    st.binary(max_size=3000),
    st.sampled_from(["method", "target", "host", "referer", "user_agent", "forwarded_for", "line"]),
)
def test_no_bytes_can_forge_a_line(data: bytes, field: str) -> None:
    """One line of visible ASCII, bounded, in which every field is where it belongs."""
    entry = replace(ENTRY)
    setattr(entry, field, b"GET /" + data if field == "line" else data)
    found = COMBINED.fullmatch(line(entry))
    assert found is not None
    assert (found[1], found[4], found[5]) == ("2001:db8::7", "200", "4321")
    assert len(found[0]) < 1000 + 4 * (TARGET_MOST + TEXT_MOST)
    text = line(entry, format="json")
    assert all(" " <= character <= "~" for character in found[0] + text)
    assert json.loads(text)["status"] == 200


def told(answers: list[tuple[int, str]], sample: float) -> list[tuple[int, str]]:
    """Those that get a line."""
    log = AccessLog(AccessLogSettings(sample=sample), lambda _line: None, "")
    return [answer for answer in answers if log.wants(*answer)]


@pytest.mark.parametrize("answer", [(500, ""), (502, "malformed"), (400, "host"), (0, "client_left")])
def test_failures_are_told_always(answer: tuple[int, str]) -> None:
    """A web server's, ours, and what was broken off."""
    assert told([answer] * 20, 0.01) == [answer] * 20


@given(st.floats(0.01, 1), st.integers(1, 300))
def test_of_the_others_a_share_is_told(sample: float, count: int) -> None:
    """A web server's 404 is an answer as any."""
    assert abs(len(told([(404, "")] * count, sample)) - count * sample) <= 1.001
