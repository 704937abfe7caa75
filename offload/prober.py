"""One check of an upstream server: can it be connected to, or does it answer a GET as expected."""

from __future__ import annotations

import asyncio
import os

import aiohttp

from hsm.config import Address
from offload.config_upstream import HealthSettings, HttpCheckSettings


async def check(address: Address, settings: HealthSettings) -> str:
    """What is wrong with a server, in a few words; empty when it is well."""
    try:
        async with asyncio.timeout(settings.timeout):
            if settings.http is None:
                await _connect(address)
                return ""
            return await _get(address, settings.http)
    except TimeoutError:
        return f"no answer within {settings.timeout:g} s"
    except OSError as error:
        return os.strerror(error.errno) if error.errno else "can't be connected to"
    except aiohttp.ServerDisconnectedError:
        return "closed the connection without an answer"
    except aiohttp.ClientError:
        return "its answer is not HTTP"


async def _connect(address: Address) -> None:
    if address.path:
        _, writer = await asyncio.open_unix_connection(address.path)
    else:
        _, writer = await asyncio.open_connection(address.host, address.port)
    writer.close()


async def _get(address: Address, http: HttpCheckSettings) -> str:
    connector = aiohttp.UnixConnector(address.path) if address.path else aiohttp.TCPConnector()
    base = "http://localhost" if address.path else f"http://{address}"
    headers = {"Host": http.host} if http.host else {}
    async with (
        aiohttp.ClientSession(connector=connector, headers=headers) as session,
        session.get(base + http.path, allow_redirects=False) as answer,
    ):
        if answer.status != http.expect:
            return f"answered {answer.status}, not {http.expect}"
        return ""
