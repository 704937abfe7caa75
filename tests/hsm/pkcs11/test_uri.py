"""PKCS#11 URIs: RFC 7512, and mistakes in them."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm.node.uri import Pkcs11Uri, UriError, parse


def test_the_parts_are_found() -> None:
    """Token, object, id and slot of the path; module and PIN source of the query; escapes undone."""
    uri = parse(
        "pkcs11:token=My%20token;serial=0ba0;slot-id=3;object=web;id=%01%FF;type=private"
        "?module-path=/usr/lib/x.so&pin-source=file:/run/secrets/pin"
    )
    assert uri == Pkcs11Uri(
        token="My token",
        serial="0ba0",
        slot_id=3,
        object="web",
        id=b"\x01\xff",
        module_path="/usr/lib/x.so",
        pin_source="file:/run/secrets/pin",
    )


@given(
    st.builds(
        Pkcs11Uri,
        token=st.none() | st.text(min_size=1),
        serial=st.none() | st.text(string.hexdigits, min_size=1),
        slot_id=st.none() | st.integers(0, 2**63),
        object=st.none() | st.text(),
        id=st.none() | st.binary(),
        module_path=st.none() | st.text().map(lambda name: f"/{name}"),
        pin_source=st.none() | st.text(),
    )
)
def test_what_is_written_is_read(uri: Pkcs11Uri) -> None:
    """Any label, path and id survives the way into a URI and back."""
    assert parse(str(uri)) == uri


@given(st.text(string.ascii_letters + string.digits, min_size=6))
def test_the_pin_shows_in_no_text(pin: str) -> None:
    """Neither repr nor str of a URI holds its PIN."""
    secret = f"#{pin}#"
    uri = parse(f"pkcs11:token=tls?pin-value=%23{pin}%23")
    assert uri.pin_value == secret
    assert secret not in repr(uri) + str(uri)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("tls", "not a PKCS#11 URI; write one like pkcs11:token=NAME"),
        ("file:token=tls", "not a PKCS#11 URI"),
        ("pkcs11:tokn=tls", "tokn is not known before the '?'; known there: token, "),
        (
            "pkcs11:token=tls?modul-path=/a.so",
            "modul-path is not known after the '?'; known there: module-path, ",
        ),
        ("pkcs11:token", "an attribute before the '?' has no '='"),
        ("pkcs11:token=a;token=b", "token stands twice; keep one"),
        ("pkcs11:token=100%", "token: write a percent sign as %25"),
        (
            "pkcs11:token=a b",
            "token: write a percent sign as %25, spaces and non-ASCII characters as %XX too",
        ),
        ("pkcs11:token=%FF", "token: not UTF-8; percent-encode the UTF-8 bytes"),
        ("pkcs11:slot-id=0x1", "slot-id: '0x1' is not a decimal number; write e.g. slot-id=0"),
        ("pkcs11:type=cert", "type: a node signs with private keys; leave it out"),
        ("pkcs11:?module-path=lib.so", "module-path: 'lib.so' is not absolute; write the whole path"),
        (
            "pkcs11:?pin-source=file:/a&pin-value=1",
            "pin-source and pin-value are both given; keep pin-source",
        ),
    ],
)
def test_mistakes_name_the_place_and_the_remedy(text: str, complaint: str) -> None:
    """One line that says where it is wrong and what to write."""
    with pytest.raises(UriError) as caught:
        parse(text)
    assert str(caught.value).startswith(complaint)


@pytest.mark.parametrize(
    "text",
    [
        "pkcs11:token=tls?pin-value=top-secret%",
        "pkcs11:token=tls?pin-value=a&top-secret",
        "pkcs11:token=tls?pin-value=a&Top-secret=1",
        "pkcs11:token=tls?pin-value=top-secret%FF",
        "pkcs11:token=tls?pin-value=top-secret&pin-value=top-secret",
    ],
)
def test_no_mistake_shows_the_pin(text: str) -> None:
    """A PIN that was written wrongly is in no message, and in no exception chained to it."""
    with pytest.raises(UriError) as caught:
        parse(text)
    assert "top-secret" not in str(caught.value).lower()
    assert caught.value.__cause__ is None
