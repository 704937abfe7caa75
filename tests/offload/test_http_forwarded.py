"""What applications are told of their clients: quoting, extension, and what strangers can't say."""

from __future__ import annotations

import re
from base64 import b64decode
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.http.forwarded import CHAIN_MOST, Client, ForwardedHeaders, Told, quoted, told
from offload.http.guarded import REMEMBERED, STRANGERS, TOLD, dropped_names
from offload.http.request_id import RequestIds, is_well_formed

ALL = Told(x_forwarded=True, forwarded=True, client_cert=True, request_id=True)
CLIENT = Client("203.0.113.7", "https", 443)
TEXT = st.binary(max_size=60).map(lambda data: bytes(0x20 + byte % 0x5F for byte in data))
"""Visible ASCII and spaces: what the parser of heads lets pass in a value."""


def said(
    client: Client, host: bytes, *incoming: tuple[bytes, bytes], which: Told = ALL
) -> dict[bytes, bytes]:
    """The headers of a request, by name in lower case; each stands once."""
    lines = ForwardedHeaders(client, which).lines(
        host, told((name, name, value) for name, value in incoming) if incoming else None, b"id"
    )
    assert lines.endswith(b"\r\n")
    pairs = [line.split(b": ", 1) for line in lines[:-2].split(b"\r\n")]
    found = {name.lower(): value for name, value in pairs}
    assert len(found) == len(pairs)
    return found


def elements(forwarded: bytes) -> list[dict[bytes, bytes]]:
    """RFC 7239, read by a reader of its own."""
    found: list[dict[bytes, bytes]] = [{}]
    position = 0
    while position < len(forwarded):
        match = re.compile(rb'([^=;, "]+)=(?:"((?:[^"\\]|\\.)*)"|([^;, "]+))').match(forwarded, position)
        assert match is not None, forwarded[position:]
        found[-1][match[1]] = re.sub(rb"\\(.)", rb"\1", match[2]) if match[2] is not None else match[3]
        position = match.end()
        if forwarded[position : position + 2] == b", ":
            found.append({})
            position += 2
        elif position < len(forwarded):
            assert forwarded[position : position + 1] == b";"
            position += 1
    return found


def test_a_stranger() -> None:
    """Everything is said by us, and once."""
    assert said(CLIENT, b"example.org:8443") == {
        b"x-forwarded-for": b"203.0.113.7",
        b"x-forwarded-proto": b"https",
        b"x-forwarded-host": b"example.org:8443",
        b"x-forwarded-port": b"443",
        b"forwarded": b'for=203.0.113.7;host="example.org:8443";proto=https',
        b"x-request-id": b"id",
    }


@pytest.mark.parametrize(
    ("host", "address", "node"),
    [
        ("2001:db8::1", b"2001:db8::1", b'for="[2001:db8::1]"'),
        ("fe80::1%eth0", b"fe80::1", b'for="[fe80::1]"'),
        ("::ffff:192.0.2.1", b"192.0.2.1", b"for=192.0.2.1"),
        ("unix:/run/x y", b"unknown", b"for=unknown"),
    ],
)
def test_addresses(host: str, address: bytes, node: bytes) -> None:
    """IPv6 bare in one header, in brackets and quotes in the other; whatever is no address is unknown."""
    found = said(Client(host, "http", 80), b"a")
    assert found[b"x-forwarded-for"] == address
    assert found[b"forwarded"] == node + b";host=a;proto=http"


@given(TEXT)
def test_any_host_comes_back_from_its_quotes(host: bytes) -> None:
    """No Host can add a parameter or an element."""
    expected = {b"for": b"203.0.113.7", b"proto": b"https"} | ({b"host": host} if host else {})
    assert elements(said(CLIENT, host)[b"forwarded"]) == [expected]


@given(st.lists(TEXT, min_size=2, max_size=4))
def test_a_host_is_remembered_for_its_own_requests_only(hosts: list[bytes]) -> None:
    """Requests of one connection for several hosts."""
    headers = ForwardedHeaders(CLIENT, ALL)
    for host in [*hosts, *hosts, hosts[0]]:
        assert headers.lines(host, None, b"1") == ForwardedHeaders(CLIENT, ALL).lines(host, None, b"1")


def test_what_is_not_known_is_not_said() -> None:
    """The host of a request of HTTP/1.0 without one; the port of a unix socket, as a PROXY header may name it."""
    found = said(Client("unix:/a", "https", 0), b"")
    assert not found.keys() & {b"x-forwarded-host", b"x-forwarded-port"}
    assert found[b"forwarded"] == b"for=unknown;proto=https"


def test_a_trusted_peer_is_extended() -> None:
    """Lists grow by the peer's address; scheme, host and port are those that the client used."""
    found = said(
        CLIENT,
        b"inner",
        (b"x-forwarded-for", b"198.51.100.1"),
        (b"x-forwarded-for", b"198.51.100.2, unknown"),
        (b"x-forwarded-proto", b"http"),
        (b"x-forwarded-host", b"outer.example"),
        (b"forwarded", b'for="[2001:db8::9]:4711";by=_x'),
        (b"user-agent", b"x"),
    )
    assert found[b"x-forwarded-for"] == b"198.51.100.1, 198.51.100.2, unknown, 203.0.113.7"
    assert (found[b"x-forwarded-proto"], found[b"x-forwarded-host"]) == (b"http", b"outer.example")
    assert b"x-forwarded-port" not in found
    assert [each[b"for"] for each in elements(found[b"forwarded"])] == [b"[2001:db8::9]:4711", b"203.0.113.7"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"forwarded", b'for="1.2.3.4'),
        (b"forwarded", b"for"),
        (b"forwarded", b"for=1.2.3.4,"),
        (b"forwarded", b"for=1.2.3.4 host=x"),
        (b"x-forwarded-for", b"1.2.3.4,"),
        (b"x-forwarded-for", b"<script>"),
        (b"x-forwarded-proto", b"https;x"),
        (b"x-forwarded-host", b"a b"),
        (b"x-forwarded-port", b"443x"),
        (b"client-cert", b":?:"),
    ],
)
def test_what_is_malformed_is_dropped(name: bytes, value: bytes) -> None:
    """An open quote, say, would swallow what is appended: then only our own word counts."""
    assert said(CLIENT, b"a", (name, value)) == said(CLIENT, b"a")


@given(TEXT)
def test_a_trusted_peers_word_never_hides_ours(value: bytes) -> None:
    """Whatever it says, the last element is the peer itself."""
    incoming = [(name, value) for name in TOLD]
    found = said(CLIENT, b"a", *incoming)
    assert elements(found[b"forwarded"])[-1] == {b"for": b"203.0.113.7", b"host": b"a", b"proto": b"https"}
    assert re.split(rb", *", found[b"x-forwarded-for"])[-1] == b"203.0.113.7"


LEAF, MIDDLE, ROOT = b"leaf", b"middle", b"root"


@pytest.mark.parametrize(
    ("chain", "incoming", "certificate", "others"),
    [
        ((LEAF, MIDDLE, ROOT), (), LEAF, [MIDDLE, ROOT]),
        ((LEAF, b"x" * CHAIN_MOST), (), LEAF, []),  # too long: applications limit heads
        # Of a trusted proxy's client: not the proxy's own, nor a mixture of both chains.
        ((b"proxy", ROOT), ((b"client-cert", b":bGVhZg==:"),), LEAF, []),
        ((b"proxy", ROOT), ((b"x-forwarded-for", b"::2"),), b"proxy", [ROOT]),
    ],
)
def test_client_certificates(
    chain: tuple[bytes, ...],
    incoming: tuple[tuple[bytes, bytes], ...],
    certificate: bytes,
    others: list[bytes],
) -> None:
    """RFC 9440: the leaf, and the rest of the chain as a list where there is one to tell."""
    found = said(Client("::1", "https", 443, chain), b"a", *incoming)
    assert b64decode(found[b"client-cert"].strip(b":")) == certificate
    told_others = found[b"client-cert-chain"].split(b", ") if b"client-cert-chain" in found else []
    assert [b64decode(each.strip(b":")) for each in told_others] == others


def test_what_is_switched_off_is_not_said() -> None:
    """Nothing is left over, not even an id."""
    nothing = Told(x_forwarded=False, forwarded=False, client_cert=False, request_id=False)
    assert ForwardedHeaders(CLIENT, nothing).lines(b"a", None, b"id") == b""


@given(TEXT)
def test_quotes(value: bytes) -> None:
    """A token stays; in quotes, every quote and backslash is escaped."""
    text = quoted(value)
    if text != value:
        assert re.sub(rb"\\(.)", rb"\1", text[1:-1]) == value
        assert not re.search(rb'(?<!\\)(\\\\)*"', text[1:-1])


# -- dropped names ---------------------------------------------------------------------------------


@given(st.sampled_from(sorted(STRANGERS)), st.data())
def test_strangers_say_nothing_by_any_spelling(name: bytes, data: st.DataObject) -> None:
    """Every character that a CGI server may make an underscore stands for the hyphen."""
    odd = st.sampled_from([bytes([code]) for code in b"-_.!#$%&'*+^`|~"])
    spelling = b"".join(data.draw(odd) if byte == ord("-") else bytes([byte]) for byte in name)
    assert dropped_names((), trusted=False)[spelling]


LOOK_ALIKES = (
    b"x-forwarded-anything", b"x_forwarded_user", b"client-cert-chain", b"x-client-cert-dn", b"ssl-client-s-dn",
    b"x.real.ip", b"proxy", b"x-amzn-mtls-clientcert-subject",
)  # fmt: skip
"""Names that some application trusts; a trusted proxy may send those that we don't write."""
ORDINARY = (b"accept", b"cookie", b"authorization", b"x-requested-with", b"x-request-id", b"via")
"""A request's id is its sender's if we give none."""


@pytest.mark.parametrize("name", [*LOOK_ALIKES, *ORDINARY])
def test_which_names_are_dropped(name: bytes) -> None:
    """Whatever says who the client is, unless a trusted proxy does; nothing else."""
    assert dropped_names((), trusted=False)[name] is (name in LOOK_ALIKES)
    assert not dropped_names((), trusted=True)[name]


def test_what_is_written_anew_or_removed_goes() -> None:
    """From trusted peers, too."""
    names = dropped_names([*TOLD, b"x-internal"], trusted=True)
    assert all(names[name] for name in (*TOLD, b"x-internal", b"x_internal"))
    assert not names[b"x-forwarded-user"]


def test_ever_new_names_take_up_no_memory() -> None:
    """They are judged again each time, alike."""
    names = dropped_names(TOLD, trusted=False)
    for index in range(2 * REMEMBERED):
        assert not names[b"x-%d" % index]
        assert not names[b"y" * 1000 + b"%d" % index]
    assert len(names) <= REMEMBERED
    assert names[b"x-forwarded-for"]


# -- request ids -----------------------------------------------------------------------------------


def test_ids_are_made_of_all_the_randomness_once() -> None:
    """No two share a byte, and all are well-formed."""
    number = count()
    ids = RequestIds(lambda size: b"".join(next(number).to_bytes(4) for _ in range(size // 4)))
    made = [ids.make() for _ in range(1000)]
    assert (
        b"".join(made[:2])
        == bytes.fromhex("0000000000000001000000020000000300000004000000050000000600000007").hex().encode()
    )
    assert len(set(made)) == 1000
    assert all(is_well_formed(each) and len(each) == 32 for each in made)


@given(st.binary(max_size=200))
def test_ids_that_are_kept_are_harmless(request_id: bytes) -> None:
    """In a header, a page, and a line of a log."""
    if is_well_formed(request_id):
        assert 0 < len(request_id) <= 128
        assert not set(request_id) & set(b"\r\n\0\"'<>&\\ {}")
