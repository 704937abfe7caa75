"""One check of an upstream server: can it be connected to, or does it answer a GET as expected."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TypeVar

import aiohttp
from aiohttp.client_proto import ResponseHandler

from hsm.config import Address
from offload.config_upstream import HealthSettings, HttpCheckSettings

P = TypeVar("P", bound=asyncio.BaseProtocol)


async def check(address: Address, settings: HealthSettings, first: bytes = b"") -> str:
    """What is wrong with a server, in a few words; empty when it is well. It gets `first` before all else."""
    try:
        async with asyncio.timeout(settings.timeout):
            if settings.http is None:
                await _connect(address, first)
                return ""
            return await _get(address, settings.http, first)
    except TimeoutError:
        return f"no answer within {settings.timeout:g} s"
    except OSError as error:
        return os.strerror(error.errno) if error.errno else "can't be connected to"
    except aiohttp.ServerDisconnectedError:
        return "closed the connection without an answer"
    except aiohttp.ClientError:
        return "its answer is not HTTP"


async def _connect(address: Address, first: bytes) -> None:
    transport, _ = await _open(asyncio.Protocol, address)
    transport.write(first)
    transport.close()


async def _open(protocol: Callable[[], P], address: Address) -> tuple[asyncio.Transport, P]:
    loop = asyncio.get_running_loop()
    if address.path:
        return await loop.create_unix_connection(protocol, address.path)
    return await loop.create_connection(protocol, address.host, address.port)


class _Connector(aiohttp.BaseConnector):
    """Connects to one address, and sends something there before the request."""

    def __init__(self, address: Address, first: bytes) -> None:
        super().__init__()
        self._address, self._first = address, first

    async def _create_connection(self, *_request: object) -> ResponseHandler:
        transport, protocol = await _open(self._factory, self._address)
        transport.write(self._first)
        return protocol


async def _get(address: Address, http: HttpCheckSettings, first: bytes) -> str:
    base = "http://localhost" if address.path else f"http://{address}"
    headers = {"Host": http.host} if http.host else {}
    async with (
        aiohttp.ClientSession(connector=_Connector(address, first), headers=headers) as session,
        session.get(base + http.path, allow_redirects=False) as answer,
    ):
        if answer.status != http.expect:
            return f"answered {answer.status}, not {http.expect}"
        return ""
