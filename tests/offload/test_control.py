"""The control channel: frames, answers by number, and what happens when one side is gone or talks nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from offload.control import MAX_FRAME, Channel, answer_questions
from offload.errors import WorkerLost
from tests.support.hsm_support import run

Arguments = dict[str, Any]


async def echo(operation: str, arguments: Arguments) -> Arguments:
    """Answers with what was asked."""
    return {"operation": operation, "arguments": arguments}


@contextlib.asynccontextmanager
async def connected(handler: Any = echo) -> AsyncIterator[Channel]:
    """A channel whose other end answers by `handler`."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    answering = asyncio.create_task(answer_questions(reader, writer, handler))
    channel = await Channel.over(ours)
    try:
        yield channel
    finally:
        await channel.close()
        await answering
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def bare() -> AsyncIterator[tuple[Channel, socket.socket]]:
    """A channel and the raw socket at its other end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    channel = await Channel.over(ours)
    try:
        yield channel, theirs
    finally:
        theirs.close()
        await channel.close()


def frame(message: object) -> bytes:
    """A message as it goes over the wire."""
    body = json.dumps(message).encode()
    return struct.pack(">I", len(body)) + body


def test_question_and_answer() -> None:
    """Operation and arguments arrive, also texts of many kinds and large ones."""

    async def main() -> None:
        async with connected() as channel:
            for text in ("", "ä €", "\n", "x" * 1_000_000):
                answer = await channel.ask("say", 5, {"text": text})
                assert answer["operation"] == "say"
                assert answer["arguments"] == {"text": text}

    run(main())


def test_questions_at_a_time_get_their_own_answers() -> None:
    """Answers are matched by number."""

    async def main() -> None:
        async with connected() as channel:
            answers = await asyncio.gather(*(channel.ask("n", 5, {"n": n}) for n in range(100)))
            assert [answer["arguments"]["n"] for answer in answers] == list(range(100))

    run(main())


def test_answers_in_any_order() -> None:
    """A late answer to a question that was given up is ignored, and the next one still fits."""

    async def main() -> None:
        async with bare() as (channel, theirs):
            first = asyncio.create_task(channel.ask("a", 5, {}))
            second = asyncio.create_task(channel.ask("b", 5, {}))
            await asyncio.sleep(0)
            theirs.send(
                frame({"id": 7, "stray": 1}) + frame({"id": 1, "x": "b"}) + frame({"id": 0, "x": "a"})
            )
            assert [(await task)["x"] for task in (first, second)] == ["a", "b"]

    run(main())


def test_no_answer_in_time() -> None:
    """A worker that is silent is lost to who asks; the channel itself goes on."""

    async def main() -> None:
        async with bare() as (channel, theirs):
            with pytest.raises(WorkerLost, match=r"no answer to 'heartbeat' within 0\.05 s"):
                await channel.ask("heartbeat", 0.05, {})
            later = asyncio.create_task(channel.ask("again", 5, {}))
            await asyncio.sleep(0)
            theirs.send(frame({"id": 0}) + frame({"id": 1, "fine": True}))
            assert (await later)["fine"]

    run(main())


@pytest.mark.parametrize(
    "last",
    [b"", b"\x00\x00", struct.pack(">I", MAX_FRAME + 1), struct.pack(">I", 3) + b"{x}", frame([1]), frame({"no": 1})],
    ids=["end", "half a length", "too long", "no JSON", "no object", "no number"],
)  # fmt: skip
def test_end_and_nonsense_lose_the_worker(last: bytes) -> None:
    """Who waits is told at once, and who asks later too."""

    async def main() -> None:
        async with bare() as (channel, theirs):
            waiting = asyncio.create_task(channel.ask("heartbeat", 10, {}))
            await asyncio.sleep(0)
            theirs.send(last)
            theirs.shutdown(socket.SHUT_WR)
            with pytest.raises(WorkerLost, match="closed"):
                await waiting
            with pytest.raises(WorkerLost, match="closed"):
                await channel.ask("heartbeat", 10, {})

    run(main())


@pytest.mark.parametrize(
    "question",
    [b"", b"\x00", struct.pack(">I", MAX_FRAME + 1), struct.pack(">I", 1) + b"{", frame({"op": "x"}), frame({"id": 1})],
)  # fmt: skip
def test_answering_ends_with_the_stream_or_with_nonsense(question: bytes) -> None:
    """A worker whose supervisor is gone, or who hears nonsense, stops answering and hangs up."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        with contextlib.closing(theirs):
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            theirs.send(question)
            theirs.shutdown(socket.SHUT_WR)
            await asyncio.wait_for(answer_questions(reader, writer, echo), 5)
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            assert theirs.recv(100) == b""

    run(main())


@pytest.mark.parametrize("turns", range(6))
def test_asking_a_worker_that_died_this_moment(turns: int) -> None:
    """Between the transport's end and its discovery a question is a lost worker, not a crash of who asks."""

    async def main() -> None:
        async with bare() as (channel, _theirs):
            channel._writer.transport.abort()
            for _ in range(turns):
                await asyncio.sleep(0)
            with pytest.raises(WorkerLost, match="closed"):
                await channel.ask("adopt", 5, {})

    run(main())


def test_closing_leaves_nobody_waiting() -> None:
    """`close` ends the questions under way."""

    async def main() -> None:
        async with bare() as (channel, _theirs):
            waiting = asyncio.create_task(channel.ask("a", 10, {}))
            await asyncio.sleep(0)
            await channel.close()
            with pytest.raises(WorkerLost):
                await waiting

    run(main())


DEEP = struct.pack(">I", 5000) + b"[" * 5000
"""A frame whose nesting exceeds any parser's stack."""

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
messages = values | st.fixed_dictionaries({"id": values}, optional={"op": values, "a": values})
junk = st.binary(max_size=60) | messages.map(frame) | st.just(DEEP)


@given(st.lists(junk, max_size=4).map(b"".join))
@example(DEEP)
@example(frame({"id": []}))
def test_whatever_is_asked_is_answered_or_ends_the_connection(data: bytes) -> None:
    """No bytes of an asker raise anything here: each well-formed question before the first fault is answered."""

    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=theirs)
        answering = asyncio.create_task(answer_questions(reader, writer, echo))
        asker, to_them = await asyncio.open_unix_connection(sock=ours)
        with contextlib.suppress(OSError):
            to_them.write(data)
            to_them.write_eof()
        async with asyncio.timeout(10):
            with contextlib.suppress(OSError):
                await asker.read()
            await answering
        to_them.close()

    run(scenario())


@given(st.lists(junk, max_size=4).map(b"".join))
@example(DEEP)
@example(frame({"id": []}))
def test_whatever_is_answered_the_asker_gets_an_answer_or_the_loss(data: bytes) -> None:
    """No bytes of a worker raise anything but `WorkerLost` in the supervisor, and closing is quiet."""

    async def scenario() -> None:
        async with bare() as (channel, other):
            asked = asyncio.create_task(channel.ask("x", 10, {}))
            await asyncio.sleep(0)
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_sendall(other, data)
                other.shutdown(socket.SHUT_WR)
            with contextlib.suppress(WorkerLost):
                assert (await asked)["id"] == 0

    run(scenario())
