"""A client of one node, for tools that talk to a node as it runs."""

from __future__ import annotations

import asyncio

from hsm.client import ClusterClient, ClusterOptions, NodeOptions, VerifyMode
from hsm.client.listing import key_details as node_details
from hsm.errors import ConfigurationError, HSMError
from hsm.inventory import KeyDetails
from hsm.keyless import KeylessError
from hsm.options import NodeTarget
from hsm.transport import client_context

CONNECT_TIMEOUT = 5.0
SIGN_TIMEOUT = 10.0
"""Seconds that a tool waits for one signature."""


async def connect(target: NodeTarget, verify: VerifyMode) -> ClusterClient:
    """A client of one node, connected. Raises ConfigurationError when it can't be reached."""
    context = client_context(target.tls) if target.tls is not None else None
    server_name = target.tls.server_name if target.tls is not None else None
    if not target.node.path and context is None:
        raise ConfigurationError("--node tls://… needs --tls-ca, --tls-certificate and --tls-key")
    options = NodeOptions("node", target.node, context, server_name)
    cluster = ClusterClient([options], ClusterOptions(verify=verify, max_queue_wait=SIGN_TIMEOUT))
    changed = asyncio.Event()
    cluster.on_change = changed.set
    cluster.start()
    node = cluster.nodes[0]
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            while not node.ready:
                await changed.wait()
                changed.clear()
    except TimeoutError as error:
        await cluster.close()
        raise ConfigurationError(
            f"no node answers at {target.node}: {node.last_error}; is it running, and may this user connect?"
        ) from error
    return cluster


async def key_details(cluster: ClusterClient) -> list[KeyDetails]:
    """What a client's one node holds, and tells of it. Raises ConfigurationError if it tells nothing."""
    try:
        details = await node_details(cluster.nodes[0])
    except (HSMError, KeylessError, TimeoutError) as error:
        raise ConfigurationError(
            f"the node did not list its keys: {str(error) or 'no answer in time'}"
        ) from error
    if details is None:
        raise ConfigurationError("this node can't list its keys (another Keyless server)")
    return details
