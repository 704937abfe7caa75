"""A node that answers every signing request at once, with the same bytes: python -m loadtest.benches.instant_node PATH

It is there to measure what a client costs: it must never be what the client waits for. So it
looks at no more of a frame than its id and its opcode.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

from hsm import keyless
from hsm.signing import SKI_SIZE, KeyType, opcodes_for

SKI = bytes(range(SKI_SIZE))
"""The one key that it claims to hold."""
_OPCODES = opcodes_for(KeyType.EC)
_SIGNATURE = bytes(72)
_HEAD, _TAIL = keyless.encode_signature(0, _SIGNATURE)[:4], keyless.encode_signature(0, _SIGNATURE)[8:]
_OPCODE_AT = keyless.HEADER.size + 3
"""Where our client's frames have their opcode: in the body's first item."""


class InstantNode(asyncio.Protocol):
    """One client's connection."""

    def __init__(self) -> None:
        self._rest = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection is up."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """asyncio: requests arrived; all are answered in one write."""
        data = self._rest + data
        answers: list[bytes] = []
        offset, size = 0, len(data)
        while size - offset >= keyless.HEADER.size:
            end = offset + keyless.HEADER.size + int.from_bytes(data[offset + 2 : offset + 4], "big")
            if end > size:
                break
            if data[offset + _OPCODE_AT] in _OPCODES:
                answers += (_HEAD, data[offset + 4 : offset + 8], _TAIL)
            else:
                answers.append(_answer(data[offset:end]))
            offset = end
        self._rest = data[offset:]
        self._transport.write(b"".join(answers))


def _answer(frame: bytes) -> bytes:
    """What anything but a signing request gets: its keys, or an answer to a ping."""
    (message,) = keyless.Decoder().feed(frame)
    if message.opcode == keyless.OP_PING:
        return keyless.encode(message.id, keyless.OP_PONG, message.payload)
    if message.function == keyless.KEYS_FUNCTION:
        return keyless.encode_keys_response(message.id, [(SKI, _OPCODES)], 0)
    return keyless.encode_error(message.id, keyless.ERR_BAD_OPCODE)


async def _serve(path: str) -> None:
    server = await asyncio.get_running_loop().create_unix_server(InstantNode, path)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))
