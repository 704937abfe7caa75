"""PKCS#11 URIs (RFC 7512): which module, which token, which PIN source. No I/O.

    pkcs11:token=tls;serial=0ba0?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/pin

Of the path, `token`, `manufacturer`, `model`, `serial`, `slot-id`, `slot-description`, `object` and
`id` are used; of the query, `module-path`, `pin-source` and `pin-value`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import quote_from_bytes, unquote_to_bytes

_PATH = ("token", "manufacturer", "model", "serial", "slot-description", "object", "type")
_ELSEWHERE_IN_PATH = ("library-manufacturer", "library-description", "library-version", "slot-manufacturer")
_QUERY = ("module-path", "pin-source", "pin-value")
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_RAW = re.compile(r"[^\x21-\x7e]")


class UriError(ValueError):
    """Not a usable PKCS#11 URI; the message names the place and the remedy, and never holds the PIN."""


@dataclass(frozen=True, slots=True)
class Pkcs11Uri:
    """What a URI names; None where it says nothing. The PIN is in no text made of this."""

    token: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    serial: str | None = None
    slot_id: int | None = None
    slot_description: str | None = None
    object: str | None = None
    id: bytes | None = None
    module_path: str | None = None
    pin_source: str | None = None
    pin_value: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.without_pin()

    def without_pin(self) -> str:
        """The URI again, `pin-value` left out."""
        path = [
            f"{name}={_quote(value)}"
            for name, value in (
                ("token", self.token),
                ("manufacturer", self.manufacturer),
                ("model", self.model),
                ("serial", self.serial),
                ("slot-description", self.slot_description),
                ("object", self.object),
            )
            if value is not None
        ]
        if self.slot_id is not None:
            path.append(f"slot-id={self.slot_id}")
        if self.id is not None:
            path.append("id=" + "".join(f"%{byte:02X}" for byte in self.id))
        query = [
            f"{name}={_quote(value)}"
            for name, value in (("module-path", self.module_path), ("pin-source", self.pin_source))
            if value is not None
        ]
        return "pkcs11:" + ";".join(path) + ("?" + "&".join(query) if query else "")


def parse(text: str) -> Pkcs11Uri:
    """Parse a URI. Raises UriError."""
    scheme, colon, rest = text.partition(":")
    if not colon or scheme.lower() != "pkcs11":
        raise UriError("not a PKCS#11 URI; write one like pkcs11:token=NAME?module-path=/path/module.so")
    path, _, query = rest.partition("?")
    found = _attributes(path, ";", (*_PATH, *_ELSEWHERE_IN_PATH, "slot-id", "id"), "before the '?'")
    asked = _attributes(query, "&", _QUERY, "after the '?'")
    if "pin-source" in asked and "pin-value" in asked:
        raise UriError("pin-source and pin-value are both given; keep pin-source")
    if _text(found, "type") not in (None, "private"):
        raise UriError("type: a node signs with private keys; leave it out")
    module = _text(asked, "module-path")
    if module is not None and not module.startswith("/"):
        raise UriError(f"module-path: {module!r} is not absolute; write the whole path of the .so file")
    return Pkcs11Uri(
        token=_text(found, "token"),
        manufacturer=_text(found, "manufacturer"),
        model=_text(found, "model"),
        serial=_text(found, "serial"),
        slot_id=_slot_id(_text(found, "slot-id")),
        slot_description=_text(found, "slot-description"),
        object=_text(found, "object"),
        id=found.get("id"),
        module_path=module,
        pin_source=_text(asked, "pin-source"),
        pin_value=_text(asked, "pin-value"),
    )


def _attributes(text: str, separator: str, known: tuple[str, ...], where: str) -> dict[str, bytes]:
    attributes: dict[str, bytes] = {}
    for part in filter(None, text.split(separator)):
        name, equals, value = part.partition("=")
        if not equals:
            # The part itself is not shown: it may be the rest of a PIN with a reserved character.
            raise UriError(
                f"an attribute {where} has no '='; write name=value, and reserved characters as %XX"
            )
        if name not in known:
            shown = name if re.fullmatch(r"[a-z-]{1,32}", name) else "an attribute"
            raise UriError(f"{shown} is not known {where}; known there: {', '.join(known)}")
        if name in attributes:
            raise UriError(f"{name} stands twice; keep one")
        if _ESCAPE.search(value) or _RAW.search(value):
            raise UriError(f"{name}: write a percent sign as %25, spaces and non-ASCII characters as %XX too")
        attributes[name] = unquote_to_bytes(value)
    return attributes


def _text(attributes: dict[str, bytes], name: str) -> str | None:
    value = attributes.get(name)
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise UriError(f"{name}: not UTF-8; percent-encode the UTF-8 bytes") from None  # it may be the PIN


def _slot_id(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise UriError(f"slot-id: {text!r} is not a decimal number; write e.g. slot-id=0")
    return int(text)


def _quote(text: str) -> str:
    return quote_from_bytes(text.encode(), safe="/:-._~")
