"""Asks a node what it holds, page by page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from hsm import errors, keyless
from hsm.client.link import Answer, Link
from hsm.client.node import NodeClient
from hsm.errors import HSMError
from hsm.inventory import DETAILS_FUNCTION, KeyDetails, decode_details_response

MAX_KEYS = 100_000
"""A node that claims more is not believed."""
PAGE_TIMEOUT = 5.0


async def list_keys(link: Link) -> dict[bytes, frozenset[int]] | None:
    """SKI to opcodes; None if it is another Keyless server, which can't list them.

    Raises HSMError, KeylessError or TimeoutError.
    """
    keys: dict[bytes, frozenset[int]] = {}

    def add(answer: keyless.Message) -> tuple[int, int | None]:
        page, following = keyless.decode_keys_response(answer)
        keys.update(page)
        return len(keys), following

    return keys if await _read_pages(link, keyless.KEYS_FUNCTION, add) else None


async def key_details(node: NodeClient) -> list[KeyDetails] | None:
    """A connected node's keys with what else it tells of them, by SKI; None if it can't list keys.

    Raises as `list_keys`.
    """
    if node.keys is None:
        return None
    if not node.links:
        raise errors.link_lost(node.last_error)
    told: dict[bytes, KeyDetails] = {}

    def add(answer: keyless.Message) -> tuple[int, int | None]:
        page, following = decode_details_response(answer)
        told.update((key.ski, key) for key in page)
        return len(told), following

    await _read_pages(
        node.links[0], DETAILS_FUNCTION, add
    )  # it need not know that: then there is less to tell
    unknown = KeyDetails(b"", frozenset())
    return [
        replace(told.get(ski, unknown), ski=ski, opcodes=opcodes)
        for ski, opcodes in sorted((node.keys or {}).items())
    ]


async def _read_pages(
    link: Link, function: bytes, add: Callable[[keyless.Message], tuple[int, int | None]]
) -> bool:
    """Have `add` read every page: it tells how many keys there are, and where the next page starts.

    False if the node does not know the function.
    """
    start: int | None = 0
    while start is not None:
        answer = await _ask(link, function, start)
        if isinstance(answer, HSMError):
            if answer.reason in ("bad_opcode", "internal_error"):
                return False
            raise answer
        count, following = add(answer)
        if count > MAX_KEYS or (following is not None and following <= start):
            raise keyless.KeylessError("the list of keys does not end")
        start = following
    return True


async def _ask(link: Link, function: bytes, start: int) -> Answer:
    answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def on_answer(answer: Answer) -> None:
        if not answered.done():
            answered.set_result(answer)

    if not link.is_open:  # lost since the last answer
        raise errors.link_lost(link.lost_because)
    link.request_keys(function, start, on_answer)
    async with asyncio.timeout(PAGE_TIMEOUT):
        return await answered
