"""Questions and answers as JSON frames: supervisor to worker over a socket pair, and commands
to the supervisor over the control socket.

A frame is a u32 length (big endian) and that many bytes of JSON. Each question has an id; the
answer carries it back. The end of the stream means that the other side is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from offload.errors import WorkerLost

_LENGTH = struct.Struct(">I")
MAX_FRAME = 64 * 1024 * 1024

Handler = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""Answers a question: operation and arguments in, answer out."""


async def _read(reader: asyncio.StreamReader) -> dict[str, Any]:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MAX_FRAME:
        raise ConnectionError(f"a frame of {length} bytes")
    body = await reader.readexactly(length)
    try:
        message = json.loads(body)
    except RecursionError as error:
        raise ConnectionError("a frame nested too deeply") from error
    if not isinstance(message, dict) or not isinstance(message.get("id"), int):
        raise ConnectionError("a frame that holds no object with a number")
    return message


def _write(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    body = json.dumps(message, separators=(",", ":")).encode()
    writer.write(_LENGTH.pack(len(body)) + body)


class Channel:
    """The end that asks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._ids = itertools.count()
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._task = asyncio.get_running_loop().create_task(self._receive())

    @classmethod
    async def over(cls, sock: socket.socket) -> Channel:
        """A channel over one end of a socket pair."""
        return cls(*await asyncio.open_unix_connection(sock=sock))

    async def ask(self, operation: str, within: float, arguments: dict[str, Any]) -> dict[str, Any]:
        """The answer. Raises WorkerLost when there is none `within` seconds."""
        if self._task.done() or self._writer.is_closing():
            raise WorkerLost("its control channel is closed")
        id = next(self._ids)
        answer = self._waiting[id] = asyncio.get_running_loop().create_future()
        try:
            _write(self._writer, {"id": id, "op": operation, **arguments})
            async with asyncio.timeout(within):
                result: dict[str, Any] = await answer
                return result
        except TimeoutError as error:
            raise WorkerLost(f"no answer to {operation!r} within {within:g} s") from error
        finally:
            del self._waiting[id]

    async def _receive(self) -> None:
        try:
            while True:
                message = await _read(self._reader)
                answer = self._waiting.get(message["id"])
                if answer is not None and not answer.done():
                    answer.set_result(message)
        except (OSError, asyncio.IncompleteReadError, ValueError, KeyError):
            pass
        finally:
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(WorkerLost("its control channel closed"))

    @property
    def is_closed(self) -> bool:
        """Whether the other end has hung up."""
        return self._task.done()

    async def close(self) -> None:
        """Hang up."""
        self._task.cancel()
        self._writer.close()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


async def answer_questions(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler
) -> None:
    """The other end: answer one question after the other until the asker is gone."""
    try:
        while True:
            message = await _read(reader)
            id, operation = message.pop("id"), message.pop("op")
            answer = await handler(operation, message)
            _write(writer, {"id": id, **answer})
            await writer.drain()
    except (OSError, asyncio.IncompleteReadError, ValueError, KeyError):
        return  # it left, or does not speak this protocol
    finally:
        writer.close()
