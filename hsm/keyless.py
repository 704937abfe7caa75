"""Cloudflare's Keyless wire format: frames in, messages out; no I/O.

A frame is an 8-byte header (major, minor, body length u16, id u32, big endian) and a body
of items (tag u8, length u16, data). Messages may be padded with tag 0x20; unknown tags are
skipped; a known tag twice is an error. Facts only, from the protocol's public description;
no code of gokeyless, whose licence does not allow it.

Extensions, all in the format's own extension points:

- custom function `offload.keys` (opcode 0x24, name in tag 0x13) lists what a node holds;
  `offload.key-details` (`hsm.inventory`) tells more of it, to people;
- the context item (tag 0x16, JSON) carries `remaining_ms`, so that a node drops work
  that nobody waits for any more.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hsm.signing import SKI_SIZE

HEADER = struct.Struct(">BBHI")
_ITEM = struct.Struct(">BH")
_VERSION = 1
MAX_BODY = 0xFFFF

TAG_SKI = 0x04
TAG_OPCODE = 0x11
TAG_PAYLOAD = 0x12
TAG_FUNCTION = 0x13
TAG_EXTRA = 0x14
TAG_CONTEXT = 0x16
TAG_PADDING = 0x20
_KNOWN_TAGS = frozenset((*range(0x01, 0x07), *range(0x11, 0x18)))

OP_CUSTOM = 0x24
OP_RESPONSE = 0xF0
OP_PING = 0xF1
OP_PONG = 0xF2
OP_ERROR = 0xFF

ERR_CRYPTO = 0x01
ERR_KEY_NOT_FOUND = 0x02
ERR_BAD_OPCODE = 0x05
ERR_UNEXPECTED_OPCODE = 0x06
ERR_FORMAT = 0x07
ERR_INTERNAL = 0x08
ERR_CERTIFICATE_NOT_FOUND = 0x09
ERR_EXPIRED = 0x0A
ERROR_WORDS = {
    0x01: "crypto_error",
    0x02: "key_not_found",
    0x03: "read_error",
    0x04: "version_mismatch",
    0x05: "bad_opcode",
    0x06: "unexpected_opcode",
    0x07: "format_error",
    0x08: "internal_error",
    0x09: "certificate_not_found",
    0x0A: "expired",
    0x0B: "remote_configuration",
}

KEYS_FUNCTION = b"offload.keys"
_MAX_CONTEXT = 4096
_REMAINING_START = b'{"remaining_ms":'


class KeylessError(Exception):
    """The peer sent something that is not the format. The connection can't go on."""


@dataclass(slots=True)
class Message:
    """One decoded frame. Absent items are empty bytes."""

    id: int
    opcode: int
    ski: bytes = b""
    payload: bytes = b""
    function: bytes = b""
    extra: bytes = b""
    context: bytes = b""

    def remaining_ms(self) -> int | None:
        """How long the sender will wait for the answer, or None if it does not say.

        Nonsense counts as not said: the context is advice, never a reason to refuse.
        """
        context = self.context
        if not context or len(context) > _MAX_CONTEXT:
            return None
        if context.startswith(_REMAINING_START):  # our client's form, ten times as fast as by json
            digits = context[len(_REMAINING_START) : -1]
            if digits.isdigit() and len(digits) < 10 and digits[0] != 0x30 and context[-1] == 0x7D:
                return int(digits)
        try:
            value = json.loads(context)["remaining_ms"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        return value if type(value) is int and 0 <= value < 2**31 else None


def encode(
    id: int,
    opcode: int,
    payload: bytes = b"",
    *,
    ski: bytes = b"",
    function: bytes = b"",
    extra: bytes = b"",
    remaining_ms: int | None = None,
) -> bytes:
    """One frame. Raises ValueError when the body exceeds 65,535 bytes."""
    parts = [b"", b"\x11\x00\x01%c" % opcode]
    if ski:
        parts += (_ITEM.pack(TAG_SKI, len(ski)), ski)
    if function:
        parts += (_ITEM.pack(TAG_FUNCTION, len(function)), function)
    if extra:
        parts += (_ITEM.pack(TAG_EXTRA, len(extra)), extra)
    if remaining_ms is not None:
        context = b'{"remaining_ms":%d}' % remaining_ms
        parts += (_ITEM.pack(TAG_CONTEXT, len(context)), context)
    if payload:
        if len(payload) > MAX_BODY:
            raise ValueError(f"a payload of {len(payload)} bytes does not fit a frame")
        parts += (_ITEM.pack(TAG_PAYLOAD, len(payload)), payload)
    size = sum(map(len, parts))
    if size > MAX_BODY:
        raise ValueError(f"a body of {size} bytes does not fit a frame")
    parts[0] = HEADER.pack(_VERSION, 0, size, id)
    return b"".join(parts)


def encode_sign_request(id: int, opcode: int, ski: bytes, digest: bytes, remaining_ms: int) -> bytes:
    """`encode(id, opcode, digest, ski=ski, remaining_ms=remaining_ms)`, only faster."""
    context = b'{"remaining_ms":%d}' % remaining_ms
    size, context_size = len(digest), len(context)
    return b"\x01\x00%b%b\x11\x00\x01%c\x04\x00\x14%b\x16\x00%c%b\x12\x00%c%b" % (
        (size + context_size + 33).to_bytes(2, "big"),
        id.to_bytes(4, "big"),
        opcode,
        ski,
        context_size,
        context,
        size,
        digest,
    )


def encode_signature(id: int, signature: bytes) -> bytes:
    """The answer to a signing request: `encode(id, OP_RESPONSE, signature)`, only faster."""
    size = len(signature)
    return b"\x01\x00%b%b\x11\x00\x01\xf0\x12%b%b" % (
        (size + 7).to_bytes(2, "big"),
        id.to_bytes(4, "big"),
        size.to_bytes(2, "big"),
        signature,
    )


def encode_error(id: int, code: int) -> bytes:
    """An error answer; `code` is one of the ERR_ constants."""
    return encode(id, OP_ERROR, bytes((code,)))


class Decoder:
    """Turns a byte stream into messages; keeps at most one incomplete frame."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes, in order.

        Raises KeylessError on anything malformed; the decoder is of no use after that.
        """
        if self._rest:
            data = self._rest + data
        messages: list[Message] = []
        offset, size = 0, len(data)
        while size - offset >= 8:
            major, _minor, length, id = HEADER.unpack_from(data, offset)
            if major != _VERSION:
                raise KeylessError(f"version {major}, not {_VERSION}")
            end = offset + 8 + length
            if end > size:
                break
            messages.append(_decode_body(data, offset + 8, end, id))
            offset = end
        self._rest = data[offset:]
        return messages


_SIGNATURE_START = b"\x11\x00\x01\xf0\x12"
"""How an answer's body begins that holds an opcode and a payload and nothing else."""


_OPCODE_ITEM = b"\x11\x00\x01"
_SKI_ITEM = b"\x04\x00\x14"


def _decode_body(data: bytes, offset: int, end: int, id: int) -> Message:
    if data.startswith(_SIGNATURE_START, offset):  # the client's usual case, without the detour
        start = offset + 7
        if start <= end and start + int.from_bytes(data[start - 2 : start], "big") == end:
            return Message(id, OP_RESPONSE, b"", data[start:end])
    elif data.startswith(_SKI_ITEM, offset + 4) and data.startswith(_OPCODE_ITEM, offset):
        message = _decode_signing(data, offset, end, id)  # the node's
        if message is not None:
            return message
    return _decode_items(data, offset, end, id)


def _decode_items(data: bytes, offset: int, end: int, id: int) -> Message:
    items: dict[int, bytes] = {}
    while offset < end:
        if end - offset < 3:
            raise KeylessError("an item is cut short")
        tag, length = _ITEM.unpack_from(data, offset)
        start = offset + 3
        offset = start + length
        if offset > end:
            raise KeylessError(f"item 0x{tag:02x} is longer than its message")
        if tag in _KNOWN_TAGS:
            if tag in items:
                raise KeylessError(f"item 0x{tag:02x} stands twice")
            items[tag] = data[start:offset]
    take = items.get
    opcode, ski = take(TAG_OPCODE, b""), take(TAG_SKI, b"")
    if len(opcode) != 1:
        raise KeylessError("the opcode is not one byte")
    if ski and len(ski) != SKI_SIZE:
        raise KeylessError("the SKI is not 20 bytes")
    return Message(
        id,
        opcode[0],
        ski,
        take(TAG_PAYLOAD, b""),
        take(TAG_FUNCTION, b""),
        take(TAG_EXTRA, b""),
        take(TAG_CONTEXT, b""),
    )


def _decode_signing(data: bytes, offset: int, end: int, id: int) -> Message | None:
    """A body of opcode, SKI, context and payload, in this order and nothing else, as our client sends it."""
    context = offset + 27
    if end - context < 6 or data[context] != TAG_CONTEXT or data[context + 1]:
        return None
    payload = context + 3 + data[context + 2]
    start = payload + 3
    if start > end or data[payload] != TAG_PAYLOAD:
        return None
    if start + int.from_bytes(data[payload + 1 : start], "big") != end:
        return None
    ski, asked = data[offset + 7 : context], data[start:end]
    return Message(id, data[offset + 3], ski, asked, b"", b"", data[context + 3 : payload])


KEYS_PER_PAGE = 1500
"""Entries in one answer to `offload.keys`, so that it fits a frame at up to 22 opcodes each."""
_PAGE = struct.Struct(">I")


def encode_keys_request(id: int, start: int = 0, function: bytes = KEYS_FUNCTION) -> bytes:
    """Asks a node for the keys it holds, from the `start`-th on; `function` may ask for more about them."""
    return encode(id, OP_CUSTOM, function=function, extra=_PAGE.pack(start))


def decode_keys_start(extra: bytes) -> int:
    """The `start` of a keys request; raises KeylessError if it is malformed."""
    if not extra:
        return 0
    if len(extra) != _PAGE.size:
        raise KeylessError("the page of offload.keys is not 4 bytes")
    return int(_PAGE.unpack(extra)[0])


def encode_keys_response(id: int, keys: Sequence[tuple[bytes, Iterable[int]]], start: int) -> bytes:
    """One page of (SKI, opcodes) pairs; the extra item names the next page, if there is one."""
    page = keys[start : start + KEYS_PER_PAGE]
    entries = (ski + bytes((len(ops),)) + ops for ski, ops in ((s, bytes(sorted(o))) for s, o in page))
    return encode_page(id, b"".join(entries), start + KEYS_PER_PAGE, len(keys))


def encode_page(id: int, payload: bytes, following: int, total: int) -> bytes:
    """An answer that is one page of several; the next starts at `following`, if `total` goes that far."""
    extra = _PAGE.pack(following) if following < total else b""
    return encode(id, OP_RESPONSE, payload, extra=extra)


def decode_next_page(message: Message) -> int | None:
    """Where the next page starts, None after the last; raises KeylessError if it is malformed."""
    return decode_keys_start(message.extra) if message.extra else None


def decode_keys_response(message: Message) -> tuple[dict[bytes, frozenset[int]], int | None]:
    """The keys on this page (SKI to opcodes), and where the next page starts or None.

    Raises KeylessError if the answer is malformed.
    """
    keys: dict[bytes, frozenset[int]] = {}
    data, offset = message.payload, 0
    while offset < len(data):
        body = offset + SKI_SIZE + 1
        if body > len(data):
            raise KeylessError("a key entry is cut short")
        end = body + data[body - 1]
        if end > len(data):
            raise KeylessError("a key entry is cut short")
        keys[data[offset : offset + SKI_SIZE]] = frozenset(data[body:end])
        offset = end
    return keys, decode_next_page(message)
