"""What can go wrong between asking for a signature and having one.

One exception type: `reason` is a short stable word (it becomes a metric label), `source`
says whose fault it is, `retryable` whether another node may succeed.
"""

from __future__ import annotations

from enum import StrEnum


class Source(StrEnum):
    """Whose fault a failure is."""

    CLUSTER = "cluster"
    """No node was there to take it, or not in time."""
    LINK = "link"
    """The connection to a node was lost."""
    KEY = "key"
    """A node does not hold the key, or can't do that with it."""
    NODE = "node"
    """A node answered, but not with a good signature."""


class HSMError(Exception):
    """A signature (or another request to a node) failed.

    `reason` is one of the words below, or `error_XX` for a Keyless error code
    that has no word of its own.
    """

    def __init__(self, reason: str, message: str, *, source: Source, retryable: bool) -> None:
        super().__init__(message)
        self.reason = reason
        self.source = source
        self.retryable = retryable

    def __repr__(self) -> str:
        return f"HSMError({self.reason!r}, {str(self)!r}, source={self.source.value})"


def deadline_passed(detail: str = "no signature before the deadline") -> HSMError:
    """The caller's deadline passed first."""
    return HSMError("deadline", detail, source=Source.CLUSTER, retryable=False)


def no_node(detail: str) -> HSMError:
    """No node holds the key, or none that does can be reached."""
    return HSMError("no_node", detail, source=Source.CLUSTER, retryable=False)


def queue_full(limit: int) -> HSMError:
    """More requests wait for a node than `limit`."""
    return HSMError(
        "queue_full",
        f"{limit} requests already wait for a node",
        source=Source.CLUSTER,
        retryable=False,
    )


def queue_timeout(seconds: float) -> HSMError:
    """No node had room for as long as a request may wait for one."""
    return HSMError(
        "queue_timeout", f"no node had room within {seconds:g} s", source=Source.CLUSTER, retryable=False
    )


def overloaded() -> HSMError:
    """So many requests wait already that this one would not be served in time."""
    return HSMError(
        "overloaded",
        "the cluster is overloaded: a signature would come too late",
        source=Source.CLUSTER,
        retryable=False,
    )


def link_lost(detail: str) -> HSMError:
    """The connection broke while the request was in flight."""
    return HSMError("link_lost", detail, source=Source.LINK, retryable=True)


def attempt_timed_out(node: str) -> HSMError:
    """One node did not answer in its share of the time."""
    return HSMError("timeout", f"node {node} did not answer in time", source=Source.NODE, retryable=True)


def bad_signature(node: str) -> HSMError:
    """A node's signature does not verify under the certificate's public key."""
    return HSMError(
        "bad_signature", f"node {node} returned a wrong signature", source=Source.NODE, retryable=True
    )


class ConfigurationError(Exception):
    """The operator's mistake: the message names the place and the remedy, in one line."""
