"""The wire format: what is written, what is read, and what is refused."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm import keyless
from hsm.keyless import Decoder, KeylessError, Message

SKI = bytes(range(0xA0, 0xB4))
DIGEST = hashlib.sha256(b"hello").digest()

# Made by hand from the format's description: header (1, 0, body length, id), then items.
PING = bytes.fromhex("0100 0009 00000001 11 0001 f1 12 0002 6869")
SIGN_ECDSA = bytes.fromhex("0100 003e 0000002a 11 0001 15 04 0014") + SKI + b"\x12\x00\x20" + DIGEST
ERROR_KEY_NOT_FOUND = bytes.fromhex("0100 0008 deadbeef 11 0001 ff 12 0001 02")
SIGNATURE = bytes.fromhex("0100 000b 00000003 11 0001 f0 12 0004 30020101")

ids = st.integers(0, 2**32 - 1)
opcodes = st.integers(0, 255)
skis = st.just(b"") | st.binary(min_size=20, max_size=20)
messages = st.builds(
    Message, ids, opcodes, skis, *[st.binary(max_size=300)] * 2, st.binary(max_size=40), st.just(b"")
)


def frame_of(message: Message) -> bytes:
    """The frame of a message that has no context."""
    return keyless.encode(
        message.id,
        message.opcode,
        message.payload,
        ski=message.ski,
        function=message.function,
        extra=message.extra,
    )


def frame(*items: bytes, length: int | None = None) -> bytes:
    """A frame of raw items, independent of `encode`."""
    body = b"".join(items)
    return struct.pack(">BBHI", 1, 0, len(body) if length is None else length, 9) + body


def item(tag: int, data: bytes, length: int | None = None) -> bytes:
    """A raw item, its length made up if need be."""
    return struct.pack(">BH", tag, len(data) if length is None else length) + data


def items_of(data: bytes) -> dict[int, bytes]:
    """The items of one frame, read independently of `Decoder`."""
    items: dict[int, bytes] = {}
    body = data[8:]
    while body:
        tag, size = struct.unpack(">BH", body[:3])
        items[tag] = body[3 : 3 + size]
        body = body[3 + size :]
    return items


def decode(data: bytes) -> Message:
    """The one message of one frame."""
    (message,) = Decoder().feed(data)
    return message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (PING, Message(1, 0xF1, payload=b"hi")),
        (SIGN_ECDSA, Message(42, 0x15, SKI, DIGEST)),
        (ERROR_KEY_NOT_FOUND, Message(0xDEADBEEF, 0xFF, payload=b"\x02")),
        (SIGNATURE, Message(3, 0xF0, payload=bytes.fromhex("30020101"))),
    ],
)
def test_hand_made_frames_are_read(data: bytes, message: Message) -> None:
    """Bytes written down by hand from the format's description are understood."""
    assert decode(data) == message


def test_frames_are_written_as_by_hand() -> None:
    """The encoders write exactly the bytes of the hand-made frames."""
    assert keyless.encode(1, keyless.OP_PING, b"hi") == PING
    assert keyless.encode(42, 0x15, DIGEST, ski=SKI) == SIGN_ECDSA
    assert keyless.encode_error(0xDEADBEEF, keyless.ERR_KEY_NOT_FOUND) == ERROR_KEY_NOT_FOUND
    assert keyless.encode_signature(3, bytes.fromhex("30020101")) == SIGNATURE


@given(messages)
def test_every_item_is_written_once(message: Message) -> None:
    """A frame holds the items that were given, and the header their length."""
    data = frame_of(message)
    given_items = {
        0x11: bytes((message.opcode,)), 0x04: message.ski, 0x12: message.payload,
        0x13: message.function, 0x14: message.extra,
    }  # fmt: skip
    assert struct.unpack(">BBHI", data[:8]) == (1, 0, len(data) - 8, message.id)
    assert items_of(data) == {tag: value for tag, value in given_items.items() if value}


@given(st.lists(messages, max_size=6), st.data())
def test_any_split_gives_the_same_messages(sent: list[Message], data: st.DataObject) -> None:
    """However the stream is cut into pieces, the same messages come out in the same order."""
    stream = b"".join(map(frame_of, sent))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=10).map(sorted))
    decoder, received = Decoder(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += decoder.feed(stream[start:end])
    assert received == sent


def test_a_stream_may_come_byte_by_byte() -> None:
    """A message is handed out with its last byte, not before and not later."""
    decoder = Decoder()
    stream = PING + SIGN_ECDSA
    counts = [len(decoder.feed(stream[i : i + 1])) for i in range(len(stream))]
    assert [i for i, count in enumerate(counts) if count] == [len(PING) - 1, len(stream) - 1]


@given(ids, st.binary(min_size=1, max_size=600))
def test_the_fast_signature_encoder_is_the_same(id: int, signature: bytes) -> None:
    """`encode_signature` writes what `encode` would."""
    assert keyless.encode_signature(id, signature) == keyless.encode(id, keyless.OP_RESPONSE, signature)


@given(ids, opcodes, st.binary(min_size=20, max_size=20), st.binary(max_size=64), st.integers(0, 2**31))
def test_the_fast_request_encoder_says_the_same(
    id: int, opcode: int, ski: bytes, digest: bytes, remaining: int
) -> None:
    """`encode_sign_request` writes the items that `encode` would."""
    fast = keyless.encode_sign_request(id, opcode, ski, digest, remaining)
    plain = keyless.encode(id, opcode, digest, ski=ski, remaining_ms=remaining)
    assert decode(fast) == decode(plain)
    assert {tag: data for tag, data in items_of(fast).items() if data} == items_of(plain)


@pytest.mark.parametrize("total", [12, 1024])
def test_padded_messages_are_accepted(total: int) -> None:
    """gokeyless pads short messages with tag 0x20 to 1,024 bytes; both forms are read."""
    opcode = item(0x11, b"\xf1")
    padding = item(0x20, bytes(total - 8 - len(opcode) - 3)) if total > 12 else b""
    data = frame(opcode, padding)
    assert len(data) == total
    assert decode(data) == Message(9, keyless.OP_PING)


def test_unknown_tags_are_skipped() -> None:
    """Items with unknown tags are passed over, also when one stands twice."""
    data = frame(item(0x99, b"x"), item(0x11, b"\xf1"), item(0x99, b"y"), item(0x7F, b""))
    assert decode(data) == Message(9, keyless.OP_PING)


def test_the_minor_version_is_not_looked_at() -> None:
    """Only the major version decides whether the format is known."""
    assert decode(b"\x01\x07" + PING[2:]) == decode(PING)


@pytest.mark.parametrize(
    "tag", [0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17]
)
def test_a_known_tag_twice_is_refused(tag: int) -> None:
    """The second of two items with a known tag is an error, not an overwrite."""
    data = {0x04: SKI, 0x11: b"\xf1"}.get(tag, b"x")
    opcode = b"" if tag == 0x11 else item(0x11, b"\xf1")
    with pytest.raises(KeylessError, match="twice"):
        decode(frame(opcode, item(tag, data), item(tag, data)))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\x02" + PING[1:], "version 2"),
        (b"\x00" + PING[1:], "version 0"),
        (b"GET / HTTP/1.1\r\n", "version 71"),
        (frame(), "opcode"),
        (frame(item(0x11, b"")), "opcode"),
        (frame(item(0x11, b"\x15\x15")), "opcode"),
        (frame(item(0x12, b"no opcode")), "opcode"),
        (frame(item(0x11, b"\x15"), item(0x04, SKI[:19])), "SKI"),
        (frame(item(0x11, b"\x15"), item(0x04, SKI + b"x")), "SKI"),
        (frame(item(0x11, b"\xf1"), item(0x12, b"abc", length=4)), "longer than its message"),
        (frame(item(0x99, b"", length=0xFFFF)), "longer than its message"),
        (frame(item(0x11, b"\xf0"), item(0x12, b"abc", length=4)), "longer than its message"),
        (frame(item(0x11, b"\xf0"), item(0x12, b"abc", length=2)), "cut short"),
        (frame(item(0x11, b"\xf0"), item(0x12, b"a"), item(0x12, b"b")), "twice"),
        (frame(item(0x11, b"\xf0"), b"\x12\x00") + PING, "cut short"),
        (frame(item(0x11, b"\xf1"), b"\x12"), "cut short"),
        (frame(item(0x11, b"\xf1"), b"\x12\x00"), "cut short"),
        (frame(item(0x11, b"\xf1"), item(0x12, b"abc"), length=9) + PING, "longer than its message"),
    ],
)
def test_hostile_frames_are_refused(data: bytes, complaint: str) -> None:
    """What is not the format ends with a KeylessError that says what is wrong."""
    with pytest.raises(KeylessError, match=complaint):
        Decoder().feed(data)


def test_a_wrong_version_needs_no_body() -> None:
    """A header of another version is refused before its body has come."""
    with pytest.raises(KeylessError, match="version"):
        Decoder().feed(struct.pack(">BBHI", 3, 0, 0xFFFF, 1))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 11, len(SIGN_ECDSA) - 1])
def test_a_truncated_frame_is_waited_for(size: int) -> None:
    """Half a frame is neither a message nor an error."""
    decoder = Decoder()
    assert decoder.feed(SIGN_ECDSA[:size]) == []
    assert decoder.feed(SIGN_ECDSA[size:]) == [decode(SIGN_ECDSA)]


@given(st.binary(max_size=200) | st.binary(max_size=200).map(frame))
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    """Random bytes give messages or a KeylessError, never another exception."""
    try:
        received = Decoder().feed(data)
    except KeylessError:
        return
    assert all(isinstance(message, Message) for message in received)


@given(messages, st.data())
def test_a_damaged_frame_raises_nothing_else(message: Message, data: st.DataObject) -> None:
    """A frame with one changed byte is read, waited for, or refused."""
    damaged = bytearray(frame_of(message))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        Decoder().feed(bytes(damaged))
    except KeylessError:
        pass


def test_memory_is_bounded_by_one_frame() -> None:
    """A decoder keeps at most one incomplete frame, however much went through it."""
    largest = frame(item(0x11, b"\xf1"), item(0x12, bytes(0xFFFF - 7)))
    assert len(largest) == 8 + 0xFFFF
    decoder, received = Decoder(), 0
    for _ in range(20):
        received += len(decoder.feed(largest[:-1]))
        assert len(decoder._rest) < len(largest)
        received += len(decoder.feed(largest[-1:]))
        assert decoder._rest == b""
    assert received == 20


@pytest.mark.parametrize("items", [{"payload": bytes(0xFFFF)}, {"payload": bytes(0x10000)}])
def test_a_message_too_long_for_a_frame_is_refused(items: dict[str, Any]) -> None:
    """The body's length has 16 bits; nothing is cut off in silence."""
    with pytest.raises(ValueError, match="does not fit a frame"):
        keyless.encode(1, keyless.OP_PING, **items)


@given(st.integers(0, 2**31 - 1))
def test_the_remaining_time_round_trips(remaining: int) -> None:
    """The milliseconds that a client will wait arrive in the context item, as JSON."""
    data = keyless.encode(1, 0x15, DIGEST, ski=SKI, remaining_ms=remaining)
    assert items_of(data)[0x16] == b'{"remaining_ms":%d}' % remaining
    assert decode(data).remaining_ms() == remaining


@pytest.mark.parametrize(
    "context",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"remaining_ms"',
        b"{}",
        b'{"remaining_ms": null}',
        b'{"remaining_ms": -1}',
        b'{"remaining_ms": 1.5}',
        b'{"remaining_ms": "5"}',
        b'{"remaining_ms": true}',
        b'{"remaining_ms": NaN}',
        b'{"remaining_ms": 2147483648}',
        b'{"remaining_ms": ' + b"9" * 4000 + b"}",
        b"[" * 4096,
        b'{"remaining_ms": 5}' + b" " * 4096,
        b"\xff\xfe{",
    ],
)
def test_nonsense_about_the_remaining_time_counts_as_unsaid(context: bytes) -> None:
    """The context is advice: what makes no sense in it is passed over."""
    message = decode(frame(item(0x11, b"\x15"), item(0x16, context)))
    assert message.remaining_ms() is None


@given(st.binary(max_size=200))
def test_any_context_gives_milliseconds_or_nothing(context: bytes) -> None:
    """No context makes `remaining_ms` raise."""
    remaining = Message(1, 0x15, context=context).remaining_ms()
    assert remaining is None or remaining >= 0


key_lists = st.dictionaries(
    st.binary(min_size=20, max_size=20), st.frozensets(opcodes, max_size=22), max_size=20
)


@given(key_lists, st.integers(0, 25))
def test_a_page_of_keys_round_trips(keys: dict[bytes, frozenset[int]], start: int) -> None:
    """A short list of keys, asked for from any entry on, comes back whole in one page."""
    request = decode(keyless.encode_keys_request(5, start))
    assert (request.opcode, request.function) == (0x24, b"offload.keys")
    asked = keyless.decode_keys_start(request.extra)
    answer = decode(keyless.encode_keys_response(5, list(keys.items()), asked))
    assert keyless.decode_keys_response(answer) == (dict(list(keys.items())[start:]), None)


@pytest.mark.parametrize("count", [0, 1, 1500, 1501, 4000])
def test_long_lists_of_keys_come_in_pages(count: int) -> None:
    """Each page fits a frame at 22 opcodes a key, and names the next until the last."""
    every = frozenset(range(22))
    keys = [(hashlib.sha1(b"%d" % i).digest(), every) for i in range(count)]
    received: dict[bytes, frozenset[int]] = {}
    start: int | None = 0
    pages = 0
    while start is not None:
        answer = keyless.encode_keys_response(1, keys, start)
        page, start = keyless.decode_keys_response(decode(answer))
        received |= page
        pages += 1
    assert received == dict(keys)
    assert pages == max(1, -(-count // keyless.KEYS_PER_PAGE))


@given(st.binary(max_size=100), st.binary(max_size=6))
def test_a_hostile_list_of_keys_raises_nothing_else(payload: bytes, extra: bytes) -> None:
    """Whatever a node says it holds, the answer is keys or a KeylessError."""
    try:
        keys, following = keyless.decode_keys_response(Message(1, 0xF0, payload=payload, extra=extra))
    except KeylessError:
        return
    assert all(len(ski) == 20 for ski in keys)
    assert (following is None) == (extra == b"")


@pytest.mark.parametrize("payload", [SKI, SKI + b"\x02\x15", b"\x00"])
def test_a_key_entry_cut_short_is_refused(payload: bytes) -> None:
    """An entry is a SKI, a count and that many opcodes; less is an error."""
    with pytest.raises(KeylessError, match="cut short"):
        keyless.decode_keys_response(Message(1, 0xF0, payload=payload))
