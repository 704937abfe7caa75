"""Keeps a node's links open and alive, and its list of keys current."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from time import monotonic

from hsm import errors
from hsm.client.link import Answer, Link
from hsm.client.listing import list_keys
from hsm.client.node import NodeClient
from hsm.transport import keep_alive

RECONNECT_FIRST, RECONNECT_MOST = 0.05, 1.0
"""Seconds between attempts to connect: doubled from the first to the most, with jitter."""
CONNECT_TIMEOUT = 5.0
PING_INTERVAL = 10.0
"""gokeyless closes connections that are idle for 30 s."""
SILENCE_WHILE_BUSY = 2.0
"""A link that owes answers and says nothing for this long is asked by a ping …"""
PING_TIMEOUT = 3.0
"""… and dropped when it does not answer that within this time."""
OWED_MOST = 60.0
"""A node that pongs, and yet owes an answer for this long, won't give it: its links are made anew."""
KEYS_INTERVAL = 30.0
"""How often the list of keys is asked for again."""
CHECK_INTERVAL = 0.5


async def keep(node: NodeClient) -> None:
    """Keep all links of a node up until cancelled, or until it is retired and owes nothing."""
    async with asyncio.TaskGroup() as links:
        for _ in range(node.options.links):
            links.create_task(_keep_link(node))


async def _keep_link(node: NodeClient) -> None:
    delay = RECONNECT_FIRST
    while not node.retired:
        reason = "the client is closed"
        link: Link | None = None
        try:
            link = await _connect(node)
            if not node.connected:
                await _list_keys(node, link)
            node.linked(link)
            delay = RECONNECT_FIRST
            await _attend(node, link)
            reason = link.lost_because
        except Exception as error:  # whatever it is, the node is to be connected again
            reason = _describe(error)
        finally:
            if link is not None:
                link.close(reason)
            if not node.links:
                node.last_error = reason
        await asyncio.sleep(delay * random.uniform(0.75, 1.25))
        delay = min(delay * 2, RECONNECT_MOST)


async def _connect(node: NodeClient) -> Link:
    loop, options = asyncio.get_running_loop(), node.options

    def make() -> Link:
        return Link(node.name, node.unlinked)

    async with asyncio.timeout(CONNECT_TIMEOUT):
        if options.address.path:
            return (await loop.create_unix_connection(make, options.address.path))[1]
        assert options.tls is not None
        transport, link = await loop.create_connection(
            make,
            options.address.host,
            options.address.port,
            ssl=options.tls,
            server_hostname=options.server_name or options.address.host,
        )
        keep_alive(transport.get_extra_info("socket"))
        return link


async def _list_keys(node: NodeClient, link: Link) -> None:
    node.wants_keys_listed = False
    node.listed(await list_keys(link))


async def _attend(node: NodeClient, link: Link) -> None:
    """Until the link is lost: pings, and the list of keys now and then."""
    list_at = monotonic() + KEYS_INTERVAL
    ping_sent: float | None = None
    while link.is_open:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CHECK_INTERVAL):
                await link.lost.wait()
        if not link.is_open:
            return
        now = monotonic()
        if node.retired and not node.outstanding:
            raise errors.link_lost("the node is no longer part of the cluster")
        if ping_sent is not None and link.last_heard > ping_sent:
            ping_sent = None
        if (ping_sent is not None and now - ping_sent > PING_TIMEOUT) or node.oldest_age(now) > OWED_MOST:
            raise errors.attempt_timed_out(node.name)
        silence = now - link.last_heard
        if ping_sent is None and silence > (SILENCE_WHILE_BUSY if link.outstanding else PING_INTERVAL):
            link.ping(_ignore_pong)
            ping_sent = now
        if now >= list_at or (node.wants_keys_listed and link is node.links[0]):
            list_at = now + KEYS_INTERVAL
            await _list_keys(node, link)


def _ignore_pong(_answer: Answer) -> None:
    """Any answer counts as heard; nothing more to do."""


def _describe(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
